"""The study of real series, on a made one: every figure is kept, and made once."""

import json
import sys

import numpy as np
import pandas as pd

from lab import series


def read():
    times = pd.date_range("2020-01-01", periods=160, freq="MS")
    return pd.DataFrame({"time": times, "value": 5 + np.sin(np.arange(160) * np.pi / 6), "series": "toy"})


def test_the_study_goes_on_where_it_was_stopped(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(series, "SETS", {"toy": series.Set(read, 16, 4)})
    words = ["series", "--out", str(tmp_path), "--methods", "naive,bptt", "--seeds", "1", "--seconds", "1"]
    monkeypatch.setattr(sys, "argv", words)
    series.main()
    table = capsys.readouterr().out
    assert "| toy | wQL ↓ |" in table and (tmp_path / "results.md").read_text() in table
    records = json.loads((tmp_path / "results.json").read_text())
    assert [r["method"] for r in records] == ["naive", "bptt"] and records[0]["wql"] < 1e-6  # a season is the next
    monkeypatch.setattr(series, "run_trained", None)
    series.main()
    assert json.loads((tmp_path / "results.json").read_text()) == records


def test_ranks_and_the_best_are_of_means_over_seeds():
    scores = {"coverage": {"0.8": 0.8}, "mase": 1.0}
    records = [
        {"set": "a", "method": method, "seed": seed, "wql": wql, **scores}
        for method, values in {"smt": (0.1, 0.3), "bptt": (0.3, 0.3), "naive": (0.5,)}.items()
        for seed, wql in enumerate(values)
    ]
    lines = series.tabulate(records).splitlines()
    assert lines[2] == "| a | wQL ↓ | **0.2** | 0.3 | 0.5 |"
    assert lines[-1] == "| all | mean rank by wQL ↓ | 1.00 | 2.00 | 3.00 |"

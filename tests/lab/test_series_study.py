"""The study of real series, on a made one: every figure is kept, and made once."""

import json
import sys

import numpy as np
import pandas as pd

from lab import series, series_page, series_stream
from retain.data.frames import OneSeries
from retain.runs.run import load_series


def read():
    times = pd.date_range("2020-01-01", periods=600, freq="MS")
    return pd.DataFrame({"time": times, "value": 5 + np.sin(np.arange(600) * np.pi / 6), "series": "toy"})


def test_the_study_goes_on_where_it_was_stopped(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(series, "SETS", {"toy": series.Set(read, 16, 4)})
    words = ["series", "--out", str(tmp_path), "--methods", "naive,bptt", "--seeds", "1", "--seconds", "1"]
    monkeypatch.setattr(sys, "argv", words)
    series.main()
    records = json.loads((tmp_path / "results.json").read_text())
    assert [r["method"] for r in records] == ["naive", "bptt"] and records[0]["wql"] < 1e-6  # a season is the next
    monkeypatch.setattr(series, "run_trained", None)
    series.main()
    assert json.loads((tmp_path / "results.json").read_text()) == records


def make_records():
    scores = {"coverage": {"0.8": 0.8}, "mase": 1.0, "budget_seconds": 1.0}
    return [
        {"set": "a", "method": method, "seed": seed, "wql": wql, **scores}
        for method, values in {
            "smt": (0.1, 0.3), "one-step": (0.6, 0.6), "bptt": (0.3, 0.3), "naive": (0.5,),
        }.items()
        for seed, wql in enumerate(values)
    ]  # fmt: skip


def test_ranks_and_the_best_are_of_means_over_seeds():
    lines = series_page.tabulate(make_records(), "wql").splitlines()
    assert lines[0] == "| set | smt | one-step | bptt | naive |"
    assert lines[2] == "| a | **0.200 ± 0.141** | 0.600 ± 0.000 | 0.300 ± 0.000 | 0.500 |"
    assert lines[-1] == "| mean rank | 1.00 | 4.00 | 2.00 | 3.00 |"
    assert series_page.list_behind(make_records()) == "Behind the seasonal naive forecast: one-step on a.\n"


def test_the_page_is_written_from_kept_figures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs/results").mkdir(parents=True)
    series_page.PAGE.write_text("# Series\n\n<!-- series begin -->\n<!-- series end -->\nMore.\n")
    (tmp_path / "results.json").write_text(json.dumps(make_records()))
    series_page.main(["--from", str(tmp_path)])
    page = series_page.PAGE.read_text()
    assert "| a | 0.80 | 0.80 | 0.80 |" in page and page.endswith("More.\n")
    assert (tmp_path / "docs/results/series.png").stat().st_size > 5000
    series_page.main([])
    assert series_page.PAGE.read_text() == page


def test_faults_are_planted_where_they_are_labelled():
    one = OneSeries("a", np.cumsum(np.ones(300))[:, None], np.zeros((300, 0)), None)
    for kind, size in (("spike", 4.0), ("shift", 3.0)):
        planted, faulty = series_stream.plant(one, 100, kind, np.random.default_rng(0))
        apart = np.abs(planted.values - one.values)[:, 0]
        assert (apart[faulty] == size).all() and not apart[~faulty].any() and faulty[:100].sum() == 0 < faulty.sum()
    planted, faulty = series_stream.plant(one, 100, "stuck", np.random.default_rng(0))
    assert (np.diff(planted.values[:, 0])[faulty[1:]] == 0).all() and faulty.sum() % 8 == 0


def test_streams_are_read_and_their_faults_scored(tmp_path, monkeypatch):
    monkeypatch.setattr(series_stream, "SETS", {"toy": series.Set(read, 16, 4)})
    monkeypatch.setattr(series, "SETS", series_stream.SETS)
    rows = series_stream.find_faults("toy", "bptt", 1, 1.0, tmp_path)
    assert [row["fault"] for row in rows] == list(series_stream.FAULTS)
    assert all(0 <= row[score] <= 1 for row in rows for score in ("surprise", "difference", "deviation"))
    found = series_stream.read_long(load_series(tmp_path / "runs/toy-bptt-seed0"), 40, 3)
    assert (found["streams"], found["steps"], len(found["memory_mib_by_tenth"])) == (3, 40, 10)
    assert found["bytes_per_stream"] == 4 * 64 * 2  # one token of memory, one row of level and scale

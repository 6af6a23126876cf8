"""`make demo` at a moment a method: equal budgets and sizes, the figures of what was scored, nobody's files deleted."""

import json
from pathlib import Path

import pytest

from hubdata import few_modules
from lab import demo
from retain.cli.arguments import Usage
from retain.config.json import load_config


@pytest.mark.slow
def test_the_demo_gives_all_one_budget_and_shows_what_was_scored(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("lab.demo.OUT", tmp_path / "demo")
    monkeypatch.setattr("sys.argv", ["demo", "0.3"])
    monkeypatch.setattr("retain.training.accelerator.installed", lambda package: False)  # no trackers
    monkeypatch.setattr("retain.data.text.stdlib_files", few_modules)
    demo.main()
    said, rows = capsys.readouterr().out, json.loads((tmp_path / "demo/demo.json").read_text())
    assert [row["method"] for row in rows] == ["SMT → DMT", "BPTT, same cell", "BPTT, GRU"]
    assert rows[0]["parameters"] == rows[1]["parameters"] == pytest.approx(rows[2]["parameters"], rel=0.1)
    for row in rows:
        folder = Path(row["run"])
        assert load_config(folder / "config.json").budget == "0.3s"
        scored = json.loads((folder / "eval-test.json").read_text())
        assert scored["bits_per_token"] == row["bits_per_token"] and scored["split"] == "test"
        assert {"files", "bytes", "sha256"} <= {key.partition(".")[0] for key in scored["data"]}
        assert f"{row['bits_per_token']:.3f}" in said
        assert (row["teacher_bits_per_token"] is None) == ("BPTT" in row["method"])


def test_a_demo_deletes_no_other_run(monkeypatch, tmp_path):
    (tmp_path / "mine").mkdir()
    monkeypatch.setattr("lab.demo.OUT", tmp_path)
    monkeypatch.setattr("sys.argv", ["demo", "1"])
    with pytest.raises(Usage, match="holds mine, which is not of an earlier demo"):
        demo.main()
    assert (tmp_path / "mine").exists()

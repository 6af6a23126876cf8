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
    monkeypatch.setattr("retain.data.text.list_stdlib_files", few_modules)
    demo.main()
    said, rows = capsys.readouterr().out, json.loads((tmp_path / "demo/demo.json").read_text())
    methods = [(row["act"], row["method"], row["longest_gradient_path"]) for row in rows]
    assert methods == [
        ("recall", "one-step", 1),
        ("recall", "BPTT, same cell", 64),
        ("text", "hybrid", 32),
        ("text", "BPTT, same cell", 64),
        ("text", "BPTT, GRU", 64),
    ]
    assert rows[0]["parameters"] == rows[1]["parameters"]
    assert rows[2]["parameters"] == rows[3]["parameters"] == pytest.approx(rows[4]["parameters"], rel=0.1)
    assert said.count("█") + said.count(" s  ") >= 2, "every validation of the first act is drawn"
    for row in rows:
        folder = Path(row["run"])
        assert load_config(folder / "config.json").budget == "0.3s"
        scored = json.loads((folder / "eval-test.json").read_text())
        assert scored["bits_per_token"] == row["bits_per_token"] and scored["split"] == "test"
        assert "sha256" in {key.partition(".")[0] for key in scored["data"]}
        assert f"{row['accuracy' if row['act'] == 'recall' else 'bits_per_token']:.3f}" in said
        assert (row["teacher_bits_per_token"] is None) == ("BPTT" in row["method"])


def test_a_demo_deletes_no_other_run(monkeypatch, tmp_path):
    (tmp_path / "mine").mkdir()
    monkeypatch.setattr("lab.demo.OUT", tmp_path)
    monkeypatch.setattr("sys.argv", ["demo", "1"])
    with pytest.raises(Usage, match="contains mine, which no earlier demo wrote"):
        demo.main()
    assert (tmp_path / "mine").exists()

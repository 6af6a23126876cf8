"""`make bench`: rows are ratios of two sides, the page keeps its words and what was measured before."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

import naive as twins
from benchmarks import naive, page, rows, sides
from benchmarks.__main__ import main
from benchmarks.rows import ROWS, Row
from benchmarks.sides import PAPER, SMALL, at, full_window
from retain.config import DMTConfig
from retain.objectives import DMT, SMT

ROOT = Path(__file__).parents[2]
GOALS = {
    "smt-small": (4, True),
    "smt-paper": (4, True),
    "labels": (50, True),
    "register": (6, False),
    "dmt": (5, True),
    "peak": (0.35, True),
    "growth": (5, False),
    "bptt": (0.2, False),
    "generate-1": (3, True),
    "generate-64": (3, True),
    "onnx": (1, True),
    "weights": (0.5, True),
    "memory": (0.5, False),
    "attention": (1.2, False),
}
"""Each row's goal, and whether it is a least."""


@pytest.mark.parametrize("name", GOALS)
def test_goals_are_those_set(name, monkeypatch):
    """Each row as it is, on short sequences, each side run once and not timed."""

    def by_turns(*sides, repeats=1, primed=False):
        for side in sides:
            side()
        return [1.0] * len(sides)

    monkeypatch.setattr(rows, "by_turns", by_turns)
    monkeypatch.setattr(rows, "large", lambda: 64)
    monkeypatch.setattr(rows, "at", lambda size, *, length, batch=8: at(size, length=length // 16, batch=2))
    monkeypatch.setattr(rows, "SMALL", at(SMALL, length=24, batch=2))
    monkeypatch.setattr(rows, "peak_of", lambda side: 1.0)
    monkeypatch.setattr(rows, "quicken", lambda *models, compiled: {})
    monkeypatch.setattr(sides, "quicken", lambda *models: {})
    monkeypatch.setattr(rows, "fast_step", lambda rnn, batch=1: rnn.step)
    monkeypatch.setattr(rows, "PAPER", dataclasses.replace(at(rows.PAPER, length=320, batch=1), cell=SMALL.cell))
    row = ROWS[name]()
    assert (row.goal, row.least) == GOALS[name]
    assert list(ROWS) == list(GOALS)


def test_a_step_of_paper_size_reads_a_whole_window():
    """Its work is counted and timed for the same tokens: at random places a window has 1 … 256."""
    torch.manual_seed(full_window(PAPER))
    assert int(torch.randint(PAPER.length, ())) >= PAPER.teacher.context_len == 256


def test_a_goal_is_met_from_its_side():
    assert Row("", 4, True, 4.0, "").met and not Row("", 4, True, 3.9, "").met
    assert Row("", 0.5, False, 0.5, "").met and not Row("", 0.5, False, 0.6, "").met


@pytest.mark.parametrize("which", page.FIGURES)
def test_rows_are_kept_beside_each_other(which, tmp_path, monkeypatch, capsys):
    device, precision = which.split() if " " in which else (which, "bfloat16")
    monkeypatch.setattr(page, "by_turns", lambda *sides: [1.0])
    monkeypatch.setattr(page, "product", lambda size: None)
    monkeypatch.setattr(page, "device", lambda: torch.device(device))
    monkeypatch.setattr(page, "precision", lambda: getattr(torch, precision))
    page.machine.cache_clear()
    monkeypatch.setattr(page, "PAGE", tmp_path / "benchmarks.md")
    monkeypatch.setitem(page.FIGURES, which, tmp_path / "benchmarks.json")
    begin, end = page.MARKS[which]
    (tmp_path / "benchmarks.md").write_text(f"Words.\n{begin}\nold\n{end}\nMore words.\n")
    monkeypatch.setitem(ROWS, "growth", lambda: Row("growing", 5, False, 7.25, "a against b"))
    monkeypatch.setitem(ROWS, "bptt", lambda: Row("bptt", 0.2, False, 0.125, "c against d"))
    main(["growth"])
    main(["bptt"])
    assert "not met" not in capsys.readouterr().out.rpartition("| row")[2]
    text = (tmp_path / "benchmarks.md").read_text()
    assert text.startswith("Words.") and text.endswith("More words.\n") and "old" not in text
    assert "| ≤ 5 | 7.25 | **not met** | a against b |" in text and "| ≤ 0.2 | 0.12 | met | c against d |" in text
    assert set(json.loads((tmp_path / "benchmarks.json").read_text())["rows"]) == {"growth", "bptt"}


@pytest.mark.parametrize("which", page.FIGURES)
def test_the_page_is_of_its_figures(which):
    kept = json.loads((ROOT / page.FIGURES[which]).read_text())
    begin, end = page.MARKS[which]
    shown = (ROOT / page.PAGE).read_text().partition(begin)[2].partition(end)[0]
    assert shown.split() == page.markdown(kept["machine"], kept["rows"]).split()


def test_an_unknown_row_is_named(capsys):
    with pytest.raises(SystemExit):
        main(["speed"])
    assert "rows: speed not among smt-small" in capsys.readouterr().err


@pytest.mark.parametrize("encoder", ["state", "register", "window"])
@pytest.mark.parametrize("cell", ["transformer", "gated"])
def test_the_plain_side_computes_the_same(encoder, cell):
    teacher, rnn = twins.models(encoder, cell)
    objective = SMT(teacher, rnn, twins.smt_config(), 3)
    batch = twins.batch()
    found = []
    for side in (objective, naive.plain(lambda: objective(batch))):
        torch.manual_seed(0)
        losses = side(batch) if side is objective else side()
        found.append((losses, twins.gradients(losses["loss"], objective)))
    twins.assert_close(*[losses for losses, _ in found])
    twins.assert_close(*[gradients for _, gradients in found])


def test_the_plain_rollout_computes_the_same():
    teacher, rnn = twins.models(cell="transformer")
    batch = twins.batch()
    ours = DMT(teacher, rnn, DMTConfig(horizon_growth=0.0, lambda_readout=1.0, lambda_dyn=1.0))
    loop = naive.DetachedLoop(teacher, rnn)
    twins.assert_close(ours(batch)["loss"], loop(batch)["loss"])
    twins.assert_close(twins.gradients(ours(batch)["loss"], rnn), twins.gradients(loop(batch)["loss"], rnn))

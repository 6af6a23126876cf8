"""Sequential steps: counted as by hand, as autograd and the cell do them, and added up by the loop."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from conftest import tiny
from naive import batch, models
from retain.config import DMTConfig
from retain.config.budget import parse_budget
from retain.config.presets import PRESETS
from retain.experiments.compare import configure_method
from retain.objectives import BPTT, DMT, SMT
from retain.runs.run import build
from retain.training.loop import train
from retain.training.phases import objective_of


def counted(method, progress=0.0, **changes):
    """Sequential steps of one optimizer step of a method's first phase, or of DMT, T = 8."""
    config = configure_method(tiny(**changes), "smt" if method == "dmt" else method)
    rnn, teacher = build(config, 9)
    kinds = {
        "smt": lambda: SMT(teacher, rnn, config.smt, config.teacher.future_len),
        "dmt": lambda: DMT(teacher, rnn, config.dmt, trunk_trained=True),
        "bptt": lambda: BPTT(rnn, config.bptt.bptt_window),
    }
    return kinds[method if method == "dmt" else config.phases[0]]().sequential_steps(8, progress)


WHOLE = {"dmt__horizon_growth": 0.0}


@pytest.mark.parametrize(
    "method, changes, by_hand",
    [
        # 8 cells and the readout; back through the readout and 8 cells
        ("bptt", {}, 8 + 1 + 1 + 8),
        ("gru", {}, 8 + 1 + 1 + 8),
        ("lstm", {"teacher__decoder_layers": 3}, 8 + 3 + 3 + 8),
        ("bptt", {"cell__layers": 2}, 16 + 1 + 1 + 16),
        ("tbptt", {"bptt__bptt_window": 3}, 8 + 1 + 1 + 3),
        ("tbptt", {"bptt__bptt_window": None}, 8 + 1 + 1 + 2),
        # encoder 2, eight own steps, f, readout 1; back through readout, f and encoder
        ("smt", {"teacher__layers": 2}, 2 + 8 + 1 + 1 + (1 + 1 + 2)),
        # nothing on its own memories: encoder, then the decoder, which is as deep as readout and deeper than f
        ("smt", {"smt__on_policy": 0.0, "teacher__decoder_layers": 2}, 1 + (1 + 2) + (2 + 1) + 1),
        # no readout: the decoder of 2 is the longest way there and back
        (
            "smt",
            {"smt__on_policy": 0.0, "smt__lambda_readout": 0.0, "teacher__decoder_layers": 2},
            1 + 2 + 2 + 1,
        ),
        # four steps of f with gradient, after eight without; back through readout, four steps and encoder
        ("smt", {"smt__bptt_window": 4}, 1 + 8 + 4 + 1 + (1 + 4 + 1)),
        ("smt", {"smt__bptt_window": 4, "smt__num_chunks": 2}, 1 + 4 + 1 + (1 + 4 + 1) + 1),
        ("smt", {"teacher__layers": 2, "smt__num_chunks": 2}, 2 + 4 + 1 + 1 + (1 + 1 + 2 + 2)),
        ("smt", {"smt__bptt_window": None}, 1 + 8 + 1 + (1 + 8 + 1)),
        ("dmt", WHOLE | {"dmt__horizon": 4, "dmt__bptt_window": 5}, 1 + 4 + 5 + 1 + (1 + 5)),
        # alone from m_0 and trained over the whole of it: the rollout itself is trained
        ("dmt", WHOLE | {"dmt__horizon": 8, "dmt__bptt_window": 8}, 1 + 8 + 1 + (1 + 8)),
        ("dmt", WHOLE | {"dmt__horizon": 8, "dmt__bptt_window": None}, 1 + 8 + 1 + (1 + 8)),
        ("dmt", WHOLE | {"dmt__horizon": 4, "dmt__bptt_window": None}, 1 + 8 + 1 + (1 + 8)),
        ("dmt", WHOLE | {"dmt__horizon": 8, "dmt__bptt_window": 5}, 1 + 8 + 5 + 1 + (1 + 5)),
        (
            "dmt",
            {"dmt__horizon_growth": 0.0, "dmt__horizon": 8, "dmt__bptt_window": 5, "cell__kind": "gated"},
            1 + 8 + 1 + (1 + 5),
        ),
        ("dmt", WHOLE | {"dmt__horizon": 4}, 1 + 4 + 1 + 1 + (1 + 1)),
        ("dmt", {"dmt__predictive": False}, 1 + 1 + 1 + 1 + 1),
        ("dmt", {"dmt__lambda_dec": 1.0, "teacher__decoder_layers": 3}, 1 + 1 + 1 + 3 + (1 + 3)),
    ],
)
def test_sequential_steps_by_hand(method, changes, by_hand):
    assert counted(method, **changes) == by_hand


def test_the_documents_count_the_retrieval_preset_as_it_is():
    config = PRESETS["retrieval"]()
    config = dataclasses.replace(config, phases=("smt", "dmt", "bptt"))
    rnn, teacher = build(config, 26)
    objectives = [objective_of(index, config, rnn, teacher) for index in range(3)]
    count = {name: made.sequential_steps(64, 1.0) for name, made in zip(config.phases, objectives, strict=True)}
    of_smt = f"{count['smt']} of SMT (U = 16) and {count['dmt']} of DMT (H = 64, U = 32)"
    said = f"T = 64 has {count['bptt']} per step of BPTT, {of_smt}"
    page = " ".join(Path("docs/compare.md").read_text().split())
    paper = DMT(teacher, rnn, dataclasses.replace(config.dmt, bptt_window=1), True).sequential_steps(64, 1.0)
    assert f"{said}. With the paper's `--dmt.bptt-window 1` DMT has {paper}." in page


def test_sequential_steps_of_dmt_grow_with_its_horizon():
    shallow, whole = (counted("dmt", p) for p in (0.0, 1.0))
    assert (shallow, whole) == (1 + 1 + 1 + 1 + 2, 1 + 8 + 1 + 1 + 2)


def test_the_count_is_what_autograd_and_the_cell_do(monkeypatch):
    """Cells really applied one after another, and how far back the gradient really goes."""
    data = batch(length=6)
    monkeypatch.setattr(torch, "randint", lambda high, size: torch.zeros(size, dtype=torch.long))
    rnn = models(cell="mlp", norm="rms")[1]
    applied = []
    rnn.cell.register_forward_hook(lambda *_: applied.append(1))
    for truncate, back in ((None, 6), (2, 2), (4, 4)):
        objective = BPTT(rnn, truncate)
        applied.clear()
        objective(data)
        assert objective.sequential_steps(6) == 2 * len(applied) + 2 * 2 + 2 * back, "2 layers of cell and of readout"


@pytest.mark.parametrize("horizon", [1, 2, 6])
def test_dmt_applies_the_cell_as_often_as_counted(horizon):
    teacher, rnn = models(cell="mlp", norm="rms")
    applied = []
    rnn.cell.register_forward_hook(lambda *_: applied.append(1))
    objective = DMT(teacher, rnn, DMTConfig(horizon=horizon, horizon_growth=0.0))
    applied.clear()
    objective(batch(length=6))
    # 2 encoder layers, then a rollout and one more f of 2 layers each, 2 of readout; back 2 + 2
    assert objective.sequential_steps(6) == 2 + 2 * len(applied) + 2 + 4


def test_the_loop_adds_them_up_and_stops_by_them(tmp_path):
    config = tiny(
        phases=("smt", "bptt"), budget="100sequential", bptt__bptt_window=None, optimizer__gradient_accumulation_steps=2
    )
    summary = train(config, tmp_path / "run", progress_bar=False)
    lines = [json.loads(x) for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    lines = [x for x in lines if "loss" in x]
    smt, bptt = counted("smt"), counted("bptt")
    # Half of the budget each, and a phase ends with the step that reaches it; micro-batches do not wait.
    steps = -(-50 // smt), -(-50 // bptt)
    assert [x["phase"] for x in lines] == ["smt"] * steps[0] + ["bptt"] * steps[1]
    assert summary["sequential_steps"] == lines[-1]["sequential_steps"] == steps[0] * smt + steps[1] * bptt
    assert lines[0]["sequential_steps"] == smt


def test_budgets_in_sequential_steps():
    budget = parse_budget("20ksequential")
    assert (budget.amount, budget.unit, str(budget)) == (20_000, "sequential", "20000sequential")
    with pytest.raises(ValueError, match="500ksequential"):
        parse_budget("20sequentials")


def test_an_older_checkpoint_counts_from_zero():
    from retain.runs.progress import Progress

    assert Progress(step=3, tokens=9).total("sequential") == 0

"""A run with a delta trunk, memory of levels and rollouts for all steps at once: trained, scored and told of."""

import json

import pytest
import torch

from conftest import tiny
from retain.cli import main
from retain.config import data_config
from retain.errors import UserError
from retain.runs.run import load
from retain.training.loop import train

CHANGES = {
    "data": data_config(name="parity", seq_len=8),
    "memory__norm": "fsq",
    "memory__levels": 3,
    "teacher__trunk": "delta",
    "smt__on_policy": 0.0,
    "dmt__rollout": "newton",
    "dmt__horizon_growth": 0.0,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("limits") / "run"
    train(tiny(**CHANGES), out, progress_bar=False)
    return out


def test_the_rollouts_are_counted(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    of_dmt = [line for line in lines if line["phase"] == "dmt" and "loss" in line]
    assert len(of_dmt) == 6 and all(1 <= line["rollout_iterations"] <= 8 for line in of_dmt)
    assert all(line["rollout_fallback"] == 0 for line in of_dmt), "8 steps take at most 8 iterations"


def test_the_memory_is_on_the_grid_and_its_bits_are_told(run, capsys):
    rnn = load(run)
    tokens = torch.randint(2, (4, 50), generator=torch.Generator().manual_seed(0))
    memories = rnn.rollout(tokens, rnn.init_memory(4))
    assert torch.isin(
        torch.cat([memories.flatten(), rnn.init_memory(1).flatten()]), torch.tensor([-1.0, 0.0, 1.0])
    ).all()
    main(["eval", str(run), "--limit", "8"])
    assert "memory bits       25   entropy" in capsys.readouterr().out
    main(["info", str(run)])
    assert "memory    2 x 8, numbers of 3 levels (fsq), 25 bits" in capsys.readouterr().out


def test_another_trunk_or_other_levels_are_not_started_from(run, tmp_path):
    for name, words in (("teacher__trunk", "teacher.trunk delta"), ("memory__levels", "memory.levels 3")):
        other = CHANGES | {name: "attention" if name == "teacher__trunk" else 4, "init_from": str(run)}
        with pytest.raises(UserError, match=f"init_from: .* has {words} and this run"):
            train(tiny(**other), tmp_path / name, progress_bar=False)

"""`retain tasks`, the presets of memory tasks, and impossible sizes on the command line."""

import dataclasses
import json

import numpy as np
import pytest

from conftest import tiny
from oracles import oracle
from retain.config import IGNORE, TASK_DATA
from retain.config.json import save_config
from retain.config.presets import PRESETS
from retain.data import load_data
from retain.data.tasks import TASKS
from retain.training.loop import train


def test_tasks_are_listed_with_a_sample(retain):
    code, said, complaints = retain("tasks")
    assert (code, complaints) == (0, "")
    for name, task in TASKS.items():
        assert f"{name}: {task.summary} (vocabulary " in said
    assert max(map(len, said.splitlines())) <= 120
    blocks = said.split("\n\n")
    assert len(blocks) == len(TASKS) + 1
    stack = next(block for block in blocks if block.startswith("stack:"))
    _, _, reads, answers = stack.splitlines()
    # A pop is answered right below it.
    assert reads.split()[0] == "reads" and answers.split()[0] == "answers"
    for column in (i for i in range(len(reads)) if reads.startswith("pop", i)):
        assert answers[column] in "abcd"


def test_tasks_as_json(retain):
    code, said, _ = retain("tasks", "--json")
    listed = json.loads(said)
    assert code == 0 and [task["name"] for task in listed] == list(TASKS)
    for task in listed:
        sample = task["sample"]
        built = TASKS[task["name"]](**sample["size"])
        assert oracle(built, np.array([sample["tokens"]])).tolist() == [sample["targets"]]
        assert sample["reads"] == [built.words[t] for t in sample["tokens"]]
        assert [a is None for a in sample["answers"]] == [t == IGNORE for t in sample["targets"][1:]]
        assert any(a is not None for a in sample["answers"])


def test_tasks_takes_no_argument(retain):
    code, said, complaints = retain("tasks", "stack")
    assert (code, said) == (2, "")
    assert "stack" in complaints and complaints.count("\n") == 1


@pytest.mark.parametrize("name", TASK_DATA)
def test_every_task_has_a_preset_that_trains(name, tmp_path):
    config = PRESETS[name]()
    assert config.data.name == config.preset == name
    small = dataclasses.replace(
        config,
        budget="4steps",
        smt=dataclasses.replace(config.smt, batch_size=2),
        dmt=dataclasses.replace(config.dmt, batch_size=2),
        validation_sequences=4,
        device="cpu",
        tracker=None,
    )
    summary = train(small, tmp_path / "run", progress_bar=False)
    data = load_data(config.data)
    tokens = sum(data.batch(config.seed, step, 0, 2)["tokens"].numel() for step in range(4))
    assert summary["steps"] == 4 and summary["tokens"] == tokens
    assert summary["vocab_size"] == data.vocab_size


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        ("--data.name copy --data.seq-len 20", ["data.seq_len: 20", "copy of 16 symbols", "32"]),
        ("--data.name mqar --data.symbols 4", ["data.pairs: 8", "data.symbols 4", "at most 4"]),
        ("--data.name keys_values --data.symbols 2 --data.seq-len 64", ["data.pairs: 8", "data.symbols 2"]),
        ("--data.name s5 --data.symbols 7", ["data.symbols: 7", "not read by s5"]),
        ("--data.name stack --data.symbols 4 --data.depth 0", ["depth: 0", "positive"]),
        ("--data.name parity --data.label-noise 2", ["data.label_noise: 2.0", "below 1"]),
        ("--data.name queue", ["data.name: 'queue'", "stack", "selective_copy"]),
    ],
)
def test_impossible_sizes_are_one_line_and_leave_nothing(retain, tmp_path, options, fragments):
    save_config(tiny(), tmp_path / "tiny.json")
    out = tmp_path / "run"
    code, said, complaints = retain("train", "--config", tmp_path / "tiny.json", "--out", out, *options.split())
    assert (code, said, complaints.count("\n")) == (2, "", 1)
    for fragment in fragments:
        assert fragment in complaints
    assert not out.exists()

"""What a run would cost, told without running it."""

import dataclasses
import json

import pytest

from hubdata import SMALL
from retain.config.presets import PRESETS
from retain.runs.run import build


def test_a_dry_run_tells_sizes_and_writes_nothing(retain, sources, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = ["train", "tinystories", "--data", sources / "stories", *SMALL, "--dry-run"]
    code, said, complaint = retain(*line, "--json")
    assert code == 0, complaint
    found = json.loads(said)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache"]
    config = dataclasses.replace(
        PRESETS["tinystories"](), memory=dataclasses.replace(PRESETS["tinystories"]().memory, width=16)
    )
    config = dataclasses.replace(
        config,
        cell=dataclasses.replace(config.cell, width=16),
        teacher=dataclasses.replace(config.teacher, width=16, layers=1),
    )
    rnn, teacher = build(config, 256)
    assert found["parameters"] == {
        "rnn": sum(p.numel() for p in rnn.parameters()),
        "teacher": sum(p.numel() for p in teacher.parameters()),
    }
    assert (found["phases"]["smt"]["steps"], found["phases"]["dmt"]["steps"]) == (1, 3)  # of 4, shared 3 to 7
    for phase in found["phases"].values():
        assert phase["seconds"] == pytest.approx(phase["steps"] * phase["seconds_per_step"])
        assert phase["tokens_per_step"] == 2 * 64
        assert phase["flops_per_step"] > 6 * phase["tokens_per_step"] * 16 * 16
    code, said, _ = retain(*line)
    assert code == 0 and "parameters" in said and "altogether" in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache"]


def test_flops_and_activations_of_a_dry_run_grow_as_they_should(retain, sources, tmp_path):
    def phases(*options):
        line = ["train", "tinystories", "--data", sources / "stories", *SMALL, *options, "--dry-run", "--json"]
        return json.loads(retain(*line)[1])["phases"]

    once, twice = phases(), phases("--smt.batch-size", "4")
    assert twice["smt"]["flops_per_step"] == 2 * once["smt"]["flops_per_step"]
    # Up to a few small tensors that happen to come to lie where one has just been freed.
    assert twice["smt"]["activation_bytes"] == pytest.approx(2 * once["smt"]["activation_bytes"], rel=1e-3)
    in_two = phases("--optimizer.gradient-accumulation-steps", "2")
    assert in_two["dmt"]["flops_per_step"] == 2 * once["dmt"]["flops_per_step"]
    assert in_two["dmt"]["activation_bytes"] == pytest.approx(once["dmt"]["activation_bytes"], rel=1e-3)


def test_a_budget_in_sequential_steps_has_a_number_of_steps(retain, sources):
    line = ["train", "tinystories", "--data", sources / "stories", *SMALL, "--dry-run", "--json"]
    code, said, complaint = retain(*line, "--budget", "20ksequential", "--phases", "bptt", "--bptt.batch-size", "2")
    assert code == 0, complaint
    # 64 steps of a cell of one layer and a readout of one, there and back.
    assert json.loads(said)["phases"]["bptt"]["steps"] == round(20_000 / (64 + 1 + 1 + 64))


def test_sequences_without_end_are_not_counted(retain):
    found = json.loads(retain("train", "retrieval", "--dry-run", "--json", "--smt.batch-size", "2")[1])
    assert found["sequences"] == {"train": None, "validation": 2048, "test": 2048}


def test_activations_of_a_dry_run_are_those_held_at_once(retain):
    def held(*options):
        line = ["train", "stack", "--smt.bptt-window", "1", "--smt.on-policy", "0", "--smt.decodes-per-sequence", "1"]
        line += ["--smt.batch-size", "1", "--dmt.batch-size", "1", "--data.seq-len", "512", *options]
        code, said, complaint = retain(*line, "--phases", "smt", "--dry-run", "--json")
        assert code == 0, complaint
        return json.loads(said)["phases"]["smt"]["activation_bytes"]

    assert held("--smt.num-chunks", "8") < 0.7 * held()


def test_flops_hold_what_f_does_on_its_own(retain, sources):
    def flops(share):
        line = ["train", "tinystories", "--data", sources / "stories", *SMALL, "--smt.on-policy", share]
        return json.loads(retain(*line, "--dry-run", "--json")[1])["phases"]["smt"]["flops_per_step"]

    assert flops(0.5) > flops(0.0)

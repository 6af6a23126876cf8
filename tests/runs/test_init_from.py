"""Runs that start from another run, and run folders of RNNs that were trained in a loop of one's own."""

import dataclasses
import json
import shutil
from unittest.mock import patch

import pytest
import torch

import retain
from conftest import tiny
from retain.cli import main
from retain.config import CellConfig, MemoryConfig, data_config
from retain.data import load_data
from retain.model.rnn import RNN
from retain.objectives import SMT
from retain.runs.checkpoint import load_files
from retain.runs.run import load_run
from retain.training.loop import train, train_phases
from runs import run


def start(out, source, **changes):
    """Weights of RNN and teacher as the first step of a run from `source` finds them."""
    found = {}

    def looked(job, *arguments):
        found["model"] = {k: v.clone() for k, v in job.rnn.state_dict().items()}
        found["teacher"] = {k: v.clone() for k, v in job.teacher.state_dict().items()}
        return train_phases(job, *arguments)

    with patch("retain.training.loop.train_phases", looked):
        train(tiny(init_from=str(source), **changes), out, progress_bar=False)
    return found


def same(a, b):
    return all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("phases", [("smt", "dmt"), ("dmt",), ("bptt",)])
def test_a_run_begins_with_the_weights_of_the_other(phases, retrieval_run, tmp_path):
    source, _ = load_files(retrieval_run, ["model", "teacher"])
    found = start(tmp_path / "run", retrieval_run, phases=phases, budget="4steps")
    assert same(source["model"], found["model"])
    assert same(source["teacher"], found["teacher"]) == (phases != ("bptt",))
    guided = load_run(tmp_path / "run").config.has_teacher
    assert guided == (phases != ("bptt",))
    main(["eval", str(tmp_path / "run"), "--json"])
    drift = json.loads((tmp_path / "run" / "eval-test.json").read_text())["drift"]
    assert (drift is not None) == guided


def test_smt_keeps_the_readout_that_it_is_given(retrieval_run):
    def readout(**settings):
        both = load_run(retrieval_run, teacher=True)
        before = {k: v.clone() for k, v in both.rnn.readout.state_dict().items()}
        SMT(both.teacher, both.rnn, both.config.smt, both.config.teacher.future_len, **settings)
        return same(before, both.rnn.readout.state_dict())

    assert readout(fresh=False) and not readout()


def test_it_goes_on_without_the_other_run(retrieval_run, tmp_path):
    """Resumed bit for bit, from its own checkpoint, when the run that it started from is gone."""
    source = tmp_path / "source"
    shutil.copytree(retrieval_run, source)
    config = tiny(init_from=str(source), phases=("dmt",), budget="6steps", validate_every="2steps")
    train(config, tmp_path / "whole", progress_bar=False)

    def stop(number):
        if number == 4:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        run(config, tmp_path / "cut", stop)
    shutil.rmtree(source)
    train(config, tmp_path / "cut", resume=True, progress_bar=False)
    whole, cut = (load_files(tmp_path / name, ["model"])[0]["model"] for name in ("whole", "cut"))
    assert same(whole, cut)


def test_the_line_of_the_readme(text_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(text_run.parent)
    main(["train", "--config", "run", "--init-from", "run", "--out", str(tmp_path / "more"), "--phases", "dmt"])
    assert load_run(tmp_path / "more").config.init_from == str(text_run)
    assert "next: retain eval" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"memory": MemoryConfig(tokens=2, width=8, norm="rms")}, "has memory.norm batch and this run rms"),
        ({"data": data_config(name="retrieval", seq_len=8, symbols=5)}, "give data of the same"),
        ({"cell": CellConfig(kind="mlp", width=32)}, "the weights in .* do not fit this run"),
        (
            {"cell": CellConfig(kind="mlp", width=16, heads=2, residual=False)},
            "has cell.residual True and this run False; give --cell.residual$",
        ),
        ({"init_from": "nowhere"}, "init_from: nowhere holds no config.json"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_one_clear_line(changes, words, retrieval_run, tmp_path):
    config = tiny(init_from=str(retrieval_run))
    with pytest.raises(ValueError, match=words):
        train(dataclasses.replace(config, **changes), tmp_path / "run", progress_bar=False)
    assert not (tmp_path / "run").exists(), "the corrected line may have the folder"


def test_a_teacher_that_nothing_trained_is_not_followed(bptt_run, tmp_path):
    with pytest.raises(ValueError, match=r"init_from: .* \(bptt\) has no teacher for dmt to follow"):
        train(tiny(init_from=str(bptt_run), phases=("dmt",)), tmp_path / "run", progress_bar=False)
    with pytest.raises(ValueError, match="has no teacher for dmt to follow"):
        train(tiny(init_from=str(bptt_run), phases=("dmt", "smt")), tmp_path / "run", progress_bar=False)
    with pytest.raises(ValueError, match="put smt before it, or start from a run that has one"):
        tiny(phases=("dmt",))


def test_comparisons_start_anew(retrieval_run, tmp_path, capsys):
    line = [
        "compare",
        "retrieval",
        "--methods",
        "bptt",
        "--init-from",
        str(retrieval_run),
        "--out",
        str(tmp_path / "c"),
    ]
    with pytest.raises(SystemExit) as stop:
        main(line)
    assert stop.value.code == 2 and "init_from: every method starts from scratch" in capsys.readouterr().err


# RNNs trained elsewhere


class Own(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = torch.nn.Linear(8, 8)

    def forward(self, memory, inputs):
        return memory + self.mix(inputs)[:, None]


@pytest.mark.parametrize("own", [False, True])
def test_an_rnn_of_ones_own_loop_is_saved_and_loaded(own, tmp_path, capsys):
    config = tiny()
    data = load_data(config.data)
    rnn = RNN(data.vocab_size, config.memory, config.teacher, config.cell, Own() if own else None)
    if own:
        rnn.cell.table = torch.nn.Buffer(torch.ones(2, dtype=torch.float64))
        retain.save(rnn, config, tmp_path / "precise", data=data)
        assert rnn.cell.table.dtype == torch.float64, "the caller's cell stays as it is"
        del rnn.cell.table
    retain.save(rnn, config, tmp_path / "run", data=data)
    back = retain.load(tmp_path / "run", cell=Own() if own else None)
    assert same(rnn.state_dict(), back.state_dict())
    with pytest.raises(ValueError, match="already exists"):
        retain.save(rnn, config, tmp_path / "run")
    if own:
        with pytest.raises(ValueError, match="with a cell of your own, Own"):
            retain.load(tmp_path / "run")
        return
    for command in ("eval", "generate", "report", "info"):
        main([command, str(tmp_path / "run"), *(["--length", "5"] if command == "generate" else [])])
    assert "no teacher.safetensors" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "eval-test.json").read_text())["drift"] is None
    assert json.loads((tmp_path / "run" / "report.json").read_text())["runs"][0]["status"] == "finished"


def test_an_rnn_in_double_precision_is_saved(tmp_path):
    config = tiny()
    rnn = RNN(9, config.memory, config.teacher, config.cell).double()
    retain.save(rnn, config, tmp_path / "run")
    assert same({k: v.float() for k, v in rnn.state_dict().items()}, retain.load(tmp_path / "run").state_dict())


def test_a_config_of_another_rnn_is_refused(tmp_path):
    config = tiny()
    rnn = RNN(9, config.memory, config.teacher, config.cell)
    for changes, words in (
        ({"cell": CellConfig(kind="mlp", width=4)}, "config: it is not that of the RNN"),
        ({"cell": CellConfig(kind="gru")}, "config: its cell is a GRUCell, the RNN's a MLPCell"),
        ({"memory": MemoryConfig(tokens=2, width=8, norm="rms")}, "config: with these weights it is another RNN"),
    ):
        with pytest.raises(ValueError, match=words):
            retain.save(rnn, dataclasses.replace(config, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_from_a_saved_one(tmp_path):
    config = tiny(phases=("bptt",), budget="3steps")
    rnn = RNN(load_data(config.data).vocab_size, config.memory, config.teacher, config.cell)
    retain.save(rnn, config, tmp_path / "mine")
    found = start(tmp_path / "more", tmp_path / "mine", phases=("bptt",), budget="3steps")
    assert same(rnn.state_dict(), found["model"])

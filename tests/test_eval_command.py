"""`retain eval` of what a run was not trained on, at other lengths, and without its teacher or its data."""

import json
import shutil

import numpy as np
import pytest
import torch

from conftest import tiny
from retain.cli import main
from retain.config import DataConfig
from retain.data import load_data
from retain.evaluate import LEFT, evaluate, has_left
from retain.run import load_run
from retain.train import train


def refused(capsys, *argv):
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in argv])
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_another_file_is_scored_whole(text_run, tmp_path, capsys):
    other = tmp_path / "other.txt"
    other.write_text("whether 'tis nobler")  # 19 bytes, far too few to be cut in three
    main(["eval", str(text_run), "--data", str(other), "--json"])
    result = json.loads(capsys.readouterr().out)
    assert (result["split"], result["tokens"], result["sequences"]) == ("all", 19, 3)
    run = load_run(text_run, teacher=True)
    tokens = torch.tensor([list(other.read_bytes()[:18])]).view(2, 9)
    one = {"tokens": tokens[:, :-1], "targets": tokens}
    both = evaluate(run.rnn, run.teacher, [one])
    assert both["tokens"] == 18
    told = result["bits_by_position"][1:]
    assert told == pytest.approx(both["bits_by_position"][1:], rel=1e-4), "the last window has its first byte alone"
    assert (text_run / "eval-all-other.json").exists()
    main(["eval", str(text_run), "--data", str(other), "--seq-len", "18", "--json"])
    assert json.loads(capsys.readouterr().out)["sequences"] == 1
    assert "the file has only 19" in refused(capsys, "eval", text_run, "--data", other, "--seq-len", 19)


def test_rows_are_scored_whole(tmp_path, capsys):
    rows = np.random.default_rng(0).integers(0, 5, (40, 9))
    np.save(tmp_path / "rows.npy", rows)
    np.save(tmp_path / "other.npy", rows[:7])
    data = DataConfig(name="npy", path=str(tmp_path / "rows.npy"), seq_len=8, vocab_size=5)
    train(tiny(data=data, budget="4steps"), tmp_path / "run", progress_bar=False)
    main(["eval", str(tmp_path / "run"), "--data", str(tmp_path / "other.npy"), "--json"])
    result = json.loads(capsys.readouterr().out)
    assert (result["split"], result["tokens"], result["sequences"]) == ("all", 63, 7)


def test_at_another_length(text_run, capsys):
    main(["eval", str(text_run), "--seq-len", "24", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert result["seq_len"] == 24 and len(result["bits_by_position"]) == 25
    assert json.loads((text_run / "eval-test-length24.json").read_text()) == result
    main(["eval", str(text_run), "--json"])
    assert json.loads(capsys.readouterr().out)["tokens"] == result["tokens"], "every token once, at any length"


def test_a_task_at_another_length_is_not_called_other_data(retrieval_run, capsys):
    main(["eval", str(retrieval_run), "--seq-len", "12", "--limit", "8"])
    assert capsys.readouterr().err == ""


def test_all_is_of_a_file(retrieval_run, capsys):
    assert "split: all is of a text or a .npy file, and this is retrieval" in refused(
        capsys, "eval", retrieval_run, "--split", "all"
    )


def test_an_rnn_that_was_shipped_alone(text_run, tmp_path, capsys):
    """The files that the README names."""
    (tmp_path / "ship").mkdir()
    for name in ("config.json", "state.json", "manifest.json", "model.safetensors"):
        shutil.copy(text_run / name, tmp_path / "ship")
    main(["eval", str(tmp_path / "ship")])
    said = capsys.readouterr()
    assert "ship has no teacher.safetensors" in said.err and "drift" not in said.out and "bits per token" in said.out


class Mine:
    """Data of one's own: what load_data gives, under another name."""

    def __init__(self, config):
        self.inner = load_data(config)

    def __getattr__(self, name):
        return getattr(self.inner, name)


def test_data_of_ones_own_is_not_taken_for_what_the_config_names(tmp_path, capsys):
    config = tiny(budget="4steps")
    train(config, tmp_path / "run", data=Mine(config.data), progress_bar=False)
    complaint = refused(capsys, "eval", tmp_path / "run")
    assert "was trained on data of your own" in complaint and "retain.evaluate.evaluate" in complaint
    main(["report", str(tmp_path / "run")])
    notes = json.loads((tmp_path / "run" / "report.json").read_text())["runs"][0]["notes"]
    assert any("data of your own" in note for note in notes)


def test_a_device_and_a_phase_that_are_none(retrieval_run):
    with pytest.raises(ValueError, match="device: 'gpu' is none of auto, cpu, cuda, mps"):
        load_run(retrieval_run, device="gpu")
    assert load_run(retrieval_run, device="auto").rnn.m_0.device.type in ("cpu", "cuda", "mps")
    for phase in (-1, 2):
        with pytest.raises(ValueError, match=f"phase: {phase} must lie in 0 … 1"):
            load_run(retrieval_run, phase=phase)


def test_an_rnn_that_left_its_teacher_is_not_called_blind():
    scores = {"relative_drift": 1.1, "bits_per_token": 1.76, "teacher_bits_per_token": 2.23}
    assert has_left(scores) and "no worse" in LEFT
    assert not has_left(scores | {"bits_per_token": 2.5})
    assert not has_left(scores | {"relative_drift": 0.3})
    assert not has_left(scores | {"teacher_bits_per_token": None})

"""Resuming: bit for bit what would have been, and nothing lost that was saved."""

import dataclasses
import errno
import json
import os
import shutil
import signal

import pytest
import torch

from conftest import tiny
from retain import files
from retain.config import data_config
from retain.config.json import load_config, to_dict
from retain.model.cells import build_cell
from retain.runs.checkpoint import CheckpointError, latest_checkpoint, load_files
from retain.runs.progress import STOPS
from retain.runs.run import load_run
from retain.training.loop import Interrupted, train
from runs import Changed, Crash, assert_same_run, crash_at, lines, run, stop_after


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("stop", [1, 2, 4, 5, 6, 8, 10, 12])
def test_resuming_equals_never_having_stopped(never_stopped, tmp_path, stop, accumulate):
    """1 and 2 are within SMT, 4 and 8 the boundaries, 5 and 6 within DMT, 10 within BPTT, 12 the end."""
    config, whole = never_stopped(optimizer__gradient_accumulation_steps=accumulate)
    out = tmp_path / "run"
    with pytest.raises(Interrupted, match=f"{out} --resume"):
        run(config, out, stop_after(stop, accumulate))
    assert latest_checkpoint(out).name == f"step-{stop:08d}"
    run(config, out, resume=True)
    assert_same_run(out, whole)


@pytest.mark.parametrize("norm", ["rms", "batch"])
@pytest.mark.parametrize("encoder", ["window", "register"])
def test_resuming_is_exact_for_the_other_encoders(never_stopped, tmp_path, encoder, norm):
    config, whole = never_stopped(teacher__encoder=encoder, memory__norm=norm)
    for stop in (3, 7):
        out = tmp_path / f"run{stop}"
        with pytest.raises(Interrupted):
            run(config, out, stop_after(stop))
        run(config, out, resume=True)
        assert_same_run(out, whole)


@pytest.mark.parametrize("number", STOPS)
def test_every_signal_that_ends_a_process_saves_first(never_stopped, tmp_path, number):
    config, whole = never_stopped()
    handlers = [signal.getsignal(n) for n in STOPS]
    with pytest.raises(Interrupted, match="stopped at step 3 and saved"):
        run(config, tmp_path / "run", stop_after(3, number=number))
    assert [signal.getsignal(n) for n in STOPS] == handlers
    run(config, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs SIGHUP")
def test_under_nohup_a_run_outlives_its_terminal(never_stopped, tmp_path):
    config, whole = never_stopped()
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        run(config, tmp_path / "run", stop_after(3, number=signal.SIGHUP))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert_same_run(tmp_path / "run", whole)


def test_stopping_again_and_again_changes_nothing(never_stopped, tmp_path):
    config, whole = never_stopped()
    out = tmp_path / "run"
    for stop in range(1, 13):
        with pytest.raises(Interrupted):
            run(config, out, stop_after(stop), resume=stop > 1)
    run(config, out, resume=True)
    assert_same_run(out, whole)


@pytest.mark.parametrize("crash", [4, 5, 8, 10])
def test_a_crash_loses_only_the_steps_since_the_last_checkpoint(never_stopped, tmp_path, crash):
    config, whole = never_stopped()
    out = tmp_path / "run"
    with pytest.raises(Crash):
        run(config, out, crash_at(crash))
    assert crash - 3 <= int(latest_checkpoint(out).name[5:]) <= crash
    assert max(line["step"] for line in lines(out)) == crash
    run(config, out, resume=True)
    assert_same_run(out, whole)


def test_a_crash_before_the_first_checkpoint_is_resumed_from_the_beginning(never_stopped, tmp_path):
    config, whole = never_stopped()
    out = tmp_path / "run"
    with pytest.raises(Crash):
        run(config, out, crash_at(2))
    assert not (out / "checkpoints").exists()
    run(config, out, resume=True)
    assert_same_run(out, whole)


def test_a_finished_run_can_be_resumed_and_stays_as_it_is(never_stopped, tmp_path):
    config, whole = never_stopped()
    out = tmp_path / "run"
    run(config, out)
    summary = run(config, out, resume=True)
    assert summary["steps"] == 12
    assert_same_run(out, whole)


@pytest.mark.parametrize("fails", [2, 3, 4])
def test_a_full_disk_leaves_the_previous_checkpoint(never_stopped, tmp_path, monkeypatch, fails):
    config, whole = never_stopped()
    out, written, real = tmp_path / "run", [], files.write_file

    def full(path, data):
        if path.name == "manifest.json":
            written.append(path)
        if len(written) >= fails:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_file", full)
        with pytest.raises(CheckpointError, match=r"cannot be written, No space left on device; \S+ is still good$"):
            run(config, out)
    kept = latest_checkpoint(out)
    assert len(written) == fails
    assert not list(out.rglob(".tmp*"))
    assert load_files(kept)[1]["progress"]["step"] == int(kept.name[5:])
    run(config, out, resume=True)
    assert_same_run(out, whole)


def test_a_run_goes_on_with_its_own_data_alone(never_stopped, tmp_path):
    config, whole = never_stopped()
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        run(config, out, at=stop_after(2), data=Changed(config))
    other = Changed(config)
    other.info = other.inner.info | {"sha256": "another"}
    with pytest.raises(ValueError, match="resume: the data has changed: its sha256 was .* and is 'another' now"):
        train(config, out, resume=True, data=other, progress_bar=False)
    del other.info["sha256"]  # what an older version did not note says nothing
    train(config, out, resume=True, data=other, progress_bar=False)
    assert_same_run(out, whole)


def test_a_run_goes_on_with_its_own_cell_alone(never_stopped, tmp_path):
    config, whole = never_stopped()
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    shutil.rmtree(latest_checkpoint(out))  # there are steps left to do
    cell = build_cell(config.memory, config.cell)
    with pytest.raises(ValueError, match=r"was trained with the cell that its config names; leave out cell="):
        train(config, out, resume=True, cell=cell, progress_bar=False)
    with pytest.raises(ValueError, match=r"was trained with the data that its config names; leave out data="):
        train(config, out, resume=True, data=Changed(config), progress_bar=False)
    with pytest.raises(Interrupted, match=r"go on with: retain.train\(config, out, resume=True, …\)"):
        run(config, tmp_path / "own", at=stop_after(2), cell=cell)
    with pytest.raises(ValueError, match=r"was trained with the cell given in Python; give it, as in train\(.*cell="):
        train(config, tmp_path / "own", resume=True, progress_bar=False)


def test_a_run_says_where_it_does_not_go_on_bit_for_bit(never_stopped, tmp_path, caplog):
    config, whole = never_stopped()
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    shutil.rmtree(latest_checkpoint(out))
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        train(config, out, resume=True, progress_bar=False)
    finally:
        torch.set_num_threads(before)
    assert f"threads was {before} and is {before + 1} now, so the run will not be the same bit for bit" in caplog.text


def test_a_checkpoint_is_a_model_that_can_be_scored(never_stopped, retain):
    config, out = never_stopped()
    folder = latest_checkpoint(out)
    code, said, _ = retain("eval", folder, "--json")
    assert code == 0 and json.loads(said)["teacher_bits_per_token"] is not None
    (folder / "eval-test.json").unlink()
    assert load_files(folder)[1]["config"] == to_dict(config)


def test_a_later_phase_of_smt_keeps_the_readout(tmp_path):
    config = tiny(phases=("bptt", "smt"), budget="5steps", bptt__share=4, smt__share=1, smt__lr=1e-9)
    train(config, tmp_path / "run", progress_bar=False)
    before, after = (load_run(tmp_path / "run", phase=phase).rnn.readout for phase in (0, 1))
    torch.testing.assert_close(before.state_dict(), after.state_dict(), rtol=0, atol=1e-6)


def test_a_run_goes_on_where_its_data_has_moved_to(tmp_path):
    (tmp_path / "a.txt").write_text("some text to learn. " * 100)
    data = data_config(name="text", path=str(tmp_path / "a.txt"), seq_len=8)
    config = tiny(data=data, budget="4steps")
    with pytest.raises(Interrupted):
        run(config, tmp_path / "run", at=stop_after(2))
    (tmp_path / "a.txt").rename(tmp_path / "b.txt")
    moved = dataclasses.replace(config, data=dataclasses.replace(data, path=str(tmp_path / "b.txt")))
    assert train(moved, tmp_path / "run", resume=True, progress_bar=False)["steps"] == 4
    assert load_config(tmp_path / "run/config.json").data.path == str(tmp_path / "b.txt")
    (tmp_path / "b.txt").write_text("another text to be. " * 100)
    with pytest.raises(ValueError, match="resume: the data has changed: its sha256"):
        train(moved, tmp_path / "run", resume=True, progress_bar=False)

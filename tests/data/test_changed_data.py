"""A file that is cut short or rewritten while it is trained on: one line and a checkpoint, never a bus error."""

import os

import numpy as np
import pytest

from conftest import tiny
from retain.config import data_config
from retain.data import file_array, load_data
from retain.data.file_array import FileArray
from retain.errors import ChangedData, TrainingError
from retain.runs.checkpoint import latest_checkpoint, load_files
from retain.training.loop import train
from runs import run

CONTENT = b"to be or not to be, that is the question. " * 200


def cut(path):
    os.truncate(path, 100)


def rewritten(path):
    path.write_bytes(b"x" * path.stat().st_size)
    os.utime(path, ns=(0, 0))


@pytest.fixture
def large(monkeypatch):
    """Every file counts as too large to hold."""
    monkeypatch.setattr(file_array, "HELD", 0)


def source(folder, kind):
    path = folder / ("a.txt" if kind == "text" else "a.npy")
    if kind == "text":
        path.write_bytes(CONTENT)
    elif kind == "stream":
        np.save(path, np.frombuffer(CONTENT, np.uint8))
    else:
        np.save(path, np.frombuffer(CONTENT, np.uint8)[: 900 * 9].reshape(900, 9))
    return path, data_config(name="text" if kind == "text" else "npy", path=str(path), seq_len=8)


@pytest.mark.parametrize("kind", ["text", "stream", "rows"])
def test_a_large_file_holds_what_a_small_one_holds(kind, tmp_path, monkeypatch):
    _, config = source(tmp_path, kind)
    held = load_data(config)
    monkeypatch.setattr(file_array, "HELD", 0)
    read = load_data(config)
    assert isinstance(read.rows if kind == "rows" else read.splits["train"], FileArray)
    for split in ("train", "validation", "test"):
        for a, b in zip(held.windows(split, 7), read.windows(split, 7), strict=True):
            assert all((a[name] == b[name]).all() for name in a)
    assert (held.batch(1, 2, 0, 5)["targets"] == read.batch(1, 2, 0, 5)["targets"]).all()
    assert held.info == read.info and held.vocab_size == read.vocab_size


@pytest.mark.parametrize("kind", ["text", "stream", "rows"])
@pytest.mark.parametrize("change", [cut, rewritten])
def test_what_has_changed_is_not_read(change, kind, tmp_path, large):
    path, config = source(tmp_path, kind)
    data = load_data(config)
    change(path)
    with pytest.raises(ChangedData, match=r"data.path: '.*a\.(txt|npy)' was (changed|cut short).*; bring it back"):
        data.batch(0, 0, 0, 4)


@pytest.mark.parametrize("change", [cut, rewritten])
def test_a_run_ends_with_a_checkpoint_and_goes_on_when_the_file_is_back(change, tmp_path, large):
    path, data = source(tmp_path, "text")
    config = tiny(data=data, optimizer__gradient_accumulation_steps=2)
    changed = []

    def at(number):
        if number == 6 and not changed:  # it is at hand; the second half of the step is not
            changed.append(change(path))

    with pytest.raises(TrainingError, match=r"was (changed|cut).*bring it back, and add --resume; stopped at step 3"):
        run(config, tmp_path / "run", at)
    state = load_files(latest_checkpoint(tmp_path / "run"))[1]
    assert state["progress"]["step"] == 3 and state["progress"]["micro_batches"] == 6
    path.write_bytes(CONTENT)
    train(config, tmp_path / "run", resume=True, progress_bar=False)
    train(config, tmp_path / "whole", progress_bar=False)
    ended, whole = (load_files(latest_checkpoint(tmp_path / name))[0]["model"] for name in ("run", "whole"))
    assert all((ended[name] == whole[name]).all() for name in whole)


def test_a_small_file_may_change_while_it_is_trained_on(tmp_path):
    path, data = source(tmp_path, "text")
    run(tiny(data=data), tmp_path / "run", lambda number: cut(path) if number == 3 else None)

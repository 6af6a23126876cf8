"""Training straight from a stream: what it holds, and that resuming is exact."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

from conftest import tiny
from hubdata import PARTS, SMALL, stories, tokenizer
from retain.config import data_config
from retain.data import load_data
from retain.data import stream as streaming
from retain.runs.checkpoint import latest_checkpoint, load_files
from retain.training.loop import Interrupted, train


@pytest.fixture
def no_sleep(monkeypatch):
    """The library sleeps for five seconds whenever it closes a shuffled stream."""
    from datasets import config

    if hasattr(config, "SLEEP_TIME_ON_THREADS_SHUTDOWN"):
        monkeypatch.setattr(config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)


def test_training_on_a_stream(retain, sources, tmp_path, cache, no_sleep):
    for preset, folder in (("tinystories", "stories"), ("mnist", "mnist")):
        out = tmp_path / preset
        options = [*SMALL, *PARTS, "--data.stream"]
        code, _, complaint = retain("train", preset, "--data", sources / folder, "--out", out, *options)
        assert code == 0, complaint
        assert json.loads((out / "data.json").read_text())["streamed"] is True
        assert retain("eval", out)[0] == 0
    assert not cache.exists()


@pytest.mark.parametrize("reset", [True, False])
def test_a_stream_holds_the_documents_of_its_split_alone(sources, reset, no_sleep):
    config = data_config(name="documents", path=str(sources / "stories"), seq_len=99, reset=reset, stream=True)
    streamed = load_data(config)
    prepared = load_data(dataclasses.replace(config, stream=False, reset=True))

    def whole(targets):
        pieces = [bytes(row[row >= 0].tolist()) for row in targets.numpy()]
        return {p for text in (pieces if reset else [b"".join(pieces)]) for p in text.split(b"\xff")[1 - reset : -1]}

    train = {bytes(prepared.document("train", i).tolist())[:-1] for i in range(prepared.documents("train"))}
    first = streamed.batch(0, 0, 0, 200)["targets"]
    seen = whole(first)
    for step in range(1, 8):  # more than one epoch
        seen |= whole(streamed.batch(0, step, 0, 200)["targets"])
    if reset:
        assert seen == train
    else:  # a document that two batches share is not whole in either
        assert len(seen & train) > 0.9 * len(train)
    other = load_data(config)
    assert torch.equal(other.batch(0, 0, 0, 200)["targets"], first)
    assert not torch.equal(other.batch(1, 0, 0, 200)["targets"], first)
    assert not torch.equal(other.batch(0, 0, 1, 200)["targets"], first)
    held = streamed.sequences("test", np.arange(streamed.count("test")))["targets"]
    test = {bytes(prepared.document("test", i).tolist())[:-1] for i in range(prepared.documents("test"))}
    assert whole(held) <= test and (not reset or whole(held) == test)


@pytest.mark.parametrize("reset", [True, False])
def test_a_batch_is_the_same_whenever_it_is_asked_for(sources, reset, no_sleep):
    """In order, out of order, from the middle on, and over the end of the source."""
    config = data_config(name="documents", path=str(sources / "stories"), seq_len=40, reset=reset, stream=True)
    data, other = load_data(config), load_data(config)
    in_order = [data.batch(3, step, 1, 64)["targets"] for step in range(14)]
    assert sum(len(batch) for batch in in_order) > 1.5 * 250 * (2 if reset else 1)
    for step in (9, 10, 2, 13):
        assert torch.equal(other.batch(3, step, 1, 64)["targets"], in_order[step])
    assert torch.equal(other.batch(3, 1, 1, 128)["targets"], torch.cat(in_order[2:4]))
    assert len({batch.numpy().tobytes() for batch in in_order}) == len(in_order)


def test_a_resumed_run_on_a_stream_is_one_that_never_stopped(sources, tmp_path, no_sleep, monkeypatch):
    data = data_config(name="documents", path=str(sources / "stories"), seq_len=8, stream=True)
    config = tiny(
        data=data,
        budget="12steps",
        validate_every="2steps",
        dmt__batch_size=3,
        optimizer__gradient_accumulation_steps=2,
    )
    train(config, tmp_path / "whole", progress_bar=False)
    real = streaming.StreamedData.batch

    def until(last):
        def batch(self, seed, step, rank, batch_size):
            if step >= last:
                raise Interrupted
            return real(self, seed, step, rank, batch_size)

        return batch

    for last in (5, 14):  # in the first phase and in the second
        with monkeypatch.context() as patch:
            patch.setattr(streaming.StreamedData, "batch", until(last))
            with pytest.raises(Interrupted):
                train(config, tmp_path / "parts", resume=(tmp_path / "parts").exists(), progress_bar=False)
    train(config, tmp_path / "parts", resume=True, progress_bar=False)
    whole, parts = (load_files(latest_checkpoint(tmp_path / name))[0] for name in ("whole", "parts"))
    for part in whole:
        for name, tensor in whole[part].items():
            assert torch.equal(tensor, parts[part][name]), name


def test_a_phase_of_smaller_batches_reads_on(sources, tmp_path, no_sleep, monkeypatch):
    """A stream cannot go back: to begin anew would be to read all of it again."""
    opened, real = [], streaming.StreamedData._epochs
    monkeypatch.setattr(streaming.StreamedData, "_epochs", lambda *args: opened.append(1) or real(*args))
    data = data_config(name="documents", path=str(sources / "stories"), seq_len=8, stream=True)
    for sizes in ((4, 3), (4, 1), (2, 4), (4, 4)):
        opened.clear()
        config = tiny(data=data, budget="12steps", smt__batch_size=sizes[0], dmt__batch_size=sizes[1])
        train(config, tmp_path / f"{sizes}", progress_bar=False)
        assert len(opened) == 1, sizes


def test_a_stream_that_has_moved_goes_on_and_one_that_has_changed_does_not(sources, tmp_path, no_sleep):
    first, moved, changed = (tmp_path / name for name in ("first", "moved", "changed"))
    shutil.copytree(sources / "stories", first)
    data = data_config(name="documents", path=str(first), seq_len=8, stream=True)
    config = tiny(data=data, budget="4steps")
    train(config, tmp_path / "run", progress_bar=False)
    first.rename(moved)
    stories(changed, what="a dog")
    for path in (moved, changed):
        there = dataclasses.replace(config, data=dataclasses.replace(data, path=str(path)))
        if path == moved:
            train(there, tmp_path / "run", resume=True, progress_bar=False)
        else:
            with pytest.raises(ValueError, match="the data has changed: its (held_out_sequences|sha256)"):
                train(there, tmp_path / "run", resume=True, progress_bar=False)


def test_bytes_per_token_of_a_stream_are_those_of_the_prepared(sources, tmp_path):
    path = tokenizer(tmp_path / "tokenizer.json", ["Once there was the cat no. It slept."])
    config = data_config(name="documents", path=str(sources / "stories"), seq_len=60, reset=True, tokenizer=str(path))
    prepared, streamed = load_data(config), load_data(dataclasses.replace(config, stream=True))
    assert prepared.bytes_per_token["validation"] > 1.5
    assert streamed.bytes_per_token == pytest.approx(prepared.bytes_per_token)

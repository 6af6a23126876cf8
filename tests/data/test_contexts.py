"""What lies before a sequence: passes of a model over blocks of sequences, and scores that follow a text."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from retain.config import IGNORE, data_config
from retain.data import load_data
from retain.data.batches import StreamData
from retain.data.contexts import continued, find_passes, list_blocks, longest_pass, read_blocks
from retain.data.documents import DocumentsData
from retain.errors import UserError

T = 4
COMMON = {"vocab_size": 1000, "seq_len": T, "info": {"name": "documents"}}


def stream(length=64):
    return StreamData({split: np.arange(length) for split in ("train", "validation")}, **COMMON)


def documents():
    """Of 3, 23 and 12 tokens: 1, 5 and 3 sequences."""
    tokens, ends = {"train": np.arange(38)}, {"train": np.array([3, 26, 38])}
    return DocumentsData(tokens, ends, **COMMON)


def joined(data, before=7, **how):
    return continued(data, data, before, teaches=how.pop("teaches", True), live=how.pop("live", True))


def test_a_pass_reads_what_lies_before_a_block_of_its_own_document_alone():
    """Blocks of two sequences, as 12 tokens are twice 5; and so many before each, where there are."""
    _, first, offset = find_passes(stream(), "train", np.arange(12), 12)
    assert first.tolist() == [0, 0, 0, 0, 8, 8, 18, 18, 28, 28, 38, 38]
    assert (first + offset).tolist() == [5 * i for i in range(12)]
    assert max(offset + T) <= longest_pass(T, 12) == 21
    assert list_blocks(stream(), "train", 12).tolist() == [0, 2, 4, 6, 8, 10, 12, 13]
    _, first, offset = find_passes(documents(), "train", np.arange(9), 12)
    assert first.tolist() == [0, 3, 3, 3, 3, 11, 26, 26, 26]
    assert list_blocks(documents(), "train", 12).tolist() == [0, 1, 3, 5, 6, 8, 9]
    assert list_blocks(documents(), "train", 0).tolist() == list(range(10))


@pytest.mark.parametrize("make", [stream, documents])
def test_what_is_read_of_a_block_is_what_is_read_of_its_sequences(make):
    data, before = make(), 12
    blocks = list_blocks(data, "train", before)
    read = read_blocks(data, "train", blocks[:-1], before)
    for row, (a, b) in enumerate(pairwise(blocks)):
        for place, number in enumerate(range(a, b)):
            one = joined(data, before).sequences("train", np.array([number]))
            start, offset = int(read["offset"][row]), int(one["offset"][0])
            assert offset == start + place * (T + 1)
            whole = read["read"][row, : offset + T]
            assert torch.equal(whole, one["read"][0])
            count = int((one["targets"][0] != IGNORE).sum())
            assert torch.equal(one["read"][0, offset:][: count - 1], one["tokens"][0][: count - 1])
            assert bool(one["fresh"][0]) == (offset == 0)


def test_training_batches_are_those_without_a_context():
    data = stream()
    data.aligned = True
    plain, batch = data.batch(1, 2, 0, 6), joined(data).batch(1, 2, 0, 6)
    assert all(torch.equal(plain[name], batch[name]) for name in plain)
    at = batch["offset"][:, None] + torch.arange(T)
    assert torch.equal(batch["read"].gather(1, at), batch["tokens"])
    assert joined(data, teaches=False).batch(1, 2, 0, 6).keys() == plain.keys()
    assert {"read", "offset"}.isdisjoint(joined(data, live=False).batch(1, 2, 0, 6))


@pytest.mark.parametrize("length", [64, 500, 1031])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_rows_of_a_score_follow_the_text_and_cover_it_once(length, batch_size):
    data, seen, before = stream(length), [], None
    for batch in joined(data, live=False).windows("validation", batch_size):
        found = batch["targets"]
        if before is None:
            assert batch["fresh"].all()
        else:
            assert not batch["fresh"].any(), "the only document begins once"
            assert torch.equal(found[:, 0], before[: len(found), -1] + 1)
        before = found
        seen += found[found != IGNORE].tolist()
    assert sorted(seen) == list(range(length))


def test_a_limited_score_follows_the_text_too():
    data = stream(5 * 1000)
    batches = [*joined(data, live=False).windows("validation", 256, 96)]
    assert len(batches) == 16 and [len(batch["fresh"]) for batch in batches] == [6] * 16
    starts = batches[0]["targets"][:, 0]
    assert torch.equal(starts, 5 * (torch.arange(6) * 1000 // 6))
    assert all(torch.equal(b["targets"][:, 0], starts + 5 * i) for i, b in enumerate(batches))
    few = [*joined(data, live=False).windows("validation", 256, 5)]
    assert len(few) == 5 and all(len(batch["fresh"]) == 1 for batch in few)


def test_rows_begin_anew_with_each_document():
    data = documents()
    batches = list(joined(data, live=False).windows("train", 1))
    assert [bool(batch["fresh"]) for batch in batches] == [True, True, False, False, False, False, True, False, False]


def test_nothing_lies_before_an_image():
    data = load_data(data_config(name="digits", seq_len=63))
    with pytest.raises(UserError, match="teacher.context_before: no sequence of digits has 7 tokens before it; leave"):
        joined(data)

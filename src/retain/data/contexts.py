"""Sequences that go on from what lies before them: the text that a language model reads first, and fresh starts.

A model reads a document in passes. Each is over a block of sequences, and over at least `before` tokens in front of the
block, fewer at the document's start. So one pass labels a whole block, and it is the same pass for every sequence in
it, whether the labels are kept or made anew for a batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from retain.data.batches import Batch, Data, Ints, Split, StreamData, evenly_spaced, read_windows
from retain.data.documents import DocumentsData
from retain.data.file_array import Stream
from retain.errors import UserError

LANE = 16
"""A score follows at least so many sequences one after the other, if there are as many."""


def block_len(seq_len: int, before: int) -> int:
    """Count the sequences of T + 1 tokens that one pass labels."""
    return max(1, before // (seq_len + 1))


def longest_pass(seq_len: int, before: int) -> int:
    """Count the tokens that a pass reads at most."""
    return before + block_len(seq_len, before) * (seq_len + 1) - 1


def check_continues(data: Data, before: int) -> StreamData | DocumentsData:
    """Return data whose sequences are parts of texts. Raises UserError for other data, where nothing lies before."""
    if not isinstance(data, StreamData | DocumentsData):
        name = data.info.get("name")
        raise UserError(f"teacher.context_before: {before} tokens lie before no sequence of {name}; leave it out")
    return data


def find_passes(data: Data, split: Split, index: Ints, before: int) -> tuple[Stream, Ints, Ints]:
    """Find the pass over each of the sequences with these numbers (B,).

    Returns:
        The stream of tokens, the place in it where each pass begins, (B,), and how many tokens after that the sequence
        begins, (B,).

    Raises:
        UserError: as `check_continues`.
    """
    stream, begin, start = check_continues(data, before).places(split, index)
    block = block_len(data.seq_len, before) * (data.seq_len + 1)
    first = begin + np.maximum(0, (start - begin) // block * block - before)
    return stream, first, start - first


def list_blocks(data: Data, split: Split, before: int) -> Ints:
    """List the number of the first sequence of each block, and after them the number of sequences."""
    count = data.count(split)
    if not before:
        return np.arange(count + 1)
    _, begin, start = check_continues(data, before).places(split, np.arange(count))
    inside = (start - begin) // (data.seq_len + 1)
    return np.append(np.flatnonzero(inside % block_len(data.seq_len, before) == 0), count)


def read_blocks(data: Data, split: Split, firsts: Ints, before: int) -> Batch:
    """Read what a model is shown for the blocks that begin with these sequences (R,).

    `read` (R, L) is their tokens and those before them, and whatever may come after; `offset` (R,) is how many of these
    lie before the block. Without a context it is `tokens` alone, as sequences have them.
    """
    if not before:
        return {"tokens": data.sequences(split, firsts)["tokens"]}
    stream, first, offset = find_passes(data, split, firsts, before)
    length = block_len(data.seq_len, before) * (data.seq_len + 1) - 1
    read = read_windows(stream, first, int(offset.max()) + length)
    return {"tokens": torch.zeros(len(read), length).long(), "read": torch.from_numpy(read)} | {
        "offset": torch.from_numpy(offset)
    }


@dataclass(eq=False, repr=False)
class ContinuedData(Data):
    """Data whose sequences need not start from m_0.

    A batch also has `fresh` (B,) bool: which sequences begin a document. The others go on from the memory of what lies
    before them. If they are to be read by a model, `read` (B, P + T) has tokens from the beginning of its pass on, and
    `offset` (B,) says where the sequence starts among these.
    """

    inner: Data
    """These sequences, maybe with labels."""
    source: Data
    """These sequences, without."""
    before: int
    teaches: bool
    """Whether batches of training say all that."""
    live: bool
    """Whether a model reads them."""

    def batch(self, seed: int, step: int, rank: int, batch_size: int) -> Batch:
        """Draw B training sequences; the same arguments give the same batch."""
        drawn = self.inner.batch(seed, step, rank, batch_size)
        return drawn | self._before("train", self.source.draw(seed, step, rank, batch_size)) if self.teaches else drawn

    def count(self, split: Split) -> int:
        """Count the sequences of a split."""
        return self.inner.count(split)

    def sequences(self, split: Split, index: Ints) -> Batch:
        """Return the sequences of a split with these numbers (B,)."""
        return self.inner.sequences(split, index) | self._before(split, index)

    def _before(self, split: Split, index: Ints) -> Batch:
        stream, first, offset = find_passes(self.source, split, index, self.before)
        found = {"fresh": torch.from_numpy(offset == 0)}
        if self.live:
            read = read_windows(stream, first, int(offset.max()) + self.seq_len)
            found |= {"read": torch.from_numpy(read), "offset": torch.from_numpy(offset)}
        return found

    def windows(self, split: Split, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
        """Yield a split, or about `limit` of its sequences, so that row i of a batch goes on from row i of the last.

        Rows are far apart: each begins `fresh`, wherever that is, and later where a document does.
        """
        count = self.count(split)
        wanted = count if limit is None else min(limit, count)
        rows = max(1, min(batch_size, wanted // LANE))
        long = -(-count // rows) if wanted == count else wanted // rows
        starts = np.arange(0, count, long) if wanted == count else evenly_spaced(count, rows)
        for step in range(long):
            index = starts + step
            index = index[index < count]  # the last row may be shorter
            batch = self.sequences(split, index)
            yield batch | {"fresh": batch["fresh"] | (step == 0)}


def continued(inner: Data, source: Data, before: int, *, teaches: bool, live: bool) -> ContinuedData:
    """Join data with what lies before its sequences. Raises UserError if nothing does."""
    check_continues(source, before)
    own = {field.name: getattr(source, field.name) for field in dataclasses.fields(Data)}
    return ContinuedData(inner=inner, source=source, before=before, teaches=teaches, live=live, **own)

"""Sequences that continue a text: the tokens before them, which a language model reads first, and fresh starts.

A language model reads a document in passes. Each pass covers a block of sequences and at least `before` tokens in front
of the block, or fewer at the document's start. One pass labels a whole block. Every sequence of the block has the same
pass, whether its labels are stored or computed for each batch.
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
"""The least consecutive sequences in a row of an evaluation, if there are that many."""


def block_len(seq_len: int, before: int) -> int:
    """Count the sequences of T + 1 tokens that one pass labels."""
    return max(1, before // (seq_len + 1))


def longest_pass(seq_len: int, before: int) -> int:
    """Count the tokens of the longest pass."""
    return before + block_len(seq_len, before) * (seq_len + 1) - 1


def check_continues(data: Data, before: int) -> StreamData | DocumentsData:
    """Return `data` if its sequences are parts of texts. Raises UserError if they are not: nothing precedes them."""
    if not isinstance(data, StreamData | DocumentsData):
        name = data.info.get("name")
        raise UserError(f"teacher.context_before: no sequence of {name} has {before} tokens before it; leave it out")
    return data


def find_passes(data: Data, split: Split, index: Ints, before: int) -> tuple[Stream, Ints, Ints]:
    """Find the pass over each of the sequences with these numbers (B,).

    Returns:
        The stream of tokens; the place in it where each pass begins, (B,); the number of tokens from there to the
        sequence, (B,).

    Raises:
        UserError: See `check_continues`.
    """
    stream, begin, start = check_continues(data, before).places(split, index)
    block = block_len(data.seq_len, before) * (data.seq_len + 1)
    first = begin + np.maximum(0, (start - begin) // block * block - before)
    return stream, first, start - first


def list_blocks(data: Data, split: Split, before: int) -> Ints:
    """List the number of each block's first sequence, then the count of all sequences."""
    count = data.count(split)
    if not before:
        return np.arange(count + 1)
    _, begin, start = check_continues(data, before).places(split, np.arange(count))
    inside = (start - begin) // (data.seq_len + 1)
    return np.append(np.flatnonzero(inside % block_len(data.seq_len, before) == 0), count)


def read_blocks(data: Data, split: Split, firsts: Ints, before: int) -> Batch:
    """Read the tokens that a language model reads for the blocks that begin with these sequences (R,).

    `read` (R, L) holds the tokens before each block, those of the block, and perhaps some after it. `offset` (R,)
    counts the tokens before the block. Without a context there is only `tokens`, as in `Data.sequences`.
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

    A batch also has `fresh` (B,) bool: which sequences begin a document. The others continue from the memory of the
    tokens before them. If a language model reads the tokens, `read` (B, P + T) holds those from the beginning of the
    pass, and `offset` (B,) is the place in it where the sequence starts.
    """

    inner: Data
    """The sequences, perhaps with labels."""
    source: Data
    """The same sequences without labels."""
    before: int
    teaches: bool
    """Whether training batches have these fields, too."""
    live: bool
    """Whether a language model reads the tokens of a batch."""

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
        """Yield a split, or about `limit` of its sequences, so that row i of a batch continues row i of the last.

        Rows are far apart. Each row begins `fresh`, even inside a document, and again at each new document.
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
    """Join data with the tokens before its sequences. Raises UserError if sequences of this data have none."""
    check_continues(source, before)
    own = {field.name: getattr(source, field.name) for field in dataclasses.fields(Data)}
    return ContinuedData(inner=inner, source=source, before=before, teaches=teaches, live=live, **own)

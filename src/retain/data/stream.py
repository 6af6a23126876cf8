"""Training data straight from a streaming dataset, without preparing or writing files."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterator

import numpy as np
import torch

from retain.config import IGNORE, DatasetDataConfig
from retain.data.batches import SPLITS, Batch, Data, Ints, Split, to_batch
from retain.data.prepare import choose_split_of_row, open_source
from retain.data.rows import Piece, Rows, Source, choose_codec
from retain.errors import UserError

log = logging.getLogger("retain")

HELD_OUT = 512
"""Sequences of each split that are kept in memory for scoring."""
LOOKED_AT = 200_000
"""Upper bound on the rows that are read of each piece to find these sequences."""


class StreamedData(Data):
    """Documents or images in the order of a shuffled stream. Validation and test are the first of their split.

    A split that the source lacks is taken from its train split by the same rule as in `prepare`. The same seed and
    rank always give the same stream, and batch `step` begins at its sequence step · batch_size. For an earlier batch
    than the last one, the stream is read again from its start. A resumed run is therefore equal bit for bit, but it
    first reads past all earlier sequences. If a phase has another batch size, training continues the stream and may
    skip a few sequences. Raises UserError as `prepare` does.
    """

    def __init__(self, config: DatasetDataConfig) -> None:
        self.config, self.codec = config, choose_codec(config)
        self.vocab_size, self.seq_len, self.kind = self.codec.vocab_size, config.seq_len, self.codec.kind
        self.end, self.tokenizer = self.codec.end, self.codec.tokenizer
        if self.codec.length is not None:
            side = math.isqrt(self.codec.length)
            self.image_shape = (side, side)
        source = open_source(config)
        self.held_out: dict[Split, Batch] = {split: self._hold(source, split) for split in SPLITS}
        held_out = [self.held_out[split] for split in SPLITS]
        if self.codec.tokenizer:
            self.bytes_per_token = {split: self._bytes_per_token(self.held_out[split]) for split in SPLITS}
        self.source = source
        self.opened: tuple[int, int] | None = None
        self.place = -1
        self.info = {
            "name": config.name,
            "path": config.path,
            "revision": source.revision,
            "streamed": True,
            "read": source.read,
            "held_out_sequences": {split: len(self.held_out[split]["tokens"]) for split in SPLITS},
            # Only of the held-out sequences, since the training sequences have not been read.
            "sha256": hashlib.sha256(b"".join(held["targets"].numpy().tobytes() for held in held_out)).hexdigest(),
        }

    def batch(self, seed: int, step: int, rank: int, batch_size: int) -> Batch:
        """Read the sequences of a step; the same arguments give the same batch."""
        if self.opened != (seed, rank) or self.place > step * batch_size:
            self.opened, self.place = (seed, rank), 0
            self.windows_left = self._windows(self._epochs(seed, rank))
        skipped = step * batch_size - self.place
        if skipped > 10_000:
            log.warning("%s: reading past the %d sequences before step %d", self.config.path, skipped, step)
        for _ in range(skipped):
            next(self.windows_left)
        self.place = (step + 1) * batch_size
        return _batch([next(self.windows_left) for _ in range(batch_size)], self.seq_len)

    def count(self, split: Split) -> int:
        """Count the sequences that are held out for a split."""
        return len(self.held_out[split]["tokens"])

    def sequences(self, split: Split, index: Ints) -> Batch:
        """Return the held-out sequences of a split with these numbers (B,)."""
        return {name: values[torch.from_numpy(index)] for name, values in self.held_out[split].items()}

    def _hold(self, source: Source, split: Split) -> Batch:
        pieces = [piece for piece in source.pieces if piece.split == split or split in piece.cut]
        documents = (row for piece in pieces for row in self._rows(piece.read(), piece, split, LOOKED_AT))
        windows = self._windows(documents)
        found = [window for _, window in zip(range(HELD_OUT), windows, strict=False)]
        if not found:
            raise UserError(f"data.split: {split} has none of the first {LOOKED_AT:,} rows; give it a larger part")
        return _batch(found, self.seq_len)

    def _bytes_per_token(self, held: Batch) -> float:
        """Compute the bytes of decoded text per token, with each end symbol counted as one byte."""
        from tokenizers import Tokenizer

        tokens = held["targets"][held["targets"] != IGNORE].numpy()
        documents = np.split(tokens, np.flatnonzero(tokens == self.end) + 1)
        decoded = Tokenizer.from_str(self.tokenizer or "").decode_batch(
            [document[document != self.end].tolist() for document in documents], skip_special_tokens=False
        )
        return (sum(len(text.encode()) for text in decoded) + len(documents) - 1) / len(tokens)

    def _rows(self, read: Rows, piece: Piece, wanted: Split, limit: int | None = None) -> Iterator[Ints]:
        """Yield the tokens of each row of a piece that belongs to the split `wanted`."""
        looked = 0
        for rows in read:
            for row in self.codec.encode(rows):
                if row is not None and choose_split_of_row(row, piece, self.config.split) == wanted:
                    yield np.frombuffer(row, self.codec.dtype).astype(np.int64)
            looked += len(rows)
            if limit is not None and looked >= limit:
                return

    def _epochs(self, seed: int, rank: int) -> Iterator[Ints]:
        epoch = 0
        while True:
            order = int(np.random.SeedSequence(seed, spawn_key=(rank, epoch)).generate_state(1)[0])
            count = 0
            for piece in self.source.pieces:
                if piece.split == "train":
                    for row in self._rows(piece.shuffled(order), piece, "train"):
                        count += 1
                        yield row
            if not count:
                raise UserError(f"data.path: {self.config.path!r} holds nothing to learn")
            epoch += 1

    def _windows(self, documents: Iterator[Ints]) -> Iterator[Ints]:
        """Cut documents into sequences of up to T + 1 tokens.

        With data.reset off, documents are cut as one long stream. Otherwise each document is cut separately.
        """
        length = self.seq_len + 1
        alone = self.config.reset or self.codec.length is not None
        kept: list[Ints] = []
        size = 0
        for document in documents:
            kept.append(document)
            size += len(document)
            if not alone and size < length:
                continue
            joined = np.concatenate(kept)
            whole = len(joined) if alone else len(joined) - len(joined) % length
            yield from (joined[i : min(i + length, whole)] for i in range(0, whole, length))
            kept = [joined[whole:]] if whole < len(joined) else []
            size = len(joined) - whole
        if kept:
            yield np.concatenate(kept)


def _batch(windows: list[Ints], seq_len: int) -> Batch:
    padded = np.zeros((len(windows), seq_len + 1), np.int64)
    real = np.zeros(padded.shape, bool)
    for i, window in enumerate(windows):
        padded[i, : len(window)] = window
        real[i, : len(window)] = True
    return to_batch(padded, real)

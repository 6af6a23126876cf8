"""Training straight from a streaming dataset: nothing is prepared, nothing written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from retain.config import DataConfig
from retain.data.batches import IGNORE, SPLITS, Batch, Data, Ints, Split, to_batch
from retain.data.hub import Source, open_source, tables
from retain.data.prepare import split_of_row
from retain.data.rows import codec_of

SHUFFLED = 1000
"""Rows from which the next is drawn; Hugging Face's shuffle also reads the source's files in random order."""
HELD_OUT = 512
"""Sequences of validation and of test that are kept in memory."""
LOOKED_AT = 200_000
"""Rows read at most in search of those."""


class StreamedData(Data):
    """Documents or images in the order of a shuffled stream; validation and test are the first of their split.

    A split that the source lacks is cut from its train by the same rule as in `prepare`. Batches must be asked for
    in the order of steps: the stream is opened anew at any other step, shuffled by (seed, rank, step). So a resumed
    run goes on with other rows than a run that never stopped, and `prepare` is what to use where that matters.
    Raises ValueError as `prepare` does.
    """

    def __init__(self, config: DataConfig) -> None:
        self.config, self.codec = config, codec_of(config)
        self.vocab_size, self.seq_len, self.kind = self.codec.vocab_size, config.seq_len, self.codec.kind
        self.end, self.tokenizer = self.codec.end, self.codec.tokenizer
        if self.codec.length is not None:
            self.image_shape = (config.image_size, config.image_size)
            if config.seq_len != self.codec.length - 1:
                raise ValueError(
                    f"data.seq_len: {config.seq_len} does not fit images of {self.codec.length} pixels; "
                    f"set it to {self.codec.length - 1}"
                )
        source = open_source(config)
        self.held_out: dict[Split, Batch] = {split: self._hold(source, split) for split in SPLITS}
        self.source = source
        self.opened: tuple[int, int] | None = None
        self.step = -1
        self.info = {
            "name": config.name,
            "path": config.path,
            "revision": source.revision,
            "streamed": True,
            "held_out_sequences": {split: len(self.held_out[split]["tokens"]) for split in SPLITS},
        }

    def batch(self, seed: int, step: int, rank: int, batch_size: int) -> Batch:
        if self.opened != (seed, rank) or step != self.step:
            self.opened = (seed, rank)
            self.windows_left = self._windows(self._epochs(seed, step, rank))
        self.step = step + 1
        return _batch([next(self.windows_left) for _ in range(batch_size)], self.seq_len)

    def count(self, split: Split) -> int:
        return len(self.held_out[split]["tokens"])

    def sequences(self, split: Split, index: Ints) -> Batch:
        return {name: values[torch.from_numpy(index)] for name, values in self.held_out[split].items()}

    def _hold(self, source: Source, split: Split) -> Batch:
        given: Split = split if split in source.splits else "train"
        windows = self._windows(self._rows(source.splits[given], given, split, set(source.splits), LOOKED_AT))
        found = [window for _, window in zip(range(HELD_OUT), windows, strict=False)]
        if not found:
            raise ValueError(f"data.split: {split} has none of the first {LOOKED_AT:,} rows; give it a larger part")
        return _batch(found, self.seq_len)

    def _rows(
        self, dataset: Any, given: Split, wanted: Split, present: set[Split], limit: int | None = None
    ) -> Iterator[Ints]:
        """The tokens of the rows of the source's split `given` that belong to the split `wanted`."""
        looked = 0
        for rows in tables(dataset, self.config):
            for row in self.codec.encode(rows):
                if row is not None and split_of_row(row, given, present, self.config.split) == wanted:
                    yield np.frombuffer(row, self.codec.dtype).astype(np.int64)
            looked += len(rows)
            if limit is not None and looked >= limit:
                return

    def _epochs(self, seed: int, step: int, rank: int) -> Iterator[Ints]:
        epoch = 0
        while True:
            order = int(np.random.SeedSequence(seed, spawn_key=(rank, epoch, step)).generate_state(1)[0])
            train = self.source.splits["train"].shuffle(seed=order, buffer_size=SHUFFLED)
            count = 0
            for row in self._rows(train, "train", "train", set(self.source.splits)):
                count += 1
                yield row
            if not count:
                raise ValueError(f"data.path: {self.config.path!r} holds nothing to learn")
            epoch += 1

    def _windows(self, documents: Iterator[Ints]) -> Iterator[Ints]:
        """Cut documents into sequences of up to T + 1 tokens: each for itself, or with data.reset off one after the
        other, as one long stream."""
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
    padded = np.full((len(windows), seq_len + 1), IGNORE)
    for i, window in enumerate(windows):
        padded[i, : len(window)] = window
    batch = to_batch(padded)
    batch["tokens"].clamp_(min=0)
    return batch

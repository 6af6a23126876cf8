"""Documents and images of a dataset: the files that `prepare` wrote, as training sequences."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from retain.config import DatasetDataConfig, DocumentDataConfig
from retain.data.batches import (
    SPLITS,
    Batch,
    Data,
    Ints,
    Split,
    StreamData,
    read_windows,
    to_batch,
)
from retain.data.file_array import Stream, open_array
from retain.data.prepare import check_exists, prepare
from retain.errors import UserError


@dataclass(eq=False, repr=False)
class DocumentsData(Data):
    """Documents that each start from m_0: per split, their 1-D tokens and the place where each document ends.

    A document of more than T + 1 tokens, its end symbol included, becomes several consecutive sequences. The last is
    padded with token 0 and target IGNORE. So the loss over documents of up to T + 1 tokens is their likelihood.
    `document` returns whole documents for `document_likelihood`. Raises UserError for a split without documents.
    """

    tokens: Mapping[Split, Stream]
    ends: Mapping[Split, Stream]

    def __post_init__(self) -> None:
        self.first: dict[Split, Ints] = {}  # the number of each document's first sequence
        for split, ends in self.ends.items():
            if not len(ends):
                raise UserError(f"data.split: {split} has no documents; give it a larger share, or more data")
            pieces = -(-np.diff(np.asarray(ends), prepend=0) // (self.seq_len + 1))
            self.first[split] = np.concatenate([[0], pieces.cumsum()])

    def count(self, split: Split) -> int:
        """Count the sequences that the documents of a split are cut into."""
        return int(self.first[split][-1])

    def sequences(self, split: Split, index: Ints) -> Batch:
        """Return the sequences of a split with these numbers (B,)."""
        stream, _, start = self.places(split, index)
        end = self.ends[split].take(self._documents_of(split, index), axis=0)
        real = start[:, None] + np.arange(self.seq_len + 1) < end[:, None]
        return to_batch(read_windows(stream, start, self.seq_len + 1), real)

    def places(self, split: Split, index: Ints) -> tuple[Stream, Ints, Ints]:
        """Return a split's tokens, where the document of each sequence (B,) begins, and where the sequence does."""
        document = self._documents_of(split, index)
        begin = np.where(document > 0, self.ends[split].take(np.maximum(document - 1, 0), axis=0), 0)
        return self.tokens[split], begin, begin + (index - self.first[split][document]) * (self.seq_len + 1)

    def _documents_of(self, split: Split, index: Ints) -> Ints:
        """Return the numbers of the documents that these sequences (B,) belong to."""
        return np.searchsorted(self.first[split], index, side="right") - 1

    def documents(self, split: Split) -> int:
        """Count the documents of a split."""
        return len(self.ends[split])

    def document(self, split: Split, index: int) -> Ints:
        """Return all tokens of a document, its end symbol included."""
        ends = np.asarray(self.ends[split][max(index - 1, 0) : index + 1])
        return np.asarray(self.tokens[split][ends[0] if index else 0 : ends[-1]], dtype=np.int64)


@dataclass(eq=False, repr=False)
class ImagesData(Data):
    """One image of T + 1 pixels per row of a (N, T + 1) array per split, in raster order."""

    rows: Mapping[Split, Stream]

    def __post_init__(self) -> None:
        for split, rows in self.rows.items():
            if not len(rows):
                raise UserError(f"data.split: {split} has no images; give it a larger share, or more data")

    def count(self, split: Split) -> int:
        """Count the images of a split."""
        return len(self.rows[split])

    def sequences(self, split: Split, index: Ints) -> Batch:
        """Return the images of a split with these numbers (B,)."""
        return to_batch(np.asarray(self.rows[split].take(index, axis=0), dtype=np.int64))


def load_documents(config: DatasetDataConfig, whole: bool = False) -> Data:
    """Load the documents or the images of a source, with data.events the images as events; see `prepare`.

    With `whole`, all of them are in the one split "all".
    """
    if isinstance(config, DocumentDataConfig) and config.prune_vocab:
        from retain.data.prune import prune

        config = prune(config)
    if config.stream and not whole:
        from retain.data.stream import StreamedData

        check_exists(config.path)
        return StreamedData(config)
    folder, manifest, codec = prepare(config, whole)
    names: dict[Split, str] = {"all": "train"} if whole else {split: split for split in SPLITS}

    row = () if codec.length is None else (codec.length,)
    tokens = {split: open_array(folder / f"{name}.tokens", codec.dtype, row) for split, name in names.items()}
    common: dict[str, Any] = {
        "vocab_size": codec.vocab_size,
        "seq_len": config.seq_len,
        "kind": codec.kind,
        "end": codec.end,
        "tokenizer": codec.tokenizer,
        "info": {
            "name": config.name,
            "path": config.path,
            "revision": manifest["revision"],
            "prepared": str(folder),
            "splits": {split: manifest["splits"][name] for split, name in names.items()},
            "empty_rows": manifest["empty_rows"],
            "read": manifest["read"],
            "sha256": manifest["files"]["train.tokens"]["sha256"],
        },
    }
    if codec.length is not None:
        side = math.isqrt(codec.length)
        return ImagesData(tokens, image_shape=(side, side), **common)
    data: Data
    if config.reset:
        ends = {split: open_array(folder / f"{name}.ends", "<i8") for split, name in names.items()}
        data = DocumentsData(tokens, ends, **common)
    else:
        data = StreamData(tokens, **common)
    if codec.tokenizer:
        splits = data.info["splits"].items()
        data.bytes_per_token = {split: part["text_bytes"] / max(part["tokens"], 1) for split, part in splits}
    return data

"""Documents and images out of a dataset: what `prepare` wrote, as sequences to learn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from retain.config import DataConfig
from retain.data.batches import SPLITS, Batch, Data, Ints, Kind, Split, StreamData, release, to_batch, windows_of
from retain.data.hub import check_exists
from retain.data.images import levels_of
from retain.data.prepare import open_array, prepare
from retain.errors import UserError


class DocumentsData(Data):
    """Documents that each start from m_0, as 1-D tokens and the place where each ends, per split.

    A document, its end symbol included, of more than T + 1 tokens is several sequences, one after the other; the
    last is padded with token 0 and target IGNORE. So over documents of up to T + 1 tokens the loss is their
    likelihood; `document` gives whole ones for `document_likelihood`. Raises UserError for a split without documents.
    """

    def __init__(
        self,
        tokens: Mapping[Split, npt.NDArray[Any]],
        ends: Mapping[Split, npt.NDArray[np.int64]],
        *,
        vocab_size: int,
        seq_len: int,
        kind: Kind,
        info: dict[str, Any],
    ) -> None:
        self.tokens, self.ends = tokens, ends
        self.vocab_size, self.seq_len, self.kind, self.info = vocab_size, seq_len, kind, info
        self.first: dict[Split, Ints] = {}  # the number of each document's first sequence
        for split in ends:
            if not len(ends[split]):
                raise UserError(f"data.split: {split} has none of the documents; give it a larger part, or more data")
            pieces = -(-np.diff(ends[split], prepend=0) // (seq_len + 1))
            self.first[split] = np.concatenate([[0], pieces.cumsum()])

    def count(self, split: Split) -> int:
        return int(self.first[split][-1])

    def sequences(self, split: Split, index: Ints) -> Batch:
        ends, first, length = self.ends[split], self.first[split], self.seq_len + 1
        document = np.searchsorted(first, index, side="right") - 1
        start = np.where(document > 0, ends[document - 1], 0) + (index - first[document]) * length
        real = start[:, None] + np.arange(length) < ends[document][:, None]
        release(ends)
        return to_batch(windows_of(self.tokens[split], start, length), real)

    def documents(self, split: Split) -> int:
        return len(self.ends[split])

    def document(self, split: Split, index: int) -> Ints:
        """All tokens of a document, its end symbol included."""
        ends = self.ends[split]
        return np.asarray(self.tokens[split][ends[index - 1] if index else 0 : ends[index]], dtype=np.int64)


class ImagesData(Data):
    """One image of T + 1 pixels per row of a (N, T + 1) array per split, in raster order."""

    def __init__(
        self,
        rows: Mapping[Split, npt.NDArray[Any]],
        *,
        vocab_size: int,
        seq_len: int,
        image_shape: tuple[int, int],
        info: dict[str, Any],
    ) -> None:
        pixels = image_shape[0] * image_shape[1]
        if seq_len != pixels - 1:
            raise UserError(f"data.seq_len: {seq_len} does not fit images of {pixels} pixels; set it to {pixels - 1}")
        for split in rows:
            if not len(rows[split]):
                raise UserError(f"data.split: {split} has none of the images; give it a larger part, or more data")
        self.rows, self.kind = rows, "image"
        self.vocab_size, self.seq_len, self.image_shape, self.info = vocab_size, seq_len, image_shape, info

    def count(self, split: Split) -> int:
        return len(self.rows[split])

    def sequences(self, split: Split, index: Ints) -> Batch:
        batch = to_batch(np.asarray(self.rows[split][index], dtype=np.int64))
        release(self.rows[split])
        return batch


def load_documents(config: DataConfig, whole: bool = False) -> Data:
    """Documents of a source, or with data.events the events of its images; see `prepare`. With `whole` all of them are
    the one split "all"."""
    if config.stream and not whole:
        from retain.data.stream import StreamedData

        check_exists(config.path or "")
        return StreamedData(config)
    folder, manifest, codec = prepare(config, whole)
    names: dict[Split, str] = {"all": "train"} if whole else {split: split for split in SPLITS}
    tokens = {split: open_array(folder, f"{name}.tokens", codec.dtype) for split, name in names.items()}
    info = {
        "name": config.name,
        "path": config.path,
        "revision": manifest["revision"],
        "prepared": str(folder),
        "splits": {split: manifest["splits"][name] for split, name in names.items()},
        "empty_rows": manifest["empty_rows"],
        "read": manifest["read"],
        "sha256": manifest["files"]["train.tokens"]["sha256"],
    }
    data: Data
    if codec.length is not None:
        data = ImagesData(
            {split: pixels.reshape(-1, codec.length) for split, pixels in tokens.items()},
            vocab_size=levels_of(config),
            seq_len=config.seq_len,
            image_shape=(config.image_size, config.image_size),
            info=info,
        )
    else:
        options: dict[str, Any] = {"vocab_size": codec.vocab_size, "seq_len": config.seq_len, "kind": codec.kind}
        if config.reset:
            ends = {split: open_array(folder, f"{name}.ends", "<i8") for split, name in names.items()}
            data = DocumentsData(tokens, ends, info=info, **options)
        else:
            data = StreamData(tokens, info=info, **options)
        data.end, data.tokenizer = codec.end, codec.tokenizer
        if codec.tokenizer:
            data.bytes_per_token = {s: n["text_bytes"] / max(n["tokens"], 1) for s, n in info["splits"].items()}
    return data

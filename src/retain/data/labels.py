"""Labels: a frozen trunk's outputs over a data set, stored by `retain label` and read with the tokens of each batch."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retain.config import DataConfig, DocumentDataConfig, data_config
from retain.data.batches import Batch, Data, Ints, Split, StreamData
from retain.data.file_array import Stream, open_array
from retain.errors import UserError

VERSION = 1
"""Version of the file format."""
LABELLED: tuple[Split, ...] = ("train", "validation")
"""The splits that training reads."""


@dataclass(eq=False, repr=False)
class LabelledData(Data):
    """Data with its labels, (N, T + 1, …) arrays per split and name. A batch has the labels, too."""

    inner: Data
    arrays: Mapping[Split, Mapping[str, Stream]]

    def batch(self, seed: int, step: int, rank: int, batch_size: int) -> Batch:
        """Draw B training sequences with their labels; the same arguments give the same batch."""
        index = self.inner.draw(seed, step, rank, batch_size)
        return self.inner.batch(seed, step, rank, batch_size) | self.labels("train", index)

    def count(self, split: Split) -> int:
        """Count the sequences of a split."""
        return self.inner.count(split)

    def sequences(self, split: Split, index: Ints) -> Batch:
        """Return the sequences of a split with these numbers (B,), with their labels if the split has them."""
        return self.inner.sequences(split, index) | self.labels(split, index)

    def labels(self, split: Split, index: Ints) -> Batch:
        """Return the labels of the sequences with these numbers (B,)."""
        arrays = self.arrays.get(split, {})
        return {name: _decode(name, array.take(index, axis=0)) for name, array in arrays.items()}


def formats(seq_len: int, width: int, vocab_size: int, top_k: int) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """Return the type of each array of labels and the shape of its rows. NumPy has no bfloat16; its bits are kept."""
    length, k = seq_len + 1, min(top_k, vocab_size)
    return {
        "states": (np.dtype("<i2"), (length, width)),
        "top_tokens": (np.dtype("<u2" if vocab_size <= 2**16 else "<i4"), (length, k)),
        "top_log_probs": (np.dtype("<f2"), (length, k)),
        "log_rest": (np.dtype("<f2"), (length,)),
    }


def encode_label(name: str, values: torch.Tensor, dtype: np.dtype[Any]) -> bytes:
    """Encode labels of a batch as bytes of `dtype`."""
    values = values.cpu().contiguous()
    if name == "states":
        return values.to(torch.bfloat16).view(torch.int16).numpy().tobytes()
    return values.numpy().astype(dtype).tobytes()


def _decode(name: str, values: np.ndarray[Any, Any]) -> torch.Tensor:
    if name == "states":
        return torch.from_numpy(values).view(torch.bfloat16)
    return torch.from_numpy(values.astype(np.int64) if name == "top_tokens" else values)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of labels. Raises UserError if the labels are incomplete."""
    if not folder.is_dir():
        begun = folder.with_name(folder.name + ".partial").is_dir()
        remedy = "it is half written; run `retain label` again to finish it" if begun else "run `retain label` first"
        raise UserError(f"labels: {folder} does not exist; {remedy}")
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if manifest["version"] != VERSION:
            raise UserError(f"labels: {folder} has version {manifest['version']}, not {VERSION}; make it anew")
        for name, size in manifest["files"].items():
            if (there := (folder / name).stat().st_size) != size:
                raise UserError(f"labels: {folder / name} has {there} bytes instead of {size}; make the labels anew")
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"labels: {folder} holds no complete labels ({error}); make them anew") from None
    return manifest


def labelled_config(folder: Path, manifest: dict[str, Any]) -> DataConfig:
    """Return the settings of the labelled data, with the tokenizer stored beside the labels."""
    config = data_config(**manifest["config"])
    if not isinstance(config, DocumentDataConfig) or config.tokenizer is None:
        return config
    return dataclasses.replace(config, tokenizer=str((folder / "tokenizer.json").resolve()), prune_vocab=False)


def check_can_label(data: Data) -> None:
    """Raise UserError for data whose sequences are drawn anew each time."""
    if type(data).batch not in (Data.batch, StreamData.batch):
        raise UserError(f"labels: {data.info.get('name')} is drawn anew for every batch; label data stored in files")


def with_labels(data: Data, folder: Path) -> LabelledData:
    """Join data with its labels. Raises UserError for labels of other data."""
    manifest = read_manifest(folder)
    check_can_label(data)
    for what, now in (("seq_len", data.seq_len), ("vocab_size", data.vocab_size)):
        if manifest[what] != now:
            raise UserError(f"labels: {folder} has {what} {manifest[what]}, this data has {now}; label this data")
    before = manifest["data"]
    if differs := [key for key in before if key.startswith("sha256") and before[key] != data.info.get(key)]:
        raise UserError(f"labels: {folder} is of other data (its {differs[0]} differs); label this data, or give that")
    shapes = formats(data.seq_len, manifest["width"], data.vocab_size, manifest["top_k"])
    arrays = {
        split: {name: open_array(folder / f"{split}.{name}", *shape) for name, shape in shapes.items()}
        for split in LABELLED
    }
    own = {field.name: getattr(data, field.name) for field in dataclasses.fields(Data)}
    return LabelledData(inner=data, arrays=arrays, **own)

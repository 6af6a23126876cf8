"""Training data: `load_data` returns the `Data` that a DataConfig names."""

from __future__ import annotations

from retain.config import (
    IGNORE,
    ArrayDataConfig,
    Channels,
    DataConfig,
    DatasetDataConfig,
    SeriesDataConfig,
    TaskDataConfig,
    TextDataConfig,
)
from retain.data.batches import SPLITS, Batch, Data, Kind, Split, decode, encode
from retain.data.documents import load_documents
from retain.data.pixels import load_digits
from retain.data.series import read_series
from retain.data.tasks import load_task
from retain.data.text import load_npy, load_stdlib, load_text
from retain.errors import UserError

__all__ = ["IGNORE", "SPLITS", "Batch", "Data", "Kind", "Split", "decode", "encode", "load_data"]


def load_data(config: DataConfig, whole: bool = False, like: Channels | None = None) -> Data:
    """Load the data that a configuration names, in its splits.

    With `whole`, all data of its files is in the one split "all". With `like`, the channels of a model, series are read
    for that model.

    Raises UserError naming the field, its value and the remedy.
    """
    if isinstance(config, TextDataConfig):
        return load_text(config, whole)
    if isinstance(config, ArrayDataConfig):
        return load_npy(config, whole)
    if isinstance(config, SeriesDataConfig):
        return read_series(config, whole, like)
    if isinstance(config, DatasetDataConfig):
        return load_documents(config, whole)
    if whole:
        raise UserError(f"split: all is for a file or a folder, not {config.name}; name one of its splits")
    if isinstance(config, TaskDataConfig):
        return load_task(config)
    return load_stdlib(config) if config.name == "stdlib" else load_digits(config)

"""Sequences to learn: `load_data` gives the `Data` that a DataConfig asks for."""

from __future__ import annotations

from collections.abc import Callable

from retain.config import IGNORE, DataConfig
from retain.data.batches import SPLITS, Batch, Data, Kind, Split, decode, encode
from retain.data.documents import load_documents
from retain.data.pixels import load_digits
from retain.data.tasks import TASKS, load_task
from retain.data.text import load_npy, load_stdlib, load_text
from retain.errors import UserError

__all__ = ["IGNORE", "SPLITS", "Batch", "Data", "Kind", "Split", "decode", "encode", "load_data"]

FILES: dict[str, Callable[[DataConfig, bool], Data]] = {
    "text": load_text,
    "npy": load_npy,
    "documents": load_documents,
    "images": load_documents,
}
EMBEDDED: dict[str, Callable[[DataConfig], Data]] = {
    "stdlib": load_stdlib,
    "digits": load_digits,
    **dict.fromkeys(TASKS, load_task),
}


def load_data(config: DataConfig, whole: bool = False) -> Data:
    """Load the data a configuration names, in its splits; with `whole`, what its files hold as the one split "all".

    Raises UserError naming the field, its value and what would be right.
    """
    if config.name in FILES:
        data = FILES[config.name](config, whole)
    elif whole:
        raise UserError(f"split: all is of a file or a folder, and this is {config.name}; name one of its splits")
    else:
        data = EMBEDDED[config.name](config)
    return data

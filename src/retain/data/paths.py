"""The kind of data that a path names. This module imports nothing heavy."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from retain.config import CLASS_OF, DataConfig
from retain.data.files import tell_kind
from retain.data.scan import guess_folder_name
from retain.errors import UserError


def expand_path(path: str) -> Path:
    """Expand the ~ of a path. It stays if the user has no home, as in some containers."""
    return Path(os.path.expanduser(path))


def absolute(path: str) -> str:
    """Make a path absolute, so that it holds in any working directory. A name on the hub is returned unchanged."""
    return path if path.startswith("hf:") else os.path.abspath(expand_path(path))


def choose_name(
    path: str, data: DataConfig, text_column: str | None, image_column: str | None, subwords: bool = False
) -> str:
    """Choose how `--data PATH` is read: as text, npy, documents or images. A text of `subwords` is documents.

    Series stay series, whatever the file.
    """
    if data.name == "series":
        return "series"
    if not path.startswith("hf:") and not Path(path).is_dir():
        kind = tell_kind(Path(path).name)
        if kind != "table":
            subwords = subwords or getattr(data, "tokenizer", None) is not None
            return "npy" if kind == "array" else "documents" if subwords else "text"
    elif not path.startswith("hf:") and not (text_column or image_column):
        guessed = guess_folder_name(Path(path))
        if guessed != "documents":
            return guessed
    if image_column or text_column:
        return "images" if image_column else "documents"
    return data.name if data.name in ("documents", "images") else "documents"


def with_path(
    data: DataConfig, path: str, text_column: str | None, image_column: str | None, subwords: bool = False
) -> DataConfig:
    """Change a data configuration to the path of --data, keeping its settings for columns, images and so on."""
    if text_column is not None and image_column is not None:
        raise UserError("--text-column, --image-column: give only one of them")
    path = absolute(path)
    name = choose_name(path, data, text_column, image_column, subwords)
    if name not in ("documents", "images") and (text_column or image_column):
        raise UserError(f"--text-column, --image-column: {path} is no dataset and has no columns; leave them out")
    cls = CLASS_OF[name]
    known = {f.name for f in dataclasses.fields(cls)}
    # A preset's settings that only its own data has, such as a task's sizes, are dropped.
    kept: dict[str, Any] = {name: value for name, value in vars(data).items() if name in known}
    kept |= {"name": name, "path": path}
    if "column" in known:
        own = kept.get("column") if name == data.name else None
        kept["column"] = text_column or image_column or own
    return cls(**kept)

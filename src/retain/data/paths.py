"""What kind of data a path names. Nothing heavy is imported here."""

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
    """Replace the ~ of a path. Where the user has no home, a container's for example, it stays."""
    return Path(os.path.expanduser(path))


def absolute(path: str) -> str:
    """Make a path hold wherever it is read from; a name on the hub stays as it is."""
    return path if path.startswith("hf:") else os.path.abspath(expand_path(path))


def choose_name(
    path: str, data: DataConfig, text_column: str | None, image_column: str | None, subwords: bool = False
) -> str:
    """Choose what `--data PATH` is read as: text, npy, documents or images. A text of `subwords` is documents.

    Data that is series stays so, whatever the file.
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
    """Change a data configuration to what --data names; what it says of columns, images and so on is kept."""
    if text_column is not None and image_column is not None:
        raise UserError("--text-column, --image-column: give one of them")
    path = absolute(path)
    name = choose_name(path, data, text_column, image_column, subwords)
    if name not in ("documents", "images") and (text_column or image_column):
        raise UserError(f"--text-column, --image-column: {path} is no dataset and has no columns; leave them out")
    cls = CLASS_OF[name]
    known = {f.name for f in dataclasses.fields(cls)}
    # What the preset says of its own data, as of a task's sizes, says nothing of other data.
    kept: dict[str, Any] = {name: value for name, value in vars(data).items() if name in known}
    kept |= {"name": name, "path": path}
    if "column" in known:
        own = kept.get("column") if name == data.name else None
        kept["column"] = text_column or image_column or own
    return cls(**kept)

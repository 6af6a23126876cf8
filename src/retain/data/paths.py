"""What kind of data a path names. Nothing heavy is imported here."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from retain.config import EMBEDDED_DATA, DataConfig
from retain.errors import UserError

BUILDERS = {
    **dict.fromkeys((".json", ".jsonl"), "json"),
    **dict.fromkeys((".csv", ".tsv"), "csv"),
    ".parquet": "parquet",
    ".arrow": "arrow",
}
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")


def expanded(path: str) -> Path:
    """A path with its ~ replaced. Where the user has no home, a container's for example, it stays."""
    return Path(os.path.expanduser(path))


def absolute(path: str) -> str:
    """A path that holds wherever it is read from; a name on the hub stays as it is."""
    return path if path.startswith("hf:") else os.path.abspath(expanded(path))


def is_dataset(path: str) -> bool:
    """Whether `--data PATH` names something that the `datasets` library reads."""
    return path.startswith("hf:") or Path(path).suffix.lower() in BUILDERS or Path(path).is_dir()


def holds_images(path: str) -> bool:
    """Whether a folder's first few hundred files are mostly images."""
    if path.startswith("hf:") or not Path(path).is_dir():
        return False
    images = count = 0
    for _, _, names in os.walk(path):
        images += sum(name.lower().endswith(IMAGES) for name in names)
        count += len(names)
        if count > 500:
            break
    return images > count / 2


def with_path(data: DataConfig, path: str, text_column: str | None, image_column: str | None) -> DataConfig:
    """The data configuration for what --data names; what it says of columns, images and so on is kept."""
    if text_column is not None and image_column is not None:
        raise UserError("--text-column, --image-column: give one of them")
    path = absolute(path)
    if path.endswith(".npy"):
        name = "npy"
    elif is_dataset(path):
        name = data.name if data.name in ("documents", "images") else "documents"
        if image_column is not None or (text_column is None and holds_images(path)):
            name = "images"
        elif text_column is not None:
            name = "documents"
    else:
        name = "text"
    if name not in ("documents", "images") and (text_column or image_column):
        raise UserError(f"--text-column, --image-column: {path} is no dataset and has no columns; leave them out")
    changes: dict[str, Any] = {"name": name, "path": path, "column": text_column or image_column}
    if name == data.name and changes["column"] is None:
        changes["column"] = data.column
    if data.name in EMBEDDED_DATA:
        changes["vocab_size"] = None
    if not path.startswith("hf:"):
        changes["revision"] = None
    # What the preset says of its own data, as of a task's sizes, says nothing of other data.
    changes = {f.name: f.default for f in dataclasses.fields(data) if f.name in data.unread(name)} | changes
    if name == "images":
        changes["seq_len"] = data.seq_len if data.name == "images" else data.image_size**2 - 1
    return dataclasses.replace(data, **changes)

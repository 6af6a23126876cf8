"""Cuts a text, a folder of texts or the source code of Python into training, validation and test splits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from retain.errors import UserError
from retain.files import new_folder

PARTS = {"train": 0.9, "validation": 0.05, "test": 0.05}
"""Share of each split."""
TEST_BYTES = 256_000
"""The largest test split, if the training text is cut. A language model needs half an hour for it on one core."""


def prepare_text(source: str, folder: Path, train_bytes: int | None) -> None:
    """Write a folder with the three splits of a text, unless it exists.

    Raises:
        UserError: There is too little text.
    """
    if folder.exists():
        return
    parts = cut_parts(source)
    if train_bytes is not None:
        parts["train"] = cut_bytes(parts["train"], train_bytes)
        parts["validation"] = cut_bytes(parts["validation"], train_bytes // 10)  # its labels take time as well
        parts["test"] = cut_bytes(parts["test"], TEST_BYTES)
    with new_folder(folder) as made:
        for split, texts in parts.items():
            for number, text in enumerate(texts):
                (made / split).mkdir(exist_ok=True)
                (made / split / f"{number:05d}.txt").write_bytes(text)


def cut_parts(source: str) -> dict[str, list[bytes]]:
    """Read a source and cut it into splits, between files if there are several, else between lines."""
    if source == "stdlib":
        from retain.config import DataConfig
        from retain.data import load_data

        splits: Any = getattr(load_data(DataConfig()), "splits")  # noqa: B009 - only streams have them
        return {split: [splits[split].tobytes()] for split in PARTS}
    from retain.data.files import walk

    path = Path(source)
    texts = [file.read_bytes() for _, file in sorted(walk(path))] if path.is_dir() else [path.read_bytes()]
    if len(texts) == 1:
        texts = texts[0].splitlines(keepends=True)
    total, passed = sum(map(len, texts)), 0
    parts: dict[str, list[bytes]] = {split: [] for split in PARTS}
    for text in texts:
        share = (passed + len(text) / 2) / total
        split = "train" if share < PARTS["train"] else "validation" if share < 1 - PARTS["test"] else "test"
        parts[split].append(text)
        passed += len(text)
    if not all(parts.values()):
        raise UserError(f"text: {source} is too short to be cut into {', '.join(PARTS)}; give more text")
    return parts if path.is_dir() else {split: [b"".join(texts)] for split, texts in parts.items()}


def cut_bytes(texts: list[bytes], size: int) -> list[bytes]:
    """Return the first `size` bytes of texts, cut after their last complete line."""
    found: list[bytes] = []
    for text in texts:
        found.append(text[:size])
        size -= len(text)
        if size <= 0:
            found[-1] = found[-1][: found[-1].rfind(b"\n") + 1] or found[-1]
            break
    return found

"""Documents and images of local files: folders, texts, tables and images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from retain.config import DatasetDataConfig
from retain.data.batches import SPLITS, Split
from retain.data.files import text_of
from retain.data.scan import Found, scan
from retain.data.source import SHUFFLED, Piece, Rows, Source
from retain.data.tables import ROWS, count_of, rows_of


def open_local(config: DatasetDataConfig, path: Path) -> Source:
    """The files of a folder, or one file."""
    images = config.name == "images"
    scanned = scan(path, images, config.column, config.split)
    present = {f.split for f in scanned.files if f.split and scanned.by_name}
    missing = frozenset(SPLITS) - present if scanned.by_name else frozenset(SPLITS) - {"train"}
    groups: dict[tuple[str, Split, frozenset[Split]], list[Found]] = {}
    for split in SPLITS:
        for file in scanned.files:
            if (file.split or "train") == split:
                cut: frozenset[Split] = missing if file.kind == "table" and split == "train" else frozenset()
                groups.setdefault((split, split, cut), []).append(file)
    both = {name for name, *_ in groups if sum(key[0] == name for key in groups) > 1}
    pieces = []
    for (name, split, cut), files in groups.items():
        called = f"{name} tables" if name in both and files[0].kind == "table" else name
        pieces.append(_local_piece(called, split, cut, files, config))
    tables = any(file.kind == "table" for file in scanned.files)
    read = {
        "files": len(scanned.files),
        "what": "image" if images else "document",
        "split_by_name": scanned.by_name,
        "skipped": scanned.skipped,
        "as_text": list(scanned.as_text),
        "missing": 0,
        "documents": None if tables else len(scanned.files),
    }
    return Source(tuple(pieces), None, read)


def _local_piece(
    name: str, split: Split, cut: frozenset[Split], files: list[Found], config: DatasetDataConfig
) -> Piece:
    images = config.name == "images"

    def read(files: list[Found] = files) -> Rows:
        kept: list[Any] = []
        size = 0
        for file in files:
            if file.kind == "table":
                if kept:  # the files' order is that of the rows
                    yield kept
                    kept, size = [], 0
                yield from rows_of(file.path, config.column, images)
                continue
            kept.append({"path": str(file.path)} if images else text_of(file.path))
            size += file.weight
            if len(kept) == ROWS or size > 2**22:
                yield kept
                kept, size = [], 0
        if kept:
            yield kept

    def shuffled(seed: int) -> Rows:
        rng = np.random.default_rng(seed)
        return _shuffled(read([files[i] for i in rng.permutation(len(files))]), rng)

    counts = [count_of(file.path) if file.kind == "table" else 1 for file in files]
    known = [count for count in counts if count is not None]
    return Piece(name, split, cut, read, shuffled, sum(known) if len(known) == len(counts) else None)


def _shuffled(rows: Rows, rng: np.random.Generator) -> Rows:
    """Each row is drawn from SHUFFLED that are held; what is drawn makes room for the next that is read."""
    held: list[Any] = []
    for some in rows:
        out = []
        for row in some:
            if len(held) < SHUFFLED:
                held.append(row)
                continue
            place = int(rng.integers(SHUFFLED))
            out.append(held[place])
            held[place] = row
        if out:
            yield out
    yield [held[i] for i in rng.permutation(len(held))]

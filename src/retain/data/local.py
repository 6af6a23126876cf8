"""Documents and images of local files: folders, texts, tables and images."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from retain.config import DatasetDataConfig
from retain.data.batches import SPLITS, Split, find_cut_points
from retain.data.files import read_text_file
from retain.data.rows import SHUFFLED, Piece, Rows, Source
from retain.data.scan import Found, scan
from retain.data.tables import ROWS, count_rows, read_column


def open_local(config: DatasetDataConfig, path: Path) -> Source:
    """Open the files of a folder, or one file."""
    images = config.name == "images"
    scanned = scan(path, images, config.column, config.split)
    if not path.is_dir() and scanned.files[0].kind == "text":
        return _open_text(config, path)
    named = {f.split for f in scanned.files if f.split} if scanned.by_name else {"train"}
    missing = frozenset(SPLITS) - named
    pieces = []
    for split in SPLITS:
        files = [file for file in scanned.files if (file.split or "train") == split]
        # Splits that the source lacks are cut from the rows of train's tables, which are then a piece of their own.
        is_cut = [split == "train" and bool(missing) and file.kind == "table" for file in files]
        for cut in dict.fromkeys(is_cut):
            name = f"{split} tables" if cut and not all(is_cut) else split
            part = [file for file, is_so in zip(files, is_cut, strict=True) if is_so == cut]
            pieces.append(_local_piece(name, split, missing if cut else frozenset(), part, config))
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


def _open_text(config: DatasetDataConfig, path: Path) -> Source:
    """Open one text as three consecutive parts, each a document, cut at ends of lines."""
    text = read_text_file(path)
    middle = [text.find("\n", place) + 1 or place for place in find_cut_points(len(text), config.split)]
    ends = [0, *middle, len(text)]

    def piece(split: Split, start: int, stop: int) -> Piece:
        def read() -> Rows:
            yield [text[start:stop]]

        return Piece(split, split, frozenset(), read, lambda seed: read(), 1)

    parts = zip(SPLITS, pairwise(ends), strict=True)
    read = {"files": 1, "what": "document", "split_by_name": False, "skipped": {}, "as_text": [], "missing": 0}
    return Source(tuple(piece(split, *part) for split, part in parts), None, read | {"documents": 3})


def _local_piece(
    name: str, split: Split, cut: frozenset[Split], files: list[Found], config: DatasetDataConfig
) -> Piece:
    images = config.name == "images"

    def read(files: list[Found] = files) -> Rows:
        kept: list[Any] = []
        size = 0
        for file in files:
            if file.kind == "table":
                if kept:  # rows keep the order of their files
                    yield kept
                    kept, size = [], 0
                yield from read_column(file.path, config.column, images)
                continue
            kept.append({"path": str(file.path)} if images else read_text_file(file.path))
            size += file.weight
            if len(kept) == ROWS or size > 2**22:
                yield kept
                kept, size = [], 0
        if kept:
            yield kept

    def shuffled(seed: int) -> Rows:
        rng = np.random.default_rng(seed)
        return _shuffled(read([files[i] for i in rng.permutation(len(files))]), rng)

    counts = [count_rows(file.path) if file.kind == "table" else 1 for file in files]
    known = [count for count in counts if count is not None]
    return Piece(name, split, cut, read, shuffled, sum(known) if len(known) == len(counts) else None)


def _shuffled(rows: Rows, rng: np.random.Generator) -> Rows:
    """Shuffle rows through a buffer of SHUFFLED rows: each row that is read replaces one drawn at random."""
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

"""Decide which files of a local folder are read, in which split, and why others are skipped."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from retain.data.batches import Split
from retain.data.files import ARCHIVES, Kind, read_through, strip_compression, tell_kind, walk
from retain.data.tables import has_column, read_column
from retain.errors import UserError

SPLIT_NAMES: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
DESCRIBES = {"readme", "license", "licence", "citation", "changelog", "dataset_info", "dataset_infos"}
"""Names, without extension, of files that describe the tables or images beside them."""
CAPTIONS = (".txt", ".json", ".xml", ".caption")


@dataclass(frozen=True)
class Found:
    """A file of a source: its path, its name in the folder, its kind, and the data that decide its split."""

    path: Path
    name: str
    kind: Kind
    split: str | None = None
    """The split given by the file's name or assigned to it. None for a table whose rows are divided among splits."""
    digest: str = ""
    weight: int = 1
    """Bytes of a text; an image counts as 1."""


@dataclass(frozen=True)
class Scan:
    """The files of a source in reading order, the skipped files with reasons, and the origin of the splits."""

    files: tuple[Found, ...]
    skipped: dict[str, str]
    as_text: tuple[str, ...]
    """Tables that lack the column, in a folder with texts. Each is read as one document."""
    by_name: bool
    """Whether the splits follow from the names of files or folders."""


def scan(path: Path, images: bool, column: str | None, fractions: tuple[float, float, float]) -> Scan:
    """Decide for one file, or for every file of a folder, whether it is read and in which split.

    From a folder of images only the images are read. In other folders each text is a document. A table with the
    column gives its rows, and a text table without it is one document. Raises UserError if a folder holds nothing to
    read or a file cannot be read.
    """
    files, skipped, as_text = _look(path, images, column)
    if not files:
        named = "; ".join(f"{name}: {why}" for name, why in list(skipped.items())[:5])
        raise UserError(f"data.path: {str(path)!r} holds no data files" + (f" ({named})" if named else ""))
    splits = split_by_names([file.name for file in files]) if path.is_dir() else None
    if splits is not None:
        files = [replace(file, split=split) for file, split in zip(files, splits, strict=True)]
    present = {file.split for file in files if file.split}
    wanted = {s: f for s, f in zip(("validation", "test"), fractions[1:], strict=True) if s not in present}
    shared = [f for f in files if f.kind != "table" and f.split in (None, "train")]
    given = share_out([(f.digest, f.weight) for f in shared], wanted)
    splits_of = {f.name: split for f, split in zip(shared, given, strict=True)}
    files = [replace(f, split=splits_of.get(f.name, f.split)) for f in files]
    return Scan(tuple(files), skipped, tuple(as_text), splits is not None)


def _look(path: Path, images: bool, column: str | None) -> tuple[list[Found], dict[str, str], list[str]]:
    if not path.is_dir():
        kind = tell_kind(path.name)
        if kind in ("table", "image"):
            return [Found(path, path.name, kind)], {}, []
        digest, size, why = read_through(path, text=True)
        if why:
            raise UserError(f"data.path: {str(path)!r} is {why}")
        return [Found(path, path.name, "text", digest=digest, weight=size)], {}, []
    named, skipped, real = [], {}, set()
    for name, file in walk(path):
        if why := _passed_over(file):
            skipped[name] = why
        elif file.resolve() in real:
            skipped[name] = "a link to a file that is read already"
        else:
            real.add(file.resolve())
            named.append((name, file, tell_kind(name)))
    pictures = {strip_compression(name).rpartition(".")[0] for name, _, kind in named if kind == "image"}
    tables = any(kind == "table" for *_, kind in named)
    found: list[Found] = []
    without: list[Path] = []
    as_text: list[str] = []
    for name, file, kind in named:
        if images and kind != "image" and (pictures or kind != "table"):
            beside = strip_compression(name).rpartition(".")[0] in pictures and Path(name).suffix.lower() in CAPTIONS
            skipped[name] = "a caption" if beside else "not an image"
        elif kind == "image" and images:
            digest, _, _ = read_through(file, text=False)
            found.append(Found(file, name, "image", digest=digest))
        elif kind in ("image", "array"):
            skipped[name] = "an image" if kind == "image" else "an array of numbers"
        elif Path(name).suffix.lower() in ARCHIVES or ".tar." in name.lower():
            skipped[name] = "an archive; unpack it"
        elif tables and _describes(name):
            skipped[name] = "describes the data"
        elif file.stat().st_size == 0:
            skipped[name] = "empty"
        elif kind == "table" and (images or has_column(file, column)):
            found.append(Found(file, name, "table"))
        else:
            digest, size, why = read_through(file, text=True)
            if why or not size:
                skipped[name] = why or "empty"
                continue
            found.append(Found(file, name, "text", digest=digest, weight=size))
            if kind == "table":
                without.append(file)
                as_text.append(name)
    texts = sum(f.kind == "text" for f in found) - len(without)
    if without and not texts:
        # In a folder of tables alone a missing column is an error. Reading the first table raises it, with its columns.
        next(read_column(without[0], column), None)
    if column is not None and not images and found and not any(f.kind == "table" for f in found):
        raise UserError(f"data.column: no table with {column!r} is in {str(path)!r}; leave --text-column out for texts")
    return found, skipped, as_text


def _passed_over(path: Path) -> str | None:
    if path.name.startswith("."):
        return "hidden"
    if path.name in ("Thumbs.db", "desktop.ini"):
        return "of the system"
    if path.is_dir():
        return "a link to a folder that is read already"
    if not path.exists():
        return "a broken link"
    return None if path.is_file() else "not a regular file"


def _describes(name: str) -> bool:
    return Path(strip_compression(name)).name.partition(".")[0] in DESCRIBES


def guess_folder_name(path: Path) -> Literal["npy", "documents", "images"]:
    """Guess whether to read a folder as images, arrays or documents.

    It is read as images if at least half of its files are images, and as arrays if more than half are arrays and none
    is a table. Captions beside images, and files that describe them, do not count.
    """
    names = [name for name, file in walk(path) if not _passed_over(file)]
    kinds = {name: tell_kind(name) for name in names}
    pictures = {strip_compression(name).rpartition(".")[0] for name, kind in kinds.items() if kind == "image"}
    others = [
        name
        for name, kind in kinds.items()
        if kind != "image"
        and not _describes(name)
        and strip_compression(name).rpartition(".")[0] not in pictures
        and Path(name).stem.lower() != "metadata"
    ]
    count = sum(kind == "image" for kind in kinds.values())
    if count and count >= len(others):
        return "images"
    found = [kinds[name] for name in others]
    return "npy" if "table" not in found and 2 * found.count("array") > len(found) else "documents"


def split_by_names(names: list[str]) -> list[str] | None:
    """Find each file's split in its name or its folders' names; None unless all have one and one of them is train."""
    splits = [_split_named(name) for name in names]
    return [s for s in splits if s] if all(splits) and "train" in splits else None


def _split_named(name: str) -> str | None:
    *folders, file = Path(strip_compression(name)).parts
    for folder in folders:
        if folder in SPLIT_NAMES:
            return SPLIT_NAMES[folder]
    words = re.split(r"[-_. \d]+", file)
    found = {SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES}
    return found.pop() if len(found) == 1 else None


def share_out(files: list[tuple[str, int]], wanted: dict[str, float]) -> list[str]:
    """Assign a split to each file (digest, weight).

    Each split of `wanted` gets about its fraction of the total weight, and at least one file. The digests decide, not
    the names, so files with equal content get the same split.
    """
    total = sum(weight for _, weight in files)
    groups: dict[str, int] = {}
    for digest, weight in files:
        groups[digest] = groups.get(digest, 0) + weight
    left = sorted(groups)
    given: dict[str, str] = {}
    for later, (split, fraction) in zip(reversed(range(len(wanted))), sorted(wanted.items()), strict=True):
        goal, taken = fraction * total, 0
        chosen: list[str] = []
        for digest in left:
            nearer = abs(goal - taken - groups[digest]) < abs(goal - taken)
            if nearer and len(left) - len(chosen) > later + 1:  # leave one for train
                chosen.append(digest)
                taken += groups[digest]
        if not chosen and len(left) > 1:
            chosen = [min(left, key=lambda digest: groups[digest])]
        given |= dict.fromkeys(chosen, split)
        left = [digest for digest in left if digest not in given]
    return [given.get(digest, "train") for digest, _ in files]


def told(read: dict[str, Any]) -> str:
    """Summarise in one line what was read from a local source."""
    skipped = read["skipped"]
    line = f"read {_count(read['files'], 'file')}"
    if read["documents"] is not None:  # unknown if tables are streamed
        line += f", {_count(read['documents'], read['what'])}"
    if read["missing"]:
        line += f", {_count(read['missing'], 'row')} without one"
    if read["split_by_name"]:
        line += ", split by their names"
    if read["as_text"]:
        line += f"; tables without the column, read as texts: {', '.join(read['as_text'][:10])}"
    if skipped:
        some = [f"{name} ({why})" for name, why in list(skipped.items())[:10]]
        more = f", … and {len(skipped) - 10:,} more (data.json has all)" if len(skipped) > 10 else ""
        line += f"; skipped: {', '.join(some)}{more}"
    return line


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("s" if number != 1 else "")

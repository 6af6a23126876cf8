"""A source prepared once into arrays of tokens, in a cache folder with a manifest.

A folder is complete or absent: it is written under another name, with a record of progress, and renamed when done.
After a kill, the next process continues from that record. If two processes prepare one source, the second waits.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from retain.config import DatasetDataConfig, DocumentDataConfig
from retain.data.batches import SPLITS, Split
from retain.data.files import compute_digest, find_cache_folder, walk
from retain.data.hub import open_hub
from retain.data.local import open_local
from retain.data.paths import expand_path
from retain.data.rows import Codec, Piece, Source, choose_codec
from retain.errors import UserError
from retain.files import replace_file

log = logging.getLogger("retain")

VERSION = 3
"""Version of the file format. Files of another version are prepared anew."""
SAVE_SECONDS = 5.0
"""A kill may cost this many seconds of work."""


def check_exists(path: str) -> None:
    """Raise UserError for a local path that does not exist."""
    if not path.startswith("hf:") and not expand_path(path).exists():
        raise UserError(f"data.path: {path!r} does not exist; give a dataset file, a folder, or hf:NAME")


def fingerprint_source(path: str) -> list[Any]:
    """Return values that change when a local source does: each file's relative path, size and time of change.

    For the hub, return only the name. Raises UserError for a path that does not exist.
    """
    if path.startswith("hf:"):
        return [path]
    check_exists(path)
    root = expand_path(path)
    files = [("", root)] if root.is_file() else list(walk(root))
    stats = ((name, file.stat()) for name, file in files if file.is_file())
    return [str(root.resolve()), *([name, stat.st_size, stat.st_mtime_ns] for name, stat in stats)]


def open_source(config: DatasetDataConfig) -> Source:
    """Open the source that data.path names. Raises a one-line UserError for whatever is wrong with it."""
    path = expand_path(config.path)
    saved = (path / "dataset_dict.json").exists() or (path / "state.json").exists()
    return open_hub(config) if config.path.startswith("hf:") or saved else open_local(config, path)


def collect_settings(config: DatasetDataConfig, whole: bool) -> dict[str, Any]:
    """Collect all settings that decide what is written, and no others."""
    names = ["name", "column", *(() if whole else ("split",))]
    if config.name == "images":
        names += ["image_size", "thresholds", "invert", "events"]
    settings = {name: getattr(config, name) for name in names}
    if isinstance(config, DocumentDataConfig) and config.tokenizer is not None:
        settings["tokenizer"] = compute_digest(expand_path(config.tokenizer))
        if config.end is not None:
            settings["end"] = config.end
    return settings


def prepare(config: DatasetDataConfig, whole: bool = False) -> tuple[Path, dict[str, Any], Codec]:
    """Prepare a source unless that was done before; return the folder of the arrays, its manifest, and the codec.

    With `whole`, all rows are in the split train. A hub dataset that was prepared before is not requested again: give
    hf:NAME@REVISION for another revision. Raises UserError for whatever is wrong with the source, OSError if the disk
    refuses.
    """
    from filelock import FileLock

    codec = choose_codec(config)
    settings, files = collect_settings(config, whole), fingerprint_source(config.path)
    key = hashlib.sha256(json.dumps([VERSION, settings, files]).encode()).hexdigest()[:24]
    folder = find_cache_folder() / key
    if not folder.exists():
        lock = FileLock(folder.with_suffix(".lock"))
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(blocking=False)
        except TimeoutError:
            log.warning("%s is being prepared by another process; waiting for it", config.path)
            lock.acquire()
        except OSError as error:
            raise UserError(
                f"data: {folder.parent} cannot be written, {error.strerror}; set RETAIN_CACHE to a folder that can"
            ) from None
        try:
            if not folder.exists():
                described = {"path": config.path, "settings": settings, "fingerprint": key}
                _Preparation(config, codec, folder, described, whole).run()
        finally:
            lock.release()
    return folder, read_manifest(folder), codec


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a prepared folder. Raises UserError if the folder is damaged."""
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        for name, file in manifest["files"].items():
            if (size := (folder / name).stat().st_size) != file["bytes"]:
                raise UserError(f"{name} has {size} bytes instead of {file['bytes']}")
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"data: the prepared {folder} is damaged ({error}); delete it and run again") from None
    return manifest


def choose_split_of_row(row: bytes, piece: Piece, fractions: tuple[float, float, float]) -> Split:
    """Choose the split of a row: its piece's split, or one of the splits that are cut from the piece.

    The choice depends only on the row's tokens, so equal rows are always in the same split.
    """
    if not piece.cut:
        return piece.split
    place = int.from_bytes(hashlib.blake2b(row, digest_size=8).digest(), "big") / 2**64
    if "test" in piece.cut and place >= 1 - fractions[2]:
        return "test"
    if "validation" in piece.cut and 1 - fractions[2] - fractions[1] <= place < 1 - fractions[2]:
        return "validation"
    return piece.split


def _zeros() -> dict[Split, int]:
    return dict.fromkeys(SPLITS, 0)


@dataclass
class _State:
    """Progress of a preparation. Bytes of the files beyond it are cut off."""

    revision: str | None = None
    rows: dict[str, int] = field(default_factory=dict)
    """Rows read from each of the source's pieces."""
    empty: int = 0
    """Rows without a text or an image."""
    documents: dict[Split, int] = field(default_factory=_zeros)
    tokens: dict[Split, int] = field(default_factory=_zeros)
    text_bytes: dict[Split, int] = field(default_factory=_zeros)
    """For subwords: the bytes of the documents' text, plus one for the end of each document."""


class _Preparation:
    """Writer of one folder, from the beginning or from where another process was stopped."""

    def __init__(
        self, config: DatasetDataConfig, codec: Codec, folder: Path, described: dict[str, Any], whole: bool
    ) -> None:
        self.config, self.codec, self.folder, self.described, self.whole = config, codec, folder, described, whole
        self.partial = folder.with_suffix(".partial")
        self.state = _State()
        kinds = ("tokens",) if codec.length else ("tokens", "ends")
        self.names = [f"{split}.{kind}" for split in SPLITS for kind in kinds]

    def run(self) -> None:
        source = open_source(self.config)
        self.restore(source.revision)
        files: dict[str, BinaryIO] = {name: (self.partial / name).open("ab") for name in self.names}
        try:
            for piece in source.pieces:
                self.read(piece, files)
        finally:
            for file in files.values():
                file.close()
        if not self.state.documents["train"]:
            raise UserError(
                f"data.path: {self.config.path!r} holds nothing to learn: {sum(self.state.rows.values())} rows, "
                f"{self.state.empty} of them without a value; name another column or file"
            )
        self.finish(source)

    def restore(self, revision: str | None) -> None:
        """Continue from the files of an earlier process, if it read the same revision."""
        try:
            state = _State(**json.loads((self.partial / "progress.json").read_text(encoding="utf-8")))
            if state.revision == revision:
                self.state = state
        except (OSError, ValueError, TypeError):
            pass
        self.state.revision = revision
        if not any(self.state.rows.values()):
            shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir(parents=True, exist_ok=True)
        for split in SPLITS:
            sizes = {
                f"{split}.tokens": self.state.tokens[split] * self.codec.dtype.itemsize,
                f"{split}.ends": self.state.documents[split] * 8,
            }
            for name in sizes.keys() & self.names:
                with (self.partial / name).open("ab") as file:
                    file.truncate(sizes[name])

    def read(self, piece: Piece, files: dict[str, BinaryIO]) -> None:
        from tqdm import tqdm

        rows_read = self.state.rows
        done = rows_read.setdefault(piece.name, 0)
        saved = time.monotonic()
        # disable=None shows the bar only on a terminal.
        bar = tqdm(total=piece.count, unit="rows", desc=f"preparing {piece.name}", disable=None, mininterval=0.5)
        with bar:
            for rows in piece.read():
                bar.update(len(rows))
                fresh = rows[done:]  # the others were written by an earlier process
                done = max(0, done - len(rows))
                if not fresh:
                    continue
                self.write(fresh, piece, files)
                rows_read[piece.name] += len(fresh)
                if time.monotonic() - saved >= SAVE_SECONDS:
                    self.save(files)
                    saved = time.monotonic()
            self.save(files)

    def write(self, rows: list[Any], piece: Piece, files: dict[str, BinaryIO]) -> None:
        state = self.state
        parts: dict[Split, list[bytes]] = {}
        for row, tokens in zip(rows, self.codec.encode(rows), strict=True):
            if tokens is None:
                state.empty += 1
                continue
            split = "train" if self.whole else choose_split_of_row(tokens, piece, self.config.split)
            parts.setdefault(split, []).append(tokens)
            if self.codec.tokenizer:
                state.text_bytes[split] += len(row.encode()) + 1
        for split, found in parts.items():
            lengths = np.array([len(tokens) for tokens in found], np.int64) // self.codec.dtype.itemsize
            files[f"{split}.tokens"].write(b"".join(found))
            if self.codec.length is None:
                files[f"{split}.ends"].write((state.tokens[split] + lengths.cumsum()).astype("<i8").tobytes())
            state.documents[split] += len(found)
            state.tokens[split] += int(lengths.sum())

    def save(self, files: dict[str, BinaryIO]) -> None:
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
        replace_file(self.partial / "progress.json", json.dumps(asdict(self.state)).encode())

    def finish(self, source: Source) -> None:
        state, codec = self.state, self.codec
        counted = ["documents", "tokens", *(["text_bytes"] if codec.tokenizer else [])]
        # For data.json, if the source is local.
        read = {"documents": sum(state.documents.values()), "missing": state.empty}
        manifest = {
            "version": VERSION,
            **self.described,
            "revision": state.revision,
            "splits": {split: {name: getattr(state, name)[split] for name in counted} for split in SPLITS},
            "source_rows": state.rows,
            "empty_rows": state.empty,
            "read": None if source.read is None else source.read | read,
            "vocab_size": codec.vocab_size,
            "dtype": codec.dtype.name,
            "end": codec.end,
            "files": {
                name: {"bytes": (self.partial / name).stat().st_size, "sha256": compute_digest(self.partial / name)}
                for name in self.names
            },
        }
        replace_file(self.partial / "manifest.json", json.dumps(manifest, indent=2).encode() + b"\n")
        (self.partial / "progress.json").unlink(missing_ok=True)
        os.replace(self.partial, self.folder)

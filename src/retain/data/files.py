"""Local files: list them, tell their kinds, read and decompress them; and the cache folder."""

from __future__ import annotations

import bz2
import codecs
import gzip
import hashlib
import io
import lzma
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

from retain.errors import UserError

TABLES = {
    **dict.fromkeys((".json", ".jsonl", ".ndjson"), "json"),
    **dict.fromkeys((".csv", ".tsv"), "csv"),
    ".parquet": "parquet",
    **dict.fromkeys((".arrow", ".feather"), "arrow"),
}
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm", ".pbm", ".pnm")
ARCHIVES = (".zip", ".tar", ".tgz", ".tbz2", ".txz", ".7z", ".rar")
PACKED = (".gz", ".xz", ".zst", ".bz2")
MAGIC = ((b"\x1f\x8b", "gz"), (b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "zst"))
BLOCK = 2**20

Kind = Literal["text", "table", "image", "array"]


def find_cache_folder() -> Path:
    """Return $RETAIN_CACHE, or retain/ in the user's cache folder, or a temporary folder if the user has no home."""
    if own := os.environ.get("RETAIN_CACHE"):
        return Path(own)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "retain"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"retain-{os.getuid()}"


def walk(root: Path) -> Iterator[tuple[str, Path]]:
    """Yield the relative name and the path of every file below a folder, in order.

    Hidden folders are not entered. Links are followed, but no folder is read twice. Hidden files, folders that are not
    entered and broken links are yielded, too, so that `scan` can report them.
    """
    seen = {root.resolve()}

    def below(folder: Path) -> Iterator[tuple[str, Path]]:
        for path in sorted(folder.iterdir(), key=lambda p: p.name):
            if not path.is_dir() or path.name.startswith(".") or path.resolve() in seen:
                yield path.relative_to(root).as_posix(), path
            else:
                seen.add(path.resolve())
                yield from below(path)

    return below(root)


def strip_compression(name: str) -> str:
    """Return a file's name in lower case, without the ending of its compression."""
    name = name.lower()
    return next((name.removesuffix(ending) for ending in PACKED if name.endswith(ending)), name)


def find_ending(name: str) -> str:
    """Return a file's ending in lower case; the ending of its compression is ignored."""
    return Path(strip_compression(name)).suffix


def tell_kind(name: str) -> Kind | None:
    """Tell a file's kind by its ending; None for any other ending, because only the content can show a text."""
    ending = find_ending(name)
    if ending in TABLES:
        return "table"
    if ending in IMAGES:
        return "image"
    return "array" if ending == ".npy" else None


def detect_compression(path: Path) -> str | None:
    """Detect gz, xz, zst or bz2 by the first bytes, whatever the name; None if the file is not compressed."""
    with path.open("rb") as file:
        start = file.read(10)
    if re.match(rb"BZh[1-9]1AY&SY", start):
        return "bz2"
    return next((name for magic, name in MAGIC if start.startswith(magic)), None)


def open_binary(path: Path) -> BinaryIO:
    """Open a file's content, decompressed as it is read."""
    openers: dict[str | None, Any] = {"gz": gzip.open, "xz": lzma.open, "bz2": bz2.open, "zst": _open_zst}
    opened: BinaryIO = openers.get(detect_compression(path), open)(path, "rb")
    return opened


def _open_zst(path: Path, mode: str) -> Any:
    try:
        import pyarrow
    except ImportError:
        raise UserError(
            f"data.path: {str(path)!r} is zst, which needs pyarrow; run pip install 'retain[hub]'"
        ) from None
    return io.BufferedReader(pyarrow.CompressedInputStream(str(path), "zstd"))


BROKEN = (OSError, EOFError, lzma.LZMAError, zlib.error)
"""Errors that reading a damaged compressed file raises."""


def make_read_error(path: Path, error: Exception) -> UserError:
    """Make a one-line error for a file that cannot be opened or decompressed."""
    if isinstance(error, OSError) and error.strerror:
        return UserError(f"data.path: {str(path)!r} cannot be read ({error.strerror}); check its permissions")
    return UserError(f"data.path: {str(path)!r} cannot be unpacked ({error}); it is damaged, get it again")


def unpack(path: Path) -> Path:
    """Return the path of the file itself, or of a compressed file's content, written once to the cache folder."""
    try:
        if detect_compression(path) is None:
            return path
        stat = path.stat()
        key = hashlib.sha256(f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}".encode()).hexdigest()[:24]
        target = find_cache_folder() / "unpacked" / key / Path(strip_compression(path.name)).name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f".tmp-{os.getpid()}")
            with open_binary(path) as packed, partial.open("wb") as file:
                shutil.copyfileobj(packed, file, BLOCK)
            os.replace(partial, target)
        return target
    except BROKEN as error:
        raise make_read_error(path, error) from None


def read_text_file(path: Path) -> str:
    """Read a whole text file that `scan` has found to be UTF-8."""
    try:
        with open_binary(path) as file:
            return file.read().decode("utf-8")
    except BROKEN as error:
        raise make_read_error(path, error) from None


def compute_digest(path: Path) -> str:
    """Compute the SHA-256 of a file in blocks, without decompressing it."""
    checksum = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            checksum.update(block)
    return checksum.hexdigest()


def read_through(path: Path, text: bool) -> tuple[str, int, str | None]:
    """Return the SHA-256 and size of a file's decompressed content; with `text`, also why it is not text, or None."""
    checksum, size, decoder = hashlib.sha256(), 0, codecs.getincrementaldecoder("utf-8")()
    try:
        with open_binary(path) as file:
            while block := file.read(BLOCK):
                if text and (why := _why_no_text(block, decoder, size)):
                    return "", 0, why
                checksum.update(block)
                size += len(block)
        if text and decoder.getstate()[0]:
            return "", 0, "not UTF-8 at its end"
    except BROKEN as error:
        raise make_read_error(path, error) from None
    return checksum.hexdigest(), size, None


def _why_no_text(block: bytes, decoder: Any, offset: int) -> str | None:
    if offset == 0:
        for magic, what in NOT_TEXT:
            if block.startswith(magic):
                return what
    if b"\0" in block:
        return "not text"
    kept = len(decoder.getstate()[0])  # bytes of a character that begins in the block before
    try:
        decoder.decode(block)
    except UnicodeDecodeError as error:
        return f"not UTF-8 at byte {offset - kept + error.start}; convert it with iconv"
    return None


NOT_TEXT = (
    (b"%PDF", "a PDF; extract its text"),
    (codecs.BOM_UTF16_LE, "UTF-16; convert it to UTF-8"),
    (codecs.BOM_UTF16_BE, "UTF-16; convert it to UTF-8"),
    (b"\x93NUMPY", "a NumPy array; name it .npy"),
    (b"PK\x03\x04", "an archive; unpack it"),
)
"""First bytes of files that are often mistaken for texts."""

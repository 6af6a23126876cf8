"""Text as bytes: the standard library's source, or a file of any size; and token arrays in .npy files."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from retain.config import LARGEST_VOCABULARY, DataConfig
from retain.data.batches import SPLITS, Data, RowsData, Split, StreamData, cuts
from retain.data.paths import expanded
from retain.errors import UserError

LEFT_OUT = {
    *("test", "tests", "idlelib", "encodings", "pydoc_data", "lib2to3", "turtledemo", "ensurepip"),
    *("site-packages", "dist-packages", "__pycache__"),
}
WHOLE = 64 * 2**20
"""Files up to this many bytes are checked whole; larger ones by SAMPLES blocks."""
BLOCK = 2**16
SAMPLES = 256


def load_stdlib(config: DataConfig) -> StreamData:
    """Source code of the running Python's standard library, as bytes, split by file.

    A file's split follows from the SHA-256 of its relative path: 90 / 5 / 5 % of files in expectation, and the same
    for a file on every Python version. Test suites and generated tables are left out.
    """
    root = Path(sysconfig.get_path("stdlib"))
    parts: dict[Split, list[bytes]] = {split: [] for split in SPLITS}
    checksum = hashlib.sha256()
    for path in stdlib_files(root):
        content = (root / path).read_bytes()
        checksum.update(f"{path}\0{len(content)}\0".encode() + content)
        parts[split_of(path)].append(content)
    for split in SPLITS:
        if not parts[split]:
            raise UserError(f"data.name: stdlib finds no source for {split} under {root}; use a text file instead")
    streams = {split: np.frombuffer(b"".join(parts[split]), dtype=np.uint8) for split in SPLITS}
    info = {
        "name": "stdlib",
        "files": {split: len(parts[split]) for split in SPLITS},
        "bytes": {split: len(streams[split]) for split in SPLITS},
        "sha256": checksum.hexdigest(),
    }
    return StreamData(streams, vocab_size=256, seq_len=config.seq_len, kind="text", info=info)


def stdlib_files(root: Path) -> list[str]:
    """Relative posix paths of the standard library's own .py files, sorted.

    Build records (_sysconfigdata*, config-*) are left out too: they differ from machine to machine.
    """
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in LEFT_OUT and not name.startswith("config-")]
        names = [name for name in names if name.endswith(".py") and not name.startswith("_sysconfigdata")]
        found += [(Path(folder) / name).relative_to(root).as_posix() for name in names]
    return sorted(found)


def split_of(path: str) -> Split:
    """The split of a file of the standard library, from its relative posix path."""
    place = int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big") / 2**64
    return "train" if place < 0.90 else "validation" if place < 0.95 else "test"


def load_text(config: DataConfig, whole: bool = False) -> StreamData:
    """A UTF-8 text file as bytes, memory-mapped and cut into three consecutive parts; or `whole`, as the split "all".

    Up to 64 MiB the whole file is checked and info has its `sha256`. Of a larger one 256 evenly spaced blocks of
    64 KiB are checked, and info has `sha256_of_samples`, the SHA-256 of its size and those blocks, instead.
    Raises UserError for a file that is missing, empty, too short or not UTF-8.
    """
    path = checked_path(config, "a UTF-8 text file")
    try:
        info: dict[str, Any] = {"name": "text", "path": str(path)} | checksum_of(path, text=True)
        stream = np.memmap(path, dtype=np.uint8, mode="r")
    except OSError as error:
        raise UserError(f"data.path: {str(path)!r} cannot be read ({error.strerror}); check its permissions") from None
    streams = split_stream(stream, config, whole)
    info["bytes"] = {split: len(part) for split, part in streams.items()}
    return StreamData(streams, vocab_size=256, seq_len=config.seq_len, kind="text", info=info)


def load_npy(config: DataConfig, whole: bool = False) -> Data:
    """Tokens from a .npy file, memory-mapped: 1-D is a stream cut in three, 2-D one sequence per row; `whole` is "all".

    Rows go to the splits by a fixed permutation. The file is scanned once, in blocks, for its range; its checksum
    is as for `load_text`. Raises UserError for anything but non-negative integers below the vocabulary size.
    """
    path = checked_path(config, "a .npy file of integers")
    try:
        tokens = open_npy(path)
        vocab_size = vocabulary_of(path, tokens, config.vocab_size)
        info: dict[str, Any] = {"name": "npy", "path": str(path)} | checksum_of(path, text=False)
    except OSError as error:
        raise UserError(f"data.path: {str(path)!r} cannot be read ({error.strerror}); check its permissions") from None
    if tokens.ndim == 2:
        return RowsData(
            tokens,
            fractions=None if whole else config.split,
            vocab_size=vocab_size,
            seq_len=config.seq_len,
            kind="tokens",
            info=info,
        )
    streams = split_stream(tokens, config, whole)
    info["tokens"] = {split: len(stream) for split, stream in streams.items()}
    return StreamData(streams, vocab_size=vocab_size, seq_len=config.seq_len, kind="tokens", info=info)


def checked_path(config: DataConfig, wanted: str) -> Path:
    """The data file, known to exist and not to be empty."""
    path = expanded(config.path or "")
    if not path.exists():
        raise UserError(f"data.path: {str(path)!r} does not exist; give {wanted}")
    if not path.is_file():
        what = "is a directory" if path.is_dir() else "is not a regular file"
        raise UserError(f"data.path: {str(path)!r} {what}; give {wanted}")
    if path.stat().st_size == 0:
        raise UserError(f"data.path: {str(path)!r} is empty; give {wanted}")
    return path


def split_stream(stream: npt.NDArray[Any], config: DataConfig, whole: bool = False) -> dict[Split, npt.NDArray[Any]]:
    """Three consecutive views of a stream, or all of it."""
    if whole:
        return {"all": stream}
    first, second = cuts(len(stream), config.split)
    return {"train": stream[:first], "validation": stream[first:second], "test": stream[second:]}


def sample_offsets(size: int) -> list[int]:
    """Where the checked blocks of a file of `size` bytes start; they cover it whole up to WHOLE bytes."""
    if size <= WHOLE:
        return list(range(0, size, BLOCK))
    return [i * (size - BLOCK) // (SAMPLES - 1) for i in range(SAMPLES)]


def checksum_of(path: Path, *, text: bool) -> dict[str, str]:
    """`sha256` of a file, or `sha256_of_samples` of a large one. With `text`, UserError for what is not UTF-8."""
    size = path.stat().st_size
    checksum = hashlib.sha256() if size <= WHOLE else hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for offset in sample_offsets(size):
            file.seek(offset)
            block = file.read(BLOCK)
            checksum.update(block)
            if text:
                check_utf8(block, offset, size, path)
    return {"sha256" if size <= WHOLE else "sha256_of_samples": checksum.hexdigest()}


def check_utf8(block: bytes, offset: int, size: int, path: Path) -> None:
    """Raise UserError if a block of a file is not UTF-8; the characters its edges cut are let pass."""
    remedy = (
        "give a UTF-8 text file, or train on its bytes as they are: numpy.save('bytes.npy', numpy.fromfile(PATH, "
        "'uint8')), --data bytes.npy --data.vocab-size 256"
    )
    if (place := block.find(b"\0")) >= 0:
        raise UserError(f"data.path: {str(path)!r} holds a NUL byte at {offset + place}, it is not text; {remedy}")
    start = 0
    while offset and start < min(3, len(block)) and block[start] & 0xC0 == 0x80:
        start += 1
    try:
        block[start:].decode("utf-8")
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data" and offset + len(block) < size:
            return
        place = offset + start + error.start
        raise UserError(f"data.path: {str(path)!r} is not UTF-8 at byte {place}; {remedy}") from None


def open_npy(path: Path) -> npt.NDArray[Any]:
    """The array of a .npy file, memory-mapped. Raises UserError unless it is 1-D or 2-D, of integers, not empty."""
    with path.open("rb") as file:
        is_npy = file.read(6) == b"\x93NUMPY"
    if not is_npy:
        raise UserError(f"data.path: {str(path)!r} is not a .npy file; write one array of integers with numpy.save")
    try:
        array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # a damaged header may raise anything, as far as tokenize.TokenError
        if "Python objects" in str(error):
            raise UserError(
                f"data.path: {str(path)!r} holds pickled Python objects, which are never loaded; save integers"
            ) from None
        raise UserError(f"data.path: {str(path)!r} is empty or a damaged .npy file; save it again") from None
    if not np.issubdtype(array.dtype, np.integer):
        raise UserError(f"data.path: {str(path)!r} holds {array.dtype}, not integers; save token numbers")
    if array.ndim not in (1, 2):
        raise UserError(f"data.path: {str(path)!r} has {array.ndim} dimensions; save a stream (N,) or rows (N, L)")
    if array.size == 0:
        raise UserError(f"data.path: {str(path)!r} is empty; give a .npy file of integers")
    return array


def integers_of(path: Path, array: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """The integers of a .npy file in blocks, in the file's order.

    Read, not mapped, so that scanning a large file does not fill the process's memory with its pages.
    """
    assert isinstance(array, np.memmap)
    with path.open("rb") as file:
        file.seek(array.offset)
        while len(block := np.fromfile(file, dtype=array.dtype, count=2**20)):
            yield block


def vocabulary_of(path: Path, array: npt.NDArray[Any], vocab_size: int | None) -> int:
    """`vocab_size`, or one more than the largest token. Raises UserError for a token outside it."""
    smallest, largest = 0, 0
    for block in integers_of(path, array):
        smallest, largest = min(smallest, int(block.min())), max(largest, int(block.max()))
    if smallest < 0:
        raise UserError(f"data.path: {str(path)!r} holds the token {smallest}; tokens must not be negative")
    if largest >= LARGEST_VOCABULARY:
        raise UserError(
            f"data.path: {str(path)!r} holds the token {largest}; number the tokens from 0, below {LARGEST_VOCABULARY}"
        )
    if vocab_size is not None and largest >= vocab_size:
        raise UserError(f"data.vocab_size: {vocab_size} is too small for token {largest}; set it to {largest + 1}")
    return largest + 1 if vocab_size is None else vocab_size

"""Text as bytes, from the standard library's source or a file of any size, and token arrays in .npy files."""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import sysconfig
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from retain.config import LARGEST_VOCABULARY, ArrayDataConfig, DataConfig, FileDataConfig, TextDataConfig
from retain.data.batches import SPLITS, Data, RowsData, Split, StreamData, find_cut_points
from retain.data.file_array import HELD, FileArray, Stream, is_held, open_array
from retain.data.files import NOT_TEXT, make_read_error, tell_kind, unpack, walk
from retain.data.paths import expand_path
from retain.data.scan import split_by_names
from retain.errors import UserError

LEFT_OUT = {
    *("test", "tests", "idlelib", "encodings", "pydoc_data", "lib2to3", "turtledemo", "ensurepip"),
    *("site-packages", "dist-packages", "__pycache__"),
}
WHOLE = HELD
"""Files up to this many bytes are checked completely. Of larger files SAMPLES blocks are checked."""
BLOCK = 2**16
SAMPLES = 256


def load_stdlib(config: DataConfig) -> StreamData:
    """Load the source code of the running Python's standard library, as bytes, split by file.

    The SHA-256 of a file's relative path decides its split: 90 / 5 / 5 % of files in expectation. So a file has the
    same split in every Python version. Test suites and generated tables are left out.
    """
    root = Path(sysconfig.get_path("stdlib"))
    parts: dict[Split, list[bytes]] = {split: [] for split in SPLITS}
    checksum = hashlib.sha256()
    for path in list_stdlib_files(root):
        content = (root / path).read_bytes()
        checksum.update(f"{path}\0{len(content)}\0".encode() + content)
        parts[choose_split(path)].append(content)
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


def list_stdlib_files(root: Path) -> list[str]:
    """List the relative posix paths of the standard library's own .py files, sorted.

    Build records (_sysconfigdata*, config-*) are left out too: they differ from machine to machine.
    """
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in LEFT_OUT and not name.startswith("config-")]
        names = [name for name in names if name.endswith(".py") and not name.startswith("_sysconfigdata")]
        found += [(Path(folder) / name).relative_to(root).as_posix() for name in names]
    return sorted(found)


def choose_split(path: str) -> Split:
    """Choose the split of a file of the standard library, from its relative posix path."""
    place = int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big") / 2**64
    return "train" if place < 0.90 else "validation" if place < 0.95 else "test"


def load_text(config: TextDataConfig, whole: bool = False) -> StreamData:
    """Load a UTF-8 text file as bytes, cut into three consecutive splits; with `whole`, as the split "all".

    A file of up to 64 MiB is held in memory and checked completely, and info has its `sha256`. A larger file is read
    when needed. Of that, 256 evenly spaced blocks of 64 KiB are checked, and info has `sha256_of_samples`, the hash of
    its size and these blocks. Raises UserError for a file that is missing, empty, too short or not UTF-8.
    """
    path = check_path(config, "a UTF-8 text file")
    file = unpack(path)
    try:
        info: dict[str, Any] = {"name": "text", "path": str(path)} | compute_checksum(file, text=True)
        stream = open_array(file, np.uint8)
    except OSError as error:
        raise make_read_error(path, error) from None
    streams = split_stream(stream, config, whole)
    info["bytes"] = {split: len(part) for split, part in streams.items()}
    return StreamData(streams, vocab_size=256, seq_len=config.seq_len, kind="text", info=info)


def load_npy(config: ArrayDataConfig, whole: bool = False) -> Data:
    """Load tokens from a .npy file, or from a folder of them.

    A 1-D array is a stream, cut into three consecutive splits. A 2-D array has one sequence per row, and a fixed
    permutation divides the rows among the splits. With `whole` the only split is "all". The arrays of a folder are
    joined; if all of its files are named after splits, streams follow these names. data.ignore is the number that pads
    short rows. Each file is scanned once, in blocks, for its range of tokens. Checksums and memory are as in
    `load_text`. Raises UserError for anything but non-negative integers below the vocabulary size.
    """
    path = expand_path(config.path)
    is_folder = path.is_dir()
    found = dict(walk(path)) if is_folder else {path.name: check_path(config, "a .npy file of integers")}
    files = {n: file for n, file in found.items() if not is_folder or (tell_kind(n) == "array" and file.is_file())}
    if not files:
        raise UserError(f"data.path: {str(path)!r} holds no .npy file; give one, or a folder of them")
    arrays, sizes, checksums = zip(*(read_npy(file, config) for file in files.values()), strict=True)
    names = split_by_names(list(files)) if is_folder else None
    info: dict[str, Any] = {"name": "npy", "path": str(path)}
    if is_folder:
        info["sha256_of_files"] = hashlib.sha256(json.dumps(checksums).encode()).hexdigest()
        info["read"] = {
            "files": len(files),
            "documents": len(files),
            "what": "array",
            "missing": 0,
            "split_by_name": names is not None,
            "skipped": dict.fromkeys((name for name in found if name not in files), "no .npy file"),
            "as_text": [],
        }
    else:
        info |= checksums[0]
    common: dict[str, Any] = {"vocab_size": max(sizes), "seq_len": config.seq_len, "kind": "tokens"}
    streams: dict[Split, Stream] | None = None
    if names is not None and not whole:
        if any(len(array.shape) == 2 for array in arrays) or set(names) != set(SPLITS):
            raise UserError(
                f"data.path: {info['path']!r} has files of the splits {', '.join(sorted(set(names)))}; for streams "
                "(N,) give train, validation and test, or rename the files to have them cut"
            )
        streams = {s: join_arrays([a for a, name in zip(arrays, names, strict=True) if name == s]) for s in SPLITS}
    elif all(len(array.shape) == 1 for array in arrays):
        streams = split_stream(join_arrays(arrays), config, whole)
    if streams is not None:
        if config.ignore is not None:
            raise UserError(f"data.ignore: {config.ignore} pads rows (N, L), but this is a stream (N,); leave it out")
        info["tokens"] = {split: len(stream) for split, stream in streams.items()}
        return StreamData(streams, info=info, **common)
    if len(shapes := sorted({array.shape[1:] for array in arrays})) > 1:
        rows = ", ".join(map(str, shapes))
        raise UserError(f"data.path: {config.path!r} holds arrays of several shapes, rows of {rows}; give one shape")
    fractions = None if whole else config.split
    return RowsData(join_arrays(arrays), fractions=fractions, ignore=config.ignore, info=info, **common)


def join_arrays(arrays: Sequence[Stream]) -> Stream:
    """Join several arrays into one. A single large array stays in its file."""
    return arrays[0] if len(arrays) == 1 else np.concatenate([np.asarray(array) for array in arrays])


def read_npy(path: Path, config: ArrayDataConfig) -> tuple[Stream, int, dict[str, str]]:
    """Read the array of a .npy file, its vocabulary size and its checksum."""
    file = unpack(path)
    try:
        tokens = open_npy(file)
        vocab_size = read_vocab_size(path, tokens, config)
        return tokens, vocab_size, compute_checksum(file, text=False)
    except OSError as error:
        raise make_read_error(path, error) from None


def check_path(config: FileDataConfig, wanted: str) -> Path:
    """Return the path of the data file. Raises UserError if it is missing, not a file or empty."""
    path = expand_path(config.path)
    if not path.exists():
        raise UserError(f"data.path: {str(path)!r} does not exist; give {wanted}")
    if not path.is_file():
        what = "is a directory" if path.is_dir() else "is not a regular file"
        raise UserError(f"data.path: {str(path)!r} {what}; give {wanted}")
    if path.stat().st_size == 0:
        raise UserError(f"data.path: {str(path)!r} is empty; give {wanted}")
    return path


def split_stream(stream: Stream, config: FileDataConfig, whole: bool = False) -> dict[Split, Stream]:
    """Cut a stream into three consecutive splits; with `whole`, return it as the split "all"."""
    if whole:
        return {"all": stream}
    ends = [0, *find_cut_points(len(stream), config.split), len(stream)]
    return {split: stream[start:stop] for split, (start, stop) in zip(SPLITS, pairwise(ends), strict=True)}


def list_sample_offsets(size: int) -> list[int]:
    """List where the checked blocks of a file of `size` bytes start. Up to WHOLE bytes they cover all of it."""
    if size <= WHOLE:
        return list(range(0, size, BLOCK))
    return [i * (size - BLOCK) // (SAMPLES - 1) for i in range(SAMPLES)]


def compute_checksum(path: Path, *, text: bool) -> dict[str, str]:
    """Compute `sha256` of a file, or `sha256_of_samples` of a large one. With `text`, check that it is UTF-8, too."""
    size = path.stat().st_size
    checksum = hashlib.sha256() if size <= WHOLE else hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for offset in list_sample_offsets(size):
            file.seek(offset)
            block = file.read(BLOCK)
            checksum.update(block)
            if text:
                check_utf8(block, offset, size, path)
    return {"sha256" if size <= WHOLE else "sha256_of_samples": checksum.hexdigest()}


def check_utf8(block: bytes, offset: int, size: int, path: Path) -> None:
    """Raise UserError if a block of a file is not UTF-8. Characters cut at the edges of the block are accepted."""
    if (place := block.find(b"\0")) >= 0:
        raise UserError(
            f"data.path: {str(path)!r} holds a NUL byte at {offset + place}, it is not text; "
            f"{suggest_remedy(path, block)}"
        )
    start = 0
    while offset and start < min(3, len(block)) and block[start] & 0xC0 == 0x80:
        start += 1
    try:
        codecs.utf_8_decode(block[start:], "strict", offset + len(block) >= size)
    except UnicodeDecodeError as error:
        place = offset + start + error.start
        raise UserError(
            f"data.path: {str(path)!r} is not UTF-8 at byte {place}; {suggest_remedy(path, block)}"
        ) from None


def suggest_remedy(path: Path, block: bytes) -> str:
    """Return advice on a file that is not text."""
    quoted = repr(str(path))
    if path.suffix == ".bin":
        return (
            "if these are tokens of two bytes (nanoGPT's), run numpy.save('tokens.npy', "
            f"numpy.fromfile({quoted}, 'uint16')) and give --data tokens.npy"
        )
    if path.suffix == ".npz":
        return f"run numpy.save('tokens.npy', numpy.load({quoted})['NAME']) and give --data tokens.npy"
    with path.open("rb") as file:
        start = file.read(8)
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return f"convert it: iconv -f UTF-16 -t UTF-8 {path.name}"
    if what := next((what for magic, what in NOT_TEXT if start.startswith(magic)), None):
        return f"it is {what}"
    return (
        f"convert it to UTF-8 (iconv -f latin1 -t UTF-8 {path.name}), or train on its bytes as they are: "
        "numpy.save('bytes.npy', numpy.fromfile(PATH, 'uint8')), --data bytes.npy --data.vocab-size 256"
    )


def open_npy(path: Path) -> Stream:
    """Open the array of a .npy file. Raises UserError unless it holds integers, is 1-D or 2-D and is not empty."""
    with path.open("rb") as file:
        is_npy = file.read(6) == b"\x93NUMPY"
    if not is_npy:
        raise UserError(f"data.path: {str(path)!r} is not a .npy file; write one array of integers with numpy.save")
    try:
        array: npt.NDArray[Any] = np.load(path, mmap_mode=None if is_held(path) else "r", allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # a damaged header may raise anything, even tokenize.TokenError
        if "Python objects" in str(error) or "Object arrays" in str(error):
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
    if not isinstance(array, np.memmap):
        return array
    if not array.flags.c_contiguous:
        return np.array(array)
    return FileArray(path, array.dtype, array.shape, int(array.offset))


def read_vocab_size(path: Path, array: Stream, config: ArrayDataConfig) -> int:
    """Return data.vocab_size, or one more than the largest token. Raises UserError for a token outside it.

    data.ignore is not a token. It may only pad the end of a row.
    """
    smallest, largest = 0, 0
    rows = max(1, 2**20 // (array.shape[1] if len(array.shape) == 2 else 1))
    for start in range(0, len(array), rows):
        block = np.asarray(array[start : start + rows])
        if config.ignore is not None:
            padding = block == config.ignore
            if block.ndim == 2 and (wrong := (padding[:, :-1] & ~padding[:, 1:]).any(1)).any():
                raise UserError(
                    f"data.ignore: row {start + int(wrong.argmax())} of {str(path)!r} has {config.ignore} before a "
                    "token; pad rows at their end"
                )
            block = block[~padding]
            if not block.size:
                continue
        smallest, largest = min(smallest, int(block.min())), max(largest, int(block.max()))
    if smallest < 0:
        raise UserError(
            f"data.path: {str(path)!r} holds the token {smallest}; tokens must not be negative (give --data.ignore "
            f"{smallest} if it pads rows)"
        )
    vocab_size = config.vocab_size
    if largest >= LARGEST_VOCABULARY:
        raise UserError(
            f"data.path: {str(path)!r} holds the token {largest}; number the tokens from 0, below {LARGEST_VOCABULARY}"
        )
    if vocab_size is not None and largest >= vocab_size:
        raise UserError(f"data.vocab_size: {vocab_size} is too small for token {largest}; set it to {largest + 1}")
    return largest + 1 if vocab_size is None else vocab_size

"""Arrays in files that are too large for memory, read in parts."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from retain.errors import ChangedData

HELD = 64 * 2**20
"""Files of up to this many bytes are read into memory once. Later changes to them do not matter."""


class _Opened:
    """A file that can be read from any place until it changes."""

    def __init__(self, path: Path):
        self.path, self.descriptor = path, os.open(path, os.O_RDONLY)
        self.stamp = self._now()

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)

    def _now(self) -> tuple[int, int]:
        stat = os.fstat(self.descriptor)
        return stat.st_size, stat.st_mtime_ns

    def check(self) -> None:
        if self._now() != self.stamp:
            raise ChangedData(f"data.path: {str(self.path)!r} was changed while it was read; bring it back")

    def read(self, into: npt.NDArray[Any], place: int) -> None:
        """Fill `into` with the bytes from `place` on. One system call may read fewer bytes than there are."""
        left = into.view(np.uint8).data
        while left:
            count = os.preadv(self.descriptor, [left], place)
            if not count:
                raise ChangedData(f"data.path: {str(self.path)!r} was cut short while it was read; bring it back")
            left, place = left[count:], place + count


class FileArray:
    """A 1-D or 2-D array in a file from byte `offset` on. A slice of it is a view of the file.

    The file is read, not mapped: if another process truncated a mapped file, a bus error would end this process.
    Every read raises ChangedData if the file has changed since it was opened.
    """

    def __init__(self, file: Path | _Opened, dtype: npt.DTypeLike, shape: tuple[int, ...], offset: int = 0):
        self.file = file if isinstance(file, _Opened) else _Opened(file)
        self.dtype, self.shape, self.offset = np.dtype(dtype), shape, offset
        self.size, self.width = math.prod(shape), math.prod(shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: slice) -> FileArray:
        start, stop, _ = part.indices(len(self))
        offset = self.offset + start * self.width * self.dtype.itemsize
        return FileArray(self.file, self.dtype, (stop - start, *self.shape[1:]), offset)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        found = self.windows(np.zeros(1, np.int64), self.size).reshape(self.shape)
        return found if dtype is None else found.astype(dtype)

    def take(self, index: npt.NDArray[np.int64], axis: Literal[0]) -> npt.NDArray[Any]:
        """Read the elements (B,) or the rows (B, L) with the numbers `index` (B,)."""
        return self.windows(index * self.width, self.width).reshape(len(index), *self.shape[1:])

    def windows(self, starts: npt.NDArray[np.int64], length: int) -> npt.NDArray[Any]:
        """Read `length` numbers in row-major order from each of the `starts` (B,): (B, length), 0 beyond the end."""
        self.file.check()
        found = np.zeros((len(starts), length), self.dtype)
        for row, start in zip(found, starts.tolist(), strict=True):
            self.file.read(row[: max(0, self.size - start)], self.offset + start * self.dtype.itemsize)
        return found


Stream = npt.NDArray[Any] | FileArray


def is_held(path: Path) -> bool:
    """Whether a file is small enough to be read into memory."""
    return path.stat().st_size <= HELD


def open_array(path: Path, dtype: npt.DTypeLike, row: tuple[int, ...] = ()) -> Stream:
    """Open a file that holds only numbers as an array (N, *row), in memory if it is small. Raises OSError."""
    if is_held(path):
        return np.fromfile(path, dtype).reshape(-1, *row)
    count = path.stat().st_size // (np.dtype(dtype).itemsize * math.prod(row))
    return FileArray(path, dtype, (count, *row))

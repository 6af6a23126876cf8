"""Integers in a file that is too large to hold, read piece by piece."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from retain.errors import ChangedData

HELD = 64 * 2**20
"""Files of up to this many bytes are read into memory once: what happens to them afterwards does not matter."""


class _Opened:
    """A file that is read from any place, and refuses to go on once it has changed."""

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

    def read(self, into: memoryview, place: int) -> None:
        """Fill `into` with the bytes from `place` on; one call may read fewer than there are."""
        while into:
            count = os.preadv(self.descriptor, [into], place)
            if not count:
                raise ChangedData(f"data.path: {str(self.path)!r} was cut short while it was read; bring it back")
            into, place = into[count:], place + count


class FileArray:
    """A 1-D array, or the rows of a 2-D one, in a file from byte `offset` on.

    It is read and not mapped: a mapped file that another process cuts short ends this one with a bus error.
    Every reading raises ChangedData if the file has changed since it was opened.
    """

    def __init__(self, file: Path | _Opened, dtype: npt.DTypeLike, shape: tuple[int, ...], offset: int = 0):
        self.file = file if isinstance(file, _Opened) else _Opened(file)
        self.dtype, self.shape, self.offset = np.dtype(dtype), shape, offset

    def __len__(self) -> int:
        return self.shape[0]

    def part(self, start: int, stop: int) -> FileArray:
        """Elements `start` … `stop` - 1 of a 1-D array, or of all the numbers of a 2-D one."""
        return FileArray(self.file, self.dtype, (stop - start,), self.offset + start * self.dtype.itemsize)

    def all(self) -> npt.NDArray[Any]:
        """All of it, in memory."""
        count = int(np.prod(self.shape))
        return self.part(0, count).windows(np.zeros(1, np.int64), count).reshape(self.shape)

    def windows(self, starts: npt.NDArray[np.int64], length: int) -> npt.NDArray[Any]:
        """`length` elements from each of the `starts` (B,) on: (B, length); 0 beyond the end."""
        self.file.check()
        found = np.zeros((len(starts), length), self.dtype)
        for row, start in zip(found, starts.tolist(), strict=True):
            wanted = row[: max(0, len(self) - start)]
            self.file.read(memoryview(wanted).cast("B"), self.offset + start * self.dtype.itemsize)
        return found

    def rows(self, index: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """The rows `index` (B,) of a 2-D array (N, L): (B, L)."""
        count, length = self.shape
        return self.part(0, count * length).windows(index * length, length)

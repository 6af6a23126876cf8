"""Timing of functions that run alternately, matrix products and memory reads to compare with, and peak memory."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from retain.devices import fast_bf16

REPEATS = 7


def device() -> torch.device:
    """Return the device that a run trains on by default."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def precision() -> torch.dtype:
    """Return the precision of matrix products that `precision = auto` chooses here."""
    return torch.bfloat16 if fast_bf16(device()) else torch.float32


def autocast(enabled: bool = True) -> torch.autocast:
    """Return the autocast context that Accelerate puts around a step here; `enabled` False is plain float32."""
    return torch.autocast(device().type, torch.bfloat16, enabled=enabled and precision() == torch.bfloat16)


def clock(side: Callable[[], object]) -> float:
    """Return the seconds of one call, including the device's work."""
    wait()
    start = time.perf_counter()
    side()
    wait()
    return time.perf_counter() - start


def wait() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def by_turns(*sides: Callable[[], object], repeats: int = REPEATS, warm: int = 2, primed: bool = False) -> list[float]:
    """Time functions that run alternately.

    Args:
        *sides: The functions.
        repeats: The timed rounds.
        warm: The warm-up rounds before them.
        primed: Run each side once untimed before it is timed. Otherwise a side of a few milliseconds pays for the
            caches that the side before it has filled.

    Returns:
        The median seconds of each side.
    """
    seconds: list[list[float]] = [[] for _ in sides]
    for turn in range(warm + repeats):
        for side, taken in zip(sides, seconds, strict=True):
            if primed:
                side()
            spent = clock(side)
            if turn >= warm:
                taken.append(spent)
    return [statistics.median(taken) for taken in seconds]


def large() -> int:
    """Return the side of a matrix product that is large enough for the peak rate of this device."""
    return 8192 if device().type == "cuda" else 2048


def product(size: int) -> Callable[[], Tensor]:
    """Return a function that computes a matrix product in the precision of this machine: 2 · size³ operations."""
    a, b = (torch.randn(size, size, device=device(), dtype=precision()) for _ in range(2))
    return lambda: a @ b


def reading(count: int) -> tuple[Callable[[], Tensor], int]:
    """Return a function that reads `count` bytes of memory several times, and the number of times.

    Each time it reads other addresses, so that no cache holds them.
    """
    times = max(2, 2**28 // count)
    values = torch.ones(times * count // 4, device=device())
    return values.sum, times


def peak_of(side: str) -> int:
    """Return the peak memory in bytes of a side of benchmarks.peak, measured in a separate process.

    Raises:
        RuntimeError: The process failed.
    """
    done = subprocess.run([sys.executable, "-m", "benchmarks.peak", side], capture_output=True, encoding="utf-8")
    if done.returncode:
        raise RuntimeError(f"benchmarks.peak {side} failed: {done.stderr.strip().splitlines()[-1:]}")
    return int(done.stdout)

"""A folder that one process alone writes into."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from retain.errors import UserError

LOCK = ".lock"
PATIENCE = 3.0
"""Seconds in which a process that is being killed has let go."""


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Hold the folder `out`, which is made. Raises UserError where another process has it.

    The system lets go of it when this process dies, however it dies.
    """
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / LOCK)
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        raise UserError(f"out: another process is at work in {out}; wait for it, or name another --out") from None
    try:
        yield
    finally:
        lock.release()

"""Locks of folders, so that only one process writes into a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from retain.errors import UserError

LOCK = ".lock"
PATIENCE = 3.0
"""Seconds to wait until a process that is being killed releases the folder."""
LITTER = {
    *(LOCK, ".gitkeep", ".keep", ".gitignore", ".gitattributes", "lost+found", ".snapshot", ".ipynb_checkpoints"),
    *(".ds_store", ".localized", "thumbs.db", "desktop.ini", ".directory", "@eadir", "system volume information"),
}
"""Names, in lower case, of what version control, file systems and file managers leave in folders."""
LEFT = (".tmp-", "._", ".nfs", ".fuse_hidden", ".trash-")
"""Prefixes of other such names, and of temporary files that a killed process left."""


def is_litter(name: str) -> bool:
    """Whether a file of this name says nothing about what its folder holds."""
    return name.lower() in LITTER or name.lower().startswith(LEFT)


def is_free(out: Path) -> bool:
    """Whether a run can be written into `out`: it does not exist, or is a folder that holds nothing but litter."""
    return not out.exists() or (out.is_dir() and all(is_litter(file.name) for file in out.iterdir()))


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Create the folder `out` and hold it. Raises UserError if another process has it.

    The system releases it when this process dies, however it dies.
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

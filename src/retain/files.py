"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from retain.errors import READ_ONLY, UserError

log = logging.getLogger("retain")


def replace_file(path: Path, data: bytes) -> None:
    """Replace one file by `data`, atomically and durably. Raises OSError."""
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    try:
        write_file(temporary, data)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error  # name the file, not the temporary one
    finally:
        tidy(path.parent, path.name)


def keep_printed(path: Path, text: str) -> None:
    """Save printed text in its run folder. If the folder is read-only, print a line on stderr instead.

    Raises UserError if the disk refuses.
    """
    try:
        replace_file(path, text.encode() + b"\n")
    except OSError as error:
        lost = f"{path}: cannot be written, {error.strerror}; what was printed is not kept"
        if error.errno not in READ_ONLY:
            raise UserError(lost) from error
        print(f"retain: {lost}", file=sys.stderr)


def check_new_folder(folder: Path) -> None:
    """Raise UserError unless `folder` is absent or empty, so that a new one can take its place."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"directory: {folder} already exists; name another folder, or delete it")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder to write into. It becomes `folder` at the end, and is deleted after an error.

    Raises UserError if `folder` exists and is not empty, OSError if the disk refuses.
    """
    check_new_folder(folder)
    given, folder = folder, Path(os.path.realpath(folder))  # "." has no name
    temporary = folder.with_name(f".tmp-{folder.name}-{os.getpid()}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    tidy(folder.parent, folder.name)
    try:
        temporary.mkdir()
        yield temporary
        os.rename(temporary, folder)  # an empty folder is replaced
        sync_folder(folder.parent)
    except OSError as error:
        if error.filename is not None and temporary.name in os.fsdecode(error.filename):
            raise OSError(error.errno, error.strerror, str(given)) from error  # name the folder, not the temporary one
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_file(path: Path, data: bytes) -> None:
    """Write a file and wait until it is on disk. Raises OSError."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on disk. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync a folder. Nothing more can be done there.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def tidy(parent: Path, name: str | None = None) -> None:
    """Clean up after killed writers of parent/name (None: of any name). Restore an old version without a new one."""
    for path in parent.glob(".tmp-*"):
        if name is None or path.name[5:].rpartition("-")[0] == name:
            shutil.rmtree(path, ignore_errors=True)
            if path.is_file():
                path.unlink()
    for aside in parent.glob(".old-*") if name is None else [parent / f".old-{name}"]:
        if aside.exists() and not (parent / aside.name[5:]).exists():
            os.rename(aside, parent / aside.name[5:])
        shutil.rmtree(aside, ignore_errors=True)


def delete_folder(folder: Path) -> None:
    """Delete a checkpoint after renaming it, so that a kill leaves no half checkpoint under its name."""
    doomed = folder.with_name(f".tmp-{folder.name}-{os.getpid()}")
    try:
        os.rename(folder, doomed)
        shutil.rmtree(doomed)
    except OSError as error:
        log.warning("%s: cannot be deleted, %s", folder, error.strerror or error)

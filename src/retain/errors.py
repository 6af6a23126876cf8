"""Errors that are no defect of this library; the command line shows each as one line.

Everything else that is raised is a defect, and is shown with its traceback.
"""

from __future__ import annotations

import errno
import os
import re


class UserError(ValueError):
    """The caller can mend this: the message names the field, its value and what would be right."""

    exit_code = 2


class ChangedData(UserError):
    """The data was changed or cut short while it was being read."""


class CheckpointError(RuntimeError):
    """A checkpoint is damaged or cannot be written; the message names the file."""

    exit_code = 2


class TrainingError(RuntimeError):
    """Training had to stop: a loss that is not finite, or data that changed. The message names the checkpoint."""

    exit_code = 1


class Interrupted(Exception):
    """Training was asked to stop (Ctrl-C, SIGTERM, SIGHUP) and has saved; the message says how to go on."""

    exit_code = 130


NO_MEMORY = (
    "memory: there is not enough for these sizes; give a smaller batch_size, memory.width or data.seq_len, "
    "or let SMT hold less: --smt.num-chunks 8"
)
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
"""Errors of a file that is open already: they do not name it."""
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
"""Errors of a folder that may be read and not written into."""


def explain(error: BaseException) -> tuple[str, int] | None:
    """Put an error into one line, with its exit code; None for a defect, which is to be seen with its traceback.

    The code is 2 for what the user can mend, 1 for a failed run, 130 for a run that was stopped.
    """
    if isinstance(error, (UserError, CheckpointError, TrainingError, Interrupted)):
        return " ".join(str(error).split()), error.exit_code
    if out_of_memory(error):
        graphs = "; on a GPU RETAIN_CUDA_GRAPHS=0 keeps no graphs" if "CUDA" in str(error) else ""
        return f"{NO_MEMORY}{graphs} ({str(error).partition(chr(10))[0]})", 2
    if isinstance(error, OSError) and error.strerror and not isinstance(error, ConnectionError):
        if isinstance(error.filename, (str, bytes)):
            return f"{os.fsdecode(error.filename)}: {error.strerror}", 2
        if error.errno in FULL_DISK:
            return f"disk: {error.strerror}", 2
    return None


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: PyTorch has no error type for that on a CPU, so its words are read."""
    if isinstance(error, RuntimeError):
        words = r"can't allocate memory|out of memory|Storage size calculation overflowed"
        return re.search(words, str(error)) is not None
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)

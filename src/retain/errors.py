"""Errors that are not defects of this library. The command line shows each as one line.

Any other exception is a defect, and is shown with its traceback.
"""

from __future__ import annotations

import errno
import os
import re


class UserError(ValueError):
    """A mistake that the caller can correct. The message names the field, its value and what would be right."""

    exit_code = 2


class ChangedData(UserError):
    """Data that was changed or cut short while it was being read."""


class CheckpointError(RuntimeError):
    """A checkpoint that is damaged or cannot be written. The message names the file."""

    exit_code = 2


class TrainingError(RuntimeError):
    """A failure of training: a loss that is not finite, or data that changed. The message names the checkpoint."""

    exit_code = 1


class Interrupted(Exception):
    """A stop by a signal (Ctrl-C, SIGTERM, SIGHUP), after saving. The message says how to resume."""

    exit_code = 130


NO_MEMORY = (
    "memory: there is not enough for these sizes; give a smaller batch_size, memory.width or data.seq_len, "
    "or hold fewer activations in SMT: --smt.num-chunks 8"
)
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
"""Errors of writing to an open file, which do not name the file."""
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
"""Errors of writing into a read-only folder."""


def explain(error: BaseException) -> tuple[str, int] | None:
    """Return a one-line message and the exit code of an error; None for a defect, which is shown with its traceback.

    The code is 2 if the user can correct the error, 1 for a failed run, and 130 for a run that was stopped.
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
    """Whether memory ran out. PyTorch has no error type for this on a CPU, so the message is searched."""
    if isinstance(error, RuntimeError):
        words = r"can't allocate memory|out of memory|Storage size calculation overflowed"
        return re.search(words, str(error)) is not None
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)

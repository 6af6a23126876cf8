"""What can go wrong that is no defect of this library; the command line shows each as one line.

Everything else that is raised is a defect, and is shown with its traceback.
"""

from __future__ import annotations


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

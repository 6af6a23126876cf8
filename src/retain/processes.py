"""What several processes that are one run must do alike."""

from __future__ import annotations

from collections.abc import Callable

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, broadcast_object_list

from retain.errors import UserError


def together(accelerator: Accelerator, check: Callable[[], None]) -> None:
    """`check` in the main process, before it changes what the others would look at; what it refuses, or the disk, all
    raise as a UserError."""
    problem: list[str | None] = [None]
    if accelerator.is_main_process:
        try:
            check()
        except OSError as error:
            problem = [f"{error.filename or 'disk'}: {error.strerror or error}"]
        except UserError as error:
            problem = [str(error)]
    broadcast_object_list(problem)
    if problem[0] is not None:
        raise UserError(problem[0])


def agreed(accelerator: Accelerator, *values: float) -> list[float]:
    """What the main process says: clocks and signals differ between processes, and all must do the same."""
    if accelerator.num_processes == 1:
        return list(values)
    # In double precision, as one process has it: DMT's horizon doubles at exact shares of its phase.
    said: list[float] = broadcast(torch.tensor(values, dtype=torch.float64, device=accelerator.device)).tolist()
    return said

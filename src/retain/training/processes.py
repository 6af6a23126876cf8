"""What several processes that are one run must do alike."""

from __future__ import annotations

from collections.abc import Callable

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, broadcast_object_list

from retain.errors import UserError, explain


def together(accelerator: Accelerator, check: Callable[[], None]) -> None:
    """`check` in the main process, before it changes what the others would look at.

    What it raises there is raised in all: what the user can mend as a UserError in the others, a defect as one.
    """
    failed: Exception | None = None
    told: list[tuple[bool, str] | None] = [None]
    if accelerator.is_main_process:
        try:
            check()
        except Exception as error:  # raised below: the others wait to be told
            explained = explain(error)
            failed, told = error, [(explained is not None, explained[0] if explained else repr(error))]
    broadcast_object_list(told)
    if failed is not None:
        raise failed
    if told[0] is not None:
        mendable, said = told[0]
        raise UserError(said) if mendable else RuntimeError(f"the main process failed: {said}")


def agree(accelerator: Accelerator, *values: float) -> list[float]:
    """What the main process says: clocks and signals differ between processes, and all must do the same."""
    if accelerator.num_processes == 1:
        return list(values)
    # In double precision, as one process has it: DMT's horizon doubles at exact shares of its phase.
    said: list[float] = broadcast(torch.tensor(values, dtype=torch.float64, device=accelerator.device)).tolist()
    return said

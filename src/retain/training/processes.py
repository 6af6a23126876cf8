"""Agreement between the processes of one run."""

from __future__ import annotations

from collections.abc import Callable

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, broadcast_object_list

from retain.errors import UserError, explain


def together(accelerator: Accelerator, check: Callable[[], None]) -> None:
    """Call `check` in the main process, before the main process changes what the others would look at.

    Its error is raised in all processes: in the others as a UserError if the user can mend it, else as a RuntimeError.
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
    """Give all processes the main one's values: their clocks and signals differ, and all must do the same."""
    if accelerator.num_processes == 1:
        return list(values)
    # In double precision, as in one process: DMT's horizon doubles at exact shares of its phase.
    said: list[float] = broadcast(torch.tensor(values, dtype=torch.float64, device=accelerator.device)).tolist()
    return said

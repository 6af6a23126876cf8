"""The progress bar of a phase."""

from __future__ import annotations

import sys

from tqdm import tqdm

from retain.streams import is_terminal
from retain.training.budgets import Budgets
from retain.training.job import Job


class Bar:
    """Shows how much of the budget is spent, the loss and the speed; closed at the end of the `with` block."""

    def __init__(self, job: Job, budgets: Budgets, *, shown: bool):
        self.budgets, self.progress = budgets, job.progress
        done, whole = budgets.shown()
        self.bar = tqdm(
            total=whole, initial=done, unit=budgets.current.unit, desc=job.phase_name(),
            disable=not shown or sys.stderr is None,
            mininterval=0.5 if is_terminal(sys.stderr) else 10, dynamic_ncols=True,
            bar_format="{desc} {percentage:3.0f}% |{bar}| {n:.0f}/{total:.0f} {unit}, ETA {remaining}{postfix}",
        )  # fmt: skip

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def show(self, loss: float) -> None:
        """Show the state after a step."""
        speed = self.progress.phase_tokens / max(self.progress.phase_seconds, 1e-9)
        self.bar.set_postfix_str(f"loss {loss:.3f}, {speed:,.0f} tokens/s", refresh=False)
        self.bar.update(self.budgets.shown()[0] - self.bar.n)

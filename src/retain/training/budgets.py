"""How much of its budget each phase has left."""

from __future__ import annotations

import dataclasses

from retain.config import RunConfig
from retain.runs.progress import Progress


class Budgets:
    """The budgets of a run's phases, and the share of the current one that is spent."""

    def __init__(self, config: RunConfig, progress: Progress):
        self.config, self.progress = config, progress
        self.planned = config.budgets()

    def phases_left(self) -> list[int]:
        """The phases that are trained from here on; those whose share is no step are skipped."""
        return [i for i, budget in enumerate(self.planned) if i >= self.progress.phase and budget.amount]

    def start_phase(self) -> None:
        """Fix the budget of the current phase.

        A phase does not get again what those before it took beyond their shares, and all phases pay for the compiling
        in the run's first step.
        """
        p = self.progress
        budget, whole = self.planned[p.phase], sum(b.amount for b in self.planned)
        left = max(0.0, 1 - p.compiling_seconds / whole)
        before = p.compiling_seconds + left * sum(b.amount for b in self.planned[: p.phase])
        beyond = p.total(budget.unit) - p.spent(budget.unit) - before
        least = 1e-3 if budget.unit == "s" else 1
        self.current = dataclasses.replace(budget, amount=max(least, left * budget.amount - max(0, beyond)))

    def spent_share(self) -> float:
        """The share of the current phase that is done: 1 or more if it is over."""
        return self.progress.spent(self.current.unit) / self.current.amount

    def count_compiling(self) -> None:
        """After the run's first step: take what it needed to compile off the whole budget instead of the phase's."""
        p = self.progress
        if self.config.compile and p.step == 1 and self.current.unit == "s":
            p.compiling_seconds = p.phase_seconds
            self.start_phase()

    def shown(self) -> tuple[float, float]:
        """What a progress bar shows: the amount of the run that is done, and the whole."""
        whole = sum(b.amount for b in self.planned)
        return min(self.progress.total(self.current.unit), whole), whole

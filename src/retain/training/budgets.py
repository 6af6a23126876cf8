"""How much of its budget each phase has left, as a number and as a progress bar."""

from __future__ import annotations

import dataclasses
import sys

from tqdm import tqdm

from retain.config import RunConfig
from retain.runs.progress import Progress
from retain.streams import is_terminal


class Budgets:
    """The budgets of a run's phases, and the share of the current one that is spent."""

    def __init__(self, config: RunConfig, progress: Progress):
        self.config, self.progress = config, progress
        self.planned = config.budgets()

    def phases_left(self) -> list[int]:
        """Return the indices of the phases that are left to train; a phase without a budget is skipped."""
        return [i for i, budget in enumerate(self.planned) if i >= self.progress.phase and budget.amount]

    def start_phase(self) -> None:
        """Compute the budget of the current phase.

        What earlier phases took beyond their shares is subtracted. All phases pay for the compilation in the run's
        first step.
        """
        p = self.progress
        budget, whole = self.planned[p.phase], sum(b.amount for b in self.planned)
        left = max(0.0, 1 - p.compiling_seconds / whole)
        before = p.compiling_seconds + left * sum(b.amount for b in self.planned[: p.phase])
        beyond = p.total(budget.unit) - p.spent(budget.unit) - before
        least = 1e-3 if budget.unit == "s" else 1
        self.current = dataclasses.replace(budget, amount=max(least, left * budget.amount - max(0, beyond)))

    def spent_share(self) -> float:
        """Return the share of the current phase's budget that is spent: 1 or more if the phase is over."""
        return self.progress.spent(self.current.unit) / self.current.amount

    def count_compiling(self) -> None:
        """Subtract the compilation in the run's first step from the whole budget instead of the phase's."""
        p = self.progress
        if self.config.compile and p.step == 1 and self.current.unit == "s":
            p.compiling_seconds = p.phase_seconds
            self.start_phase()

    def open_bar(self, *, hidden: bool) -> tqdm:
        """Open a progress bar named after the current phase. It counts over the whole run."""
        done, whole = self._amounts()
        return tqdm(
            total=whole, initial=done, unit=self.current.unit, desc=self.config.phases[self.progress.phase],
            disable=hidden or sys.stderr is None,
            mininterval=0.5 if is_terminal(sys.stderr) else 10, dynamic_ncols=True,
            bar_format="{desc} {percentage:3.0f}% |{bar}| {n:.0f}/{total:.0f} {unit}, ETA {remaining}{postfix}",
        )  # fmt: skip

    def show(self, bar: tqdm, loss: float) -> None:
        """Show the spent budget, the loss and the speed after a step."""
        speed = self.progress.phase_tokens / max(self.progress.phase_seconds, 1e-9)
        bar.set_postfix_str(f"loss {loss:.3f}, {speed:,.0f} tokens/s", refresh=False)
        bar.update(self._amounts()[0] - bar.n)

    def _amounts(self) -> tuple[float, float]:
        """Return the spent and the whole budget of the run."""
        whole = sum(b.amount for b in self.planned)
        return min(self.progress.total(self.current.unit), whole), whole

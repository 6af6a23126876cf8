"""The progress of a run, its clock, its schedules, and the signals that stop it."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from retain.config.budget import Budget
from retain.streams import is_terminal

STOPS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""Signals on which a run saves and stops: Ctrl-C, kill, and a closed terminal."""


@dataclasses.dataclass
class Progress:
    """The progress of a run. Every checkpoint has it. Progress, seed and config decide all later steps."""

    phase: int = 0
    phase_step: int = 0
    phase_seconds: float = 0.0
    phase_tokens: int = 0
    phase_sequential: int = 0
    compiling_seconds: float = 0.0
    """Seconds of the run's first step, if parts are compiled in it and all phases share one budget. They are taken from
    the whole budget. Later compilation, at a first validation or after resuming, is taken from the current phase."""
    step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    sequential: int = 0
    """Sequential steps: the longest chain of dependent cell or layer applications (docs/compare.md)."""
    micro_batches: int = 0
    """How many micro-batches were read. It is the number of the next one, so that none comes twice in a run."""
    validated: int = -1
    """The step of the last validation."""
    best_step: int | None = None
    best_value: float = math.inf

    def start_phase(self, index: int) -> None:
        """Begin phase `index`, unless a resumed run is in it already."""
        if index != self.phase:
            self.phase = index
            self.phase_step = self.phase_tokens = self.phase_sequential = 0
            self.phase_seconds = 0.0

    def count_step(self, tokens: int, sequential: int) -> None:
        """Count an optimizer step."""
        self.step += 1
        self.phase_step += 1
        self.tokens += tokens
        self.phase_tokens += tokens
        self.sequential += sequential
        self.phase_sequential += sequential

    def spent(self, unit: str) -> float:
        """Return what the current phase has used, in a unit of budgets."""
        return {
            "s": self.phase_seconds - (self.compiling_seconds if self.phase == 0 else 0.0),
            "steps": self.phase_step,
            "tokens": self.phase_tokens,
            "sequential": self.phase_sequential,
        }[unit]

    def total(self, unit: str) -> float:
        """Return what the run has used, in a unit of budgets."""
        return {"s": self.seconds, "steps": self.step, "tokens": self.tokens, "sequential": self.sequential}[unit]


class Clock:
    """A clock that adds wall-clock time to the progress. All time between ticks counts, including compilation."""

    def __init__(self, progress: Progress):
        self.progress, self.before = progress, time.perf_counter()

    def tick(self) -> None:
        """Add the seconds since the last tick."""
        now = time.perf_counter()
        self.progress.seconds += now - self.before
        self.progress.phase_seconds += now - self.before
        self.before = now


class Every:
    """A schedule that is due after every `budget` of training."""

    def __init__(self, budget: Budget, progress: Progress):
        self.budget, self.last = budget, progress.total(budget.unit)
        if budget.unit != "s":
            # Counted from the start of the run, so that a resumed run does it at the same steps.
            self.last -= self.last % budget.amount

    def is_due(self, progress: Progress) -> bool:
        """Return whether the budget has been used since the last time this was true."""
        now = progress.total(self.budget.unit)
        if now - self.last < self.budget.amount:
            return False
        self.last = now if self.budget.unit == "s" else now - now % self.budget.amount
        return True


@contextmanager
def stop_signals(say: str = "") -> Iterator[threading.Event]:
    """Turn STOPS into an event that the loop reads between steps. A second signal has its default effect.

    `say` is printed to a terminal at the first Ctrl-C. SIGHUP stays ignored under nohup.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before: dict[int, Any] = {number: signal.getsignal(number) or signal.SIG_DFL for number in STOPS}
    # A shell makes its background jobs ignore Ctrl-C, but a SIGINT sent by kill should still stop the run.
    before = {n: handler for n, handler in before.items() if n == signal.SIGINT or handler != signal.SIG_IGN}

    def ask(number: int, frame: Any) -> None:
        stop.set()
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else before[number])
        if say and number == signal.SIGINT and is_terminal(sys.stderr):
            with suppress(OSError):
                os.write(2, f"\n{say}\n".encode())  # a progress bar may be in the midst of writing to sys.stderr

    for number in before:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

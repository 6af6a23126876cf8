"""The losses of each step, which stay on the device until they are needed, and the lines of metrics.jsonl."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from retain.errors import CheckpointError, TrainingError
from retain.runs.checkpoint import latest_checkpoint
from retain.runs.metrics import append_line
from retain.training.batches import Batches
from retain.training.job import Job

EACH, THEN = 100, 20
"""metrics.jsonl has a line for each of the first EACH steps, then for every THEN-th step."""
PENDING = 100
"""The losses of at most this many steps stay on a device before the host waits for them."""


class LossesLog:
    """Fetches losses from the device when they are needed, refuses those that are not finite, and logs them."""

    def __init__(self, job: Job, batches: Batches):
        self.job, self.batches = job, batches
        self.pending: list[tuple[int, list[str], Tensor]] = []
        """Losses that are still on the device only: the step, their names and values."""
        self.latest: dict[str, float] = {}
        """The losses that were fetched last."""
        self.logged_at = (job.progress.seconds, 0.0, job.progress.tokens)
        """Seconds of training, seconds of waiting for data, and tokens, when a step was last logged."""

    def is_due(self) -> bool:
        """Whether the step that comes next is logged."""
        step = self.job.progress.step
        return step < EACH or step % THEN == 0

    @property
    def waits(self) -> bool:
        """Whether the host must wait for a device to read a number."""
        return bool(self.job.accelerator.device.type != "cpu")

    def add(self, names: list[str], values: Tensor, *, now: bool) -> None:
        """Keep the losses of a step. They are fetched `now`, on a CPU, in a phase's first step, or if PENDING wait."""
        p = self.job.progress
        self.pending.append((p.step, names, values))
        if now or not self.latest or p.phase_step == 0 or not self.waits or len(self.pending) == PENDING:
            self.fetch()

    def fetch(self) -> None:
        """Fetch all pending losses. This comes before a line, a validation or a checkpoint of the same weights.

        Raises:
            TrainingError: A loss is not finite. The first such loss is named.
        """
        if not self.pending:
            return
        pending, self.pending = self.pending, []
        numbers = iter(torch.cat([values for *_, values in pending]).tolist())  # one wait for all
        for step, names, _ in pending:
            self.latest = {name: next(numbers) for name in names}
            for name, value in sorted(self.latest.items(), key=lambda item: item[0] == "loss"):  # the sum comes last
                if not math.isfinite(value):
                    self._refuse(name, value, step)

    def _refuse(self, name: str, value: float, step: int) -> None:
        try:
            good = f"the last good checkpoint is {latest_checkpoint(self.job.out)}"
        except (CheckpointError, OSError):
            good = f"there is no checkpoint yet, so delete {self.job.out}"
        phase = self.job.phase_name()
        raise TrainingError(f"{name} became {value} at step {step} in phase {phase}; {good}; try a lower {phase}.lr")

    def write_step(self, record: dict[str, float]) -> None:
        """Log a step, with the speed since the last logged step and the share of time spent waiting for data."""
        if not self.job.is_main:
            return
        before, p = self.logged_at, self.job.progress
        self.logged_at = (p.seconds, self.batches.prefetch.waited, p.tokens)
        seconds, waited, tokens = (now - then for now, then in zip(self.logged_at, before, strict=True))
        seconds = max(seconds, 1e-9)
        speed = {"tokens_per_second": round(tokens / seconds, 1), "data_wait": waited / seconds}
        write_metrics(self.job, record | speed)


def write_metrics(job: Job, record: dict[str, Any]) -> None:
    """Append a line to metrics.jsonl and log it to the tracker. Only the main process calls this."""
    p = job.progress
    line = {
        "step": p.step,
        "phase": job.phase_name(),
        "seconds": round(p.seconds, 3),
        "tokens": p.tokens,
        "sequential_steps": p.sequential,
        **record,
    }
    append_line(job.out / "metrics.jsonl", line)
    numbers = {k: v for k, v in line.items() if isinstance(v, (int, float)) and k != "step"}
    job.accelerator.log(numbers, step=p.step)

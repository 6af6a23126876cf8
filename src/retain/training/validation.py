"""Validation of the RNN at regular intervals. The best model so far is kept."""

from __future__ import annotations

import time

from retain.config.budget import parse_budget
from retain.inference.evaluate import batch_for, evaluate
from retain.runs.progress import Every
from retain.training.accelerator import agree
from retain.training.checkpointing import Checkpoints
from retain.training.job import Job
from retain.training.losses_log import LossesLog, write_metrics
from retain.training.phases import Phase

LOGGED = ("bits_per_token", "accuracy", "teacher_bits_per_token", "teacher_accuracy", "relative_drift")


class Validation:
    """Scores the RNN on the validation split during a phase."""

    def __init__(self, job: Job, phase: Phase, losses: LossesLog, checkpoints: Checkpoints):
        self.job, self.phase, self.losses, self.checkpoints = job, phase, losses, checkpoints
        self.every = Every(parse_budget(job.config.validate_every), job.progress)

    def is_due(self) -> bool:
        """Whether it is time for a validation; the answer is the same in all processes."""
        due: float = self.every.is_due(self.job.progress)
        if self.every.budget.unit == "s":
            (due,) = agree(self.job.accelerator, due)
        return bool(due)

    def run(self) -> None:
        """Score the RNN. The best model so far is saved in a checkpoint, and exported at the end of the run."""
        self.losses.fetch()
        job, p = self.job, self.job.progress
        if job.is_main:
            self.phase.objective.finish()
            start = time.perf_counter()
            teacher = job.teacher if job.config.has_teacher else None  # else it was never trained
            # In float32, whatever the precision of training, so that `retain eval` gives this figure on any machine.
            batch_size, limit = batch_for(job.data, job.rnn), job.config.validation_sequences
            result = evaluate(job.rnn, teacher, job.data.windows("validation", batch_size, limit))
            p.validated = p.step
            record = {f"validation_{key}": result[key] for key in LOGGED if result[key] is not None}
            write_metrics(job, record | {"validation_seconds": time.perf_counter() - start})
            if result["bits_per_token"] < p.best_value:
                p.best_step, p.best_value = p.step, result["bits_per_token"]
                self.checkpoints.save(again=True)  # an earlier one of this step does not record it as the best
        p.validated = p.step
        job.accelerator.wait_for_everyone()

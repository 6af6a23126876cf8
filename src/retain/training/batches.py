"""The training batches of a run, numbered across its phases so that none repeats."""

from __future__ import annotations

from retain.config import PhaseConfig
from retain.data.batches import Batch
from retain.data.prefetch import Prefetch
from retain.training.job import Job


class Batches:
    """Micro-batches in order, each prepared while the step before it is computed."""

    def __init__(self, job: Job):
        self.job = job
        accelerator = job.accelerator
        pin = accelerator.device.type == "cuda"
        self.prefetch = Prefetch(job.data, job.config.seed, accelerator.process_index, pin=pin)

    def start_phase(self, index: int) -> None:
        """Continue where the previous phase stopped reading, in batches of the new size: a stream cannot go back."""
        job, p = self.job, self.job.progress
        if index == p.phase or not p.step:
            return
        before, now = (getattr(job.config, job.config.phases[i]).batch_size for i in (p.phase, index))
        read = p.micro_batches
        if before != now and job.data.info.get("streamed"):
            read += 1  # the next batch was already prepared, in the old size
        p.micro_batches = max(p.micro_batches, -(-read * before // now))

    def prepare(self) -> None:
        """Start reading the next batch of the current phase."""
        config: PhaseConfig = getattr(self.job.config, self.job.phase_name())
        self.prefetch.begin(self.job.progress.micro_batches, config.batch_size)

    def take(self, batch_size: int) -> list[Batch]:
        """Read all micro-batches of a step before the step changes anything, as the data may refuse one."""
        p = self.job.progress
        count = self.job.config.optimizer.gradient_accumulation_steps
        taken = [self.prefetch.take(p.micro_batches + i, batch_size) for i in range(count)]
        p.micro_batches += len(taken)
        return taken

    def close(self) -> None:
        """End the thread that prepares batches."""
        self.prefetch.close()

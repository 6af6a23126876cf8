"""Memory tasks: generated sequences with known answers that cannot be predicted without memory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from retain.config import IGNORE, TASK_SIZES, TaskDataConfig
from retain.data.batches import SPLITS, Batch, Data, Ints, Split, make_generator
from retain.data.tasks.recall import MQAR, Copy, KeysValues, Retrieval, SelectiveCopy
from retain.data.tasks.task import Task
from retain.data.tasks.tracking import S3, S5, Dyck, Modular, Parity, Stack
from retain.errors import UserError

TASKS: dict[str, type[Task]] = {
    task.name: task for task in (Retrieval, Copy, Stack, KeysValues, Modular, Parity, S3, S5, Dyck, MQAR, SelectiveCopy)
}


class TaskData(Data):
    """Sequences of a task: new ones for each training batch, and for each split a fixed set, the same in every run.

    In training batches, random answers replace the fraction `label_noise` of the targets. Each training batch is drawn
    from the task or from one of the `shorter` tasks with equal probability, and has the T of that task.
    """

    EVALUATED = 2048
    """Sequences in the fixed set of a split."""
    answers = True

    def __init__(self, task: Task, label_noise: float = 0.0, shorter: Sequence[Task] = ()) -> None:
        self.task, self.label_noise, self.lengths = task, label_noise, (task, *shorter)
        self.vocab_size, self.seq_len, self.chance = task.vocab_size, task.seq_len, task.chance
        self._fixed: dict[Split, Batch] = {}
        checksum = hashlib.sha256()  # of the validation sequences: another generator would give others
        for values in self._sequences("validation").values():
            checksum.update(values.numpy().astype("<i8").tobytes())
        self.info = {
            "name": task.name,
            "sequences": {"train": None, "validation": self.EVALUATED, "test": self.EVALUATED},
            "sha256": checksum.hexdigest(),
        }

    def batch(self, seed: int, step: int, rank: int, batch_size: int) -> Batch:
        """Draw B fresh sequences; the same arguments give the same batch."""
        # The key starts with 0, and that of the fixed sequences with 1, so the two are drawn independently. A task
        # with few distinct sequences still repeats some of the fixed ones in training.
        rng = make_generator(seed, 0, rank, step)
        # All ranks draw the same length, so that none waits for another.
        task = self.lengths[int(make_generator(seed, 2, step).integers(len(self.lengths)))]
        tokens, targets = task.generate(rng, batch_size)
        if self.label_noise:
            replaced = (rng.random(targets.shape) < self.label_noise) & (targets != IGNORE)
            targets = np.where(replaced, rng.integers(0, len(self.task.answers), targets.shape), targets)
        return _as_batch(tokens, targets)

    def count(self, split: Split) -> int:
        """Count the fixed sequences of a split."""
        return self.EVALUATED

    def sequences(self, split: Split, index: Ints) -> Batch:
        """Return the fixed sequences of a split with these numbers (B,)."""
        return {name: values[torch.from_numpy(index)] for name, values in self._sequences(split).items()}

    def _sequences(self, split: Split) -> Batch:
        if split not in self._fixed:
            rng = make_generator(0, 1, SPLITS.index(split))
            self._fixed[split] = _as_batch(*self.task.generate(rng, self.EVALUATED))
        return self._fixed[split]


def _as_batch(tokens: Ints, targets: Ints) -> Batch:
    return {"tokens": torch.from_numpy(tokens), "targets": torch.from_numpy(targets)}


def load_task(config: TaskDataConfig) -> TaskData:
    """Load the data of the named task. Raises UserError for impossible settings."""
    return TaskData(build_task(config), config.label_noise, shorter_tasks(config))


def build_task(config: TaskDataConfig) -> Task:
    """Build the task without its data."""
    return TASKS[config.name](config.seq_len, **_collect_sizes(config))


def _collect_sizes(config: TaskDataConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in TASK_SIZES[config.name] if getattr(config, name)}


def shorter_tasks(config: TaskDataConfig) -> list[Task]:
    """Build the task at half the length, a quarter, … down to min_seq_len, with proportionally less to remember.

    Raises UserError if the task cannot be that short.
    """
    found: list[Task] = []
    length, full, knobs = config.seq_len // 2, build_task(config), _collect_sizes(config)
    while config.min_seq_len is not None and length >= config.min_seq_len:
        if full.amount is not None:
            knobs[full.amount] = max(1, getattr(full, full.amount) * length // config.seq_len)
        try:
            found.append(TASKS[config.name](length, **knobs))
        except UserError as error:
            raise UserError(f"data.min_seq_len: {config.min_seq_len} is too short: {error}") from None
        length //= 2
    return found

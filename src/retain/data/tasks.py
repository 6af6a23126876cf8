"""Memory tasks: generated sequences whose answers are known, and cannot be given without remembering."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch

from retain.config import DataConfig
from retain.data.batches import IGNORE, SPLITS, Batch, Data, Ints, Split, generator


class Task(Protocol):
    """One memory task: what its sequences are and how to answer them."""

    name: str
    vocab_size: int
    seq_len: int
    chance: float
    """Accuracy of guessing."""

    def generate(self, rng: np.random.Generator, batch_size: int) -> tuple[Ints, Ints]:
        """Random tokens (B, T) and their targets (B, T + 1)."""

    def oracle(self, tokens: Ints) -> Ints:
        """Targets (B, T + 1) of tokens (B, T), worked out from the tokens alone."""


class Retrieval:
    """A marked symbol stands somewhere in the first half and is asked for at the end.

    Tokens: n fillers 0 … n-1, n marked symbols n … 2n-1, the query 2n. The only target is y_T = s, the number of the
    marked symbol n + s, after the query has been read. Raises ValueError for T < 4 or fewer than 2 symbols.
    """

    name = "retrieval"

    def __init__(self, seq_len: int, symbols: int) -> None:
        if seq_len < 4:
            raise ValueError(f"data.seq_len: {seq_len} is too short for retrieval; give at least 4")
        if symbols < 2:
            raise ValueError(f"data.symbols: {symbols} leaves retrieval nothing to remember; give at least 2")
        self.seq_len, self.symbols = seq_len, symbols
        self.vocab_size = 2 * symbols + 1
        self.chance = 1 / symbols

    def generate(self, rng: np.random.Generator, batch_size: int) -> tuple[Ints, Ints]:
        n = self.symbols
        tokens = rng.integers(0, n, (batch_size, self.seq_len))
        place = rng.integers(0, self.seq_len // 2, batch_size)
        answer = rng.integers(0, n, batch_size)
        tokens[np.arange(batch_size), place] = n + answer
        tokens[:, -1] = 2 * n
        targets = np.full((batch_size, self.seq_len + 1), IGNORE)
        targets[:, -1] = answer
        return tokens, targets

    def oracle(self, tokens: Ints) -> Ints:
        n = self.symbols
        marked = (tokens >= n) & (tokens < 2 * n)
        targets = np.full((len(tokens), tokens.shape[1] + 1), IGNORE)
        targets[:, -1] = tokens[np.arange(len(tokens)), marked.argmax(axis=1)] - n
        return targets

    def hidden(self, tokens: Ints) -> tuple[str, np.ndarray]:
        """What a memory must hold after each token (B, T): the needle's symbol, or that it has not come yet."""
        n = self.symbols
        marked = (tokens >= n) & (tokens < 2 * n)
        symbol = self.oracle(tokens)[:, -1:].astype(str)
        return "needle", np.where(np.cumsum(marked, 1) > 0, symbol, "not yet")


TASKS: dict[str, Callable[[DataConfig], Task]] = {
    "retrieval": lambda config: Retrieval(config.seq_len, config.symbols),
}


class TaskData(Data):
    """Fresh sequences of a task for training; fixed ones, the same in every run, for windows of each split."""

    EVALUATED = 2048
    """Sequences that windows yields."""
    answers = True

    def __init__(self, task: Task) -> None:
        self.task = task
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
        # The key starts with 0, that of the fixed sequences with 1: no training batch can repeat them.
        return _as_batch(*self.task.generate(generator(seed, 0, rank, step), batch_size))

    def count(self, split: Split) -> int:
        return self.EVALUATED

    def sequences(self, split: Split, index: Ints) -> Batch:
        return {name: values[torch.from_numpy(index)] for name, values in self._sequences(split).items()}

    def _sequences(self, split: Split) -> Batch:
        if split not in self._fixed:
            rng = generator(0, 1, SPLITS.index(split))
            self._fixed[split] = _as_batch(*self.task.generate(rng, self.EVALUATED))
        return self._fixed[split]


def _as_batch(tokens: Ints, targets: Ints) -> Batch:
    return {"tokens": torch.from_numpy(tokens), "targets": torch.from_numpy(targets)}


def load_task(config: DataConfig) -> TaskData:
    """The task named by the configuration. Raises ValueError for settings it cannot have."""
    return TaskData(TASKS[config.name](config))

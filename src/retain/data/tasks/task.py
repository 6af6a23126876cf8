"""What every memory task has, and what the tasks share: checks of their sizes, and names for their symbols."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from string import ascii_lowercase
from typing import Any, ClassVar

import numpy as np

from retain.config import IGNORE
from retain.data.batches import Ints
from retain.errors import UserError

MOST_SYMBOLS = 2**16


class Task(ABC):
    """One memory task: what its sequences are, and their answers.

    A task is built from T and those fields of the data configuration that are among its knobs. It raises UserError,
    naming the field, for sizes that it cannot have. The vocabulary does not depend on T, so that what is trained at
    one length can be scored at another.

    A task may have a method `hidden`, for colouring memories: tokens (B, T) -> a name, and (B, T) words or numbers,
    what a memory must hold after each token.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    """One line for a list."""
    knobs: ClassVar[Mapping[str, str]]
    """The fields of the data configuration that make it harder, and what they mean."""
    amount: ClassVar[str | None] = None
    """The knob that says how much there is to remember, if it must shrink with the sequence."""
    example: ClassVar[Mapping[str, Any]]
    """A size at which a sequence fits a line."""

    def __init__(self, seq_len: int, words: Sequence[str], answers: Sequence[str]) -> None:
        self.seq_len = seq_len
        self.words = tuple(words)
        """A name for each token."""
        self.answers = tuple(answers)
        """A name for each answer; targets are 0 … len(answers) - 1."""
        self.vocab_size = len(self.words)
        self.chance = 1 / len(self.answers)
        """Accuracy of guessing: that of the best answer that is always the same."""

    @abstractmethod
    def generate(self, rng: np.random.Generator, batch_size: int) -> tuple[Ints, Ints]:
        """Draw random tokens (B, T) and their targets (B, T + 1)."""


def without_answers(tokens: Ints) -> Ints:
    """Return targets (B, T + 1) for tokens (B, T) that are all IGNORE."""
    return np.full((len(tokens), tokens.shape[1] + 1), IGNORE)


def name_symbols(task: str, symbols: int) -> tuple[str, ...]:
    """Name the symbols a, b, c, …, or s0, s1, … where the alphabet is too short.

    Raises UserError unless there are two to tell apart, and no more than a vocabulary should have.
    """
    if symbols < 2:
        raise UserError(f"data.symbols: {symbols} leaves {task} nothing to remember; give at least 2")
    if symbols > MOST_SYMBOLS:
        raise UserError(f"data.symbols: {symbols} are too many for {task}; give at most {MOST_SYMBOLS}")
    return tuple(ascii_lowercase[:symbols]) if symbols <= 26 else tuple(f"s{i}" for i in range(symbols))


def check_length(task: str, seq_len: int, least: int, knob: str = "") -> None:
    """Raise UserError unless a sequence has room; `knob` names what else would make it fit."""
    if seq_len < least:
        smaller = f", or a smaller data.{knob}" if knob else ""
        raise UserError(f"data.seq_len: {seq_len} is too short for {task}; give at least {least}{smaller}")

"""The base class of memory tasks, with checks of their sizes and names for their symbols."""

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
    """A memory task: its sequences and their answers.

    A task is built from T and the fields of the data configuration that are among its knobs. For an impossible size it
    raises UserError, naming the field. The vocabulary does not depend on T, so that a model trained at one length can
    be scored at another.

    A task may have a method `hidden`, whose results colour memories in plots: tokens (B, T) -> a name, and words or
    numbers (B, T) for what a memory must hold after each token.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    """One line for a list."""
    knobs: ClassVar[Mapping[str, str]]
    """The fields of the data configuration that make the task harder, and their meaning."""
    amount: ClassVar[str | None] = None
    """The knob for the amount to remember, if that amount must shrink with the sequence."""
    example: ClassVar[Mapping[str, Any]]
    """Sizes for which a sequence fits on one line."""

    def __init__(self, seq_len: int, words: Sequence[str], answers: Sequence[str]) -> None:
        self.seq_len = seq_len
        self.words = tuple(words)
        """A name for each token."""
        self.answers = tuple(answers)
        """A name for each answer; targets are 0 … len(answers) - 1."""
        self.vocab_size = len(self.words)
        self.chance = 1 / len(self.answers)
        """Accuracy of guessing: that of the best constant answer."""

    @abstractmethod
    def generate(self, rng: np.random.Generator, batch_size: int) -> tuple[Ints, Ints]:
        """Draw random tokens (B, T) and their targets (B, T + 1)."""


def without_answers(tokens: Ints) -> Ints:
    """Return targets (B, T + 1), all IGNORE, for tokens (B, T)."""
    return np.full((len(tokens), tokens.shape[1] + 1), IGNORE)


def name_symbols(task: str, symbols: int) -> tuple[str, ...]:
    """Name the symbols a, b, c, …, or s0, s1, … if the alphabet is too short.

    Raises UserError for fewer than 2 symbols, or more than MOST_SYMBOLS.
    """
    if symbols < 2:
        raise UserError(f"data.symbols: {symbols} leaves {task} nothing to remember; give at least 2")
    if symbols > MOST_SYMBOLS:
        raise UserError(f"data.symbols: {symbols} are too many for {task}; give at most {MOST_SYMBOLS}")
    return tuple(ascii_lowercase[:symbols]) if symbols <= 26 else tuple(f"s{i}" for i in range(symbols))


def check_length(task: str, seq_len: int, least: int, knob: str = "") -> None:
    """Raise UserError if `seq_len` is below `least`; `knob` names a field that could be smaller instead."""
    if seq_len < least:
        smaller = f", or a smaller data.{knob}" if knob else ""
        raise UserError(f"data.seq_len: {seq_len} is too short for {task}; give at least {least}{smaller}")

"""Memory tasks of state tracking: every token changes a state, and the state is asked for all along."""

from __future__ import annotations

from itertools import permutations
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from retain.config import IGNORE
from retain.data.batches import Ints
from retain.data.tasks.task import Task, check_length, name_symbols, without_answers


class Stack(Task):
    """Push one of n symbols, or pop: a pop is answered with the symbol that it takes off.

    Tokens: push of the symbols 0 … n-1, pop n. The stack is empty at first and never holds more than `depth`: at
    either end the other operation follows, elsewhere both are as likely. Only pops have a target.
    """

    name = "stack"
    summary = "push a symbol or pop; a pop is answered with what it takes off"
    knobs: ClassVar = {
        "depth": "how many symbols the stack may hold",
        "seq_len": "how many operations",
        "symbols": "how many symbols there are",
    }
    example: ClassVar = {"seq_len": 12, "depth": 4}

    def __init__(self, seq_len: int, *, symbols: int = 4, depth: int = 10) -> None:
        names = name_symbols(self.name, symbols)
        check_length(f"{self.name} of depth {depth}", seq_len, depth + 1, "depth")
        self.symbols, self.depth = symbols, depth
        super().__init__(seq_len, [*names, "pop"], names)

    def generate(self, rng: np.random.Generator, batch_size: int) -> tuple[Ints, Ints]:
        """Draw pushes and pops, and what is pushed."""
        push, symbol, top = draw_nested(rng, (batch_size, self.seq_len), self.symbols, self.depth)
        tokens = np.where(push, symbol, self.symbols)
        targets = without_answers(tokens)
        # The first operation is a push, so that every pop has a step before it.
        targets[:, 2:] = np.where(push[:, 1:], IGNORE, top[:, :-1])
        return tokens, targets

    def hidden(self, tokens: Ints) -> tuple[str, Ints]:
        """What a memory must hold after each token (B, T), as far as a colour can tell: how deep the stack is."""
        return "stack depth", np.where(tokens < self.symbols, 1, -1).cumsum(axis=1)


class Dyck(Task):
    """Well-nested brackets of n kinds, at most `depth` deep (Hewitt et al. 2020): which would close now?

    Tokens: n opening brackets 0 … n-1, their closing ones n … 2n-1; beginnings of Dyck words, which need not be
    closed at the end. The target after each token is the kind of the innermost open bracket, none if all are closed.
    """

    name = "dyck"
    summary = "nested brackets of several kinds, of bounded depth: which kind is open now"
    knobs: ClassVar = {
        "depth": "how deep they may be nested",
        "symbols": "how many kinds of brackets",
        "seq_len": "how many brackets",
    }
    example: ClassVar = {"seq_len": 14, "symbols": 3, "depth": 3}

    def __init__(self, seq_len: int, *, symbols: int = 4, depth: int = 8) -> None:
        names = name_symbols(self.name, symbols)
        check_length(f"{self.name} of depth {depth}", seq_len, depth + 1, "depth")
        self.symbols, self.depth = symbols, depth
        opening, closing = ("([{<", ")]}>") if symbols <= 4 else ([f"({k}" for k in names], [f"{k})" for k in names])
        super().__init__(seq_len, [*opening[:symbols], *closing[:symbols]], closing[:symbols])

    def generate(self, rng: np.random.Generator, batch_size: int) -> tuple[Ints, Ints]:
        """Draw which brackets open, and their kinds."""
        push, symbol, top = draw_nested(rng, (batch_size, self.seq_len), self.symbols, self.depth)
        tokens = symbol.copy()
        tokens[:, 1:] = np.where(push[:, 1:], symbol[:, 1:], self.symbols + top[:, :-1])
        targets = without_answers(tokens)
        targets[:, 1:] = top
        return tokens, targets

    def hidden(self, tokens: Ints) -> tuple[str, Ints]:
        """How many brackets are open after each token (B, T)."""
        return "open brackets", np.where(tokens < self.symbols, 1, -1).cumsum(axis=1)


class Modular(Task):
    """Pairs x, (w x + b) mod n, with w and b drawn per sequence: each second number follows from the pairs before it.

    Tokens: the numbers 0 … n-1; an x at each even t, its result after it. The target after an x is its result, where
    the pairs so far leave but one possible.
    """

    name = "modular"
    summary = "pairs x, (w x + b) mod n, with w and b to be found out from the pairs so far"
    knobs: ClassVar = {"symbols": "n, the modulus", "seq_len": "how many numbers"}
    example: ClassVar = {"seq_len": 14, "symbols": 10}

    def __init__(self, seq_len: int, *, symbols: int = 16) -> None:
        name_symbols(self.name, symbols)  # refuses too few and too many
        check_length(self.name, seq_len, 5)
        self.symbols = symbols
        numbers = [str(number) for number in range(symbols)]
        super().__init__(seq_len, numbers, numbers)

    def generate(self, rng: np.random.Generator, batch_size: int) -> tuple[Ints, Ints]:
        """Draw the map, and what it is applied to."""
        n, pairs = self.symbols, -(-self.seq_len // 2)
        x = rng.integers(0, n, (batch_size, pairs))
        w, b = rng.integers(0, n, (2, batch_size, 1))
        result = (w * x + b) % n
        tokens = np.stack([x, result], axis=2).reshape(batch_size, -1)[:, : self.seq_len]
        # Of w the pairs tell w·d for the differences d of their x, and so for all multiples of their divisor with n.
        difference = x - x[:, :1]
        divisor = np.gcd.accumulate(np.gcd(difference, n), axis=1)[:, :-1]  # of n and the differences before
        targets = without_answers(tokens)
        targets[:, 3::2] = np.where(difference[:, 1:] % divisor == 0, result[:, 1:], IGNORE)
        return tokens, targets


class Parity(Task):
    """Bits; the target after each is whether the number of ones so far is odd."""

    name = "parity"
    summary = "bits; is the number of ones so far odd?"
    knobs: ClassVar = {"seq_len": "how many bits"}
    example: ClassVar = {"seq_len": 12}

    def __init__(self, seq_len: int) -> None:
        super().__init__(seq_len, ("0", "1"), ("0", "1"))

    def generate(self, rng: np.random.Generator, batch_size: int) -> tuple[Ints, Ints]:
        """Draw the bits."""
        tokens = rng.integers(0, 2, (batch_size, self.seq_len))
        targets = without_answers(tokens)
        targets[:, 1:] = tokens.cumsum(axis=1) % 2
        return tokens, targets

    def hidden(self, tokens: Ints) -> tuple[str, npt.NDArray[np.str_]]:
        """The parity after each token (B, T)."""
        return "parity", np.where(tokens.cumsum(axis=1) % 2, "odd", "even")


class Permutations(Task):
    """Word problem of the symmetric group (Merrill et al. 2024): the permutations read so far, one after the other.

    Tokens: the permutations of `points` things, numbered in lexicographic order. The target after each is the number
    of the product p_t ∘ … ∘ p_0, the last read being the last to be applied.
    """

    points: ClassVar[int]
    knobs: ClassVar = {"seq_len": "how many permutations"}
    example: ClassVar = {"seq_len": 8}

    def __init__(self, seq_len: int) -> None:
        self.permutations = list(permutations(range(self.points)))
        names = ["".join(str(i + 1) for i in p) for p in self.permutations]
        super().__init__(seq_len, names, names)
        number = {p: i for i, p in enumerate(self.permutations)}
        # quotient[after, before] is the permutation that leads from one state to the other: after ∘ before⁻¹.
        self.quotient = np.array(
            [
                [number[tuple(after[before.index(i)] for i in range(self.points))] for before in self.permutations]
                for after in self.permutations
            ]
        )
        # product[last, before] = last ∘ before: that which, divided by `before`, leaves `last`.
        self.product = self.quotient.argsort(axis=0)

    def generate(self, rng: np.random.Generator, batch_size: int) -> tuple[Ints, Ints]:
        """Draw the products, and divide each by the one before it."""
        # Products of independent, uniform permutations are independent and uniform.
        states = rng.integers(0, self.vocab_size, (batch_size, self.seq_len + 1))
        states[:, 0] = 0  # the identity
        tokens = self.quotient[states[:, 1:], states[:, :-1]]
        states[:, 0] = IGNORE
        return tokens, states

    def hidden(self, tokens: Ints) -> tuple[str, npt.NDArray[np.str_]]:
        """The product after each token (B, T)."""
        product = np.empty_like(tokens)
        state = np.zeros(len(tokens), dtype=np.int64)  # the identity
        for t in range(tokens.shape[1]):
            state = self.product[tokens[:, t], state]
            product[:, t] = state
        return "product", np.array(self.words)[product]


class S3(Permutations):
    """The symmetric group of three things: 6 permutations."""

    name, points = "s3", 3
    summary = "permutations of three things: their product so far"


class S5(Permutations):
    """The symmetric group of five things: 120 permutations."""

    name, points = "s5", 5
    summary = "permutations of five things: their product so far"


def draw_nested(
    rng: np.random.Generator, shape: tuple[int, int], symbols: int, depth: int
) -> tuple[npt.NDArray[np.bool_], Ints, Ints]:
    """Draw random pushes and pops on a stack of 0 … depth symbols, empty at first.

    Returns (B, T) each: which steps push; random symbols, pushed where a step pushes; and the symbol on top after each
    step, IGNORE where the stack is empty.
    """
    # A free walk folded between 0 and depth: it turns at both ends.
    walk = np.cumsum(2 * rng.integers(0, 2, shape) - 1, axis=1)
    height = depth - np.abs(walk % (2 * depth) - depth)
    push = np.diff(height, axis=1, prepend=0) > 0
    symbol = rng.integers(0, symbols, shape)
    # Between two visits to a height the stack went up and came back, with the same symbol on top, or down and came
    # back by a push: with the steps in the order of height, then time, the top is that of the last push.
    order = np.argsort(height.astype(np.min_scalar_type(depth)), axis=1, kind="stable")
    pushes = np.where(np.take_along_axis(push, order, axis=1), np.arange(shape[1]), 0)
    last_push = np.take_along_axis(order, np.maximum.accumulate(pushes, axis=1), axis=1)
    top = np.empty_like(symbol)
    np.put_along_axis(top, order, np.take_along_axis(symbol, last_push, axis=1), axis=1)
    return push, symbol, np.where(height > 0, top, IGNORE)

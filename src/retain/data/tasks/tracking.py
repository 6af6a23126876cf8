"""Memory tasks of state tracking: every token changes a state, and targets throughout the sequence depend on it."""

from __future__ import annotations

from itertools import permutations
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from retain.config import IGNORE
from retain.data.batches import Ints
from retain.data.tasks.task import Task, check_length, name_symbols, without_answers


class Stack(Task):
    """Pushes and pops of n symbols on a stack; the target of a pop is the symbol that it removes.

    Tokens: push of the symbols 0 … n-1, pop n. The stack is empty at first and never holds more than `depth` symbols.
    An empty stack is followed by a push, and a full one by a pop. Otherwise both are equally likely. Only pops have a
    target.
    """

    name = "stack"
    summary = "push a symbol or pop; the answer to a pop is the symbol that it removes"
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
        """Draw pushes and pops, and the pushed symbols."""
        push, symbol, top = draw_nested(rng, (batch_size, self.seq_len), self.symbols, self.depth)
        tokens = np.where(push, symbol, self.symbols)
        targets = without_answers(tokens)
        # The first operation is always a push, so every pop has a step before it.
        targets[:, 2:] = np.where(push[:, 1:], IGNORE, top[:, :-1])
        return tokens, targets

    def hidden(self, tokens: Ints) -> tuple[str, Ints]:
        """Return the depth of the stack after each token (B, T), the part of its state that a colour can show."""
        return "stack depth", np.where(tokens < self.symbols, 1, -1).cumsum(axis=1)


class Dyck(Task):
    """Well-nested brackets of n kinds, at most `depth` deep (Hewitt et al. 2020); the target is the kind to close next.

    Tokens: n opening brackets 0 … n-1, their closing brackets n … 2n-1. Sequences are prefixes of Dyck words, so
    brackets may be open at the end. The target after each token is the kind of the innermost open bracket. If all are
    closed, there is no target.
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
        """Count the open brackets after each token (B, T)."""
        return "open brackets", np.where(tokens < self.symbols, 1, -1).cumsum(axis=1)


class Modular(Task):
    """Pairs x, (w x + b) mod n, with w and b drawn per sequence: earlier pairs determine later results.

    Tokens: the numbers 0 … n-1, with an x at each even t and its result after it. The target after an x is its result,
    if the earlier pairs determine it.
    """

    name = "modular"
    summary = "pairs x, (w x + b) mod n, with w and b to be inferred from the pairs so far"
    knobs: ClassVar = {"symbols": "n, the modulus", "seq_len": "how many numbers"}
    example: ClassVar = {"seq_len": 14, "symbols": 10}

    def __init__(self, seq_len: int, *, symbols: int = 16) -> None:
        name_symbols(self.name, symbols)  # for its check of the number
        check_length(self.name, seq_len, 5)
        self.symbols = symbols
        numbers = [str(number) for number in range(symbols)]
        super().__init__(seq_len, numbers, numbers)

    def generate(self, rng: np.random.Generator, batch_size: int) -> tuple[Ints, Ints]:
        """Draw w, b and the numbers x."""
        n, pairs = self.symbols, -(-self.seq_len // 2)
        x = rng.integers(0, n, (batch_size, pairs))
        w, b = rng.integers(0, n, (2, batch_size, 1))
        result = (w * x + b) % n
        tokens = np.stack([x, result], axis=2).reshape(batch_size, -1)[:, : self.seq_len]
        # The pairs determine w·d mod n for the differences d of their x, and so for all multiples of gcd(d, …, n).
        difference = x - x[:, :1]
        divisor = np.gcd.accumulate(np.gcd(difference, n), axis=1)[:, :-1]  # of n and the earlier differences
        targets = without_answers(tokens)
        targets[:, 3::2] = np.where(difference[:, 1:] % divisor == 0, result[:, 1:], IGNORE)
        return tokens, targets


class Parity(Task):
    """Bits; the target after each bit is whether the number of ones so far is odd."""

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
        """Return the parity after each token (B, T)."""
        return "parity", np.where(tokens.cumsum(axis=1) % 2, "odd", "even")


class Permutations(Task):
    """Word problem of the symmetric group (Merrill et al. 2024): the product of the permutations read so far.

    Tokens: the permutations of `points` things, numbered in lexicographic order. The target after each token is the
    number of the product p_t ∘ … ∘ p_0, in which the permutation read last is applied last.
    """

    points: ClassVar[int]
    knobs: ClassVar = {"seq_len": "how many permutations"}
    example: ClassVar = {"seq_len": 8}

    def __init__(self, seq_len: int) -> None:
        self.permutations = list(permutations(range(self.points)))
        names = ["".join(str(i + 1) for i in p) for p in self.permutations]
        super().__init__(seq_len, names, names)
        number = {p: i for i, p in enumerate(self.permutations)}
        # quotient[after, before] is the permutation that leads from `before` to `after`: after ∘ before⁻¹.
        self.quotient = np.array(
            [
                [number[tuple(after[before.index(i)] for i in range(self.points))] for before in self.permutations]
                for after in self.permutations
            ]
        )
        # product[last, before] = last ∘ before: the state whose quotient by `before` is `last`.
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
        """Return the product after each token (B, T)."""
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

    Returns three arrays (B, T): which steps push; random symbols, which are pushed if the step pushes; and the symbol
    on top after each step, IGNORE if the stack is empty.
    """
    # A random walk, reflected at 0 and at depth.
    walk = np.cumsum(2 * rng.integers(0, 2, shape) - 1, axis=1)
    height = depth - np.abs(walk % (2 * depth) - depth)
    push = np.diff(height, axis=1, prepend=0) > 0
    symbol = rng.integers(0, symbols, shape)
    # Between two visits to a height the stack either rose and fell back, with the same symbol on top, or fell and
    # returned by a push. So if steps are sorted by height, then time, the symbol on top is that of the last push.
    order = np.argsort(height.astype(np.min_scalar_type(depth)), axis=1, kind="stable")
    pushes = np.where(np.take_along_axis(push, order, axis=1), np.arange(shape[1]), 0)
    last_push = np.take_along_axis(order, np.maximum.accumulate(pushes, axis=1), axis=1)
    top = np.empty_like(symbol)
    np.put_along_axis(top, order, np.take_along_axis(symbol, last_push, axis=1), axis=1)
    return push, symbol, np.where(height > 0, top, IGNORE)

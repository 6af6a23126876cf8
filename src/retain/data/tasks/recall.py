"""Memory tasks of recall: the answers are symbols that were read earlier."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from retain.data.batches import Ints
from retain.data.tasks.task import Task, check_length, name_symbols, without_answers
from retain.errors import UserError


class Retrieval(Task):
    """A marked symbol in the first half, queried at the end.

    Tokens: n fillers 0 … n-1, n marked symbols n … 2n-1, the query 2n. The only target, y_T = s after the query, is
    the number of the marked symbol n + s.
    """

    name = "retrieval"
    summary = "a marked symbol in the first half, queried at the end"
    knobs: ClassVar = {"seq_len": "how long to remember", "symbols": "how many symbols there are"}
    example: ClassVar = {"seq_len": 10, "symbols": 3}

    def __init__(self, seq_len: int, *, symbols: int = 8) -> None:
        check_length(self.name, seq_len, 4)
        names = name_symbols(self.name, symbols)
        self.symbols = symbols
        super().__init__(seq_len, [*names, *(f"[{name}]" for name in names), "?"], names)

    def generate(self, rng: np.random.Generator, batch_size: int) -> tuple[Ints, Ints]:
        """Draw fillers, the place of the marked symbol, and the symbol."""
        n = self.symbols
        tokens = rng.integers(0, n, (batch_size, self.seq_len))
        place = rng.integers(0, self.seq_len // 2, batch_size)
        answer = rng.integers(0, n, batch_size)
        tokens[np.arange(batch_size), place] = n + answer
        tokens[:, -1] = 2 * n
        targets = without_answers(tokens)
        targets[:, -1] = answer
        return tokens, targets

    def hidden(self, tokens: Ints) -> tuple[str, npt.NDArray[np.str_]]:
        """Return what a memory must hold after each token (B, T): the marked symbol, or "not yet" before it."""
        marked = tokens >= self.symbols  # includes the query, which is last
        symbol = np.take_along_axis(tokens, marked.argmax(axis=1, keepdims=True), axis=1) - self.symbols
        return "needle", np.where(np.cumsum(marked, axis=1) > 0, symbol.astype(str), "not yet")


class Copy(Task):
    """A string, repeated forward or reversed after a query.

    Tokens: n symbols 0 … n-1, the blank n, the query n + 1. A sequence is the string's L symbols, blanks, the query
    at t = T - L, and L - 1 blanks. The targets y_{T-L+1} … y_T are the symbols in order. The first of them follows the
    query.
    """

    name = "copy"
    summary = "a string, repeated after a query, forward or reversed"
    knobs: ClassVar = {
        "copy_len": "how long the string is",
        "seq_len": "how long to wait",
        "symbols": "how many symbols there are",
        "reverse": "repeat it in reverse",
    }
    amount = "copy_len"
    example: ClassVar = {"seq_len": 10, "copy_len": 4}

    def __init__(self, seq_len: int, *, symbols: int = 4, copy_len: int = 16, reverse: bool = False) -> None:
        names = name_symbols(self.name, symbols)
        check_length(f"{self.name} of {copy_len} symbols", seq_len, 2 * copy_len, "copy_len")
        self.symbols, self.copy_len, self.reverse = symbols, copy_len, reverse
        super().__init__(seq_len, [*names, "_", "?"], names)

    def generate(self, rng: np.random.Generator, batch_size: int) -> tuple[Ints, Ints]:
        """Draw the string, and where its symbols stand."""
        string = rng.integers(0, self.symbols, (batch_size, self.copy_len))
        tokens = np.full((batch_size, self.seq_len), self.symbols)
        np.put_along_axis(tokens, self._places(rng, batch_size), string, axis=1)
        tokens[:, -self.copy_len] = self.symbols + 1
        targets = without_answers(tokens)
        targets[:, -self.copy_len :] = string[:, ::-1] if self.reverse else string
        return tokens, targets

    def _places(self, rng: np.random.Generator, batch_size: int) -> Ints:
        """Return the positions (B, L) of the string's symbols, in ascending order."""
        return np.tile(np.arange(self.copy_len), (batch_size, 1))

    def hidden(self, tokens: Ints) -> tuple[str, Ints]:
        """Count the symbols that a memory must still hold after each token (B, T): those read and not yet answered."""
        read = np.cumsum(tokens < self.symbols, axis=1)
        asked = np.cumsum(np.cumsum(tokens == self.symbols + 1, axis=1), axis=1)
        # The memory after the query predicts the first symbol, so it must still hold them all.
        return "symbols to say", read - np.maximum(asked - 1, 0)


class SelectiveCopy(Copy):
    """`Copy` of symbols scattered among blanks (Gu & Dao 2023, Mamba), with the same tokens and targets."""

    name = "selective_copy"
    summary = "symbols scattered among blanks, repeated in order after a query"
    knobs: ClassVar = {
        "copy_len": "how many symbols to copy",
        "seq_len": "how far they are scattered",
        "symbols": "how many symbols there are",
    }
    example: ClassVar = {"seq_len": 12, "copy_len": 3}

    def _places(self, rng: np.random.Generator, batch_size: int) -> Ints:
        return np.sort(draw_distinct(rng, batch_size, self.copy_len, self.seq_len - self.copy_len), axis=1)


class KeysValues(Task):
    """Key strings with their value strings, then one of the keys, whose value is the answer.

    Tokens: n symbols 0 … n-1, the blank n, the query n + 1. Keys and values have L symbols each, and all keys differ.
    A sequence is key, value, key, value, …, blanks, the query, one of the keys again, and L - 1 blanks. The targets
    y_{T-L+1} … y_T are the symbols of that key's value. The first of them follows the key.
    """

    name = "keys_values"
    summary = "key strings with value strings, then one key: give its value"
    knobs: ClassVar = {
        "pairs": "how many keys and values",
        "string_len": "how long each of them is",
        "seq_len": "how long to wait",
        "symbols": "how many symbols there are",
    }
    amount = "pairs"
    example: ClassVar = {"seq_len": 18, "symbols": 4, "pairs": 3}

    def __init__(self, seq_len: int, *, symbols: int = 8, pairs: int = 8, string_len: int = 2) -> None:
        names = name_symbols(self.name, symbols)
        if string_len > seq_len:  # before it is used as an exponent
            raise UserError(f"data.string_len: {string_len} is longer than data.seq_len {seq_len}; give less")
        if symbols**string_len < pairs:
            raise UserError(
                f"data.pairs: {pairs} different keys are more than the {symbols**string_len} that data.symbols "
                f"{symbols} and data.string_len {string_len} allow; give fewer pairs, or more symbols"
            )
        check_length(f"{self.name} of {pairs} pairs", seq_len, 2 * (pairs + 1) * string_len, "pairs")
        if symbols**string_len >= 2**63:
            raise UserError(f"data.string_len: {string_len} is too long for {symbols} symbols; keys must fit 63 bits")
        self.symbols, self.pairs, self.string_len = symbols, pairs, string_len
        super().__init__(seq_len, [*names, "_", "?"], names)

    def generate(self, rng: np.random.Generator, batch_size: int) -> tuple[Ints, Ints]:
        """Draw distinct keys, their values, and the key to query."""
        n, length = self.symbols, self.string_len
        numbers = shuffle_rows(rng, draw_distinct(rng, batch_size, self.pairs, n**length))
        keys = numbers[..., None] // n ** np.arange(length) % n  # (B, pairs, L), the digits of the keys' numbers
        values = rng.integers(0, n, keys.shape)
        tokens = np.full((batch_size, self.seq_len), n)
        read = np.concatenate([keys, values], axis=2).reshape(batch_size, -1)
        tokens[:, : read.shape[1]] = read
        asked = np.arange(batch_size), rng.integers(0, self.pairs, batch_size)
        start = self.seq_len - 2 * length
        tokens[:, start] = n + 1
        tokens[:, start + 1 : start + 1 + length] = keys[asked]
        targets = without_answers(tokens)
        targets[:, -length:] = values[asked]
        return tokens, targets


class MQAR(Task):
    """Multi-query associative recall (Arora et al. 2023, Zoology): every key is queried once.

    Tokens: n values 0 … n-1, n keys n … 2n-1. A sequence begins with key, value, key, value, …, with distinct keys and
    distinct values. Then each key occurs once more, at an even distance d from the end of these pairs. The distances
    are drawn without replacement, with probabilities proportional to (d/2 + 1)^(POWER - 1). All other tokens are
    random, but never one of the sequence's keys. (In Zoology a key may occur there without being queried.) The target
    after the second occurrence of a key is its value.
    """

    name = "mqar"
    summary = "key, value pairs, then every key again among random tokens: give its value (Zoology)"
    knobs: ClassVar = {
        "pairs": "how many keys and values",
        "symbols": "how many keys, and values, there are",
        "seq_len": "how far apart the queries are",
    }
    amount = "pairs"
    example: ClassVar = {"seq_len": 16, "symbols": 4, "pairs": 3}
    POWER = 0.01

    def __init__(self, seq_len: int, *, symbols: int = 32, pairs: int = 8) -> None:
        names = name_symbols(self.name, symbols)
        if pairs > symbols:
            raise UserError(
                f"data.pairs: {pairs} different keys are more than data.symbols {symbols} allows; "
                f"give at most {symbols} pairs, or more symbols"
            )
        check_length(f"{self.name} of {pairs} pairs", seq_len, 4 * pairs, "pairs")
        self.symbols, self.pairs = symbols, pairs
        super().__init__(seq_len, [*names, *(name.upper() for name in names)], names)

    def generate(self, rng: np.random.Generator, batch_size: int) -> tuple[Ints, Ints]:
        """Draw distinct keys and values, the tokens between them, and the positions of the queries."""
        n, pairs = self.symbols, self.pairs
        keys = n + shuffle_rows(rng, draw_distinct(rng, batch_size, pairs, n))
        values = shuffle_rows(rng, draw_distinct(rng, batch_size, pairs, n))
        tokens = rng.integers(0, 2 * n, (batch_size, self.seq_len))
        is_key = np.zeros((batch_size, 2 * n), dtype=bool)
        np.put_along_axis(is_key, keys, True, axis=1)
        tokens = np.where(np.take_along_axis(is_key, tokens, axis=1), rng.integers(0, n, tokens.shape), tokens)
        tokens[:, : 2 * pairs : 2] = keys
        tokens[:, 1 : 2 * pairs : 2] = values
        # The largest of log-weights plus Gumbel noise, in descending order, are draws without replacement.
        places = (self.seq_len - 2 * pairs) // 2
        score = (self.POWER - 1) * np.log(np.arange(1, places + 1)) + rng.gumbel(size=(batch_size, places))
        asked = 2 * pairs + 2 * np.argsort(-score, axis=1)[:, :pairs]
        np.put_along_axis(tokens, asked, keys, axis=1)
        targets = without_answers(tokens)
        np.put_along_axis(targets, asked + 1, values, axis=1)
        return tokens, targets


def draw_distinct(rng: np.random.Generator, batch_size: int, count: int, among: int) -> Ints:
    """Draw rows of `count` distinct numbers from 0 … among - 1, (B, count).

    All sets are equally likely, but not all orders. Floyd's algorithm (Bentley & Floyd 1987) takes one round per number
    drawn, however large `among` is.
    """
    chosen = np.full((batch_size, count), -1)
    for i, largest in enumerate(range(among - count, among)):
        drawn = rng.integers(0, largest + 1, batch_size)
        taken = (chosen[:, :i] == drawn[:, None]).any(axis=1)
        chosen[:, i] = np.where(taken, largest, drawn)
    return chosen


def shuffle_rows(rng: np.random.Generator, rows: Ints) -> Ints:
    """Shuffle each row independently."""
    return np.take_along_axis(rows, np.argsort(rng.random(rows.shape), axis=1), axis=1)

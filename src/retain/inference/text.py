"""Texts sampled from a run, piece by piece."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor

from retain.data import encode
from retain.data.subwords import Subwords, read_prompt
from retain.errors import UserError
from retain.inference.generate import Step, generate
from retain.runs.data import read_tokenizer
from retain.runs.run import Run


class Piece(NamedTuple):
    """The text that a token adds."""

    token: int | None
    """None if the text had already ended."""
    text: str


def generate_text(run: Run, prompt: str = "", length: int = 500, **settings: Any) -> list[str]:
    """Sample texts that follow a prompt, each up to its end symbol, a stop string or `length` tokens.

    `settings` are those of `stream_text`, which yields the texts in pieces.
    """
    texts = zip(*stream_text(run, prompt, length, **settings), strict=True)
    return ["".join(piece.text for piece in pieces) for pieces in texts]


def stream_text(
    run: Run,
    prompt: str = "",
    length: int = 500,
    *,
    stop: Sequence[str] = (),
    count: int = 1,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    step: Step | None = None,
) -> Iterator[list[Piece]]:
    """Sample texts side by side after a prompt, yielding a piece of each for every token.

    Text that may still become a stop string or a character is held back for a later piece. The last list of pieces has
    no tokens, only text that was held back. If data is not text, tokens become numbers separated by spaces.

    Args:
        run: As `load_run` returns it.
        prompt: The text, or the numbers, to continue.
        length: The most tokens per text.
        stop: A text ends before the first of these strings that is complete, or before its end symbol.
        count: How many texts; another count gives other texts.
        temperature: See `sample`, as for `top_k` and `top_p`.
        top_k: The likeliest tokens that are kept.
        top_p: The probability that is kept.
        seed: The same seed gives the same texts.
        step: The result of `fast_step(run.rnn, count)`.

    Raises:
        UserError: A setting is out of range, before anything is read.
    """
    kind, vocab_size, end = run.state["kind"], run.state["vocab_size"], run.state.get("end")
    tokenizer = read_tokenizer(run.path)
    if count < 1:
        raise UserError(f"count: {count} must be at least 1")
    if stop and not tokenizer and kind != "text":
        raise UserError(f"stop: {stop[0]!r} is for text, and this run is of {kind}; leave it out")
    if isinstance(stop, str) or not all(stop):
        raise UserError(f"stop: {stop!r} must be a list of strings, none of them empty")
    tokens = read_prompt(tokenizer, prompt) if tokenizer else encode(prompt, kind, vocab_size)

    texts = [Text(*_make_reader(kind, tokenizer, tokens), stop, end) for _ in range(count)]
    sampling: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed, "step": step}
    return _pieces(generate(run.rnn, torch.tensor([tokens] * count, dtype=torch.long), length, **sampling), texts)


def _pieces(stream: Iterator[Tensor], texts: list[Text]) -> Iterator[list[Piece]]:
    for drawn in stream:
        yield [text.read(token) for text, token in zip(texts, drawn.tolist(), strict=True)]
        if all(text.ended for text in texts):
            break
    yield [Piece(None, text.rest()) for text in texts]


def _make_reader(kind: str, tokenizer: Any, before: list[int]) -> tuple[Callable[[int], str], Callable[[], str]]:
    """Make two functions: of each token after those `before`, its text; and at the end, the rest of the text."""
    if tokenizer:
        subwords = Subwords(tokenizer, before)
        return subwords.read, subwords.rest
    if kind == "text":  # bytes: each character as soon as it is complete
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        return lambda token: decoder.decode(bytes([token])), str
    spaces = chain([" " if before else ""], repeat(" "))
    return lambda token: f"{next(spaces)}{token}", str


class Text:
    """A text up to the first of its stop strings that is complete, or its end symbol.

    Args:
        read: Returns the text that a token completes.
        rest: Returns the rest of the text when no more tokens come.
        stop: Strings that end the text and are not part of it.
        end: The token that ends the text.
    """

    def __init__(
        self, read: Callable[[int], str], rest: Callable[[], str], stop: Sequence[str], end: int | None
    ) -> None:
        self._read, self._rest, self.stop, self.end = read, rest, stop, end
        self.held, self.ended = "", False

    def read(self, token: int) -> Piece:
        """Return the text that the token adds."""
        if self.ended:
            return Piece(None, "")
        if token == self.end:
            text = self.rest()
            self.ended = True
            return Piece(None, text)
        return Piece(token, self._until_stop(self._read(token)))

    def rest(self) -> str:
        """Return the text held back, when no more tokens come."""
        if self.ended:
            return ""
        return self._until_stop(self._rest()) + self.held

    def _until_stop(self, text: str) -> str:
        """Return the part of the text that is certain, preceded by the text held back before."""
        text = self.held + text
        # The stop string that is complete first, wherever the text was cut into pieces; of several, the longest.
        whole = [(place + len(stop), place) for stop in self.stop if (place := text.find(stop)) >= 0]
        if whole:
            self.held, self.ended = "", True
            return text[: min(whole)[1]]
        longest = max(map(len, self.stop), default=1)
        for start in range(max(0, len(text) - longest + 1), len(text)):
            if any(stop.startswith(text[start:]) for stop in self.stop):
                self.held = text[start:]
                return text[:start]
        self.held = ""
        return text

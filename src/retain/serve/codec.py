"""Conversion of texts to a run's tokens and back, with the incomplete character that a session keeps between calls."""

from __future__ import annotations

import codecs
from typing import Any

from retain.data import decode, encode
from retain.data.subwords import UNFINISHED, Subwords, read_prompt
from retain.errors import UserError
from retain.runs.data import read_tokenizer
from retain.runs.run import Run

Tail = dict[str, Any]
"""The incomplete end of a text, as JSON values of bounded size."""


class Bytes:
    """The decoder of bytes, which gives each character as soon as it is complete."""

    def __init__(self, begun: bytes = b""):
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.decoder.setstate((begun, 0))

    def read(self, token: int) -> str:
        """Return the text that ends with this byte; "" within a character."""
        return self.decoder.decode(bytes([token]))

    def rest(self) -> str:
        """Return nothing, because an incomplete character has no text."""
        return ""


class Codec:
    """The encoder and decoder of a run of text.

    Raises UserError if the run is not of text.
    """

    def __init__(self, run: Run):
        kind = run.state["kind"]
        self.tokenizer = read_tokenizer(run.path)
        if self.tokenizer is None and kind != "text":
            what = "images" if kind == "image" else "numbers"
            raise UserError(f"run: {run.path} is of {what}, and a server is for text; use retain generate {run.path}")
        self.tokens = range(run.state["vocab_size"])
        self.end: int | None = run.state.get("end")

    def encode(self, text: str) -> list[int]:
        """Turn a text into tokens. Raises UserError for a text that the run has no tokens for."""
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UserError(f"prompt: {text[:40]!r} holds half of a surrogate pair; send whole characters") from None
        return read_prompt(self.tokenizer, text) if self.tokenizer else encode(text, "text", len(self.tokens))

    def check(self, tokens: list[int]) -> list[int]:
        """Return tokens that were sent as a prompt. Raises UserError for one that the run does not have."""
        if wrong := [token for token in (min(tokens, default=0), max(tokens, default=0)) if token not in self.tokens]:
            raise UserError(f"prompt: {wrong[0]} is not among the tokens 0 … {len(self.tokens) - 1}")
        return tokens

    def decode(self, tokens: list[int]) -> str:
        """Turn tokens into text. The end symbol of bytes has no text."""
        if self.tokenizer:
            return str(self.tokenizer.decode(tokens, skip_special_tokens=False))
        return decode([token for token in tokens if token < 256], "text")

    def reader(self, before: list[int], tail: Tail | None = None) -> Bytes | Subwords:
        """Return a decoder of the tokens after `before`, or, if `before` is empty, after the text that left `tail`."""
        tail = {} if before or tail is None else tail
        if not self.tokenizer:
            return Bytes(bytes(tail.get("next", [])))
        reader = Subwords(self.tokenizer, tail.get("last", before[-UNFINISHED:]))
        reader.next, reader.known = list(tail.get("next", [])), tail.get("known", reader.known)
        return reader


def tail_of(reader: Bytes | Subwords) -> Tail:
    """Return the state from which another reader continues after this one, whose `rest` was given out."""
    if isinstance(reader, Bytes):
        return {"next": list(reader.decoder.getstate()[0])}
    return {"last": reader.last, "next": reader.next, "known": reader.known + reader.rest()}

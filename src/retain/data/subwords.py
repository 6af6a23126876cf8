"""Conversion between text and the subwords of a tokenizer.json: prompts, and sampled text as it arrives."""

from __future__ import annotations

from typing import Any

from retain.errors import UserError

UNFINISHED = 32
"""Subwords to wait for the end of a character. A character has at most four bytes; beyond that it is invalid UTF-8."""


def read_prompt(tokenizer: Any, text: str) -> list[int]:
    """Turn a prompt into subwords. Raises UserError for a character that the vocabulary lacks."""
    # A shell argument that the locale cannot decode arrives as surrogates.
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    try:
        encoded = tokenizer.encode(text, add_special_tokens=False)
    except Exception as error:
        if type(error) is not Exception:  # the library raises plain Exception only
            raise
        raise UserError(f"prompt: {text[:40]!r} is not in the tokenizer's vocabulary ({error})") from None
    known = {place for start, end in encoded.offsets for place in range(start, end)}
    for place, character in enumerate(text):
        if place not in known and not character.isspace():  # some tokenizers drop whitespace
            raise UserError(f"prompt: {character!r} is not in the tokenizer's vocabulary")
    return list(encoded.ids)


class Subwords:
    """A decoder of subwords that follow `before`, one at a time, in constant memory.

    The returned pieces together equal the text that the tokenizer decodes from all subwords. The last piece is decoded
    again with the next one, since a tokenizer decodes the first word differently from later words. (The library's
    DecodeStream raises for some invalid UTF-8, and buffers other invalid UTF-8 without end.)
    """

    def __init__(self, tokenizer: Any, before: list[int]) -> None:
        self.tokenizer, self.last, self.next = tokenizer, before, list[int]()
        self.known = self.decode(before)

    def decode(self, tokens: list[int]) -> str:
        """Turn subwords into text, special symbols included."""
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=False)
        return text

    def read(self, token: int) -> str:
        """Return the text that this subword completes; "" within a character."""
        self.next.append(token)
        text = self.decode(self.last + self.next)
        if (len(text) <= len(self.known) or text.endswith("�")) and len(self.next) < UNFINISHED:
            return ""
        piece = text[len(self.known) :]
        self.last, self.next, self.known = self.next, [], self.decode(self.next)
        return piece

    def rest(self) -> str:
        """Return the complete characters that were held back because the last one is incomplete."""
        return self.decode(self.last + self.next)[len(self.known) :].rstrip("�")

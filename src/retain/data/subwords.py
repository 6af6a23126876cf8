"""Tokens that a tokenizer.json makes of text: prompts, and the text of what is sampled, as it comes."""

from __future__ import annotations

from typing import Any

from retain.errors import UserError

UNFINISHED = 32
"""Subwords that are waited for until a character ends. It has four bytes at most: if it does not end, it is none."""


def read_prompt(tokenizer: Any, text: str) -> list[int]:
    """Turn a prompt into subwords. Raises UserError for a character that the vocabulary lacks."""
    # A shell argument that the locale cannot decode arrives as surrogates.
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    try:
        encoded = tokenizer.encode(text, add_special_tokens=False)
    except Exception as error:
        if type(error) is not Exception:  # the library raises no other
            raise
        raise UserError(f"prompt: {text[:40]!r} is not in the tokenizer's vocabulary ({error})") from None
    known = {place for start, end in encoded.offsets for place in range(start, end)}
    for place, character in enumerate(text):
        if place not in known and not character.isspace():  # which some tokenizers leave out
            raise UserError(f"prompt: {character!r} is not in the tokenizer's vocabulary")
    return list(encoded.ids)


class Subwords:
    """The text of subwords that follow `before`, as they come, at constant memory.

    The pieces of text are together what the tokenizer decodes of all subwords.
    The last piece of text is decoded again with every next one, since a tokenizer decodes the first word otherwise
    than those after it. (The library's DecodeStream raises for some bytes that are no UTF-8, and keeps all others.)
    """

    def __init__(self, tokenizer: Any, before: list[int]) -> None:
        self.tokenizer, self.last, self.next = tokenizer, before, list[int]()
        self.known = self.decode(before)

    def decode(self, tokens: list[int]) -> str:
        """Turn subwords into text, special symbols included."""
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=False)
        return text

    def read(self, token: int) -> str:
        """Return the text that ends with this subword; "" within a character."""
        self.next.append(token)
        text = self.decode(self.last + self.next)
        if (len(text) <= len(self.known) or text.endswith("�")) and len(self.next) < UNFINISHED:
            return ""
        piece = text[len(self.known) :]
        self.last, self.next, self.known = self.next, [], self.decode(self.next)
        return piece

    def rest(self) -> str:
        """Return the whole characters that were held back for one that did not end."""
        return self.decode(self.last + self.next)[len(self.known) :].rstrip("�")

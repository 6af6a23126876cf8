"""Tokens that a tokenizer.json makes of text: prompts, and what is sampled as it comes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from retain.errors import UserError


def read_prompt(tokenizer: Any, text: str) -> list[int]:
    """A prompt as subwords. Raises UserError for a character that the vocabulary lacks."""
    # A shell argument that the locale cannot decode arrives as surrogates.
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    try:
        encoded = tokenizer.encode(text, add_special_tokens=False)
    except Exception as error:
        if type(error) is not Exception:  # the library raises no other
            raise
        raise UserError(f"prompt: {text!r} is not in the tokenizer's vocabulary ({error})") from None
    known = {place for start, end in encoded.offsets for place in range(start, end)}
    for place, character in enumerate(text):
        if place not in known and not character.isspace():  # which some tokenizers leave out
            raise UserError(f"prompt: {character!r} is not in the tokenizer's vocabulary")
    return list(encoded.ids)


def token_writer(tokenizer: Any) -> Callable[[int], None]:
    """Writes subwords to stdout as they come, each as soon as its characters are whole."""
    from tokenizers.decoders import DecodeStream

    stream = DecodeStream(skip_special_tokens=False)

    def write(token: int) -> None:
        nonlocal stream
        try:
            text = stream.step(tokenizer, token)
        except Exception as error:
            if type(error) is not Exception:  # the library raises no other
                raise
            # Bytes that are no UTF-8, after which the library's stream is of no more use.
            stream = DecodeStream(skip_special_tokens=False)
            text = stream.step(tokenizer, token)
        print(text or "", end="", flush=True)

    return write

"""Sources are made of pieces, pieces of rows, and a codec makes each row the bytes of its tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from retain.config import DatasetDataConfig, DocumentDataConfig, ImageDataConfig
from retain.data.batches import Kind, Split
from retain.data.images import Pixels, events_vocabulary, stored_image, to_events, to_pixels
from retain.data.paths import expand_path
from retain.errors import UserError

SHUFFLED = 1000
"""A shuffled stream holds this many rows, and draws the next from them."""

Rows = Iterator[list[Any]]
"""Up to ROWS rows at a time: texts, or images as `datasets` stores them; None where a row has none."""


@dataclass(frozen=True)
class Piece:
    """Some rows of a source, all of one split or cut into several."""

    name: str
    split: Split
    cut: frozenset[Split]
    """Splits that the source lacks; rows go there, or to `split`, by their hash."""
    read: Callable[[], Rows]
    shuffled: Callable[[int], Rows]
    """The same rows in an order that follows from a seed."""
    count: int | None = None


@dataclass(frozen=True)
class Source:
    """An opened source: its pieces, the revision it has on the hub, and for a local one what of it is read."""

    pieces: tuple[Piece, ...]
    revision: str | None = None
    read: dict[str, Any] | None = None


BYTE_END = 0xFF
"""The end symbol among bytes: one that UTF-8 never uses, so that the vocabulary stays 256."""


@dataclass(frozen=True)
class Codec:
    """How rows become tokens."""

    encode: Callable[[list[Any]], list[bytes | None]]
    """From rows, texts or stored images, to the tokens of each as bytes of `dtype`, end symbol included; None where
    there is no text or image."""
    vocab_size: int
    dtype: np.dtype[Any]
    kind: Kind
    end: int | None = None
    length: int | None = None
    """Tokens of every row, where all have the same number."""
    tokenizer: str | None = None
    """The tokenizer.json, where tokens are subwords."""


def choose_codec(config: DatasetDataConfig) -> Codec:
    """Choose the codec that a configuration asks for. Raises UserError for a tokenizer that cannot be used."""
    if isinstance(config, ImageDataConfig):
        return _images(config)
    if isinstance(config, DocumentDataConfig) and config.tokenizer is not None:
        return _subwords(config)
    end = bytes([BYTE_END])

    def encode(rows: list[str | None]) -> list[bytes | None]:
        return [None if text is None else text.encode() + end for text in rows]

    return Codec(encode, 256, np.dtype(np.uint8), "text", BYTE_END)


def _subwords(config: DocumentDataConfig) -> Codec:
    try:
        import tokenizers
    except ImportError:
        raise UserError("data.tokenizer: this needs tokenizers; run pip install 'retain[hub]'") from None
    path = expand_path(config.tokenizer or "")
    try:
        content = path.read_text(encoding="utf-8")
        tokenizer = tokenizers.Tokenizer.from_str(content)
    except OSError as error:
        raise UserError(f"data.tokenizer: {str(path)!r} cannot be read ({error.strerror})") from None
    except Exception as error:
        raise UserError(
            f"data.tokenizer: {str(path)!r} is not a tokenizer.json of Hugging Face tokenizers ({error})"
        ) from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    # Special symbols may lie beyond the count of the vocabulary.
    vocab_size = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    end = vocab_size if config.end is None else tokenizer.token_to_id(config.end)
    if end is None:
        raise UserError(f"data.end: {config.end!r} is no symbol of {str(path)!r}; leave it out to add one")
    vocab_size = max(vocab_size, end + 1)
    dtype = np.min_scalar_type(vocab_size - 1)

    def encode(rows: list[str | None]) -> list[bytes | None]:
        found = iter(tokenizer.encode_batch([text for text in rows if text is not None], add_special_tokens=False))
        return [None if text is None else np.array([*next(found).ids, end], dtype).tobytes() for text in rows]

    return Codec(encode, vocab_size, dtype, "tokens", end, tokenizer=content)


def _images(config: ImageDataConfig) -> Codec:
    path = config.path

    def levels(rows: list[Any]) -> Iterator[Pixels | None]:
        for row in rows:
            empty = row is None or not (row.get("bytes") or row.get("path"))
            yield None if empty else to_pixels(stored_image(row, path), config)

    def pixels(rows: list[Any]) -> list[bytes | None]:
        return [None if image is None else image.tobytes() for image in levels(rows)]

    if not config.events:
        return Codec(pixels, config.levels, np.dtype(np.uint8), "image", length=config.image_size**2)
    vocab_size = events_vocabulary(config)
    dtype = np.min_scalar_type(vocab_size - 1)

    def events(rows: list[Any]) -> list[bytes | None]:
        return [None if image is None else to_events(image, config).astype(dtype).tobytes() for image in levels(rows)]

    return Codec(events, vocab_size, dtype, "tokens", vocab_size - 1)

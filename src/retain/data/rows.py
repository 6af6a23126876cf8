"""A source consists of pieces, and a piece of rows. A codec turns each row into the bytes of its tokens."""

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
"""Rows in the buffer from which a shuffled stream draws the next row."""

Rows = Iterator[list[Any]]
"""Lists of up to ROWS rows: texts, or images as `datasets` stores them. An empty row is None."""


@dataclass(frozen=True)
class Piece:
    """Rows of a source that belong to one split or are divided among several."""

    name: str
    split: Split
    cut: frozenset[Split]
    """Splits that the source lacks. The hash of a row decides whether it goes to one of them or to `split`."""
    read: Callable[[], Rows]
    shuffled: Callable[[int], Rows]
    """The same rows, shuffled by a seed."""
    count: int | None = None


@dataclass(frozen=True)
class Source:
    """An opened source: its pieces, its revision on the hub, and for a local source a record of the files read."""

    pieces: tuple[Piece, ...]
    revision: str | None = None
    read: dict[str, Any] | None = None


BYTE_END = 0xFF
"""The end symbol of documents of bytes. UTF-8 never uses this byte, so the vocabulary stays at 256."""


@dataclass(frozen=True)
class Codec:
    """The conversion of rows into tokens."""

    encode: Callable[[list[Any]], list[bytes | None]]
    """Turns rows (texts or stored images) into the bytes of their tokens, of type `dtype`, end symbol included. A row
    without a text or image gives None."""
    vocab_size: int
    dtype: np.dtype[Any]
    kind: Kind
    end: int | None = None
    length: int | None = None
    """Tokens per row, if all rows have the same number."""
    tokenizer: str | None = None
    """The content of tokenizer.json, if tokens are subwords."""


def choose_codec(config: DatasetDataConfig) -> Codec:
    """Choose the codec for a configuration. Raises UserError if its tokenizer cannot be used."""
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
    # The numbers of special symbols may exceed the size of the vocabulary.
    vocab_size = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    end = vocab_size if config.end is None else tokenizer.token_to_id(config.end)
    if end is None:
        raise UserError(f"data.end: {config.end!r} is not a symbol of {str(path)!r}; leave it out to add one")
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

"""A source of documents or images, local or of the hub, is made of pieces whose rows are read one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from retain.data.batches import Split

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

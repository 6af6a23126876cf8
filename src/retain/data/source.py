"""What a source of documents or images is, local or of the hub: pieces whose rows are read one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from retain.data.batches import Split

SHUFFLED = 1000
"""Rows from which the next is drawn in a shuffled stream."""

Rows = Iterator[list[Any]]
"""Up to ROWS rows at a time: texts, or images as `datasets` stores them; None where a row has none."""


@dataclass(frozen=True)
class Piece:
    """Rows that belong to one split, or (`cut`) also to splits that the source lacks, by the hash of each row."""

    name: str
    split: Split
    cut: frozenset[Split]
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

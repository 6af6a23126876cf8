"""What the memory tasks share: checks of their sizes, and names for their symbols."""

from __future__ import annotations

from string import ascii_lowercase

from retain.errors import UserError

MOST_SYMBOLS = 2**16


def check_symbols(task: str, symbols: int) -> None:
    """Raise UserError unless there are two symbols to tell apart, and no more than a vocabulary should have."""
    if symbols < 2:
        raise UserError(f"data.symbols: {symbols} leaves {task} nothing to remember; give at least 2")
    if symbols > MOST_SYMBOLS:
        raise UserError(f"data.symbols: {symbols} are too many for {task}; give at most {MOST_SYMBOLS}")


def check_length(task: str, seq_len: int, least: int, knob: str = "") -> None:
    """Raise UserError unless a sequence has room; `knob` names what else would make it fit."""
    if seq_len < least:
        smaller = f", or a smaller data.{knob}" if knob else ""
        raise UserError(f"data.seq_len: {seq_len} is too short for {task}; give at least {least}{smaller}")


def letters(count: int) -> tuple[str, ...]:
    """Names of `count` symbols: a, b, c, …, or s0, s1, … where the alphabet is too short."""
    return tuple(ascii_lowercase[:count]) if count <= 26 else tuple(f"s{i}" for i in range(count))

"""What every config is asked when it is built: types, choices and signs, each mistake named by its field."""

from __future__ import annotations

import math
import typing
from dataclasses import is_dataclass
from typing import Any, Literal

from retain.errors import UserError

LONGEST = 2**24
"""Tokens of a sequence, at most."""
WIDEST = 2**20
"""Numbers in a memory token or in a layer, and sequences in a batch, at most."""
DEEPEST = 2**10
"""Layers, at most."""
MOST = 2**31
"""Of anything else that is counted: steps beyond the end of a sequence are none."""


def checked(value: Any, hint: Any, name: str) -> Any:
    """`value` as the type `hint` has it: lists as tuples, whole numbers as floats, NumPy's numbers as Python's.

    Raises UserError where it does not fit.
    """
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if isinstance(value, str) and value in args:
            return args[args.index(value)]
    elif origin is tuple:
        if isinstance(value, (list, tuple)):
            return tuple(checked(v, args[0], name) for v in value)
    elif args:  # an optional field: X | None
        if value is None:
            return None
        return checked(value, args[0], name)
    elif isinstance(value, bool) or hint is bool:  # which is an int to Python
        if isinstance(value, bool) and hint is bool:
            return value
    elif isinstance(value, (int, float) if hint is float else hint):
        try:
            return str.__str__(value) if hint is str else hint(value)  # str of an enum is its name
        except OverflowError:
            raise UserError(f"{name}: this whole number is too large") from None
    wanted = " or ".join(map(str, args)) if origin is Literal else getattr(hint, "__name__", str(hint))
    raise UserError(f"{name}: {_line(value)} should be {wanted}")


def _line(value: Any) -> str:
    return " ".join(repr(value).split())


def typed(config: Any) -> None:
    """Give every field the very type that it says, so that equal configs are the same. Raises UserError where one does
    not fit, which Python itself would never ask."""
    for name, hint in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        if not is_dataclass(hint):
            object.__setattr__(config, name, checked(value, hint, name))  # the dataclass is frozen
        elif not isinstance(value, typing.cast(type, hint)):
            raise UserError(f"{name}: {_line(value)} should be a {typing.cast(type, hint).__name__}")


def positive(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"{name}: {value} must be positive and finite")


def at_most(largest: int, config: Any, *names: str) -> None:
    """Refuse what no machine has room for, before memory is asked for it."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value > largest:
            raise UserError(f"{name}: {value} is too large; give at most {largest}")


def not_negative(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 <= value < math.inf:
            raise UserError(f"{name}: {value} must not be negative, and be finite")

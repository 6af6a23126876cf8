"""What every config is asked when it is built: types, choices and signs, each mistake named by its field."""

from __future__ import annotations

import math
import typing
from dataclasses import is_dataclass
from typing import Any, Literal

from retain.errors import UserError


def checked(value: Any, hint: Any, name: str) -> Any:
    """`value` if it fits the type `hint`, lists as tuples, whole numbers as floats."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value in args:
            return value
    elif origin is tuple:
        if isinstance(value, (list, tuple)):
            return tuple(checked(v, args[0], name) for v in value)
    elif args:  # an optional field: X | None
        if value is None:
            return None
        return checked(value, args[0], name)
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    wanted = " or ".join(map(str, args)) if origin is Literal else getattr(hint, "__name__", str(hint))
    raise UserError(f"{name}: {value!r} should be {wanted}")


def typed(config: Any) -> None:
    """Raises UserError where a field has another type than it says, which Python itself would never ask."""
    for name, hint in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        if not is_dataclass(hint):
            checked(value, hint, name)
        elif not isinstance(value, typing.cast(type, hint)):
            raise UserError(f"{name}: {value!r} should be a {typing.cast(type, hint).__name__}")


def positive(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"{name}: {value} must be positive and finite")


def not_negative(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 <= value < math.inf:
            raise UserError(f"{name}: {value} must not be negative, and be finite")

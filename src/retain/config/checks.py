"""The decorator of settings: a frozen dataclass that pydantic checks. Each error names its field."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, TypeVar, cast

import pydantic
from pydantic import ConfigDict, Field, ValidationError
from typing_extensions import dataclass_transform

from retain.errors import UserError

LONGEST = 2**24
"""Most tokens in a sequence."""
WIDEST = 2**20
"""Largest width of a memory token or layer, and largest batch size."""
DEEPEST = 2**10
"""Most layers."""
MOST = 2**31
"""Upper bound of all other counts."""

# These bounds refuse sizes that fit into no machine, before memory is allocated.
Length = Annotated[int, Field(gt=0, le=LONGEST)]
Width = Annotated[int, Field(gt=0, le=WIDEST)]
Depth = Annotated[int, Field(gt=0, le=DEEPEST)]
Count = Annotated[int, Field(gt=0, le=MOST)]
Tokens = Annotated[int, Field(ge=0, le=MOST)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
BelowOne = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(Field,))
def settings(cls: type[T]) -> type[T]:
    """Make `cls` a frozen keyword-only dataclass that raises UserError for a wrong value, however it is built.

    Each value is converted to the exact type of its field: a list to a tuple, a whole number to a float, a NumPy number
    to Python's. So equal settings compare, hash and print the same.
    """
    config = ConfigDict(strict=True, extra="forbid", use_attribute_docstrings=True)
    made: Any = pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=config)(cls)
    build = made.__init__

    def __init__(self: Any, /, **values: Any) -> None:
        try:
            build(self, **{name: to_plain(value) for name, value in values.items()})
        except ValidationError as error:
            fields = ", ".join(sorted(field.name for field in dataclasses.fields(made)))
            raise UserError(describe(error, fields)) from None

    made.__init__ = __init__
    return cast(type[T], made)


def check_value(value: Any, hint: Any, name: str) -> Any:
    """Return `value` converted to the type `hint`. Raises UserError that names the field `name` if it does not fit."""
    try:
        return pydantic.TypeAdapter(hint, config=ConfigDict(strict=True)).validate_python(to_plain(value))
    except ValidationError as error:
        raise UserError(f"{name}: {explain_mistake(error)}") from None


def to_plain(value: Any) -> Any:
    """Convert NumPy or PyTorch numbers and enum strings to plain Python, and lists and tuples of them to tuples."""
    if isinstance(value, (list, tuple)):
        return tuple(map(to_plain, value))
    if isinstance(value, str):
        return str.__str__(value)
    return value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value


WRONG = {
    "int_type": "should be int",
    "float_type": "should be float",
    "bool_type": "should be bool",
    "string_type": "should be str",
    "tuple_type": "should be a list",
    "too_long": "should have {max_length} numbers",
    "missing": "should have more numbers",
    "literal_error": "should be {expected}",
    "dataclass_exact_type": "should be a {class_name}",
    "greater_than": "must be positive and finite",
    "greater_than_equal": "must be finite and not negative",
    "finite_number": "must be finite",
    "less_than": "must be below {lt}",
    "less_than_equal": "is too large; give at most {le}",
}


def describe(error: ValidationError, fields: str) -> str:
    """Describe the first of pydantic's errors in one line: the field (of all `fields`), its value and what is right."""
    found = error.errors(include_url=False)[0]
    if found["type"] == "value_error":  # raised by a check of ours, which names the field itself
        return str(found["ctx"]["error"])
    if found["type"] == "unexpected_keyword_argument":
        return f"{found['loc'][0]}: unknown field; the fields are {fields}"
    return f"{found['loc'][0]}: {explain_mistake(error)}"


def explain_mistake(error: ValidationError) -> str:
    """Return the wrong value and what would be right."""
    found = error.errors(include_url=False)[0]
    wrong = WRONG.get(found["type"], found["msg"]).format(**found.get("ctx", {}))
    if found["type"] == "literal_error":
        wrong = wrong.replace("'", "").replace(", ", " or ")
    return f"{' '.join(repr(found['input']).split())} {wrong}"

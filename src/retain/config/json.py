"""Configs as JSON and back, checked field by field."""

from __future__ import annotations

import dataclasses
import json
import typing
from pathlib import Path
from typing import Any

from retain.config import RunConfig
from retain.config.checks import checked
from retain.errors import UserError


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields under dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def from_dict(cls: Any, values: Any, name: str = "config") -> Any:
    """The dataclass `cls` from JSON values. Raises UserError for an unknown field or wrong type."""
    if not isinstance(values, dict):
        raise UserError(f"{name}: {values!r} is not an object of fields")
    hints = typing.get_type_hints(cls)
    fields = {f.name for f in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            raise UserError(f"{name}.{key}: unknown field; {name} has {', '.join(sorted(fields))}")
    built = {}
    for key, value in values.items():
        if dataclasses.is_dataclass(hints[key]):
            built[key] = from_dict(hints[key], value, f"{name}.{key}")
        else:
            built[key] = checked(value, hints[key], f"{name}.{key}")
    try:
        return cls(**built)
    except UserError as error:
        section = name.removeprefix("config").lstrip(".")
        if not section or str(error).startswith(f"{section}."):
            raise
        raise UserError(f"{section}.{error}") from None


def save_config(config: RunConfig, path: Path) -> None:
    from retain.files import replace_file

    replace_file(path, json.dumps(to_dict(config), indent=2).encode() + b"\n")


def load_config(path: Path) -> RunConfig:
    """Read a config.json. Raises UserError naming the file and the field."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such config file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read as a config file ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a config in JSON ({error})") from None
    try:
        return from_dict(RunConfig, values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def option_of(key: str, value: Any) -> list[str]:
    """The words of a command line that set a field: "cell.residual", False → ["--cell.no-residual"]."""
    section, _, field = key.replace("_", "-").rpartition(".")
    if isinstance(value, bool):
        field, words = field if value else f"no-{field}", []
    else:
        words = list(map(str, value if isinstance(value, list) else [value]))
    return [f"--{section}.{field}" if section else f"--{field}", *words]

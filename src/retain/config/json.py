"""Settings to JSON and back, checked field by field. Those of earlier versions are migrated."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from retain.config.data import data_config
from retain.config.migrate import VERSION, migrate
from retain.config.model import CellConfig, MemoryConfig, TeacherConfig
from retain.config.optimizer import OptimizerConfig
from retain.config.phases import BPTTConfig, DMTConfig, SMTConfig
from retain.config.run import RunConfig
from retain.errors import UserError

SECTIONS: dict[str, Callable[..., Any]] = {
    "memory": MemoryConfig,
    "teacher": TeacherConfig,
    "cell": CellConfig,
    "optimizer": OptimizerConfig,
    "smt": SMTConfig,
    "dmt": DMTConfig,
    "bptt": BPTTConfig,
}


def to_dict(config: Any) -> dict[str, Any]:
    """Return settings as plain JSON values. Those of a run include the format version."""
    values = json.loads(json.dumps(dataclasses.asdict(config)))
    return {"version": VERSION, **values} if isinstance(config, RunConfig) else values


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested fields under dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def from_dict(values: Any, *, drop: bool = False) -> RunConfig:
    """Build a run's settings from the result of `to_dict`, whole or in part, in this version or an earlier one.

    Raises UserError for an unknown field, a wrong value, or a setting that this version lacks. `drop` ignores settings
    that this version lacks: a trained model can be used without them, but further training would differ.
    """
    if not isinstance(values, dict):
        raise UserError(f"config: {values!r} is not an object with fields")
    values, lost = migrate(values)
    if lost and not drop:
        raise UserError(f"config: {lost[0]} is of an earlier version of retain, and this one cannot train with it")
    built: dict[str, Any] = {}
    for key, value in values.items():
        make = data_config if key == "data" else SECTIONS.get(key)
        if make is None:
            built[key] = value
            continue
        if not isinstance(value, dict):
            raise UserError(f"{key}: {value!r} is not an object with fields")
        try:
            built[key] = make(**value)
        except UserError as error:
            raise UserError(str(error) if str(error).startswith(f"{key}.") else f"{key}.{error}") from None
    return RunConfig(**built)


def save_config(config: RunConfig, path: Path) -> None:
    """Write a config.json atomically."""
    from retain.files import replace_file

    replace_file(path, json.dumps(to_dict(config), indent=2).encode() + b"\n")


def load_config(path: Path, *, drop: bool = False) -> RunConfig:
    """Read a config.json; `drop` as in `from_dict`. Raises UserError naming the file and the field."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such config file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read as a config file ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a config in JSON ({error})") from None
    try:
        return from_dict(values, drop=drop)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def option_of(key: str, value: Any) -> list[str]:
    """Return the command-line words that set a field: "cell.residual", False → ["--cell.no-residual"]."""
    section, _, field = key.replace("_", "-").rstrip("-").rpartition(".")  # teacher.from_: a field cannot be `from`
    if isinstance(value, bool):
        field, words = field if value else f"no-{field}", []
    else:
        words = list(map(str, value if isinstance(value, list) else [value]))
    return [f"--{section}.{field}" if section else f"--{field}", *words]

"""What is varied in a sweep: fields of a run and their values."""

from __future__ import annotations

import dataclasses
import typing
from itertools import product
from typing import Any
from urllib.parse import quote

from retain.config import RunConfig
from retain.config.budget import Budget
from retain.config.checks import check_value
from retain.config.data import DATA_CLASSES, DataConfig
from retain.config.json import from_dict, to_dict
from retain.errors import UserError

VALIDATIONS = 20
"""Points of each run's curve, from which compression is read, unless --validate-every says otherwise."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """What is swept: a base run, and the values of the fields that are varied."""

    config: RunConfig
    """Its own values of the varied fields and its seed are not used."""
    vary: dict[str, tuple[Any, ...]]
    """Dotted field → its values, e.g. {"data.seq_len": (32, 64)}."""
    seeds: int = 3
    levels: tuple[float, ...] = ()
    """Losses in bits per token for the compression curve; empty chooses them from the runs."""
    threads: int | None = None
    often: bool = False
    """Validate each run VALIDATIONS times, whatever the budget that is varied, instead of as the base run says."""

    def __post_init__(self) -> None:
        if not self.vary:
            raise UserError("vary: name at least one field, e.g. --vary data.seq-len=32,64,128")
        for name, values in self.vary.items():
            field_type(name)
            if not values:
                raise UserError(f"vary: {name} has no values; write e.g. {name}=1,2,4")
            if len(set(values)) < len(values):
                raise UserError(f"vary: {name}={','.join(map(str, values))} names one value twice")
        if self.seeds < 1:
            raise UserError(f"seeds: {self.seeds} must be at least 1")
        if self.threads is not None and self.threads < 1:
            raise UserError(f"threads: {self.threads} must be at least 1")
        for level in self.levels:
            if not 0 < level < float("inf"):
                raise UserError(f"levels: {level} must be a positive loss in bits per token")

    def combinations(self) -> list[dict[str, Any]]:
        """Every combination of values, field → value, the last field fastest."""
        return [dict(zip(self.vary, values, strict=True)) for values in product(*self.vary.values())]


def field_type(name: str) -> Any:
    """Return the type of the dotted field of a RunConfig. Raises UserError if it is no field or cannot be varied."""
    kind: Any = RunConfig
    parts = name.split(".")
    for i, part in enumerate(parts):
        classes = DATA_CLASSES if kind is DataConfig else (kind,) if dataclasses.is_dataclass(kind) else ()
        hints = {n: hint for cls in classes for n, hint in typing.get_type_hints(cls, include_extras=True).items()}
        hints.pop("NAMES", None)
        if part not in hints:
            where = ".".join(parts[:i])
            if not hints:
                raise UserError(f"vary: {name}: {where} is a value, with no fields of its own")
            raise UserError(f"vary: {name}: unknown field; {where or 'a run'} has {', '.join(sorted(hints))}")
        kind = hints[part]
    if dataclasses.is_dataclass(kind):
        inside = ", ".join(f"{name}.{f.name}" for f in dataclasses.fields(kind))
        raise UserError(f"vary: {name}: vary a field of it: {inside}")
    if typing.get_origin(kind) is tuple:
        raise UserError(f"vary: {name}: is a list of values itself, and cannot be varied")
    if name == "seed":
        raise UserError("vary: seed: the seeds are 0 … N - 1; give --seeds N instead")
    if name == "preset":
        raise UserError("vary: preset: is a label only; run one sweep for each")
    return kind


def parse_value(name: str, text: str) -> Any:
    """Read the value of a field from `text`. Raises UserError."""
    kind = field_type(name)
    words = {"None": None, "none": None, "True": True, "true": True, "False": False, "false": False}
    candidates: list[Any] = [words[text]] if text in words else []
    for convert in (int, float, str):
        try:
            candidates.append(convert(text))
        except ValueError:
            continue
    problem = ""
    for candidate in candidates:
        try:
            return check_value(candidate, kind, name)
        except UserError as error:
            problem = problem or str(error)
    raise UserError(f"vary: {problem}")


def with_values(config: RunConfig, values: dict[str, Any]) -> RunConfig:
    """Return the run with these values of dotted fields. Raises UserError where they do not go together."""
    fields = to_dict(config)
    for name, value in values.items():
        *path, last = name.split(".")
        inner = fields
        for part in path:
            inner = inner[part]
        inner[last] = value
    try:
        changed: RunConfig = from_dict(fields)
        return changed
    except UserError as error:
        raise UserError(f"vary: {describe(values)}: {str(error).removeprefix('config.')}") from None


def describe(values: dict[str, Any]) -> str:
    """Return the values as FIELD=VALUE,…."""
    return ",".join(f"{name}={value}" for name, value in values.items())


def run_name(values: dict[str, Any], seed: int) -> str:
    """Return the name of a run's folder, another one for other values."""
    return f"{quote(describe(values), safe='=,')}-seed{seed}"


def validate_often(config: RunConfig) -> RunConfig:
    """Return the run validated VALIDATIONS times if the budgets of its phases add up, else as it is."""
    budgets = config.budgets()
    if len({budget.unit for budget in budgets}) > 1:
        return config
    total = Budget(sum(budget.amount for budget in budgets), budgets[0].unit)
    return dataclasses.replace(config, validate_every=str(total.share(1 / VALIDATIONS)))

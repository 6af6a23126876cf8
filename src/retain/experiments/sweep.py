"""`retain sweep`: runs with one or a few settings varied, compared by quality and by size of memory."""

from __future__ import annotations

import ast
import dataclasses
import typing
from itertools import product
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from pydantic import Field

from retain.config import RunConfig, Symbols
from retain.config.budget import Budget
from retain.config.checks import Count, Positive, check_value, settings
from retain.config.data import DATA_CLASSES, DataConfig
from retain.config.json import from_dict, to_dict
from retain.errors import UserError

MEMORY = ("memory.tokens", "memory.width")
VALIDATIONS = 20
"""Points of each run's curve, from which compression is computed, unless --validate-every is given."""


@settings
class Sweep:
    """A sweep: a base run, and the values of the varied fields."""

    config: RunConfig
    """Its own values of the varied fields and its seed are not used."""
    vary: dict[str, Annotated[tuple[Any, ...], Field(strict=False)]]
    """Dotted field → its values, e.g. {"data.seq_len": (32, 64)}."""
    seeds: Count = 3
    levels: tuple[Positive, ...] = ()
    """Losses in bits per token for the compression curve. If empty, they are chosen from the runs."""
    threads: Count | None = None
    often: bool = False
    """Validate each run VALIDATIONS times, even if the budget is varied, instead of at the base run's interval."""

    def __post_init__(self) -> None:
        if not self.vary:
            raise UserError("vary: name at least one field, e.g. --vary data.seq-len=32,64,128")
        for name, values in self.vary.items():
            find_type(name)
            if not values:
                raise UserError(f"vary: {name} has no values; write e.g. {name}=1,2,4")
            if len(set(values)) < len(values):
                raise UserError(f"vary: {name}={','.join(map(str, values))} names one value twice")

    def combinations(self) -> list[dict[str, Any]]:
        """List every combination of values as field → value. The last field varies fastest."""
        return [dict(zip(self.vary, values, strict=True)) for values in product(*self.vary.values())]


def find_type(name: str) -> Any:
    """Return the type of the dotted field of a RunConfig. Raises UserError if it does not exist or cannot be varied."""
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
    kind = find_type(name)
    try:
        value = ast.literal_eval({"none": "None", "true": "True", "false": "False"}.get(text, text))
    except (ValueError, SyntaxError, TypeError):
        value = text
    try:
        return check_value(value, kind, name)
    except UserError as error:
        try:
            return check_value(text, kind, name)
        except UserError:
            raise UserError(f"vary: {error}") from None


def with_values(config: RunConfig, values: dict[str, Any]) -> RunConfig:
    """Return the run with these values of dotted fields. Raises UserError if they cannot be combined."""
    fields = to_dict(config)
    for name, value in values.items():
        *path, last = name.split(".")
        inner = fields
        for part in path:
            inner = inner[part]
        inner[last] = value
    try:
        return from_dict(fields)
    except UserError as error:
        raise UserError(f"vary: {describe(values)}: {str(error).removeprefix('config.')}") from None


def describe(values: dict[str, Any]) -> str:
    """Return the values as FIELD=VALUE,…."""
    return ",".join(f"{name}={value}" for name, value in values.items())


def name_run(values: dict[str, Any], seed: int) -> str:
    """Return the name of a run's folder, unique to its values and seed."""
    return f"{quote(describe(values), safe='=,')}-seed{seed}"


def validate_often(config: RunConfig) -> RunConfig:
    """Return the run with VALIDATIONS validations if the budgets of its phases have one unit, else unchanged."""
    budgets = config.budgets()
    if len({budget.unit for budget in budgets}) > 1:
        return config
    total = Budget(sum(budget.amount for budget in budgets), budgets[0].unit)
    return dataclasses.replace(config, validate_every=str(total.share(1 / VALIDATIONS)))


def list_runs(sweep: Sweep) -> dict[str, RunConfig]:
    """Return name → run, ordered by seed, so that one seed of each combination comes first. Raises UserError."""
    runs = {}
    for seed, values in product(range(sweep.seeds), sweep.combinations()):
        config = with_values(dataclasses.replace(sweep.config, tracker=None), values)
        config = validate_often(config) if sweep.often else config
        runs[name_run(values, seed)] = dataclasses.replace(config, seed=seed)
    return runs


def check_sweep(sweep: Sweep) -> None:
    """Build every combination's data and models before anything is trained. Raises UserError naming the values."""
    from retain.data import load_data
    from retain.data.batches import find_symbols
    from retain.model.given import stand_in
    from retain.runs.run import build, weightless
    from retain.runs.trunk import for_teacher, open_trunk
    from retain.training.phases import objective_of

    found: dict[Any, tuple[Symbols, tuple[int, int] | None]] = {}
    for values in sweep.combinations():
        config = with_values(sweep.config, values)
        try:
            read = config.data, config.teacher, config.reads_model
            if read not in found:
                data = for_teacher(config, load_data(config.data))
                trunk = open_trunk(config, data)
                found[read] = find_symbols(data), None if trunk is None else (trunk.width, data.vocab_size)
            symbols, shape = found[read]
            with weightless(config.cell):
                rnn, teacher = build(config, symbols, trunk=None if shape is None else stand_in(*shape))
                for index in range(len(config.phases)):
                    objective_of(index, config, rnn, teacher)
        except UserError as error:
            raise UserError(f"vary: {describe(values)}: {error}") from None


def run_sweep(sweep: Sweep, out: str | Path, *, jobs: int = 1, quiet: bool = True) -> dict[str, Any]:
    """Train the runs of the sweep that are not done yet, write its results into `out` and return them.

    Raises UserError. Raises Interrupted on Ctrl-C, SIGTERM or SIGHUP, after every run is saved.
    """
    from retain.experiments.scheduler import claim, run_all
    from retain.experiments.sweep_results import write_results

    out, runs = Path(out), list_runs(sweep)
    check_sweep(sweep)
    spec = {"config": to_dict(sweep.config), "fields": list(sweep.vary), "threads": sweep.threads}
    more = {"vary": {name: list(values) for name, values in sweep.vary.items()}, "seeds": sweep.seeds}
    claim(out, "sweep.json", spec | more, "sweep", ("seeds", *(f"vary.{name}" for name in sweep.vary)))
    found = run_all(runs, out / "runs", jobs=jobs, threads=sweep.threads, split="validation", quiet=quiet)
    results = summarise(sweep, found)
    write_results(results, out)
    return results


def summarise(sweep: Sweep, found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return all figures of a sweep as JSON: `points`, one per combination, with its `values` and `runs` by seed."""
    from retain.experiments.sweep_results import find_compression

    points: list[dict[str, Any]] = []
    for values in sweep.combinations():
        runs = [found[name_run(values, seed)] | {"seed": seed} for seed in range(sweep.seeds)]
        memory = runs[0]["config"]["memory"]
        size = memory["tokens"] * memory["width"]
        kept = [{k: v for k, v in run.items() if k not in ("config", "versions", "data")} for run in runs]
        points.append({"values": values, "memory": size, "runs": kept})
    scored = [run for point in points for run in point["runs"] if "validation" in run]
    results: dict[str, Any] = {
        "preset": sweep.config.preset,
        "budget": describe_budget(sweep),
        "phases": list(sweep.config.phases),
        "seeds": sweep.seeds,
        "threads": sweep.threads,
        "vary": {name: list(values) for name, values in sweep.vary.items()},
        "split": "validation",
        "source": next((run["data"] for run in reversed(found.values()) if "data" in run), None),
        "metric": "accuracy" if scored and scored[0]["answers"] else "bits_per_token",
        "chance": scored[0]["chance"] if scored else None,
        "versions": next((run["versions"] for run in found.values() if "versions" in run), None),
        "points": points,
    }
    swept = any(name in sweep.vary for name in MEMORY)
    return results | {"compression": find_compression(points, sweep.levels) if swept else None}


def describe_budget(sweep: Sweep) -> str:
    """Return the budget of each phase of a run, in words."""
    if any(name.rpartition(".")[2] in ("budget", "share", "phases") for name in sweep.vary):
        return "budgets as varied"
    phases = zip(sweep.config.phases, sweep.config.budgets(), strict=True)
    return " + ".join(f"{phase} {budget}" for phase, budget in phases)

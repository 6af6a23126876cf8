"""`retain sweep`: the same task with one or a few settings varied, and what that does to quality and to memory."""

from __future__ import annotations

import dataclasses
import sys
import typing
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import quote

from retain.cli.arguments import Usage, refuse, take_option, whole
from retain.config.budget import Budget
from retain.config import RunConfig
from retain.config.json import checked, from_dict, to_dict
from retain.errors import UserError
from retain.config.presets import PRESETS

VALIDATIONS = 20
"""Points of each run's curve, from which compression is read, unless --validate-every says otherwise."""

HELP = f"""\
usage: retain sweep PRESET --vary FIELD=A,B,C [--vary FIELD=...] [options]

Train a task with every combination of the values of the varied fields, and report quality against each field. Where a
field is the size of the memory (memory.tokens, memory.width), also the smallest memory that reaches a loss, against
compute. The same command goes on with a sweep that was cut short, and does nothing twice; values may be added to it.

PRESET            {", ".join(PRESETS)}; or --config FILE
--vary FIELD=LIST a field of the run and its values, e.g. data.seq-len=32,64,128 or smt.lambda-dyn=0,0.1,1
--seeds N         runs of each combination, seeds 0 … N - 1 (default: 3)
--budget B        of each run: 300s, 5000steps, 20Mtokens or 500ksequential (default: the preset's)
--levels LIST     compression: the losses in bits per token that are to be reached (default: chosen from the runs)
--out DIR         the sweep's folder (default: runs/sweep-PRESET)
--jobs N          runs side by side (default: 1)
--threads N       threads of each run (default: PyTorch's choice)
--data PATH       what to train on, as for retain train
any option of 'retain train PRESET', for all runs, e.g. --data.seq-len 128

Writes results.md, results.json, results.png and, for memory sizes, compression.png into DIR, and a run folder for
every run under DIR/runs. A sweep is for choosing: scores are on all of the validation split, never on the test split.
"""


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
    """The type of the dotted field of a RunConfig. Raises UserError for what is no field, or cannot be varied."""
    kind: Any = RunConfig
    parts = name.split(".")
    for i, part in enumerate(parts):
        hints = typing.get_type_hints(kind) if dataclasses.is_dataclass(kind) else {}
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


def value_of(name: str, text: str) -> Any:
    """The value of a field that `text` stands for. Raises UserError."""
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
            return checked(candidate, kind, name)
        except UserError as error:
            problem = str(error)
    raise UserError(f"vary: {problem}")


def with_values(config: RunConfig, values: dict[str, Any]) -> RunConfig:
    """The run with these values of dotted fields. Raises UserError naming them where they do not go together."""
    fields = to_dict(config)
    for name, value in values.items():
        *path, last = name.split(".")
        inner = fields
        for part in path:
            inner = inner[part]
        inner[last] = value
    try:
        return from_dict(RunConfig, fields)
    except UserError as error:
        raise UserError(f"vary: {describe(values)}: {str(error).removeprefix('config.')}") from None


def describe(values: dict[str, Any]) -> str:
    return ",".join(f"{name}={value}" for name, value in values.items())


def run_name(values: dict[str, Any], seed: int) -> str:
    """A folder's name, another one for other values."""
    return f"{quote(describe(values), safe='=,')}-seed{seed}"


def runs_of(sweep: Sweep) -> dict[str, RunConfig]:
    """Name → run, seed by seed, so that one seed of everything is done first. Raises UserError for a bad value."""
    base = dataclasses.replace(sweep.config, tracker=None)

    def run(values: dict[str, Any]) -> RunConfig:
        config = with_values(base, values)
        return often(config) if sweep.often else config

    return {
        run_name(values, seed): dataclasses.replace(run(values), seed=seed)
        for seed in range(sweep.seeds)
        for values in sweep.combinations()
    }


def check(sweep: Sweep) -> None:
    """Build every combination's data and models before anything is trained. Raises UserError naming the values."""
    from retain.data import load_data
    from retain.training.phases import objective_of
    from retain.runs.run import build, weightless

    sizes: dict[Any, int] = {}
    for values in sweep.combinations():
        config = with_values(sweep.config, values)
        try:
            config.data.check_read()
            if config.data not in sizes:
                sizes[config.data] = load_data(config.data).vocab_size
            with weightless(config.cell):
                rnn, teacher = build(config, sizes[config.data])
                for index in range(len(config.phases)):
                    objective_of(index, config, rnn, teacher)
        except UserError as error:
            raise UserError(f"vary: {describe(values)}: {error}") from None


def often(config: RunConfig) -> RunConfig:
    """Validated VALIDATIONS times, where the budgets of its phases add up; else as the run says."""
    budgets = config.budgets()
    if len({budget.unit for budget in budgets}) > 1:
        return config
    total = Budget(sum(budget.amount for budget in budgets), budgets[0].unit)
    return dataclasses.replace(config, validate_every=str(total.share(1 / VALIDATIONS)))


def run_sweep(sweep: Sweep, out: str | Path, *, jobs: int = 1, quiet: bool = True) -> dict[str, Any]:
    """Run what of the sweep is not done yet; returns its results and writes them into `out`.

    Raises UserError for what the user got wrong, Interrupted on Ctrl-C, SIGTERM or SIGHUP once every run is saved.
    """
    from retain.experiments.scheduler import claim, run_all
    from retain.experiments.sweep_results import summarise, write_results

    out = Path(out)
    runs = runs_of(sweep)
    check(sweep)
    spec = {"config": to_dict(sweep.config), "fields": list(sweep.vary), "threads": sweep.threads}
    more = {"vary": {name: list(values) for name, values in sweep.vary.items()}, "seeds": sweep.seeds}
    claim(out, "sweep.json", spec | more, "sweep", ("seeds", *(f"vary.{name}" for name in sweep.vary)))
    say = (lambda line: None) if quiet else (lambda line: print(line, file=sys.stderr, flush=True))
    found = run_all(runs, out / "runs", jobs=jobs, threads=sweep.threads, split="validation", say=say)
    results = summarise(sweep, found)
    write_results(results, out)
    return results


def sweep_of(argv: list[str]) -> tuple[Sweep, Path, int]:
    """The sweep that a `retain sweep` line describes, its folder, and how many jobs."""
    from retain.cli.train import train_config

    given: list[str] = []
    while True:
        text, argv = take_first(argv, "--vary")
        if text is None:
            break
        given.append(text)
    values: dict[str, str | None] = {}
    for name in ("seeds", "levels", "out", "jobs", "threads"):
        values[name], argv = take_option(argv, f"--{name}")
    if not argv or (argv[0].startswith("-") and not any(a.startswith("--config") for a in argv)):
        raise Usage(f"retain sweep: name a preset ({', '.join(PRESETS)}) or give --config FILE")
    vary: dict[str, tuple[Any, ...]] = {}
    for text in given:
        name, equals, listed = text.partition("=")
        name = name.strip().lstrip("-").replace("-", "_")
        if not equals or not name:
            raise Usage(f"vary: {text!r} is not FIELD=A,B,C; write e.g. --vary data.seq-len=32,64,128")
        field_type(name)
        if name in vary:
            raise Usage(f"vary: {name} is given twice; name all its values once")
        vary[name] = tuple(value_of(name, part.strip()) for part in listed.split(",") if part.strip())
    # A value of the base run would only be replaced; to give one is a mistake.
    for word in argv:
        section, dot, field = word[2:].partition("=")[0].replace("-", "_").rpartition(".")
        if word.startswith("--") and (name := f"{section}{dot}{field.removeprefix('no_')}") in vary:
            raise Usage(f"vary: {name} is varied and set by {word.partition('=')[0]}, too; leave one of them out")
    refuse(argv, "sweep", ("--seed", "--tracker", "--quiet"))
    config = train_config(argv)[0]
    regular = "validate_every" not in vary and not any(a.replace("_", "-").startswith("--validate-every") for a in argv)
    if regular:
        config = often(config)
    numbers = (values["levels"] or "").split(",") if values["levels"] else []
    try:
        levels = tuple(map(float, numbers))
    except ValueError:
        raise Usage(f"levels: {values['levels']!r} are not numbers; write e.g. --levels 2.5,2.0,1.5") from None
    from retain.experiments.sweep_results import MEMORY

    if levels and not any(name in MEMORY for name in vary):
        raise Usage(f"levels: they are reached by memory sizes, and none is varied; vary {' or '.join(MEMORY)}, too")
    found = Sweep(
        config=config, vary=vary, seeds=whole(values, "seeds", 3), levels=levels,
        threads=whole(values, "threads", None), often=regular,
    )  # fmt: skip
    out = Path(values["out"] or f"runs/sweep-{config.preset or 'custom'}")
    return found, out, whole(values, "jobs", 1)


def take_first(argv: list[str], name: str) -> tuple[str | None, list[str]]:
    """Take the first `name VALUE` or `name=VALUE` out of argv, and leave any further ones."""
    for i, word in enumerate(argv):
        if word == name or word.startswith(name + "="):
            end = i + 2 if word == name else i + 1
            value, _ = take_option(argv[i:end], name)
            return value, argv[:i] + argv[end:]
    return None, argv


def sweep_command(argv: list[str]) -> None:
    if "-h" in argv or "--help" in argv:
        print(HELP, end="")
        return
    described, out, jobs = sweep_of(argv)
    from retain.experiments.sweep_results import markdown

    results = run_sweep(described, out, jobs=jobs, quiet=False)
    files = "results.md, results.json, results.png" + (", compression.png" if results["compression"] else "")
    print(f"{markdown(results)}\n{out}: {files}")

"""`retain sweep`: the same task with one or a few settings varied, and what that does to quality and to memory."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from retain.config import RunConfig
from retain.config.json import to_dict
from retain.errors import UserError
from retain.experiments.variation import Sweep, describe, run_name, validate_often, with_values


def runs_of(sweep: Sweep) -> dict[str, RunConfig]:
    """Return name → run, seed by seed, so that one seed of everything is done first.

    Raises:
        UserError: A value does not go with the other settings.
    """
    base = dataclasses.replace(sweep.config, tracker=None)

    def run(values: dict[str, Any]) -> RunConfig:
        config = with_values(base, values)
        return validate_often(config) if sweep.often else config

    return {
        run_name(values, seed): dataclasses.replace(run(values), seed=seed)
        for seed in range(sweep.seeds)
        for values in sweep.combinations()
    }


def check(sweep: Sweep) -> None:
    """Build every combination's data and models before anything is trained. Raises UserError naming the values."""
    from retain.data import load_data
    from retain.runs.run import build, weightless
    from retain.training.phases import objective_of

    sizes: dict[Any, int] = {}
    for values in sweep.combinations():
        config = with_values(sweep.config, values)
        try:
            if config.data not in sizes:
                sizes[config.data] = load_data(config.data).vocab_size
            with weightless(config.cell):
                rnn, teacher = build(config, sizes[config.data])
                for index in range(len(config.phases)):
                    objective_of(index, config, rnn, teacher)
        except UserError as error:
            raise UserError(f"vary: {describe(values)}: {error}") from None


def run_sweep(sweep: Sweep, out: str | Path, *, jobs: int = 1, quiet: bool = True) -> dict[str, Any]:
    """Make the runs of the sweep that are not done yet; write its results into `out` and return them.

    Raises:
        UserError: The user got something wrong.
        Interrupted: On Ctrl-C, SIGTERM or SIGHUP, once every run is saved.
    """
    from retain.experiments.scheduler import claim, ignore, print_line, run_all
    from retain.experiments.sweep_results import summarise, write_results

    out = Path(out)
    runs = runs_of(sweep)
    check(sweep)
    spec = {"config": to_dict(sweep.config), "fields": list(sweep.vary), "threads": sweep.threads}
    more = {"vary": {name: list(values) for name, values in sweep.vary.items()}, "seeds": sweep.seeds}
    claim(out, "sweep.json", spec | more, "sweep", ("seeds", *(f"vary.{name}" for name in sweep.vary)))
    found = run_all(
        runs, out / "runs", jobs=jobs, threads=sweep.threads, split="validation", say=ignore if quiet else print_line
    )
    results = summarise(sweep, found)
    write_results(results, out)
    return results

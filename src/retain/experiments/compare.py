"""`retain compare`: SMT, BPTT and gated RNNs, trained with the same budget."""

from __future__ import annotations

import dataclasses
import math
import sys
from bisect import bisect_left
from pathlib import Path
from typing import Any

from retain.config import CellConfig, MemoryConfig, RunConfig, Symbols
from retain.config.budget import parse_budget
from retain.config.checks import Count, Length, settings
from retain.config.json import from_dict, to_dict
from retain.config.recipes import RECIPES, with_recipe
from retain.errors import UserError
from retain.experiments.tables import parse_factor

METHODS = ("smt", "one-step", "hybrid", "smt+bptt", "bptt", "tbptt", "gru", "lstm")
FINETUNE = 1 / 3
"""Share of the budget that smt+bptt spends on BPTT."""
TRUNCATE = 4
"""tbptt truncates the gradient to a quarter of the sequence, unless the preset sets a window for BPTT or DMT."""
WITHIN = 0.1
"""Largest relative difference between the parameters of a gru or lstm and those of the SMT run's RNN."""
VALIDATIONS = 10
"""Points of the curve of quality against cost."""


@settings
class Comparison:
    """A comparison: a base run, the methods, and the search for the learning rate."""

    config: RunConfig
    """The SMT run. Every method has its budget. Its seed is not used."""
    methods: tuple[str, ...] = ("smt", "bptt", "gru", "lstm")
    seeds: Count = 3
    lrs: tuple[str, ...] = ("1/3", "1", "3")
    """Factors on the learning rates, as fractions or numbers."""
    sweep_budget: str | None = None
    limit: Count | None = None
    """The most sequences of the test split that are scored. None: all."""
    lengths: tuple[Length, ...] = ()
    threads: Count | None = None

    def __post_init__(self) -> None:
        for method in self.methods:
            if method not in METHODS:
                raise UserError(f"methods: {method!r} is none of {', '.join(METHODS)}")
        if not self.methods or not self.lrs:
            raise UserError("methods, lrs: name at least one of each")
        for name in ("methods", "lrs", "lengths"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise UserError(f"{name}: {','.join(map(str, values))} names one twice")
        if self.config.init_from is not None:
            raise UserError(
                f"init_from: every method starts from scratch; leave out {self.config.init_from} (--init-from None)"
            )
        if "bptt" in self.config.phases and {"smt", "smt+bptt", *RECIPES} & set(self.methods):
            raise UserError(
                f"phases: {' '.join(self.config.phases)}: the smt methods have no BPTT phase, but smt+bptt adds one; "
                "give --phases smt dmt"
            )
        for text in self.lrs:
            parse_factor(text)
        parse_budget(self.sweep_budget or self.config.budget, "sweep-budget")

    @property
    def trial_budget(self) -> str:
        """The budget of each trial of a learning rate. If it equals a run's, the best trial is the run of seed 0."""
        own, whole = self.sweep_budget or self.config.budget, self.config.budget
        return whole if parse_budget(own) == parse_budget(whole) else own


def configure_method(base: RunConfig, method: str) -> RunConfig:
    """Return the run of one method, with the base's data, budget and readout."""
    phases = tuple(phase for phase in base.phases if phase != "bptt") or ("smt", "dmt")
    base = with_budget(dataclasses.replace(base, tracker=None), base.budget)
    bptt = base.bptt
    if method in ("smt", *RECIPES):
        run = dataclasses.replace(base, phases=phases)
        return with_recipe(run, method) if method in RECIPES else run
    if method == "smt+bptt":
        others = sum(getattr(base, phase).share for phase in phases)
        bptt = dataclasses.replace(bptt, bptt_window=None, share=others * FINETUNE / (1 - FINETUNE))
        return dataclasses.replace(base, phases=(*phases, "bptt"), bptt=bptt)
    window = None
    if method == "tbptt":
        # Truncated like DMT's gradient, tbptt is the control for what the teacher adds.
        length = bptt.seq_len or base.data.seq_len
        stretch = base.dmt.bptt_window if "dmt" in phases and 1 < (base.dmt.bptt_window or 1) < length else None
        window = bptt.bptt_window or stretch or max(1, length // TRUNCATE)
    run = dataclasses.replace(base, phases=("bptt",), bptt=dataclasses.replace(bptt, bptt_window=window))
    return match_parameters(run, method) if method in ("gru", "lstm") else run


def match_parameters(base: RunConfig, kind: str) -> RunConfig:
    """Return `base` with a gru or lstm cell whose width gives the RNN as many parameters, within 10 %.

    The memory is one token without normalisation, as in `nn.GRU` and `nn.LSTM`. Raises UserError if no width comes
    close enough.
    """
    from retain.data import load_data
    from retain.data.batches import find_symbols

    symbols = find_symbols(load_data(base.data))
    wanted = count_parameters(base, symbols)
    if base.teacher.encoder == "store":  # which makes memories of the delta cell alone, and nothing reads its teacher
        base = dataclasses.replace(
            base,
            teacher=dataclasses.replace(base.teacher, encoder="state"),
            memory=MemoryConfig(),
            cell=CellConfig(kind=kind),
        )

    def widened(width: int) -> tuple[int, RunConfig]:
        memory, cell = MemoryConfig(tokens=1, width=2 * width, norm="batch"), CellConfig(kind=kind)
        config = dataclasses.replace(base, memory=memory, cell=cell)
        return count_parameters(config, symbols), config

    widths = range(1, math.isqrt(wanted) + 2)  # a GRU has more parameters than its width squared
    enough = 1 + bisect_left(widths, wanted, key=lambda width: widened(width)[0])
    count, best = min((widened(max(1, enough - 1)), widened(enough)), key=lambda found: abs(found[0] - wanted))
    if abs(count / wanted - 1) > WITHIN:
        raise UserError(
            f"methods: no width of {kind} has within 10 % of the {wanted:,} parameters of the SMT run's RNN"
        )
    return best


def count_parameters(config: RunConfig, symbols: Symbols) -> int:
    """Count the parameters of a run's RNN, without the teacher."""
    from retain.model.rnn import RNN
    from retain.runs.run import weightless

    with weightless(config.cell):
        rnn = RNN(symbols, config.memory, config.teacher, config.cell)
    return sum(p.numel() for p in rnn.parameters())


def with_rate(config: RunConfig, text: str) -> RunConfig:
    """Return the run with the learning rate of every phase multiplied by a factor."""
    phases: dict[str, Any] = {name: getattr(config, name) for name in config.phases}
    factor = parse_factor(text)
    return dataclasses.replace(
        config, **{name: dataclasses.replace(phase, lr=phase.lr * factor) for name, phase in phases.items()}
    )


def with_budget(config: RunConfig, budget: str) -> RunConfig:
    """Return the run with this budget and VALIDATIONS validations."""
    every = str(parse_budget(budget).share(1 / VALIDATIONS))
    return dataclasses.replace(config, budget=budget, validate_every=every)


def compare(comparison: Comparison, out: str | Path, *, jobs: int = 1, quiet: bool = True) -> dict[str, Any]:
    """Train the runs of the comparison that are not done yet, write its results into `out` and return them.

    First, seed 0 is trained at each learning rate, and the rate with the fewest bits per token on validation is chosen.
    Then the seeds are trained at this rate, and only these runs are scored on the test split. Raises UserError. Raises
    Interrupted on Ctrl-C, SIGTERM or SIGHUP, after every run is saved.
    """
    from retain.experiments.scheduler import claim, run_all
    from retain.experiments.tables import write_results

    out, lrs = Path(out), comparison.lrs
    configs = {method: configure_method(comparison.config, method) for method in comparison.methods}
    check_lengths(comparison)
    spec = {f.name: getattr(comparison, f.name) for f in dataclasses.fields(comparison)}
    # Methods and seeds may be added later.
    claim(out, "compare.json", spec | {"config": to_dict(comparison.config)}, "comparison", free=("methods", "seeds"))
    if not quiet and not (out / "results.json").exists():
        print(describe_cost(comparison, jobs), file=sys.stderr, flush=True)

    short = comparison.trial_budget != comparison.config.budget

    def name_run(method: str, lr: str, seed: int, trial: bool = False) -> str:
        return f"{method}-lr{lr.replace('/', 'over')}-seed{seed}{'-trial' if trial and short else ''}"

    def run_named(runs: dict[str, RunConfig], **scoring: Any) -> dict[str, dict[str, Any]]:
        return run_all(runs, out / "runs", jobs=jobs, threads=comparison.threads, quiet=quiet, **scoring)

    best = dict.fromkeys(configs, lrs[0])
    sweep: dict[str, dict[str, dict[str, Any]]] = {method: {} for method in configs}
    if len(lrs) > 1:
        trials: dict[str, RunConfig] = {}
        for method, config in configs.items():
            tried = dataclasses.replace(with_budget(config, comparison.trial_budget), seed=0)
            trials |= {name_run(method, lr, 0, trial=True): with_rate(tried, lr) for lr in lrs}
        found = run_named(trials)
        sweep = {method: {lr: found[name_run(method, lr, 0, trial=True)] for lr in lrs} for method in configs}
        best = {method: choose_rate(rates) for method, rates in sweep.items()}
    runs = {
        name_run(method, best[method], seed): dataclasses.replace(with_rate(config, best[method]), seed=seed)
        for method, config in configs.items()
        for seed in range(comparison.seeds)
    }
    scored = run_named(runs, split="test", limit=comparison.limit, lengths=comparison.lengths)
    by_method = {m: [scored[name_run(m, best[m], seed)] for seed in range(comparison.seeds)] for m in configs}
    results = summarise(comparison, by_method, sweep, best)
    write_results(results, out)
    return results


def summarise(
    comparison: Comparison,
    runs: dict[str, list[dict[str, Any]]],
    sweep: dict[str, dict[str, dict[str, Any]]],
    best: dict[str, str],
) -> dict[str, Any]:
    """Return all figures of a comparison as JSON, by method: `runs`, `sweep` by factor, `best` factors."""
    methods = {}
    for method, results in runs.items():
        run = results[0]["config"]
        methods[method] = {
            "lr_factor": best[method],
            "lr": {phase: run[phase]["lr"] for phase in run["phases"]},
            "cell": run["cell"]["kind"],
            "memory": [run["memory"]["tokens"], run["memory"]["width"]],
            "parameters": next((r["parameters"] for r in results if "failed" not in r), None),
            "longest_gradient_path": from_dict(run, drop=True).longest_gradient_path,
            "sweep": {
                lr: {key: r[key] for key in ("validation_bits_per_token", "seconds", "failed") if key in r}
                for lr, r in sweep[method].items()
            },
            "runs": [
                {k: v for k, v in r.items() if k not in ("config", "data")} | {"seed": s} for s, r in enumerate(results)
            ],
        }
    every = [r for results in runs.values() for r in results]
    known = next((r for r in every if "test" in r), {})
    return {
        "preset": comparison.config.preset,
        "budget": comparison.config.budget,
        "sweep_budget": comparison.sweep_budget or comparison.config.budget,
        "seeds": comparison.seeds,
        "lrs": list(comparison.lrs),
        "limit": comparison.limit,
        "lengths": list(comparison.lengths),
        "threads": comparison.threads,
        "data": dataclasses.asdict(comparison.config.data),
        "source": next((r["data"] for r in every if "data" in r), None),
        "metric": "accuracy" if known.get("answers") else "bits_per_token",
        "chance": known.get("chance"),
        "methods": methods,
    }


def describe_cost(comparison: Comparison, jobs: int) -> str:
    """Describe the number and budgets of all runs, and their total time of training if it is known."""
    methods, trial, whole = len(comparison.methods), comparison.trial_budget, comparison.config.budget
    trials = methods * len(comparison.lrs) if len(comparison.lrs) > 1 else 0
    runs = methods * (comparison.seeds - (trials > 0 and trial == whole))  # a trial of full budget is seed 0's run
    parts = [(trials, "trials", parse_budget(trial)), (runs, "runs", parse_budget(whole))]
    parts = [part for part in parts if part[0]]
    said = "in all " + " and ".join(f"{count} {name} of {budget}" for count, name, budget in parts)
    if any(budget.unit != "s" for _, _, budget in parts):
        return said
    minutes = sum(count * budget.amount for count, _, budget in parts) / jobs / 60
    return f"{said}, {jobs} at a time: {minutes:.0f} minutes of training if nothing is done yet"


def choose_rate(rates: dict[str, dict[str, Any]]) -> str:
    """Return the factor whose trial has the fewest bits per token on validation. Diverged trials rank last."""

    def bits(lr: str) -> float:
        found: float | None = rates[lr].get("validation_bits_per_token")
        return math.inf if found is None else found

    return min(rates, key=bits)


def check_lengths(comparison: Comparison) -> None:
    """Raise UserError for a length that the data cannot have, before anything is trained."""
    from retain.data import load_data

    for length in comparison.lengths:
        try:
            load_data(comparison.config.data.at_length(length))
        except UserError as error:
            raise UserError(f"lengths: {length}: {error}") from None

"""`retain compare`: what the same budget buys with SMT, BPTT, and the gated RNNs a user would pick instead."""

from __future__ import annotations

import dataclasses
import math
from bisect import bisect_left
from pathlib import Path
from typing import Any

from retain.config import CellConfig, MemoryConfig, RunConfig
from retain.config.budget import parse_budget
from retain.config.json import to_dict
from retain.config.recipes import RECIPES, with_recipe
from retain.errors import UserError
from retain.experiments.comparison import Comparison, parse_factor

FINETUNE = 1 / 3
"""smt+bptt: how much of the budget is BPTT."""
TRUNCATE = 4
"""tbptt: the gradient flows back through a quarter of the sequence, unless the preset says how far or cuts DMT's."""
WITHIN = 0.1
"""How far the deployed RNN's parameters may be from those of the SMT run's."""
VALIDATIONS = 10
"""Points of the curve of quality against cost."""


def method_config(base: RunConfig, method: str) -> RunConfig:
    """Return the run of one method, with the base's data, budget and readout."""
    phases = tuple(phase for phase in base.phases if phase != "bptt") or ("smt", "dmt")
    base = dataclasses.replace(base, tracker=None, validate_every=str(parse_budget(base.budget).share(1 / VALIDATIONS)))
    bptt = base.bptt
    if method in ("smt", *RECIPES):
        run = dataclasses.replace(base, phases=phases)
        return with_recipe(run, method) if method in RECIPES else run
    if method == "smt+bptt":
        others = sum(getattr(base, phase).share for phase in phases)
        bptt = dataclasses.replace(bptt, bptt_window=None, share=others * FINETUNE / (1 - FINETUNE))
        return dataclasses.replace(base, phases=(*phases, "bptt"), bptt=bptt)
    if method == "tbptt":
        # Cut where DMT's gradient is, it is the control for what the teacher adds.
        length = bptt.seq_len or base.data.seq_len
        stretch = base.dmt.bptt_window if "dmt" in phases and 1 < (base.dmt.bptt_window or 1) < length else None
        bptt = dataclasses.replace(bptt, bptt_window=bptt.bptt_window or stretch or max(1, length // TRUNCATE))
        return dataclasses.replace(base, phases=("bptt",), bptt=bptt)
    run = dataclasses.replace(base, phases=("bptt",), bptt=dataclasses.replace(bptt, bptt_window=None))
    return run if method == "bptt" else matched(run, method)


def matched(base: RunConfig, kind: str) -> RunConfig:
    """Return `base` with a gru or lstm cell, as wide as gives the RNN as many parameters, within a tenth.

    The memory is one token, never normalised: that is `nn.GRU` and `nn.LSTM` as a user would have them.

    Raises:
        UserError: No width comes near enough.
    """
    from retain.data import load_data

    vocab_size = load_data(base.data).vocab_size
    wanted = parameters(base, vocab_size)

    def at(width: int) -> RunConfig:
        return dataclasses.replace(
            base, memory=MemoryConfig(tokens=1, width=2 * width, norm="batch"), cell=CellConfig(kind=kind)
        )

    def count(width: int) -> int:
        return parameters(at(width), vocab_size)

    widths = range(1, math.isqrt(wanted) + 2)  # a GRU has more parameters than its width squared
    enough = widths[0] + bisect_left(widths, wanted, key=count)
    best = min((at(max(1, enough - 1)), at(enough)), key=lambda config: abs(parameters(config, vocab_size) - wanted))
    if abs(parameters(best, vocab_size) / wanted - 1) > WITHIN:
        raise UserError(
            f"methods: no width of {kind} has within 10 % of the {wanted:,} parameters of the SMT run's RNN"
        )
    return best


def parameters(config: RunConfig, vocab_size: int) -> int:
    """Count the parameters of the RNN that is left when a run is over."""
    from retain.model.rnn import RNN
    from retain.runs.run import weightless

    with weightless(config.cell):
        rnn = RNN(vocab_size, config.memory, config.teacher, config.cell)
    return sum(p.numel() for p in rnn.parameters())


def with_rate(config: RunConfig, text: str) -> RunConfig:
    """Return the run with the learning rate of every phase times this factor."""
    phases = {name: getattr(config, name) for name in config.phases}
    return dataclasses.replace(
        config, **{name: dataclasses.replace(c, lr=c.lr * parse_factor(text)) for name, c in phases.items()}
    )


def run_name(method: str, lr: str, seed: int, trial: bool = False) -> str:
    """Return the name of a run's folder."""
    return f"{method}-lr{lr.replace('/', 'over')}-seed{seed}{'-trial' if trial else ''}"


def compare(comparison: Comparison, out: str | Path, *, jobs: int = 1, quiet: bool = True) -> dict[str, Any]:
    """Make the runs of the comparison that are not done yet; write its results into `out` and return them.

    The learning rates come first: seed 0 at each, the best chosen by bits per token on validation. Then come the other
    seeds at the best rate, and only those runs are scored on the test split.

    Raises:
        UserError: The user got something wrong.
        Interrupted: On Ctrl-C, SIGTERM or SIGHUP, once every run is saved.
    """
    from retain.experiments.scheduler import claim, ignore, print_line, run_all
    from retain.experiments.tables import summarise, write_results

    out = Path(out)
    configs = {method: method_config(comparison.config, method) for method in comparison.methods}
    check_lengths(comparison)
    spec = {f.name: getattr(comparison, f.name) for f in dataclasses.fields(comparison)}
    # Methods and seeds may be added later.
    spec["config"] = to_dict(comparison.config)
    claim(out, "compare.json", spec, "comparison", free=("methods", "seeds"))
    say = ignore if quiet else print_line
    options: dict[str, Any] = {"jobs": jobs, "threads": comparison.threads, "say": say}
    whole_budget = parse_budget(comparison.config.budget)
    separate = comparison.sweep_budget is not None and parse_budget(comparison.sweep_budget) != whole_budget
    trials: dict[str, RunConfig] = {}
    if len(comparison.lrs) > 1:
        for method, config in configs.items():
            for lr in comparison.lrs:
                trial = dataclasses.replace(with_rate(config, lr), seed=0)
                if separate:
                    trial = with_budget(trial, comparison.sweep_budget or "")
                trials[run_name(method, lr, 0, separate)] = trial
    if not (out / "results.json").exists():
        say(describe_cost(comparison, len(trials), separate, jobs))
    tried = run_all(trials, out / "runs", **options)
    sweep = {
        method: {lr: tried[run_name(method, lr, 0, separate)] for lr in comparison.lrs} if trials else {}
        for method in configs
    }
    best = {method: best_rate(rates) if rates else comparison.lrs[0] for method, rates in sweep.items()}
    runs = {
        run_name(method, best[method], seed): dataclasses.replace(with_rate(config, best[method]), seed=seed)
        for method, config in configs.items()
        for seed in range(comparison.seeds)
    }
    scored = run_all(runs, out / "runs", split="test", lengths=comparison.lengths, **options)
    by_method = {m: [scored[run_name(m, best[m], s)] for s in range(comparison.seeds)] for m in configs}
    results = summarise(comparison, by_method, sweep, best)
    write_results(results, out)
    return results


def describe_cost(comparison: Comparison, trials: int, separate: bool, jobs: int) -> str:
    """Say how many runs of which budget the whole comparison is, and how long they train where that is known."""
    runs = len(comparison.methods) * (comparison.seeds - (trials > 0 and not separate))  # a whole trial is seed 0's run
    budgets = [(trials, parse_budget((separate and comparison.sweep_budget) or comparison.config.budget))]
    budgets.append((runs, parse_budget(comparison.config.budget)))
    said = " and ".join(
        f"{count} {name} of {budget}"
        for (count, budget), name in zip(budgets, ("trials", "runs"), strict=True)
        if count
    )
    if any(budget.unit != "s" for count, budget in budgets if count):
        return f"in all {said}"
    minutes = sum(count * budget.amount for count, budget in budgets) / jobs / 60
    return f"in all {said}, {jobs} at a time: {minutes:.0f} minutes of training where nothing is done yet"


def with_budget(config: RunConfig, budget: str) -> RunConfig:
    """Return the run with another budget, and as many validations."""
    every = str(parse_budget(budget).share(1 / VALIDATIONS))
    return dataclasses.replace(config, budget=budget, validate_every=every)


def best_rate(rates: dict[str, dict[str, Any]]) -> str:
    """The factor whose trial has the fewest bits per token on validation; one that diverged is last."""

    def bits(lr: str) -> float:
        found = rates[lr].get("validation_bits_per_token")
        return float("inf") if found is None else found

    return min(rates, key=bits)


def check_lengths(comparison: Comparison) -> None:
    """Refuse a length that the data cannot have before anything is trained."""
    from retain.data import load_data

    for length in comparison.lengths:
        try:
            load_data(comparison.config.data.at_length(length))
        except UserError as error:
            raise UserError(f"lengths: {length}: {error}") from None

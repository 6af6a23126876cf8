"""`retain compare`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from retain.cli.arguments import Usage, refuse, take_option, whole
from retain.cli.train import train_config
from retain.config.budget import parse_budget
from retain.config.presets import PRESETS
from retain.config.recipes import RECIPES
from retain.experiments.comparison import METHODS, Comparison

HELP = f"""\
usage: retain compare PRESET [options]

Train the same task by several methods, each with the same budget, the same learning-rate sweep and an RNN of the same
number of parameters; then score each once on the test split. The same command goes on with a comparison that was cut
short, and does nothing twice.

PRESET            {", ".join(PRESETS)}; or --config FILE
--methods LIST    some of {",".join(METHODS)} (default: smt,bptt,gru,lstm)
--seeds N         runs of each method, seeds 0 … N - 1 (default: 3)
--budget B        of each run: 300s, 5000steps, 20Mtokens or 500ksequential (default: the preset's)
--lrs LIST        factors on the preset's learning rates that are tried with seed 0 (default: 1/3,1,3; 1 tries none)
--sweep-budget B  of each trial (default: --budget; the trial with the best rate is then the run of seed 0)
--lengths LIST    also score every RNN at these sequence lengths, next to its teacher
--out DIR         the comparison's folder (default: runs/compare-PRESET)
--jobs N          runs side by side (default: 1)
--threads N       threads of each run (default: PyTorch's choice)
--data PATH       what to train on, as for retain train
any option of 'retain train PRESET', for all methods, e.g. --data.seq-len 128

Writes results.md, results.json and results.png into DIR, and a run folder for every run under DIR/runs.

methods: one-step and hybrid SMT and DMT by these recipes (retain train --recipe); smt as preset and options say;
smt+bptt the same and BPTT for the last third of the budget; bptt and tbptt the very RNN that smt trains, by BPTT, whole
and truncated where DMT's gradient is (dmt.bptt_window; else to a quarter of the sequence); gru and lstm by BPTT, as
wide as gives the RNN the same number of parameters.
"""


def comparison_of(argv: list[str]) -> tuple[Comparison, Path, int]:
    """Return the comparison that a `retain compare` line describes, its folder, and how many jobs."""
    names = ("methods", "seeds", "lrs", "sweep-budget", "lengths", "out", "jobs", "threads")
    values, argv = take_options(argv, "compare", names)

    def listed(name: str) -> tuple[str, ...] | None:
        text = values[name]
        return None if text is None else tuple(part.strip() for part in text.split(","))

    refuse(argv, "compare", ("--seed", "--validate-every", "--tracker", "--quiet"))
    if "tbptt" not in (listed("methods") or ()) and any(a.partition("=")[0] == "--bptt.bptt-window" for a in argv):
        raise Usage("--bptt.bptt-window: is read by tbptt alone; add it to --methods, or leave it out")
    decided = [f"--{part}.{name.replace('_', '-')}" for part, own in RECIPES["one-step"].items() for name in own]
    if recipes := [method for method in listed("methods") or () if method in RECIPES]:
        for word in argv:
            if (name := word.partition("=")[0].replace("_", "-")) in (*decided, "--recipe"):
                raise Usage(f"{name}: the methods {', '.join(recipes)} decide it; leave it out, or compare smt")
    budget, argv = take_option(argv, "--budget")
    config = train_config(argv)[0]
    if budget is not None:
        config = dataclasses.replace(config, budget=str(parse_budget(budget)))
    lengths = listed("lengths") or ()
    for text in lengths:
        if not text.isascii() or not text.isdigit():
            raise Usage(f"lengths: {text!r} is not a whole number; write e.g. --lengths 64,128,256")
    options: dict[str, Any] = {"methods": listed("methods"), "lrs": listed("lrs"), "seeds": whole(values, "seeds", 3)}
    comparison = Comparison(
        config=config,
        sweep_budget=values["sweep-budget"],
        lengths=tuple(map(int, lengths)),
        threads=whole(values, "threads", None),
        **{key: value for key, value in options.items() if value is not None},
    )
    out = Path(values["out"] or f"runs/compare-{config.preset or 'custom'}")
    return comparison, out, whole(values, "jobs", 1)


def take_options(argv: list[str], command: str, names: Sequence[str]) -> tuple[dict[str, str | None], list[str]]:
    """Take the command's own options out of argv. Raises Usage where the rest names no run."""
    values: dict[str, str | None] = {}
    for name in names:
        values[name], argv = take_option(argv, f"--{name}")
    if not argv or (argv[0].startswith("-") and not any(a.startswith("--config") for a in argv)):
        raise Usage(f"retain {command}: name a preset ({', '.join(PRESETS)}) or give --config FILE")
    return values, argv


def compare_command(argv: list[str]) -> None:
    """Run `retain compare`."""
    if "-h" in argv or "--help" in argv:
        print(HELP, end="")
        return
    comparison, out, jobs = comparison_of(argv)
    from retain.experiments.compare import compare
    from retain.experiments.tables import markdown

    results = compare(comparison, out, jobs=jobs, quiet=False)
    print(f"{markdown(results)}\n{out}: results.md, results.json, results.png")

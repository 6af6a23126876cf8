"""`retain compare`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from retain.cli.arguments import Usage, name_option, parse_count, refuse, split_list, take_option, take_options
from retain.cli.train import train_config
from retain.config.budget import parse_budget
from retain.config.presets import PRESETS
from retain.config.recipes import RECIPES
from retain.experiments.compare import METHODS, Comparison, compare

HELP = f"""\
usage: retain compare PRESET [options]

Train one task by several methods, each with the same budget, the same learning-rate sweep and an RNN of the same number
of parameters. Then score each run once on the test split. Run the same command again to continue an interrupted
comparison; finished runs are kept.

PRESET            {", ".join(PRESETS)}; or --config FILE
--methods LIST    some of {",".join(METHODS)} (default: smt,bptt,gru,lstm)
--seeds N         runs of each method, seeds 0 … N - 1 (default: 3)
--budget B        budget of each run: 300s, 5000steps, 20Mtokens or 500ksequential (default: the preset's)
--lrs LIST        factors on the preset's learning rates, tried with seed 0 (default: 1/3,1,3; 1 tries none)
--sweep-budget B  budget of each trial (default: --budget; the trial with the best rate is then the run of seed 0)
--limit N         score at most N sequences of the test split, evenly spaced (default: all)
--lengths LIST    also score every RNN at these sequence lengths, next to its teacher
--out DIR         the comparison's folder (default: runs/compare-PRESET)
--jobs N          runs in parallel (default: 1)
--threads N       threads of each run (default: PyTorch's choice)
--data PATH       the training data, as for retain train
--teacher.from M, --labels DIR
                  a language model for the teachers of smt, one-step and hybrid, as for retain train. bptt, tbptt, gru
                  and lstm use its tokenizer, and the model only for --teacher.init-embeddings and --bptt.lambda-distill
any option of 'retain train PRESET', for all methods, e.g. --data.seq-len 128

Writes results.md, results.json and results.png into DIR, and a run folder for every run under DIR/runs.

methods:
  one-step, hybrid  SMT and DMT with this recipe (retain train --recipe)
  smt               SMT and DMT with the settings of the preset and the options
  smt+bptt          the same, then BPTT for the last third of the budget
  bptt              the same RNN as smt, trained by BPTT through the whole sequence
  tbptt             the same as bptt, truncated to DMT's window (dmt.bptt_window), or else to a quarter of the sequence
  gru, lstm         a GRU or LSTM of as many parameters, trained by BPTT
"""


def parse_comparison(argv: list[str]) -> tuple[Comparison, Path, int]:
    """Return the comparison that a `retain compare` line describes, its folder, and the number of jobs."""
    names = ("methods", "seeds", "lrs", "sweep-budget", "limit", "lengths", "out", "jobs", "threads")
    values, argv = take_options(argv, "compare", names)
    refuse(argv, "compare", ("--seed", "--validate-every", "--tracker", "--quiet"))
    methods, lengths = split_list(values["methods"]), split_list(values["lengths"])
    given = [name_option(word) for word in argv]
    if "tbptt" not in methods and "--bptt.bptt-window" in given:
        raise Usage("--bptt.bptt-window: only tbptt reads it; add tbptt to --methods, or leave it out")
    decided = {f"--{part}.{name.replace('_', '-')}" for part, own in RECIPES["one-step"].items() for name in own}
    if recipes := [method for method in methods if method in RECIPES]:
        for name in given:
            if name in decided or name == "--recipe":
                raise Usage(f"{name}: the methods {', '.join(recipes)} decide it; leave it out, or compare smt")
    budget, argv = take_option(argv, "--budget")
    config = train_config(argv)[0]
    if budget is not None:
        config = dataclasses.replace(config, budget=str(parse_budget(budget)))
    for text in lengths:
        if not text.isascii() or not text.isdigit():
            raise Usage(f"lengths: {text!r} is not a whole number; write e.g. --lengths 64,128,256")
    lists = {"methods": methods, "lrs": split_list(values["lrs"])}
    comparison = Comparison(
        config=config,
        seeds=parse_count(values, "seeds", 3),
        sweep_budget=values["sweep-budget"],
        limit=parse_count(values, "limit", None),
        lengths=tuple(map(int, lengths)),
        threads=parse_count(values, "threads", None),
        **{name: listed for name, listed in lists.items() if listed},
    )
    out = Path(values["out"] or f"runs/compare-{config.preset or 'custom'}")
    return comparison, out, parse_count(values, "jobs", 1)


def compare_command(argv: list[str]) -> None:
    """Run `retain compare`."""
    if "-h" in argv or "--help" in argv:
        print(HELP, end="")
        return
    comparison, out, jobs = parse_comparison(argv)
    from retain.experiments.tables import markdown

    results = compare(comparison, out, jobs=jobs, quiet=False)
    print(f"{markdown(results)}\n{out}: results.md, results.json, results.png")

"""`retain sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from retain.cli.arguments import Usage, name_option, parse_count, refuse, split_list, take_all, take_options
from retain.cli.train import train_config
from retain.config.presets import PRESETS
from retain.experiments.sweep import MEMORY, Sweep, parse_value, run_sweep, validate_often

HELP = f"""\
usage: retain sweep PRESET --vary FIELD=A,B,C [--vary FIELD=...] [options]

Train a task with every combination of the values of the varied fields, and report quality against each field. If a
field is the size of the memory (memory.tokens, memory.width), also report the smallest memory that reaches a loss,
against compute. Run the same command again, also with more values, to continue a sweep; finished runs are kept.

PRESET            {", ".join(PRESETS)}; or --config FILE
--vary FIELD=LIST a field of the run and its values, e.g. data.seq-len=32,64,128 or smt.lambda-dyn=0,0.1,1
--seeds N         runs of each combination, seeds 0 … N - 1 (default: 3)
--budget B        budget of each run: 300s, 5000steps, 20Mtokens or 500ksequential (default: the preset's)
--levels LIST     compression: the losses to reach, in bits per token (default: chosen from the runs)
--out DIR         the sweep's folder (default: runs/sweep-PRESET)
--jobs N          runs in parallel (default: 1)
--threads N       threads of each run (default: PyTorch's choice)
--data PATH       the training data, as for retain train
--teacher.from M, --labels DIR
                  a language model for the teachers, as for retain train
any option of 'retain train PRESET', for all runs, e.g. --data.seq-len 128

Writes results.md, results.json, results.png and, for memory sizes, compression.png into DIR, and a run folder for
every run under DIR/runs. A sweep is for choosing settings, so scores are on the whole validation split, never on the
test split.
"""


def parse_sweep(argv: list[str]) -> tuple[Sweep, Path, int]:
    """Return the sweep that a `retain sweep` line describes, its folder, and the number of jobs."""
    given, argv = take_all(argv, "--vary")
    values, argv = take_options(argv, "sweep", ("seeds", "levels", "out", "jobs", "threads"))
    vary: dict[str, tuple[Any, ...]] = {}
    for text in given:
        name, equals, listed = text.partition("=")
        name = name.strip().lstrip("-").replace("-", "_")
        if not equals or not name:
            raise Usage(f"vary: {text!r} is not FIELD=A,B,C; write e.g. --vary data.seq-len=32,64,128")
        if name in vary:
            raise Usage(f"vary: {name} is given twice; name all its values once")
        vary[name] = tuple(parse_value(name, part) for part in split_list(listed) if part)
    # A value for the base run would be replaced, so to give one is a mistake.
    for word in argv:
        section, dot, field = word[2:].partition("=")[0].replace("-", "_").rpartition(".")
        if word.startswith("--") and (name := f"{section}{dot}{field.removeprefix('no_')}") in vary:
            raise Usage(f"vary: {name} is varied and set by {word.partition('=')[0]}, too; leave one of them out")
    refuse(argv, "sweep", ("--seed", "--tracker", "--quiet"))
    config = train_config(argv)[0]
    regular = "validate_every" not in vary and "--validate-every" not in map(name_option, argv)
    if regular:
        config = validate_often(config)
    try:
        levels = tuple(map(float, split_list(values["levels"])))
    except ValueError:
        raise Usage(f"levels: {values['levels']!r} are not numbers; write e.g. --levels 2.5,2.0,1.5") from None
    if levels and not any(name in MEMORY for name in vary):
        raise Usage(f"levels: they need memories of several sizes, and none is varied; vary {' or '.join(MEMORY)}, too")
    found = Sweep(
        config=config, vary=vary, seeds=parse_count(values, "seeds", 3), levels=levels,
        threads=parse_count(values, "threads", None), often=regular,
    )  # fmt: skip
    out = Path(values["out"] or f"runs/sweep-{config.preset or 'custom'}")
    return found, out, parse_count(values, "jobs", 1)


def sweep_command(argv: list[str]) -> None:
    """Run `retain sweep`."""
    if "-h" in argv or "--help" in argv:
        print(HELP, end="")
        return
    sweep, out, jobs = parse_sweep(argv)
    from retain.experiments.sweep_results import markdown

    results = run_sweep(sweep, out, jobs=jobs, quiet=False)
    files = "results.md, results.json, results.png" + (", compression.png" if results["compression"] else "")
    print(f"{markdown(results)}\n{out}: {files}")

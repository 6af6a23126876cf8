"""`make figures`: the scaling figures, each made by one `retain sweep`, which runs if it has not.

The numbers of each are kept as docs/figures/NAME.json. What stands there is not run again, and the page
docs/figures.md can be made from the repository alone. It takes about an hour on two cores. If it is stopped, it goes on
where it was. Budgets are in optimizer steps, so that a busy machine changes nothing but the seconds.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from lab.results import STALE, copy_picture, current, fingerprint, keep, kept, write
from retain.cli import one_line_errors
from retain.cli.sweep import sweep_of
from retain.experiments.sweep import run_sweep, runs_of

PAGE = Path("docs/figures.md")
KEPT = Path("docs/figures")
RUNS = Path("runs/figures")
MARKS = ("<!-- figures begin -->", "<!-- figures end -->")
PICTURES = {"": "results.png", "-compression": "compression.png"}
"""What follows a figure's name in the name of its picture → what the sweep calls the picture."""
SHARED = "--jobs 2 --threads 1"

FIGURES = {
    "context": (
        "Context length",
        "retrieval --vary data.seq-len=16,32,64,128 --data.min-seq-len None --seeds 1 --budget 600steps "
        "--teacher.future-len 128 --smt.decodes-per-sequence 1 --smt.batch-size 16 --dmt.batch-size 16",
    ),
    "memory": (
        "Memory size, and how much more training compresses it",
        "digits --vary memory.width=8,16,32,64,128 --seeds 2 --budget 1500steps",
    ),
    "size": (
        "Width and depth of the cell",
        "digits --vary cell.width=32,128,512 --vary cell.layers=1,2 --seeds 1 --budget 600steps",
    ),
    "lambda-dyn": (
        "Weight of the dynamics loss, λ_dyn",
        "digits --vary smt.lambda-dyn=0,0.01,0.1,1,10 --seeds 2 --budget 600steps",
    ),
    "lambda-unif": (
        "Weight of uniformity, λ_unif, with memory normalised as in the paper (rms) and here (batch)",
        "digits --vary smt.lambda-unif=0,0.001,0.01,0.1 --vary memory.norm=rms,batch --seeds 1 --budget 500steps",
    ),
    "future": (
        "How much of the future the decoder is shown, F",
        "retrieval --vary teacher.future-len=1,4,16,32 --seeds 1 --budget 600steps --data.seq-len 32 "
        # With few tokens of future only the last memories have a target: more of them must be decoded to meet one.
        "--data.min-seq-len None --smt.decodes-per-sequence 8 --smt.batch-size 16 --dmt.batch-size 16",
    ),
}
"""Name → what it shows, and the arguments of `retain sweep`."""


def line(name: str) -> str:
    """Return the arguments of a figure's sweep."""
    return f"{FIGURES[name][1]} {SHARED} --out {RUNS / name}"


def run(name: str, folder: Path) -> None:
    """Run a sweep if it has not, and keep its numbers and pictures."""
    command = f"retain sweep {line(name)}"
    swept, out, jobs = sweep_of(shlex.split(line(name)))
    settings = fingerprint([*runs_of(swept).values()])
    if current(kept(name, folder), command, settings):
        return
    print(command, file=sys.stderr, flush=True)
    results = run_sweep(swept, out, jobs=jobs, quiet=False)
    for ending, picture in PICTURES.items():
        copy_picture(out / picture, folder / f"{name}{ending}.png")
    keep(name, command, settings, results, folder)


def page(folder: Path) -> str:
    """Write all figures that there are, each under the command that made it."""
    from retain.experiments.sweep_results import markdown

    text = ""
    for name, (title, _) in FIGURES.items():
        command = f"retain sweep {line(name)}"
        settings = fingerprint([*runs_of(sweep_of(shlex.split(line(name)))[0]).values()])
        saved = kept(name, folder)
        if saved is None:
            text += f"\n## {title}\n\n`{command}`\n\nNot run yet.\n"
            continue
        text += f"\n## {title}\n\n`{saved['command']}`\n\n"
        text += "" if current(saved, command, settings) else STALE
        for ending in PICTURES:
            if (folder / f"{name}{ending}.png").exists():
                text += f"![{title}]({folder.name}/{name}{ending}.png)\n\n"
        text += markdown(saved["results"])
    return text


def main(argv: list[str] | None = None) -> None:
    """Make the figures that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m lab.figures", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(FIGURES)}; all by default")
    parser.add_argument("--page", action="store_true", help="only write the page of what is done")
    args = parser.parse_args(argv)
    if unknown := set(args.names) - set(FIGURES):
        parser.error(f"names: {', '.join(sorted(unknown))} not among {', '.join(FIGURES)}")
    with one_line_errors():
        for name in [] if args.page else args.names or list(FIGURES):
            run(name, KEPT)
            write(page(KEPT), PAGE, MARKS)
        write(page(KEPT), PAGE, MARKS)
        print(f"written: {PAGE}")


if __name__ == "__main__":
    main()

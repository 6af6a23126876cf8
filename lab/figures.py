"""`make figures`: the scaling figures, each made by one `retain sweep`.

A sweep runs unless its results are stored as docs/figures/NAME.json. Tables and pictures of docs/figures.md are made
from these files, each between markers with its name. All sweeps take about 50 minutes on one core. After an
interruption the same command continues. Budgets are in optimizer steps, so other load on the machine changes only the
seconds.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from lab.kept import Kept, fingerprint
from lab.results import write_pages
from retain.cli import one_line_errors
from retain.cli.sweep import parse_sweep
from retain.experiments.sweep import list_runs, run_sweep
from retain.experiments.sweep_results import markdown, plot_compression, plot_quality

PAGE = Path("docs/figures.md")
KEPT = Path("docs/figures")
RUNS = Path("runs/figures")
PICTURES = {"": "results.png", "-compression": "compression.png"}
"""Suffix of a picture's name in docs/figures → name of the picture in the sweep's folder."""
SHARED = "--jobs 2 --threads 1"
CELL = "--cell.kind transformer --cell.layers 2 --cell.width 64"
"""The paper's cell, which is trained by the one-step recipe."""

FIGURES = {
    "context": (
        "Context length",
        f"retrieval {CELL} --vary data.seq-len=16,32,64,128 --data.min-seq-len None --seeds 1 --budget 600steps "
        "--teacher.future-len 128 --smt.batch-size 16 --dmt.batch-size 16",
    ),
    "memory": (
        "Memory size, and how much more training compresses it",
        f"digits {CELL} --vary memory.width=8,32,128 --seeds 2 --budget 900steps",
    ),
    "size": (
        "Width and depth of the cell",
        "digits --cell.kind transformer --vary cell.width=32,128 --vary cell.layers=1,2 --seeds 1 --budget 600steps",
    ),
    "lambda-dyn": (
        "Weight of the dynamics loss in SMT, λ_dyn",
        f"digits {CELL} --vary smt.lambda-dyn=0,0.1,1,10 --seeds 2 --budget 400steps",
    ),
    "lambda-dyn-dmt": (
        "Weight of the dynamics loss in DMT, λ_dyn",
        f"digits {CELL} --vary dmt.lambda-dyn=0,0.1,1,10 --seeds 2 --budget 400steps",
    ),
    "lambda-unif": (
        "Weight of uniformity, λ_unif, with memory normalised as in the paper (rms) and here (batch)",
        f"digits {CELL} --vary smt.lambda-unif=0,0.01,0.1 --vary memory.norm=rms,batch --seeds 1 --budget 400steps",
    ),
    "future": (
        "How much of the future the decoder is shown, F",
        f"retrieval {CELL} --vary teacher.future-len=1,4,16,32 --seeds 1 --budget 600steps --data.seq-len 32 "
        # With a small F only the last memories have a target, so more memories are decoded to include one of these.
        "--data.min-seq-len None --smt.decodes-per-sequence 8 --smt.batch-size 16 --dmt.batch-size 16",
    ),
}
"""Name → title, and arguments of `retain sweep`."""


def line(name: str) -> str:
    """Return the arguments of a figure's sweep."""
    return f"{FIGURES[name][1]} {SHARED} --out {RUNS / name}"


def find_sweep(name: str, folder: Path) -> Kept:
    """Return the stored results of a figure's sweep."""
    sweep = parse_sweep(shlex.split(line(name)))[0]
    return Kept(name, f"retain sweep {line(name)}", fingerprint([*list_runs(sweep).values()]), folder)


def run(name: str, folder: Path) -> None:
    """Run a sweep unless its results are stored, and store its results and pictures."""
    sweep, out, jobs = parse_sweep(shlex.split(line(name)))
    pictures = {ending: out / picture for ending, picture in PICTURES.items()}
    find_sweep(name, folder).make(lambda: run_sweep(sweep, out, jobs=jobs, quiet=False), pictures)


def blocks(folder: Path) -> dict[str, str]:
    """Return, by name, the Markdown of a figure: its pictures, and folded its command and numbers."""
    made = {}
    for name, (title, _) in FIGURES.items():
        kept = find_sweep(name, folder)
        shown = "".join(f"{picture}\n" for ending in PICTURES if (picture := kept.show(title, ending)))
        numbers = kept.write(markdown)
        made[name] = (
            f"{shown}<details markdown>\n<summary>The command and the numbers</summary>\n\n{numbers}\n</details>\n"
        )
    return made


def draw(folder: Path) -> None:
    """Draw the pictures again from the stored results."""
    for name in FIGURES:
        if (saved := find_sweep(name, folder).read()) is not None:
            plot_quality(saved["results"], folder / f"{name}.png")
            if saved["results"]["compression"]:
                plot_compression(saved["results"], folder / f"{name}-compression.png")


def main(argv: list[str] | None = None) -> None:
    """Make the figures named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m lab.figures", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"figures to make, of {', '.join(FIGURES)} (default: all)")
    parser.add_argument("--page", action="store_true", help="only write the page, from stored results")
    args = parser.parse_args(argv)
    if unknown := set(args.names) - set(FIGURES):
        parser.error(f"names: {', '.join(sorted(unknown))} not among {', '.join(FIGURES)}")
    with one_line_errors():
        for name in [] if args.page else args.names or list(FIGURES):
            run(name, KEPT)
            write_pages(blocks(KEPT), [PAGE])
        write_pages(blocks(KEPT), [PAGE])
        draw(KEPT)
        print(f"written: {PAGE}")


if __name__ == "__main__":
    main()

"""`make results`: the project's comparisons of methods, with their tables and pictures.

Each is one `retain compare` line, which runs unless its results are stored as docs/results/NAME.json. The tables of
docs/results-*.md are made from these files, each between markers with its name. All runs take about seven hours on two
cores. After an interruption the same command continues. `make results-quick` makes the same tables from one seed and
short budgets, under runs/results-quick, within half an hour. What runs only if it is
named takes another five hours.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lab.kept import STALE, Kept, find_comparison, find_study, leave_out_folders
from lab.limit_studies import compression, recall, rollouts
from lab.studies import Study, ablation, credit
from retain.cli import one_line_errors
from retain.cli.arguments import Usage
from retain.cli.compare import parse_comparison
from retain.config.presets import PRESETS
from retain.errors import UserError
from retain.experiments.compare import compare

PAGES = tuple(Path(f"docs/results-{part}.md") for part in ("tasks", "text", "cells", "recipe", "limits"))
KEPT = Path("docs/results")
GPU = Path("docs/gpu/stdlib.json")
"""A comparison that was run by hand on a borrowed GPU."""
RUNS = Path("runs/results")
QUICK = Path("runs/results-quick")
BEGIN, END = "<!-- results begin -->", "<!-- results end -->"
SIDE_BY_SIDE = "--jobs 2 --threads 1"
CONTROLLED = "smt,bptt,tbptt,gru,lstm"
"""`tbptt` is BPTT whose gradient is cut as in DMT: it lacks only the teacher. DMT has no cut on copy, keys_values."""
TASKS = ("retrieval", "copy", "stack", "keys_values", "modular")
LONGER = "Retrieval over longer sequences"
PAPERS_CELL = "The paper's cell, a Transformer"
OTHER_CELLS = "A GRU and a residual MLP as the cell"
LONGER_TEXT = "Text for a quarter of an hour"
OWN_RATES = "Tasks at the presets' own rates"
MORE_TASKS = "Five more memory tasks"
LIMITS = "Past the paper's limits"
BY_NAME = (PAPERS_CELL, OTHER_CELLS, LONGER_TEXT, OWN_RATES, MORE_TASKS, LIMITS)
"""Sections whose comparisons run only if they are named."""
STUDIES: dict[str, Callable[[bool], Study]] = {
    "ablation": ablation,
    "credit": credit,
    "compression": compression,
    "rollouts": rollouts,
    "recall": recall,
}
BEYOND = (
    *("stack", "s3", "parity", "s5", "dyck", "s3-attention", "parity-delta", "s3-delta", "s5-delta", "dyck-delta"),
    *("mqar", "mqar-16"),
)
"""Comparisons that are also scored at 2, 4 and 8 times the training length."""


def comparisons(quick: bool) -> dict[str, dict[str, str]]:
    """Return the arguments of `retain compare`, by section and name."""

    def line(
        name: str, preset: str, methods: str, seconds: int, seeds: int, more: str = "", sweep: int | None = None
    ) -> str:
        runs = QUICK if quick else RUNS
        size = "--seeds 1 --budget 40s --lrs 1" if quick else f"--seeds {seeds} --budget {seconds}s"
        if not quick:
            size += f" --sweep-budget {sweep or seconds // 3}s"
        if name in BEYOND:
            length = PRESETS[preset]().data.seq_len
            more += f" --lengths {','.join(str(length * times) for times in (1, 2, 4, 8))}"
        if name.endswith("-fsq"):
            length = PRESETS[preset]().data.seq_len
            more += f" --lengths {length},{16 * length}"
        return f"{preset} --methods {methods} {size} {SIDE_BY_SIDE}{more} --out {runs / name}"

    usual = "smt,bptt,gru,lstm"
    sections: dict[str, dict[str, tuple[Any, ...]]] = {
        "Five memory tasks": {
            name: (name, CONTROLLED if name in ("stack", "modular") else usual, 300, 3) for name in TASKS
        },
        LONGER: {
            f"retrieval-{n}": ("retrieval", "smt,bptt,gru", 300, 1, f" --data.seq-len {n} --teacher.future-len {n}")
            for n in (128, 256, 512)
        },
        "Length generalisation": {"s3": ("s3", "smt,bptt,gru", 300, 1)},
        "Text and pixels": {
            "stdlib": ("stdlib", usual, 240, 3),
            # A run soon memorises so few images, so a lower rate may be the best.
            "digits": ("digits", CONTROLLED, 240, 3, "" if quick else " --lrs 1/9,1/3,1,3"),
        },
    }
    if not quick:
        sections |= list_by_name()
    return {section: {name: line(name, *spec) for name, spec in specs.items()} for section, specs in sections.items()}


def list_by_name() -> dict[str, dict[str, tuple[Any, ...]]]:
    """Return preset, methods, seconds, seeds and more for the sections BY_NAME, by section and name."""
    few = " --memory.norm fsq --memory.tokens 1 --memory.width 8 --smt.lambda-unif 0 --smt.lambda-dyn-end 3"
    few += " --smt.share 7 --dmt.share 3"
    delta = " --lrs 1 --teacher.trunk delta --teacher.layers 1 --smt.lr"
    slow_dyn = " --smt.batch-size 32 --smt.lambda-dyn 0.01 --smt.lambda-dyn-end 1 --smt.share 5 --dmt.share 5"
    state = f"{delta} 3e-3 --data.min-seq-len 4{slow_dyn}"
    pairs = " --data.pairs 16 --data.seq-len 128 --data.min-seq-len 64 --memory.tokens 6 --lrs 1"
    gru, mlp = " --lrs 1 --cell.kind gru", " --lrs 1 --cell.kind mlp --cell.width 512"
    # With the paper's cell the presets change only in the cell, whose size is one that trains in minutes on a core.
    # Text also runs compiled, and with the paper's normalisation of memory, with which BPTT does better.
    one = " --cell.kind transformer --cell.layers 2"
    cell, sizes = " --recipe hybrid" + one, " --cell.width 128 --memory.tokens 2 --memory.width 128"
    text = cell + sizes
    longer = " --lrs 1 --data.seq-len 256 --teacher.future-len 256"
    return {
        PAPERS_CELL: {
            "retrieval-transformer": ("retrieval", "one-step,bptt", 240, 3, one + " --cell.width 64 --lrs 1"),
            "stdlib-transformer": ("stdlib", "smt,bptt,tbptt", 240, 3, text),
            "stdlib-transformer-compiled": ("stdlib", "smt,bptt,tbptt", 240, 3, text + " --compile"),
            "stdlib-transformer-rms": ("stdlib", "smt,bptt", 240, 3, text + " --memory.norm rms"),
            "stack-transformer": ("stack", "smt,bptt", 300, 3, cell + " --cell.width 64"),
        },
        # At the preset's rates: one recipe for every cell.
        OTHER_CELLS: {
            "stdlib-gru-cell": ("stdlib", "smt", 240, 3, gru),
            "stdlib-mlp-cell": ("stdlib", "smt", 240, 3, mlp),
            "retrieval-gru-cell": ("retrieval", "smt", 120, 3, gru),
            "retrieval-mlp-cell": ("retrieval", "smt", 120, 3, mlp),
        },
        LONGER_TEXT: {"stdlib-900": ("stdlib", "smt,gru", 900, 3, "", 80)},
        # The scores that a user of the presets gets without a sweep.
        OWN_RATES: {
            "retrieval-own-rate": ("retrieval", "smt", 120, 3, " --lrs 1"),
            "retrieval-256-own-rate": ("retrieval", "smt", 300, 3, longer),
            "copy-own-rate": ("copy", "smt", 300, 3, " --lrs 1"),
            "stack-own-rate": ("stack", "smt", 300, 3, " --lrs 1"),
        },
        MORE_TASKS: {
            **{name: (name, "one-step,bptt,gru", 100, 3) for name in ("parity", "s5", "dyck", "selective_copy")},
            # At its own rates: a third of the time is too short to compare rates by, as recall has not begun.
            "mqar": ("mqar", "one-step,bptt,gru", 100, 3, " --lrs 1"),
        },
        LIMITS: {
            "parity-delta": ("parity", "one-step", 200, 3, state),
            "s3-attention": ("s3", "one-step", 100, 3, " --lrs 1"),
            "s3-delta": ("s3", "one-step", 200, 3, state),
            "s5-delta": ("s5", "one-step", 100, 3, f"{state} --teacher.householders 4"),
            "dyck-delta": ("dyck", "one-step", 300, 3, f"{delta} 5e-3 --data.min-seq-len 16{slow_dyn}"),
            "stdlib-delta": ("stdlib", "smt", 240, 3, " --lrs 1 --teacher.trunk delta --teacher.local 4"),
            "parity-fsq": ("parity", "one-step", 100, 3, f"{delta} 3e-3 --data.min-seq-len 4{few}"),
            "retrieval-fsq": ("retrieval", "one-step", 100, 3, f"{delta} 5e-3{few}"),
            "copy-fsq": ("copy", "one-step", 100, 3, " --lrs 1 --memory.norm fsq"),
            "mqar-16": ("mqar", "one-step,bptt", 400, 3, pairs),
        },
    }


def run_comparison(name: str, arguments: str, folder: Path, jobs: str | None = None, picture: bool = True) -> None:
    """Run a comparison unless its results are stored, and store its results and its `picture`.

    `jobs` runs train at once; None: as many as the arguments name.
    """
    words = shlex.split(arguments) + ([] if jobs is None else ["--jobs", jobs])
    comparison, out, side_by_side = parse_comparison(words)
    kept = find_comparison(name, arguments, folder)
    pictures = {"": out / "results.png"} if picture else {}
    kept.make(lambda: leave_out_folders(compare(comparison, out, jobs=side_by_side, quiet=False)), pictures)


def run_study(name: str, study: Study, out: Path, folder: Path) -> None:
    """Run a study unless its results are stored, and store its results."""
    from retain.experiments.scheduler import run_all

    def work() -> dict[str, Any]:
        found = run_all(study.runs, out, jobs=2, threads=1, split=study.split, quiet=False)
        results = {run: {k: v for k, v in result.items() if k != "config"} for run, result in found.items()}
        return results if study.measure is None else results | {"measured": study.measure(out)}

    find_study(name, study, folder).make(work)


BY_LENGTH = "retrieval-by-length"


def blocks(quick: bool, folder: Path) -> dict[str, str]:
    """Return the Markdown between the markers of each comparison and study, by name."""
    from lab.by_length import tabulate_by_length

    made = {}
    for lines in comparisons(quick).values():
        for name, arguments in lines.items():
            made[name] = block(find_comparison(name, arguments, folder))
    if read := read_lengths(quick, folder):
        stale = "" if all(kept.is_current() for kept in read) else STALE.replace("Run", "Some of it run")
        picture = f"![Cost of solving retrieval, by length]({folder.name}/{BY_LENGTH}.png)\n"
        made[BY_LENGTH] = f"{stale}{picture}\n{tabulate_by_length([*read.values()])}"
    for name, make in STUDIES.items():
        study = make(quick)
        kept = find_study(name, study, folder)
        made[name] = kept.write(study.table, after="\n" + kept.show(study.title) if study.plot else "")
    return made


def read_lengths(quick: bool, folder: Path) -> dict[Kept, Any]:
    """Return the results of retrieval at every length that was run."""
    lines = {name: line for section in comparisons(quick).values() for name, line in section.items()}
    names = [name for name in ("retrieval", *comparisons(quick).get(LONGER, {})) if name in lines]
    found = [find_comparison(name, lines[name], folder) for name in names]
    return {kept: saved["results"] for kept in found if (saved := kept.read())} if LONGER in comparisons(quick) else {}


def block(kept: Kept) -> str:
    """Return the Markdown of a comparison: its scores, its picture, and folded its command and all measurements."""
    from retain.experiments.tables import markdown, short_table

    saved = kept.read()
    if saved is None:
        return kept.write(markdown)
    stale = "" if kept.is_current() else STALE
    picture = kept.show(f"{kept.name}: quality against cost")
    return (
        f"{stale}{short_table(saved['results'])}\n{picture}\n<details markdown>\n"
        f"<summary>The command, costs and learning rates</summary>\n\n```text\n{saved['command']}\n```\n\n"
        f"{markdown(saved['results'])}\n</details>\n"
    )


def draw(quick: bool, folder: Path) -> None:
    """Draw the pictures again from the stored results."""
    from lab.by_length import plot_by_length
    from retain.experiments.tables import plot

    for lines in comparisons(quick).values():
        for name, arguments in lines.items():
            if (saved := find_comparison(name, arguments, folder).read()) is not None:
                plot(saved["results"], folder / f"{name}.png")
    for name, make in STUDIES.items():
        study = make(quick)
        if study.plot and (saved := find_study(name, study, folder).read()) is not None:
            study.plot(saved["results"], folder / f"{name}.png")
    if GPU.exists() and not quick:
        plot(json.loads(GPU.read_text(encoding="utf-8")), GPU.with_suffix(".png"))
    if read := read_lengths(quick, folder):
        plot_by_length([*read.values()], folder / f"{BY_LENGTH}.png")


def fill(text: str, made: dict[str, str]) -> str:
    """Put each block between the markers with its name in a page, and leave the rest of the page."""

    def put(place: re.Match[str]) -> str:
        name = place[1]
        return f"<!-- {name} begin -->\n{made[name]}<!-- {name} end -->" if name in made else place[0]

    return re.sub(r"<!-- (\S+) begin -->\n.*?<!-- \1 end -->", put, text, flags=re.S)


def write_pages(made: dict[str, str], pages: Sequence[Path]) -> None:
    """Put the blocks between the markers of all pages."""
    for path in pages:
        if path.exists():
            path.write_text(fill(path.read_text(encoding="utf-8"), made), encoding="utf-8")


def write(text: str, path: Path, marks: tuple[str, str] = (BEGIN, END)) -> None:
    """Put tables between their markers in a page, and leave the rest of the page."""
    begin, end = marks
    before = path.read_text(encoding="utf-8") if path.exists() else "# Results\n"
    if begin not in before:
        before += f"\n{begin}\n{end}\n"
    head, _, rest = before.partition(begin)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{head}{begin}\n{text}{end}{rest.partition(end)[2]}", encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    """Make the results named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m lab.results", description=__doc__)
    parser.add_argument("names", nargs="*", help="results to make, e.g. copy credit (default: all but BY_NAME)")
    parser.add_argument("--quick", action="store_true", help="one seed and short budgets, into runs/results-quick")
    parser.add_argument("--tables", action="store_true", help="only write the tables, from stored results")
    args = parser.parse_args(argv)
    sections = comparisons(args.quick)
    lines = {name: line for section in sections.values() for name, line in section.items()}
    unknown = set(args.names) - {*lines, *STUDIES}
    if unknown:
        parser.error(f"names: {', '.join(sorted(unknown))} not among {', '.join([*lines, *STUDIES])}")
    folder = QUICK / "kept" if args.quick else KEPT
    only_named = {name for section in BY_NAME for name in sections.get(section, {})}
    only_named |= {name for name, make in STUDIES.items() if make(args.quick).by_name}
    wanted = args.names or [name for name in (*lines, *STUDIES) if name not in only_named]
    runs = QUICK if args.quick else RUNS

    def make(name: str) -> None:
        if name in STUDIES:
            run_study(name, STUDIES[name](args.quick), runs / name, folder)
        else:
            run_comparison(name, lines[name], folder)

    def write_tables() -> None:
        made = blocks(args.quick, folder)
        if args.quick:
            write("".join(f"\n## {name}\n\n{text}" for name, text in made.items()), QUICK / "results.md")
        else:
            write_pages(made, PAGES)

    make_each([] if args.tables else wanted, make, write_tables, runs)
    draw(args.quick, folder)
    write_tables()  # again, with pictures that were not there before
    print(f"written: {QUICK / 'results.md' if args.quick else ', '.join(map(str, PAGES))}")


def make_each(names: Sequence[str], make: Callable[[str], None], write_page: Callable[[], None], runs: Path) -> None:
    """Make results by their names and write their page after each. Raise Usage at the end if some failed."""
    failed = []
    with one_line_errors():
        for name in names:
            try:
                make(name)
            except UserError as error:  # the others can still run
                failed.append(name)
                print(f"{name}: {error}; to run it again, delete {runs / name}", file=sys.stderr, flush=True)
            else:
                write_page()
        write_page()
        if failed:
            raise Usage(f"not done: {', '.join(failed)} (see above)")


if __name__ == "__main__":
    main()

"""Trains one teacher, then several RNNs with it, and writes their table into docs/language_model.md.

python -m lab.own_teacher [--teacher-budget 30m] [--budget 240s] [--seeds 3]

The teacher is trained on the source code of Python first. Then RNNs with three cells are trained with that teacher,
with a teacher that is trained within the budget, and by BPTT. Runs are under OUT. After an interruption the same
command continues. Results are stored as docs/results/own-teacher.json, and are not computed again.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lab.kept import Kept, hash_settings, list_settings
from lab.language_model import PAGE
from lab.results import write
from retain.cli import one_line_errors
from retain.cli.compare import parse_comparison
from retain.cli.train import train_config
from retain.experiments.compare import compare
from retain.experiments.tables import mean_and_deviation, table

KEPT = Path("docs/results")
NAME = "own-teacher"
MARKS = ("<!-- own teacher begin -->", "<!-- own teacher end -->")
CELLS = {
    "gated": "",
    "delta": "--cell.kind delta --memory.tokens 4 --memory.width 256 --cell.width 128",
    "gru": "--cell.kind gru",
}
"""Cell → its options."""


def teacher_line(out: Path, budget: str) -> str:
    """Return the arguments of `retain train` for the teacher: the preset's SMT alone."""
    return f"stdlib --phases smt --budget {budget} --tracker None --out {out / 'teacher'}"


def compare_lines(out: Path, cell: str, how: str) -> dict[str, str]:
    """Return the arguments of `retain compare` for a cell, with the teacher and without it."""
    words = f"--lrs 1 {how} {CELLS[cell]}".strip()
    source = f"--teacher.from {out / 'teacher'}"
    return {
        "given": f"stdlib {source} --methods hybrid {words} --out {out / cell}-given",
        "own": f"stdlib --methods hybrid,bptt {words} --out {out / cell}-own",
    }


def run(out: Path, teacher_budget: str, how: str) -> dict[str, Any]:
    """Run the parts that are missing, and return bits per byte on the test split, by cell and way of training."""
    if not (out / "teacher" / "summary.json").exists():
        from retain.training.loop import train

        begun = (out / "teacher" / "config.json").exists()
        train(train_config(shlex.split(teacher_line(out, teacher_budget)))[0], out / "teacher", resume=begun)
    found: dict[str, Any] = {}
    for cell in CELLS:
        found[cell] = {}
        for name, line in compare_lines(out, cell, how).items():
            comparison, folder, _ = parse_comparison(shlex.split(line))
            for method, results in compare(comparison, folder, quiet=False)["methods"].items():
                way = method if method == "bptt" else name
                found[cell][way] = [run.get("test", {}).get("bits_per_byte") for run in results["runs"]]
    return found


def write_table(results: dict[str, Any]) -> str:
    """Return the table in Markdown."""
    head = ["cell", "after the teacher that was given", "teacher trained within the budget", "BPTT"]
    rows = [
        [cell, *(mean_and_deviation(ways[way]) for way in ("given", "own", "bptt"))] for cell, ways in results.items()
    ]
    return "Bits per byte on the test split, each RNN alone, from m_0.\n\n" + table(head, rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Make the table."""
    parser = argparse.ArgumentParser(prog="python -m lab.own_teacher", description=__doc__)
    parser.add_argument("--teacher-budget", default="30m")
    parser.add_argument("--budget", default="240s")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--more", default="", help="more options of retain compare, for all runs")
    parser.add_argument("--out", type=Path, default=Path("runs/own-teacher"))
    args = parser.parse_args(argv)
    how = f"--budget {args.budget} --seeds {args.seeds} --threads 1 {args.more}".strip()
    command = (
        f"python -m lab.own_teacher --teacher-budget {args.teacher_budget} --budget {args.budget} --seeds {args.seeds}"
    )
    with one_line_errors():
        lines = [teacher_line(Path("OUT"), args.teacher_budget)]
        lines += [compare_lines(Path("OUT"), cell, how)["own"] for cell in CELLS]
        base = list_settings(train_config(shlex.split("stdlib"))[0])
        kept = Kept(NAME, command, hash_settings([base, {"lines": lines}]), KEPT)
        kept.make(lambda: run(args.out, args.teacher_budget, how))
        write(f"\n{kept.write(write_table)}", PAGE, MARKS)
        print(f"written: {PAGE}")


if __name__ == "__main__":
    main()

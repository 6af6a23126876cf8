"""`make results`: the comparisons this project stands by, run anew where they are not done, and their tables written.

Each is one `retain compare` line. Its figures are kept as docs/results/NAME.json: what stands there is not run again,
and the tables of docs/results.md can be made from the repository alone. About five and a half hours on two cores; stop
it whenever you like, it goes on where it was. `make results-quick` gives the same tables from one seed and short
budgets, under runs/results-quick, within half an hour.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from retain.compare import compare, comparison_of
from retain.config import RunConfig
from retain.presets import PRESETS

PAGE = Path("docs/results.md")
KEPT = Path("docs/results")
RUNS = Path("runs/results")
QUICK = Path("runs/results-quick")
BEGIN, END = "<!-- results begin -->", "<!-- results end -->"
SIDE_BY_SIDE = "--jobs 2 --threads 1"
TASKS = ("retrieval", "copy", "stack", "keys_values", "modular")
BEYOND = ("stack", "s3")
"""Tasks that are also scored at 2, 4 and 8 times the training length."""
CREDIT_LENGTHS = (8, 16, 32, 64)
"""Credit through bootstrapping: lengths of retrieval, the same number of optimizer steps each."""
SOLVED = 0.99


def credit_steps(quick: bool) -> int:
    return 200 if quick else 2000


def comparisons(quick: bool) -> dict[str, dict[str, str]]:
    """Section → name → the arguments of `retain compare`."""

    def line(name: str, preset: str, methods: str, seconds: int, seeds: int, more: str = "") -> str:
        runs = QUICK if quick else RUNS
        size = "--seeds 1 --budget 40s --lrs 1" if quick else f"--seeds {seeds} --budget {seconds}s"
        if not quick:
            size += f" --sweep-budget {seconds // 3}s"
        if name in BEYOND and preset in PRESETS:
            length = PRESETS[preset]().data.seq_len
            more += f" --lengths {','.join(str(length * times) for times in (1, 2, 4, 8))}"
        return f"{preset} --methods {methods} {size} {SIDE_BY_SIDE}{more} --out {runs / name}"

    return {
        "Five memory tasks": {name: line(name, name, "smt,bptt,gru,lstm", 300, 3) for name in TASKS},
        "Retrieval over longer sequences": {
            f"retrieval-{length}": line(
                f"retrieval-{length}",
                "retrieval",
                "smt,bptt,gru",
                300,
                1,
                f" --data.seq-len {length} --teacher.future-len {length}",
            )
            for length in (128, 256, 512)
        },
        "Length generalisation": {"s3": line("s3", "s3", "smt,bptt,gru", 300, 1)},
        "Text and pixels": {name: line(name, name, "smt,bptt,gru,lstm", 240, 2) for name in ("stdlib", "digits")},
    }


def credit_runs(quick: bool) -> dict[str, RunConfig]:
    """Retrieval with one token of future, with and without the gradient of f into the teacher's memories."""
    steps = credit_steps(quick)
    runs = {}
    for length in CREDIT_LENGTHS:
        for name, detach in (("joint", False), ("detached", True)):
            base = PRESETS["retrieval"]()
            runs[f"{name}-{length}"] = dataclasses.replace(
                base,
                phases=("smt",),
                budget=f"{steps}steps",
                validate_every=f"{steps // 40}steps",
                tracker=None,
                data=dataclasses.replace(base.data, seq_len=length),
                teacher=dataclasses.replace(base.teacher, future_len=1),
                # Every memory is decoded: with one token of future only the last two have a target.
                smt=dataclasses.replace(base.smt, detach_labels=detach, decodes_per_sequence=None),
            )
    return runs


def credit_line(quick: bool) -> str:
    steps = credit_steps(quick)
    return (
        f"retain train retrieval --phases smt --budget {steps}steps --validate-every {steps // 40}steps "
        "--data.seq-len T --teacher.future-len 1 --smt.decodes-per-sequence None (detached: --smt.detach-labels)"
    )


def credit_table(results: dict[str, dict[str, Any]]) -> str:
    """Per length: the optimizer steps after which the RNN alone solves validation, and its accuracy in the end."""
    from retain.tables import table

    def solved(result: dict[str, Any]) -> str:
        steps = [p["step"] for p in result["curve"] if p["accuracy"] >= SOLVED]
        return f"{steps[0]:,}" if steps else "–"

    def last(result: dict[str, Any]) -> str:
        return f"{result['curve'][-1]['accuracy']:.3f}" if result["curve"] else "–"

    head = ["T", "joint: steps to solve", "detached: steps to solve", "joint: accuracy", "detached: accuracy"]
    rows = []
    for length in CREDIT_LENGTHS:
        joint, detached = results[f"joint-{length}"], results[f"detached-{length}"]
        rows.append([str(length), solved(joint), solved(detached), last(joint), last(detached)])
    return f"Solved: the RNN alone reaches {SOLVED} on validation. – is never. One seed, SMT only.\n\n" + table(
        head, rows
    )


def kept(name: str, command: str, folder: Path) -> Any:
    """The results of a comparison that was run by this very command; None if it was not."""
    path = folder / f"{name}.json"
    if not path.exists():
        return None
    saved = json.loads(path.read_text())
    return saved["results"] if saved["command"] == command else None


def keep(name: str, command: str, results: Any, folder: Path) -> None:
    from retain.checkpoint import replace_file

    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"command": command, "results": results}) + "\n"
    replace_file(folder / f"{name}.json", text.encode())


def run_comparison(name: str, arguments: str, folder: Path) -> None:
    """Run it where it is not done, and keep its figures and picture."""
    command = f"retain compare {arguments}"
    if kept(name, command, folder) is not None:
        return
    print(command, file=sys.stderr, flush=True)
    comparison, out, jobs = comparison_of(shlex.split(arguments))
    results = compare(comparison, out, jobs=jobs, quiet=False)
    keep(name, command, results, folder)
    picture = out / "results.png"
    if picture.exists():
        (folder / f"{name}.png").write_bytes(picture.read_bytes())


def run_credit(quick: bool, folder: Path) -> None:
    from retain.grid import run_all

    if kept("credit", credit_line(quick), folder) is not None:
        return
    print(credit_line(quick), file=sys.stderr, flush=True)
    out = (QUICK if quick else RUNS) / "credit"
    found = run_all(credit_runs(quick), out, jobs=2, threads=1, say=lambda line: print(line, file=sys.stderr))
    results = {name: {k: v for k, v in result.items() if k != "config"} for name, result in found.items()}
    keep("credit", credit_line(quick), results, folder)


def page(quick: bool, folder: Path) -> str:
    """All tables there are figures for, each under the command that made them."""
    from retain.tables import markdown

    text = ""
    for section, lines in comparisons(quick).items():
        text += f"\n## {section}\n"
        for name, arguments in lines.items():
            command = f"retain compare {arguments}"
            results = kept(name, command, folder)
            text += f"\n### {name}\n\n`{command}`\n\n"
            text += "Not run yet.\n" if results is None else markdown(results)
            if results is not None and (folder / f"{name}.png").exists():
                text += f"\n![{name}: quality against cost]({folder.name}/{name}.png)\n"
    text += f"\n## Credit through bootstrapping\n\n`{credit_line(quick)}`\n\n"
    results = kept("credit", credit_line(quick), folder)
    return text + ("Not run yet.\n" if results is None else credit_table(results))


def write(text: str, path: Path) -> None:
    """Put the tables between their marks in a page, and leave the words around them alone."""
    before = path.read_text() if path.exists() else "# Results\n"
    if BEGIN not in before:
        before += f"\n{BEGIN}\n{END}\n"
    head, _, rest = before.partition(BEGIN)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{head}{BEGIN}\n{text}{END}{rest.partition(END)[2]}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m retain.results", description=__doc__)
    parser.add_argument("names", nargs="*", help="some of them, e.g. copy retrieval-256 credit; all by default")
    parser.add_argument("--quick", action="store_true", help="one seed and short budgets, into runs/results-quick")
    parser.add_argument("--tables", action="store_true", help="only write the tables of what is done")
    args = parser.parse_args(argv)
    lines = {name: line for section in comparisons(args.quick).values() for name, line in section.items()}
    unknown = set(args.names) - {*lines, "credit"}
    if unknown:
        parser.error(f"names: {', '.join(sorted(unknown))} not among {', '.join([*lines, 'credit'])}")
    folder, target = (QUICK / "kept", QUICK / "results.md") if args.quick else (KEPT, PAGE)
    wanted = args.names or [*lines, "credit"]
    for name in [] if args.tables else wanted:
        if name == "credit":
            run_credit(args.quick, folder)
        elif lines[name].split()[0] not in PRESETS:
            print(f"{name}: there is no preset of this name yet", file=sys.stderr)
            continue
        else:
            run_comparison(name, lines[name], folder)
        write(page(args.quick, folder), target)
    write(page(args.quick, folder), target)
    print(f"written: {target}")


if __name__ == "__main__":
    main()

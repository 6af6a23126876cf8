"""`make results`: the comparisons this project stands by, run if they have not, and their tables.

Each is one `retain compare` line. Its numbers are kept as docs/results/NAME.json. What stands there is not run again,
and the tables of docs/results.md can be made from the repository alone. It takes about seven hours on two cores. If it
is stopped, it goes on where it was. `make results-quick` makes the same tables from one seed and short budgets, under
runs/results-quick, within half an hour. What is in BY_NAME takes three hours more, and is run only if it is named.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lab.studies import STUDIES, Study
from retain.cli import one_line_errors
from retain.cli.arguments import Usage
from retain.cli.compare import comparison_of
from retain.config import RunConfig
from retain.config.json import to_dict
from retain.config.presets import PRESETS
from retain.errors import UserError
from retain.experiments.compare import compare

PAGE = Path("docs/results.md")
KEPT = Path("docs/results")
RUNS = Path("runs/results")
QUICK = Path("runs/results-quick")
BEGIN, END = "<!-- results begin -->", "<!-- results end -->"
SIDE_BY_SIDE = "--jobs 2 --threads 1"
CONTROLLED = "smt,bptt,tbptt,gru,lstm"
"""Among them is BPTT that is cut where DMT is: it lacks nothing but the teacher. Copy and keys-values are not cut."""
TASKS = ("retrieval", "copy", "stack", "keys_values", "modular")
STALE = "*Run with an earlier form of the command or of its preset; to be run anew.*\n\n"
LONGER = "Retrieval over longer sequences"
PAPERS_CELL = "The paper's cell, a Transformer"
OTHER_CELLS = "A GRU and a residual MLP as the cell"
LONGER_TEXT = "Text for a quarter of an hour"
OWN_RATES = "Tasks at the presets' own rates"
BY_NAME = (PAPERS_CELL, OTHER_CELLS, LONGER_TEXT, OWN_RATES)
"""Sections that are run only by the names of their comparisons."""
BEYOND = ("stack", "s3")
"""Tasks that are also scored at 2, 4 and 8 times the training length."""


def comparisons(quick: bool) -> dict[str, dict[str, str]]:
    """Return section → name → the arguments of `retain compare`."""

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
        return f"{preset} --methods {methods} {size} {SIDE_BY_SIDE}{more} --out {runs / name}"

    return {
        "Five memory tasks": {
            name: line(name, name, CONTROLLED if name in ("stack", "modular") else "smt,bptt,gru,lstm", 300, 3)
            for name in TASKS
        },
        LONGER: {
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
        "Text and pixels": {
            "stdlib": line("stdlib", "stdlib", "smt,bptt,gru,lstm", 240, 3),
            # So few images are soon learnt by heart: a lower rate may be the best.
            "digits": line("digits", "digits", CONTROLLED, 240, 3, "" if quick else " --lrs 1/9,1/3,1,3"),
        },
    } | ({} if quick else by_name(line))


def by_name(line: Callable[..., str]) -> dict[str, dict[str, str]]:
    """Return the sections of BY_NAME."""
    gru, mlp = " --lrs 1 --cell.kind gru", " --lrs 1 --cell.kind mlp --cell.width 512"
    return {
        PAPERS_CELL: on_papers_cell(line),
        # At the preset's rates: one recipe for every cell.
        OTHER_CELLS: {
            "stdlib-gru-cell": line("stdlib-gru-cell", "stdlib", "smt", 240, 3, gru),
            "stdlib-mlp-cell": line("stdlib-mlp-cell", "stdlib", "smt", 240, 3, mlp),
            "retrieval-gru-cell": line("retrieval-gru-cell", "retrieval", "smt", 120, 3, gru),
            "retrieval-mlp-cell": line("retrieval-mlp-cell", "retrieval", "smt", 120, 3, mlp),
        },
        LONGER_TEXT: {"stdlib-900": line("stdlib-900", "stdlib", "smt,gru", 900, 3, sweep=80)},
        # What a user of the presets gets, who sweeps nothing.
        OWN_RATES: {
            "retrieval-own-rate": line("retrieval-own-rate", "retrieval", "smt", 120, 3, " --lrs 1"),
            "retrieval-256-own-rate": line(
                "retrieval-256-own-rate",
                "retrieval",
                "smt",
                300,
                3,
                " --lrs 1 --data.seq-len 256 --teacher.future-len 256",
            ),
            "copy-own-rate": line("copy-own-rate", "copy", "smt", 300, 3, " --lrs 1"),
            "stack-own-rate": line("stack-own-rate", "stack", "smt", 300, 3, " --lrs 1"),
        },
    }


def on_papers_cell(line: Callable[..., str]) -> dict[str, str]:
    """Change nothing of the presets but the cell, to a Transformer of a size that minutes of a core allow.

    Text is also compiled, and run with the paper's normalisation of memory, under which BPTT does better.
    """
    cell = " --recipe hybrid --cell.kind transformer --cell.layers 2"
    sizes = " --cell.width 128 --memory.tokens 2 --memory.width 128"
    text, one = cell + sizes, cell.replace(" --recipe hybrid", "")
    rms = text + " --memory.norm rms"
    stack = cell + " --cell.width 64"
    return {
        "stdlib-transformer-one-step": line("stdlib-transformer-one-step", "stdlib", "one-step", 240, 3, one + sizes),
        "retrieval-transformer": line(
            "retrieval-transformer", "retrieval", "one-step,bptt", 240, 3, one + " --cell.width 64 --lrs 1"
        ),
        "stdlib-transformer": line("stdlib-transformer", "stdlib", "smt,bptt,tbptt", 240, 3, text),
        "stdlib-transformer-compiled": line(
            "stdlib-transformer-compiled", "stdlib", "smt,bptt,tbptt", 240, 3, text + " --compile"
        ),
        "stdlib-transformer-rms": line("stdlib-transformer-rms", "stdlib", "smt,bptt", 240, 3, rms),
        "stack-transformer": line("stack-transformer", "stack", "smt,bptt", 300, 3, stack),
    }


def fingerprint(configs: Sequence[RunConfig]) -> str:
    """Identify the settings that numbers are of: a preset may change under a command that stays."""
    return hashed([given(to_dict(config)) for config in configs])


def of_study(study: Study) -> str:
    """Identify the settings that a study's runs read: nothing of phases that they do not have."""
    found = []
    for config in study.runs.values():
        settings = given(to_dict(config))
        for name in {"smt", "dmt", "bptt"} - set(config.phases):
            del settings[name]
        if len(config.phases) == 1:
            del settings[config.phases[0]]["share"]
        found.append(settings)
    return hashed(found)


def hashed(settings: list[dict[str, Any]]) -> str:
    """Hash settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def given(settings: dict[str, Any]) -> dict[str, Any]:
    """Without what is None: an option that is added later makes no kept figures old."""
    found = {key: given(value) if isinstance(value, dict) else value for key, value in settings.items()}
    return {key: value for key, value in found.items() if value is not None}


def kept(name: str, folder: Path) -> dict[str, Any] | None:
    """Read what is kept: the "command" that was run, a fingerprint of its "settings", its "results"."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def current(saved: dict[str, Any] | None, command: str, settings: str) -> bool:
    """Whether kept numbers are of this very command and these very settings."""
    return saved is not None and (saved["command"], saved.get("settings")) == (command, settings)


def settings_of(arguments: str) -> str:
    """Return the fingerprint of a comparison's arguments."""
    return fingerprint([comparison_of(shlex.split(arguments))[0].config])


def is_current(arguments: str, saved: dict[str, Any]) -> bool:
    """Whether kept numbers are of these arguments, with the presets as they are now."""
    return current(saved, f"retain compare {arguments}", settings_of(arguments))


def keep(name: str, command: str, settings: str, results: Any, folder: Path) -> None:
    """Keep the numbers of a command."""
    from retain.files import replace_file

    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"command": command, "settings": settings, "results": results}) + "\n"
    replace_file(folder / f"{name}.json", text.encode())


def run_comparison(name: str, arguments: str, folder: Path, jobs: str | None = None) -> None:
    """Run a comparison if it has not, and keep its numbers and picture; `jobs` runs side by side, or as it says."""
    command = f"retain compare {arguments}"
    comparison, out, side_by_side = comparison_of(shlex.split(arguments) + ([] if jobs is None else ["--jobs", jobs]))
    settings = fingerprint([comparison.config])
    if current(kept(name, folder), command, settings):
        return
    print(command, file=sys.stderr, flush=True)
    results = compare(comparison, out, jobs=side_by_side, quiet=False)
    copy_picture(out / "results.png", folder / f"{name}.png")
    keep(name, command, settings, results, folder)


def copy_picture(made: Path, kept: Path) -> None:
    """Copy a picture; no older one stays beside newer numbers, even if none could be drawn."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.unlink(missing_ok=True)
    if made.exists():
        kept.write_bytes(made.read_bytes())


def run_study(name: str, study: Study, out: Path, folder: Path) -> None:
    """Run a study if it has not, and keep its numbers."""
    from retain.experiments.scheduler import run_all

    settings = of_study(study)
    if current(kept(name, folder), study.command, settings):
        return
    print(study.command, file=sys.stderr, flush=True)
    say = functools.partial(print, file=sys.stderr, flush=True)
    found = run_all(study.runs, out, jobs=2, threads=1, split=study.split, say=say)
    results = {run: {k: v for k, v in result.items() if k != "config"} for run, result in found.items()}
    keep(name, study.command, settings, results, folder)


def part(name: str, command: str, settings: str, folder: Path, table: Callable[[Any], str]) -> str:
    """Write a command and the table of its numbers; kept numbers of an earlier command stand under theirs."""
    saved = kept(name, folder)
    if saved is None:
        return f"`{command}`\n\nNot run yet.\n"
    text = f"`{saved['command']}`\n\n"
    if not current(saved, command, settings):
        text += STALE
    text += table(saved["results"])
    if (folder / f"{name}.png").exists():
        text += f"\n![{name}: quality against cost]({folder.name}/{name}.png)\n"
    return text


def page(quick: bool, folder: Path) -> str:
    """Write all tables that there are numbers for, each under the command that made them."""
    from lab.by_length import by_length, plot_by_length
    from retain.experiments.tables import markdown

    text = ""
    for section, lines in comparisons(quick).items():
        text += f"\n## {section}\n"
        for name, arguments in lines.items():
            settings = settings_of(arguments)
            text += f"\n### {name}\n\n" + part(name, f"retain compare {arguments}", settings, folder, markdown)
        if section == LONGER:
            every = {name: line for lines in comparisons(quick).values() for name, line in lines.items()}
            saved = {name: known for name in ("retrieval", *lines) if (known := kept(name, folder))}
            found = [known["results"] for known in saved.values()]
            if found:
                text += "\n### retrieval, by length\n\n"
                if not all(is_current(every[name], known) for name, known in saved.items()):
                    text += STALE.replace("Run", "Some of it run")
                text += by_length(found)
                if plot_by_length(found, folder / "retrieval-by-length.png"):
                    text += f"\n![retrieval: cost of solving it]({folder.name}/retrieval-by-length.png)\n"
    for name, make in STUDIES.items():
        study = make(quick)
        settings = of_study(study)
        text += f"\n## {study.title}\n\n" + part(name, study.command, settings, folder, study.table)
    return text


def write(text: str, path: Path, marks: tuple[str, str] = (BEGIN, END)) -> None:
    """Put tables between their marks in a page, and leave the words around them alone."""
    begin, end = marks
    before = path.read_text(encoding="utf-8") if path.exists() else "# Results\n"
    if begin not in before:
        before += f"\n{begin}\n{end}\n"
    head, _, rest = before.partition(begin)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{head}{begin}\n{text}{end}{rest.partition(end)[2]}", encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    """Make the results that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m lab.results", description=__doc__)
    parser.add_argument("names", nargs="*", help="some of them, e.g. copy retrieval-256 credit; all by default")
    parser.add_argument("--quick", action="store_true", help="one seed and short budgets, into runs/results-quick")
    parser.add_argument("--tables", action="store_true", help="only write the tables of what is done")
    args = parser.parse_args(argv)
    sections = comparisons(args.quick)
    lines = {name: line for section in sections.values() for name, line in section.items()}
    unknown = set(args.names) - {*lines, *STUDIES}
    if unknown:
        parser.error(f"names: {', '.join(sorted(unknown))} not among {', '.join([*lines, *STUDIES])}")
    folder, target = (QUICK / "kept", QUICK / "results.md") if args.quick else (KEPT, PAGE)
    only_named = {name for section in BY_NAME for name in sections.get(section, {})}
    wanted = args.names or [name for name in (*lines, *STUDIES) if name not in only_named]
    failed = []
    with one_line_errors():
        for name in [] if args.tables else wanted:
            runs = (QUICK if args.quick else RUNS) / name
            try:
                if name in STUDIES:
                    run_study(name, STUDIES[name](args.quick), runs, folder)
                else:
                    run_comparison(name, lines[name], folder)
            except UserError as error:
                # The others need not wait for it.
                failed.append(name)
                print(f"{name}: {error}; to run it anew from its beginning, delete {runs}", file=sys.stderr, flush=True)
                continue
            write(page(args.quick, folder), target)
        write(page(args.quick, folder), target)
        print(f"written: {target}")
        if failed:
            raise Usage(f"not done: {', '.join(failed)} (see above)")


if __name__ == "__main__":
    main()

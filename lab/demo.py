"""`make demo`: SMT → DMT, the same cell with BPTT, and a GRU with BPTT, at the same wall-clock, on real text."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from retain.cli import one_line_errors
from retain.cli.arguments import Usage
from retain.config import RunConfig
from retain.config.presets import PRESETS
from retain.experiments.compare import matched, with_rate
from retain.runs.lock import alone, is_litter

SECONDS = 95
"""Training time of each method: three of them stay within five minutes."""
OUT = Path("runs/demo")


def methods(config: RunConfig) -> dict[str, RunConfig]:
    """Return the run and its two baselines: the very same RNN trained with BPTT, and a GRU of as many parameters.

    Each has the learning rate that the sweep of docs/results.md found best for it on this text.
    """
    bptt = dataclasses.replace(config, phases=("bptt",))
    return {"SMT → DMT": config, "BPTT, same cell": with_rate(bptt, "1/3"), "BPTT, GRU": matched(bptt, "gru")}


def main() -> None:
    """Train the three methods, score them, and let the first write."""
    from retain.cli.evaluate import record_of
    from retain.data import load_data
    from retain.files import keep_printed
    from retain.inference.evaluate import batch_for, evaluate
    from retain.inference.generate import generate
    from retain.runs.run import load_run
    from retain.training.loop import train

    parser = argparse.ArgumentParser(prog="python -m lab.demo", description=__doc__)
    parser.add_argument("seconds", nargs="?", type=float, default=SECONDS, help="of training, each method")
    seconds = parser.parse_args().seconds
    config = dataclasses.replace(PRESETS["stdlib"](), budget=f"{seconds:g}s")
    data = load_data(config.data)
    files = data.info["files"]
    print(
        f"Pretraining a character-level RNN on the source of Python's standard library "
        f"({sum(files.values())} files, {sum(data.info['bytes'].values()) / 1e6:.1f} MB), "
        f"{seconds:.0f} s for each of three methods, about {3 * seconds / 60 + 0.5:.0f} minutes in all."
    )
    runs = methods(config)
    folders = {name: OUT / name.replace(" → ", "-").replace(", ", "-").replace(" ", "-").lower() for name in runs}
    if OUT.exists():
        ours = {"demo.json", *(folder.name for folder in folders.values())}
        if other := sorted(f.name for f in OUT.iterdir() if f.name not in ours and not is_litter(f.name)):
            raise Usage(f"{OUT}: holds {other[0]}, which is not of an earlier demo; move it elsewhere first")
        for folder in folders.values():
            if folder.exists():
                with alone(folder):  # refused where another demo is at work in it
                    pass
        for folder in folders.values():
            shutil.rmtree(folder, ignore_errors=True)
        (OUT / "demo.json").unlink(missing_ok=True)
    rows: list[dict[str, Any]] = []
    start = time.perf_counter()
    for number, (name, run) in enumerate(runs.items(), 1):
        print(f"\n{name} ({number} of {len(runs)})", file=sys.stderr)
        folder = folders[name]
        summary = train(run, folder)
        trained = load_run(folder, teacher=run.has_teacher)
        size = batch_for(data, trained.rnn)
        scores = evaluate(trained.rnn, trained.teacher, data.windows("test", size))
        result = record_of(trained, data, "test", size, scores)
        keep_printed(folder / "eval-test.json", json.dumps(result, indent=2))
        rows.append(
            {
                "method": name,
                "seconds": round(summary["seconds"], 1),
                "tokens": summary["tokens"],
                "parameters": summary["parameters"],
                **{k: result[k] for k in ("bits_per_token", "teacher_bits_per_token", "drift", "relative_drift")},
                "run": str(folder),
                "data": data.info,
            }
        )
    (OUT / "demo.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    rnn = load_run(rows[0]["run"]).rnn
    import torch

    prompt = torch.tensor([data.encode("def ")])
    sampled = [int(t[0]) for t in generate(rnn, prompt, 400, temperature=0.7, seed=1)]
    print(f"\nThe RNN of SMT → DMT, alone, continues 'def ':\n\ndef {data.decode(sampled)}\n")
    print(table(rows))
    beside = Path(sys.executable).with_name("retain")  # not on the PATH where its environment is not active
    command = "retain" if shutil.which("retain") or not beside.exists() else os.path.relpath(beside)
    print(
        f"\nHeld-out text, every byte of it, each RNN from empty memory. {time.perf_counter() - start:.0f} s in all. "
        f"Run folders: {OUT}/\nTry: {command} generate {rows[0]['run']} --prompt 'import ' --temperature 0.7"
    )


def table(rows: list[dict[str, Any]]) -> str:
    """Write the rows as Markdown."""
    head = ("method", "seconds", "tokens", "RNN parameters", "bits/char", "its teacher", "drift", "relative drift")

    def number(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    body = [
        (
            row["method"],
            number(row["seconds"], ".0f"),
            number(row["tokens"], ","),
            number(row["parameters"], ","),
            number(row["bits_per_token"], ".3f"),
            number(row["teacher_bits_per_token"], ".3f"),
            number(row["drift"], ".3f"),
            number(row["relative_drift"], ".3f"),
        )
        for row in rows
    ]
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]

    def line(cells: tuple[str, ...]) -> str:
        return (
            "| "
            + " | ".join(
                c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))
            )
            + " |"
        )

    rule = "|" + "|".join("-" * (w + 1) + ("-" if i == 0 else ":") for i, w in enumerate(widths)) + "|"
    return "\n".join([line(head), rule, *map(line, body)])


if __name__ == "__main__":
    with one_line_errors():
        main()

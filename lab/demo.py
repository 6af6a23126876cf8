"""`make demo`: trains RNNs by SMT → DMT and by BPTT, first on a memory task, then on text."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retain.cli import one_line_errors
from retain.cli.arguments import Usage
from retain.cli.train import train_config
from retain.config import RunConfig
from retain.config.presets import PRESETS
from retain.experiments.compare import match_parameters, with_rate
from retain.runs.lock import alone, is_litter

if TYPE_CHECKING:  # the import would load PyTorch before the first output
    from retain.data.batches import Data

SECONDS = 58
"""Training time of each run. The five runs take less than six minutes in all."""
OUT = Path("runs/demo")
WIDTH = 40
"""Characters of a bar."""


def recall_runs(seconds: float) -> dict[str, RunConfig]:
    """Return the runs of act one: a symbol to remember over up to 64 tokens, a Transformer cell, one-step and BPTT."""
    words = f"--cell.kind transformer --cell.layers 2 --cell.width 64 --budget {seconds:g}s"
    line = ["retrieval", *words.split(), "--validate-every", f"{seconds / 10:g}s"]
    return {"one-step": train_config(line)[0], "BPTT, same cell": train_config([*line, "--phases", "bptt"])[0]}


def text_runs(seconds: float) -> dict[str, RunConfig]:
    """Return the runs of act two, text: the preset (hybrid), its RNN by BPTT, and a GRU with as many parameters.

    Each has the learning rate that was best for it in the sweep of docs/results.md.
    """
    config = dataclasses.replace(PRESETS["stdlib"](), budget=f"{seconds:g}s")
    bptt = dataclasses.replace(config, phases=("bptt",))
    return {"hybrid": config, "BPTT, same cell": with_rate(bptt, "1/3"), "BPTT, GRU": match_parameters(bptt, "gru")}


@contextmanager
def draw(folder: Path) -> Iterator[None]:
    """While a run trains into the folder, print the RNN's accuracy at each validation as a bar."""
    done, seen = threading.Event(), 0

    def watch() -> None:
        nonlocal seen
        while True:
            last = done.wait(0.5)
            path = folder / "metrics.jsonl"
            lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
            for line in lines[seen:]:
                found = json.loads(line)
                if (accuracy := found.get("validation_accuracy")) is not None:
                    bar = "█" * round(WIDTH * accuracy)
                    print(f"  {found['seconds']:4.0f} s  {bar:<{WIDTH}}  {accuracy:.2f}", flush=True)
            seen = len(lines)
            if last:
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def main() -> None:
    """Train and score the runs of both acts, and print tables and a generated text."""
    from retain.cli.evaluate import make_record
    from retain.data import load_data
    from retain.files import keep_printed
    from retain.inference.evaluate import batch_for, evaluate
    from retain.inference.text import generate_text
    from retain.runs.run import load_run
    from retain.training.loop import train

    parser = argparse.ArgumentParser(prog="python -m lab.demo", description=__doc__)
    parser.add_argument("seconds", nargs="?", type=float, default=SECONDS, help="seconds that each run trains")
    seconds = parser.parse_args().seconds
    acts = {"recall": recall_runs(seconds), "text": text_runs(seconds)}
    runs = {(act, name): config for act, found in acts.items() for name, config in found.items()}
    folders = {key: OUT / "-".join(key).replace(", ", "-").replace(" ", "-").lower() for key in runs}
    if OUT.exists():
        before = ("smt-dmt", "bptt-same-cell", "bptt-gru")  # folders of earlier demos, which had text alone
        made = [*folders.values(), *(OUT / name for name in before)]
        ours = {"demo.json", *(folder.name for folder in made)}
        if other := sorted(f.name for f in OUT.iterdir() if f.name not in ours and not is_litter(f.name)):
            raise Usage(f"{OUT}: contains {other[0]}, which no earlier demo wrote; move it elsewhere first")
        for folder in made:
            if folder.exists():
                with alone(folder):  # raises UserError if another demo uses it
                    pass
        for folder in made:
            shutil.rmtree(folder, ignore_errors=True)
        (OUT / "demo.json").unlink(missing_ok=True)
    rows: list[dict[str, Any]] = []
    start = time.perf_counter()
    for number, ((act, name), run) in enumerate(runs.items(), 1):
        if name == next(iter(acts[act])):
            print(f"\n{introduce(act, seconds, load_data(run.data))}")
        print(f"\n{name} ({number} of {len(runs)})", flush=True)
        folder, data = folders[act, name], load_data(run.data)
        with draw(folder) if act == "recall" else nullcontext():
            summary = train(run, folder, progress_bar=act == "text")
        trained = load_run(folder, teacher=run.has_teacher)
        size = batch_for(data, trained.rnn)
        scores = evaluate(trained.rnn, trained.teacher, data.windows("test", size))
        result = make_record(trained, data, "test", size, scores)
        keep_printed(folder / "eval-test.json", json.dumps(result, indent=2))
        kept = ("bits_per_token", "teacher_bits_per_token", "accuracy", "drift", "relative_drift")
        rows.append(
            {
                "act": act,
                "method": name,
                "seconds": round(summary["seconds"], 1),
                "tokens": summary["tokens"],
                "parameters": summary["parameters"],
                "longest_gradient_path": summary["longest_gradient_path"],
                **{key: result[key] for key in kept},
                "run": str(folder),
                "data": data.info,
            }
        )
        if act == "recall" and name == list(acts[act])[-1]:
            print(f"\n{table(rows)}")
    (OUT / "demo.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    texts = [row for row in rows if row["act"] == "text"]
    sample = generate_text(load_run(texts[0]["run"]), "def ", 400, temperature=0.7, seed=1)[0]
    print(f"\nText that the RNN of the first row generates after 'def ':\n\ndef {sample}\n")
    print(table(texts))
    beside = Path(sys.executable).with_name("retain")  # on the PATH only if its environment is active
    command = "retain" if shutil.which("retain") or not beside.exists() else os.path.relpath(beside)
    print(
        f"\nScores on the whole test split, each RNN from m_0. {time.perf_counter() - start:.0f} s in all. "
        f"Run folders: {OUT}/\nTry: {command} generate {texts[0]['run']} --prompt 'import ' --temperature 0.7"
    )


def introduce(act: str, seconds: float, data: Data) -> str:
    """Return the introduction to an act."""
    if act == "recall":
        return (
            "1. Memory over many steps. An RNN reads 64 symbols, and at the end must predict the one that was marked. "
            f"Its cell is\na Transformer, as in the paper. Each run trains for {seconds:.0f} s. A bar is the RNN's "
            f"validation accuracy (chance {data.chance:.2f})."
        )
    size = sum(data.info["bytes"].values()) / 1e6
    return (
        f"2. Text. A byte-level RNN with a gated cell reads the source of Python's standard library "
        f"({sum(data.info['files'].values())} files, {size:.1f} MB). Each run trains for {seconds:.0f} s."
    )


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    recall = rows[0]["act"] == "recall"
    columns = {
        "seconds": ("seconds", ".0f"),
        "tokens": ("tokens", ","),
        "RNN parameters": ("parameters", ","),
        "gradient path, steps": ("longest_gradient_path", ","),
        "accuracy" if recall else "bits/char": ("accuracy" if recall else "bits_per_token", ".3f"),
        "its teacher": ("teacher_bits_per_token", ".3f"),
        "relative drift": ("relative_drift", ".3f"),
    }
    if recall:
        del columns["its teacher"]
    head = ("method", *columns)

    body = [
        [row["method"], *("–" if row[key] is None else format(row[key], form) for key, form in columns.values())]
        for row in rows
    ]
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = [c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return f"| {' | '.join(padded)} |"

    rule = "|" + "|".join("-" * (w + 1) + ("-" if i == 0 else ":") for i, w in enumerate(widths)) + "|"
    return "\n".join([line(head), rule, *map(line, body)])


if __name__ == "__main__":
    with one_line_errors():
        main()

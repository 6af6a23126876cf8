"""Trains RNNs with a language model as teacher, scores them and the model, and writes docs/language_model.md.

python -m lab.language_model NAME --model FILE --text PATH [--rows 0,3] [--budget 30m] [--train-bytes N] ...

PATH is a text file, a folder of texts, or `stdlib` for the source code of Python. It is cut into three splits, a folder
between files. The model labels the training and validation splits once. Then each row of the table is a
`retain compare` line with these labels. Labels and runs are under OUT, by default runs/language-model/NAME. After an
interruption the same command continues. Each row is stored in docs/results/language-model/NAME and is not computed
again. `--rows` runs some of the rows, so that several processes can run different rows once the labels exist.
`--tables` only writes the page.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import re
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lab.kept import Kept, hash_settings
from lab.results import write
from lab.texts import prepare_text
from retain.cli import one_line_errors
from retain.cli.compare import parse_comparison
from retain.cli.label import label_command
from retain.cli.train import train_config
from retain.config import RunConfig
from retain.experiments.compare import compare
from retain.experiments.tables import mean_and_deviation, table
from retain.files import replace_file

PAGE = Path("docs/language_model.md")
KEPT = Path("docs/results/language-model")
RUNS = Path("runs/language-model")
MARKS = ("<!-- language models begin -->", "<!-- language models end -->")
SIZES = "--memory.tokens 1 --memory.width 576 --cell.width 512 --data.seq-len 64"
"""The sizes of memory, cell and sequences. SmolLM2 has 576 numbers for a token."""
HEAD = "--teacher.width 576 --teacher.init-embeddings --teacher.freeze-embeddings"
"""The readout is as wide as the model, and keeps the model's output layer."""
LABELS = f"{HEAD} --smt.lambda-dec 0 --smt.lambda-dyn 20 --dmt.lambda-dyn 20 --smt.lr 1e-3 --dmt.lr 1e-3"
DISTILL = "--smt.lambda-distill 1 --dmt.lambda-distill 1"
BPTT = "--bptt.lr 1e-3"
NARROW = f"{BPTT} --teacher.width 256"
"""Of the two widths, the better one for BPTT where the output layer is trained (docs/log.md)."""
ROWS: dict[str, tuple[str, str]] = {
    "SMT → DMT, one step": ("smt", f"--recipe one-step {LABELS} {DISTILL} --smt.share 1 --dmt.share 9"),
    "SMT → DMT, hybrid": ("smt", f"--recipe hybrid {LABELS} {DISTILL}"),
    "SMT → DMT, hybrid, no probabilities of the model": (
        "smt",
        f"--recipe hybrid {LABELS} --smt.lambda-distill 0 --dmt.lambda-distill 0",
    ),
    "BPTT from scratch": ("bptt", NARROW),
    "BPTT from the model's embeddings": ("bptt", f"{NARROW} --teacher.init-embeddings"),
    "BPTT with distillation, no memory labels": ("bptt", f"{NARROW} --bptt.lambda-distill 1"),
    "BPTT with distillation, from the model's embeddings": (
        "bptt",
        f"{NARROW} --bptt.lambda-distill 1 --teacher.init-embeddings",
    ),
    "BPTT with distillation, frozen embeddings of the model": ("bptt", f"{BPTT} {HEAD} --bptt.lambda-distill 1"),
}
"""Row of the table → method of `retain compare`, and its options.

The rows differ in what they take from the model: memory labels, probabilities, embeddings. BPTT has the learning rate
that is best for the preset's cell on text (docs/claims.md).
"""
MODEL = "model"
"""Name of the model's own score and samples among the rows."""
PROMPTS, PROMPT, WRITTEN, TEMPERATURE = 3, 40, 60, 0.7
"""The number of prompts, the tokens of each, the tokens generated after it, and their temperature."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """The settings of a table, and its folder."""

    out: Path
    model: str
    text: str
    budget: str
    seeds: int
    lrs: str
    context: int
    train_bytes: int | None
    sizes: str
    threads: int

    @property
    def corpus(self) -> Path:
        """The folder of the three splits."""
        return self.out / "text"

    def label(self) -> str:
        """Return the arguments of `retain label`."""
        length = _value_of(self.sizes, "--data.seq-len")
        how = f"--data.seq-len {length} --data.prune-vocab --teacher.context-before {self.context}"
        return f"{self.corpus} --teacher.from {self.model} --out {self.out / 'labels'} {how}"

    def compare(self, row: str) -> str:
        """Return the arguments of `retain compare` for a row."""
        method, more = ROWS[row]
        sizes = self.sizes.replace(f"--data.seq-len {_value_of(self.sizes, '--data.seq-len')}", "")
        how = f"--budget {self.budget} --seeds {self.seeds} --lrs {self.lrs} --threads {self.threads} {sizes} {more}"
        out = self.out / slug(row)
        return " ".join(f"text --labels {self.out / 'labels'} --methods {method} {how} --out {out}".split())


def _value_of(words: str, option: str) -> str:
    listed = shlex.split(words)
    return listed[listed.index(option) + 1]


def prepare(plan: Plan) -> None:
    """Write the splits and make the labels, unless they exist, and store how long the labels took."""
    prepare_text(plan.text, plan.corpus, plan.train_bytes)
    labelling = plan.out / "labelling.json"
    if not (plan.out / "labels").exists():
        start, before = time.monotonic(), _read(labelling).get("seconds", 0.0)
        label_command(shlex.split(plan.label()))
        replace_file(labelling, json.dumps({"seconds": before + time.monotonic() - start}).encode())


def run_row(plan: Plan, row: str) -> dict[str, Any]:
    """Run the comparison of a row, if it has not been run, and return the numbers of the row."""
    comparison, out, _ = parse_comparison(shlex.split(plan.compare(row)))
    results = compare(comparison, out, quiet=False)
    (found,) = results["methods"].values()
    folders = [out / "runs" / f"{name}" for name in list_runs(results)]
    return {
        "options": [*ROWS[row]],
        "bits_per_byte": [r.get("test", {}).get("bits_per_byte") for r in found["runs"]],
        "cold_bits_per_byte": [score_cold(folder) for folder in folders],
        "seconds": [r.get("seconds") for r in found["runs"]],
        "tokens": [r.get("tokens") for r in found["runs"]],
        "parameters": found["parameters"],
        "vocabulary_parameters": count_vocabulary(folders[0]),
        "failed": [r["failed"] for r in found["runs"] if "failed" in r],
        "samples": sample_rnn(plan, folders[0]),
        "label_seconds": _read(plan.out / "labelling.json").get("seconds"),
    }


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else math.inf


def list_runs(results: dict[str, Any]) -> list[str]:
    """Return the folder names of the runs that a comparison of one method scored, in the order of seeds."""
    ((method, found),) = results["methods"].items()
    factor = found["lr_factor"].replace("/", "over")
    return [f"{method}-lr{factor}-seed{run['seed']}" for run in found["runs"]]


def score_cold(folder: Path) -> float | None:
    """Return the bits per byte of a run's RNN on the test split, with each window read from m_0; None without a model.

    The run's own scores carry the memory over windows.
    """
    from retain.data import load_data
    from retain.inference.evaluate import batch_for, evaluate, finite
    from retain.runs.run import load_run

    if not (folder / "model.safetensors").exists():
        return None
    found = load_run(folder)
    data = load_data(found.config.data)
    bits = evaluate(found.rnn, None, data.windows("test", batch_for(data, found.rnn)))["bits_per_token"]
    return finite(bits / (data.bytes_in_token("test") or 1.0))


def count_vocabulary(folder: Path) -> int | None:
    """Return the number of parameters in a run's embedding and output layer; None without a model."""
    from retain.runs.run import load_run

    if not (folder / "model.safetensors").exists():
        return None
    rnn = load_run(folder).rnn
    return sum(p.numel() for part in (rnn.embed, rnn.readout.head) for p in part.parameters())


def model_config(plan: Plan) -> RunConfig:
    """Return the configuration of a run with the model's whole vocabulary."""
    line = f"text --data {plan.corpus} --teacher.from {plan.model} --teacher.context-before {plan.context} {plan.sizes}"
    return train_config(shlex.split(line))[0]


def score_model(plan: Plan) -> dict[str, Any]:
    """Score the language model on the test split, with its whole vocabulary and the context that labels have."""
    import torch
    import torch.nn.functional as F

    from retain.config import IGNORE
    from retain.data import load_data
    from retain.objectives.losses import kept_labels
    from retain.runs.trunk import for_teacher, open_trunk

    config = model_config(plan)
    plain = load_data(config.data)
    trunk, data = open_trunk(config, plain), for_teacher(config, plain)
    assert trunk is not None
    nats, count = 0.0, 0
    with torch.inference_mode():
        for batch in data.windows("test", 8):
            _, logits = trunk(batch["tokens"], True, kept_labels(batch))
            assert logits is not None
            asked = batch["targets"].flatten()
            nats += float(F.cross_entropy(logits.flatten(0, 1), asked, ignore_index=IGNORE, reduction="sum"))
            count += int((asked != IGNORE).sum())
    bits = nats / count / math.log(2)
    return {"bits_per_token": bits, "bits_per_byte": bits / (data.bytes_in_token("test") or 1.0), "tokens": count}


def read_prompts(plan: Plan) -> list[tuple[list[int], str, str]]:
    """Return prompts from the test text: the model's tokens, their text, and the text that follows."""
    from retain.data import load_data

    data = load_data(model_config(plan).data)
    stream, length = getattr(data, "splits")["test"], PROMPT + WRITTEN  # noqa: B009 - only streams have them
    found = []
    for number in range(PROMPTS):
        start = number * max(0, len(stream) - length) // PROMPTS
        ids = [int(token) for token in stream[start : start + length]]
        found.append((ids[:PROMPT], data.decode(ids[:PROMPT]), data.decode(ids[PROMPT:])))
    return found


def sample_rnn(plan: Plan, folder: Path) -> list[str]:
    """Return what a run's RNN writes after each prompt; nothing without a model."""
    from retain.inference.text import generate_text
    from retain.runs.run import load_run

    if not (folder / "model.safetensors").exists():
        return []
    run = load_run(folder)
    prompts = enumerate(read_prompts(plan))
    return [
        generate_text(run, text, WRITTEN, temperature=TEMPERATURE, seed=number)[0] for number, (_, text, _) in prompts
    ]


def sample_model(plan: Plan) -> list[dict[str, str]]:
    """Return each prompt, the text that follows, and what the language model writes."""
    import torch

    from retain.model.language_model import load_language_model, read_tokenizer

    model, (tokenizer, beginning, _) = load_language_model(plan.model), read_tokenizer(plan.model)
    settings = {"max_new_tokens": WRITTEN, "do_sample": True, "temperature": TEMPERATURE, "top_k": 0}
    made = []
    for number, (ids, prompt, text) in enumerate(read_prompts(plan)):
        torch.manual_seed(number)
        drawn = model.generate(torch.tensor([[beginning, *ids]]), pad_token_id=beginning, **settings)
        made.append({"prompt": prompt, "text": text, "model": tokenizer.decode(drawn[0, 1 + len(ids) :].tolist())})
    return made


def write_table(saved: dict[str, dict[str, Any]]) -> str:
    """Return the table and the samples in Markdown, of the stored results by name."""
    head = ["what", "bits per byte", "from m_0 in each window", "parameters", "of them vocabulary", "tokens read"]
    lines, seconds = [], None
    if MODEL in saved:
        lines.append(["the language model itself", f"{saved[MODEL]['score']['bits_per_byte']:.3f}", "", "", "", ""])
    for row in ROWS:
        if (found := saved.get(slug(row))) is None:
            continue
        notes = [f"{len(found['failed'])} diverged"] * bool(found["failed"])
        notes += ["with an earlier form of its options"] * (found["options"] != [*ROWS[row]])
        scores = [mean_and_deviation(found[key]) for key in ("bits_per_byte", "cold_bits_per_byte")]
        size, words = (f"{found[key]:,}" if found[key] else "–" for key in ("parameters", "vocabulary_parameters"))
        read = mean_and_deviation(found["tokens"], ",.0f", deviation=False)
        lines.append([row + (f" ({', '.join(notes)})" if notes else ""), *scores, size, words, read])
        seconds = found["label_seconds"] or seconds
    said = "" if seconds is None else f"To make the labels took {seconds:,.0f} s, which no row counts.\n\n"
    text = f"Test split, each RNN alone, its memory carried over windows. {said}" + table(head, lines)
    means = {row: _mean(saved[slug(row)]["bits_per_byte"]) for row in ROWS if slug(row) in saved}
    if MODEL in saved and means:
        best = min(means, key=lambda row: means[row])
        text += f"\nSamples of *{best}* and of the model:\n"
        for drawn, ours in zip(saved[MODEL]["samples"], saved[slug(best)]["samples"], strict=True):
            shown = "\n\n".join(f"[{name}]\n{part.strip()}" for name, part in (drawn | {"RNN": ours}).items())
            text += f"\n```text\n{shown.replace('```', '')}\n```\n"
    return text


def slug(row: str) -> str:
    """Return the name of a row's folder and file."""
    return "-".join(re.findall(r"\w+", row.lower()))


def find(name: str, part: str, options: Sequence[str], command: str, plan: Plan) -> Kept:
    """Return the stored results of a row or of the model; their hash does not depend on folders of the machine."""
    settings = {key: value for key, value in dataclasses.asdict(plan).items() if key not in ("out", "model", "text")}
    settings |= {"model": Path(plan.model).name, "text": Path(plan.text).name, "options": [*options]}
    return Kept(slug(part), command, hash_settings([settings]), KEPT / name)


def make(name: str, command: str, plan: Plan, parts: Sequence[str]) -> None:
    """Run these rows, and score the model if it is among them, as far as the results are not stored."""
    missing = {part: find(name, part, ROWS.get(part, ()), command, plan) for part in parts}
    missing = {part: kept for part, kept in missing.items() if not kept.is_current()}
    if missing:
        prepare(plan)
    for part, kept in missing.items():
        if part == MODEL:
            kept.make(lambda: {"score": score_model(plan), "samples": sample_model(plan)})
        else:
            kept.make(lambda row=part: run_row(plan, row))  # type: ignore[misc]


def write_summary(saved: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Return a table in Markdown of the bits per byte of each row, with a column for each name of stored results."""
    own = [[found[MODEL]["score"]["bits_per_byte"]] if MODEL in found else [] for found in saved.values()]
    scores = {"the language model itself": own}
    for row in ROWS:
        scores[row] = [found.get(slug(row), {}).get("bits_per_byte", []) for found in saved.values()]
    lines = [[row, *map(mean_and_deviation, columns)] for row, columns in scores.items() if any(columns)]
    return "\nBits per byte on the test split:\n\n" + table(["what", *saved], lines)


def write_page() -> None:
    """Write the tables of all stored results."""
    commands: dict[str, str] = {}
    saved: dict[str, dict[str, dict[str, Any]]] = {}
    for folder in sorted(path for path in KEPT.glob("*") if path.is_dir()):
        found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
        (commands[folder.name], *_) = (kept["command"] for kept in found.values())
        saved[folder.name] = {part: kept["results"] for part, kept in found.items()}
    text = write_summary(saved)
    for name, results in saved.items():
        text += f"\n### {name}\n\n`{commands[name]}`\n\n{write_table(results)}"
    write(text, PAGE, MARKS)


def main(argv: Sequence[str] | None = None) -> None:
    """Make the table named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m lab.language_model", description=__doc__)
    parser.add_argument("name", nargs="?", help="name of the stored results")
    parser.add_argument("--model", help="a folder for transformers, a .gguf file or hf:NAME")
    parser.add_argument("--text", help="a text file, a folder of texts, or stdlib")
    parser.add_argument("--rows", help=f"numbers of the rows to run, and {MODEL}, with commas (default: all of them)")
    parser.add_argument("--budget", default="30m", help="budget of each run, as for retain train")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--lrs", default="1", help="factors on the learning rates, as for retain compare")
    parser.add_argument("--context", type=int, default=256, help="tokens before a sequence (teacher.context_before)")
    parser.add_argument("--train-bytes", type=int, help="train on this many bytes of the text")
    parser.add_argument("--sizes", default=SIZES, help="size options of retain train, including --data.seq-len")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="the folder of runs and labels")
    parser.add_argument("--tables", action="store_true", help="only write the page")
    args = parser.parse_args(argv)
    if not args.tables:
        if None in (args.name, args.model, args.text):
            parser.error("give NAME, --model and --text")
        more = "" if args.train_bytes is None else f" --train-bytes {args.train_bytes}"
        command = (
            f"python -m lab.language_model {args.name} --model {Path(args.model).name} --text {Path(args.text).name} "
            f"--budget {args.budget} --seeds {args.seeds} --lrs {args.lrs} --context {args.context}{more}"
        )
        plan = Plan(
            out=args.out or RUNS / args.name, model=args.model, text=args.text, budget=args.budget, seeds=args.seeds,
            lrs=args.lrs, context=args.context, train_bytes=args.train_bytes, sizes=args.sizes, threads=args.threads,
        )  # fmt: skip
        names = [*ROWS, MODEL]
        if args.rows is not None:
            names = [word if word == MODEL else names[int(word)] for word in args.rows.split(",")]
        with one_line_errors():
            make(args.name, command, plan, names)
    write_page()
    print(f"written: {PAGE}")


if __name__ == "__main__":
    main()

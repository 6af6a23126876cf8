"""`retain eval`: scores of the RNN alone on a split, next to its teacher."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from retain.cli.arguments import Usage, take_option, take_run, warn
from retain.config import ArrayDataConfig
from retain.errors import UserError
from retain.streams import is_terminal

if TYPE_CHECKING:
    from retain.data.batches import Data, Split
    from retain.runs.run import Run


@dataclass(frozen=True)
class Eval:
    """Score the RNN alone, from m_0, on a whole split, next to its teacher.

    If the teacher reads with a language model, give --teacher.from MODEL, or --labels DIR for the train or validation
    split. The model is then scored, too.
    """

    split: Literal["train", "validation", "test", "all"] | None = None
    """None: test, or all if --data names another text, .npy or series.
    all: the whole file or folder, also of documents and images."""
    json: bool = False
    """Print all results as JSON."""
    limit: int | None = None
    """At most this many sequences, spread over the split. None: all."""
    batch_size: int | None = None
    """Sequences read at once. None: 256, or fewer if the vocabulary or the memory is large."""
    seq_len: int | None = None
    """Tokens that the RNN reads from each m_0. None: the data.seq_len of training."""
    horizon: int | None = None
    """Series only: steps to forecast, from many origins in the split. None: the teacher's future_len."""
    data: str | None = None
    """Another file to score on, with the same vocabulary."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"


def eval_command(argv: list[str]) -> None:
    """Run `retain eval`."""
    source, argv = take_option(argv, "--teacher.from")
    labels, argv = take_option(argv, "--labels")
    path, args = take_run(argv, "eval", Eval)
    for name in ("limit", "batch_size", "seq_len", "horizon"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise Usage(f"{name}: {value} must be at least 1")
    from tqdm import tqdm

    from retain.data.documents import DocumentsData
    from retain.data.series import SeriesData
    from retain.files import keep_printed
    from retain.inference.evaluate import batch_for, evaluate, finite
    from retain.inference.likelihood import document_likelihood
    from retain.runs.run import guided, load_run
    from retain.runs.trunk import for_scoring, load_guided

    given = source is not None or labels is not None
    run = load_run(path, teacher=guided(path) and not given, device=args.device)
    if args.horizon is not None and run.rnn.channels is None:
        raise Usage(f"horizon: {args.horizon} is for series, but this run reads tokens; leave it out")
    data, split, place = choose_data(run, args)
    read = for_scoring(run.config, data)
    if given:
        run, read = load_guided(run, data, split, source, labels)
    elif run.teacher is None and run.config.has_teacher:
        model = run.config.teacher.from_
        why = f"has a teacher that reads with {model}, which is not loaded" if model else "has no teacher.safetensors"
        warn(f"{path} {why}, so only the RNN is scored")
    batch_size = args.batch_size or batch_for(data, run.rnn)
    batches = read.windows(split, batch_size, args.limit)
    seen = tqdm(batches, desc=split, unit="batch", leave=False, disable=not is_terminal(sys.stderr))
    result = make_record(run, data, split, batch_size, evaluate(run.rnn, run.teacher, seen, given=given))
    if isinstance(data, DocumentsData):
        whole = document_likelihood(run.rnn, data, split, batch_size=batch_size, limit=args.limit)
        result["whole_documents"] = {key: finite(value) for key, value in whole.items()}
    if isinstance(data, SeriesData):
        from retain.inference.backtest import backtest, score_one_step

        result["one_step"] = score_one_step(run.rnn, data, split, args.limit)
        horizon = args.horizon or max(1, run.config.teacher.future_len)
        result["forecast"] = backtest(run.rnn, data, split, horizon, limit=args.limit or 200)
    # A score on other data, or on a part, must not pass for the run's own.
    part = f"-length{args.seq_len}" if args.seq_len else ""
    part += f"-limit{args.limit}" if args.limit else ""
    part += f"-horizon{args.horizon}" if args.horizon else ""
    if args.data:  # two folders may have files of the same name
        digest = hashlib.sha256((place or "").encode(errors="surrogateescape")).hexdigest()[:8]
        part += f"-{Path(args.data).stem}-{digest}"
    try:
        print(json.dumps(result, indent=2) if args.json else report(result), flush=True)
    finally:  # also if printing fails, as on a full disk
        keep_printed(path / f"eval-{split}{part}.json", json.dumps(result, indent=2))


def choose_data(run: Run, args: Eval) -> tuple[Data, Split, str | None]:
    """Return the data to score on, its split and its source. Raises UserError if the data does not fit the run.

    A line on stderr warns of data that the run may have been trained on.
    """
    from retain.data import load_data
    from retain.data.paths import with_path
    from retain.data.scan import told
    from retain.runs.data import data_changed, same_checksum

    config = run.config.data
    if args.data is not None:
        config = with_path(config, args.data, None, None)
        if isinstance(config, ArrayDataConfig):
            config = dataclasses.replace(config, vocab_size=None)
    elif run.state.get("own_data"):
        raise UserError(
            f"data: {run.path} was trained on data of your own, which no config names; give --data PATH, or score it "
            "in Python: retain.evaluate(retain.load(RUN), None, data.windows('test', 256))"
        )
    if args.seq_len is not None:
        config = config.at_length(args.seq_len)
    split = args.split or ("all" if args.data and config.name in ("text", "npy", "series") else "test")
    like = run.rnn.channels
    data, known = load_data(config, split == "all", like), run.state
    source = getattr(config, "path", None)
    same_source = source is not None and source == getattr(run.config.data, "path", None)
    if split == "all" and (same_source or same_checksum(data.info, known["data"])):
        if args.split is None:
            data, split = load_data(config, like=like), "test"
            warn(f"{args.data} is the run's training data; its test split is scored")
        else:
            warn(f"most of {source} is the run's training data")
    if (read := data.info.get("read")) and args.data is not None:
        warn(told(read))
    size, own = data.vocab_size, known["vocab_size"]
    # An array shows only which tokens occur, not its whole vocabulary.
    if size != own and not (config.name == "npy" and size < own):
        raise UserError(f"data: its vocabulary has {size} tokens, the run's {own}; give data with that vocabulary")
    if data.kind != known["kind"]:
        name = args.data or config.name
        raise UserError(f"data: {name} is of {data.kind}, the run's of {known['kind']}; give data of that kind")
    # The checksum of a task or a stream depends on the sequence length.
    if args.data is None and args.seq_len is None and (difference := data_changed(known["data"], data.info)):
        warn(f"{difference}; the run may have been trained on what is scored")
    return data, split, source


def make_record(run: Run, data: Data, split: Split, batch_size: int, scores: dict[str, Any]) -> dict[str, Any]:
    """Return the content of eval-SPLIT.json: the run, the data, and the scores."""
    from retain.inference.evaluate import finite

    record = {
        "run": str(run.path),
        "preset": run.config.preset,
        "split": split,
        "seq_len": data.seq_len,
        "phases": list(run.config.trained),
        "parameters": sum(p.numel() for p in run.rnn.parameters()),
        "training_seconds": run.state["progress"]["seconds"],
        "training_tokens": run.state["progress"]["tokens"],
        **scores,
        "side_by_side": batch_size,
        "precision": "fp32",
        "chance": data.chance if data.answers else None,
        "data": data.info,
        "versions": run.state["versions"],
    }
    per_token = data.bytes_in_token(split)
    for name in [
        name for name in ("bits_per_token", "teacher_bits_per_token", "model_bits_per_token") if name in record
    ]:
        bits = record[name] = finite(record[name])
        record[name.replace("token", "byte")] = None if bits is None or per_token is None else bits / per_token
    return record


def report(result: dict[str, Any]) -> str:
    """Return an evaluation as a few readable lines."""
    from retain.inference.evaluate import LEFT, has_left

    lines = [f"{result['run']} on {result['split']}: {result['sequences']:,} sequences, {result['tokens']:,} targets"]

    def add(label: str, key: str, form: str, more: str = "") -> None:
        teacher = result.get(f"teacher_{key}")
        if result[key] is not None:
            beside = "" if teacher is None else f"   teacher {teacher:{form}}"
            beside += "" if (model := result.get(f"model_{key}")) is None else f"   model {model:{form}}"
            lines.append(f"{label:<18}{result[key]:{form}}{beside}{more}")

    def add_positions(key: str) -> None:
        """Add the values at the first, middle and last position that has one."""
        asked = [(t, value) for t, value in enumerate(result[key] or []) if value is not None]
        if len(asked) > 1:
            some = dict([asked[0], asked[len(asked) // 2], asked[-1]])
            said = ", ".join(f"{value:.3f} at t = {t}" for t, value in some.items())
            lines.append(f"{'  by position':<18}{said} (--json has all)")

    add("bits per token", "bits_per_token", ".3f")
    if result["bits_per_token"] is None:
        lines.append(f"{'bits per token':<18}not finite: the RNN alone diverges")
    add_positions("bits_by_position")
    if result["bits_per_byte"] != result["bits_per_token"]:
        add("bits per byte", "bits_per_byte", ".3f")
    add("accuracy", "accuracy", ".3f", "" if result["chance"] is None else f"   chance {result['chance']:.3f}")
    if (whole := result.get("whole_documents")) and whole["bits_per_document"] is not None:
        over = f"over {whole['documents']:,} whole documents"
        lines.append(f"{'bits per document':<18}{whole['bits_per_document']:.1f}   {over}")
    lines += report_series(result)
    add("drift", "drift", ".4f")
    add("relative drift", "relative_drift", ".3f", f"   {LEFT}" if has_left(result) else "")
    add_positions("relative_drift_by_position")
    if "memory_bits" in result:
        used = f"entropy {result['memory_entropy']:.2f}, number by number {result['memory_entropy_by_number']:.1f}"
        seen = f"{result['different_memories']:,} of {result['memories']:,} memories differ"
        add("memory bits", "memory_bits", ",.0f", f"   {used}; {seen}")
    add("parameters", "parameters", ",")
    how = f", up to {result['side_by_side']} sequences at once, {result['precision']}"
    add("tokens per second", "tokens_per_second", ",.0f", how)
    return "\n".join(lines)


def report_series(result: dict[str, Any]) -> list[str]:
    """Return the lines about predictions of numbers; none for other runs."""
    if "one_step" not in result:
        return []
    one, ahead = result["one_step"], result["forecast"]

    def bands(scores: dict[str, Any]) -> str:
        shares = (f"{float(band):.0%} band {share:.1%}" for band, share in (scores["coverage"] or {}).items())
        return ", ".join(shares) or "no value to cover"

    def number(value: float | None) -> str:
        return "none" if value is None else f"{value:.4g}"

    naive = f"seasonal naive {number(ahead['naive']['wql'])}, {number(ahead['naive']['mase'])}"
    return [
        f"{'nats per value':<18}{one['nats']:.3f}",
        f"{'one step ahead':<18}CRPS {number(one['crps'])}, {bands(one)}",
        f"{'forecast':<18}{ahead['forecasts']} times {ahead['horizon']} steps: weighted quantile loss "
        f"{number(ahead['wql'])}, MASE {number(ahead['mase'])} ({naive})",
        f"{'  coverage':<18}{bands(ahead)}",
    ]

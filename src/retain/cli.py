"""The command line: retain train · eval · generate · info · tasks · compare · sweep · report · plot.

Heavy imports wait until a command needs them, so that --help answers at once.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from retain import __version__
from retain.arguments import Usage, open_run, parse, take_option, take_run
from retain.config import RunConfig, load_config
from retain.presets import NEED_DATA, PRESETS

HELP = f"""\
usage: retain COMMAND ...

Pretrain recurrent networks without backpropagation through time (retain {__version__}).

commands:
  train PRESET     pretrain an RNN by one of the presets below
  eval RUN         the RNN alone on a whole split, next to its teacher
  generate RUN     sample from the RNN, streaming
  info RUN         what a run folder holds
  tasks            the memory tasks, with a sample of each
  compare PRESET   SMT against BPTT, GRU and LSTM, each with the same budget
  sweep PRESET     quality against settings that are varied, and the smallest memory for a loss
  report RUN ...   one HTML page about a run, or several side by side
  plot RUN NAME    one plot of a run as a picture

presets:
{textwrap.fill(", ".join(PRESETS), 78, initial_indent="  ", subsequent_indent="  ")}

'retain COMMAND --help' tells a command's options.
"""

TRAIN_HELP = """\
Pretrain an RNN by the phases of a preset, into a run folder.

--out DIR        the run folder (default: runs/PRESET)
--resume         go on from the newest checkpoint in --out; its config is kept
--config FILE    start from this config.json instead of a preset
--data PATH      what to train on: a text, an integer .npy, or a dataset: hf:NAME[:CONFIG] of the Hugging Face
                 hub, a parquet, JSON, CSV or Arrow file, a folder of them, a folder of images
--text-column C  the dataset's column of texts (default: text)
--image-column C the dataset's column of images, instead of texts (default: image)
--stream         train straight from the dataset; nothing is prepared on disk
--dry-run        train nothing: print sizes, memory, and FLOPs and time from a few steps (--json: as JSON)
--quiet          no progress bar
"""


@dataclass(frozen=True)
class Eval:
    """Score the RNN alone, from m_0, on a whole split, next to its teacher."""

    split: Literal["train", "validation", "test"] = "test"
    json: bool = False
    """Print all figures as JSON."""
    limit: int | None = None
    """At most this many sequences, spread over the split; None is all of it."""
    batch_size: int = 256
    data: str | None = None
    """Another file to score on than the one trained on, of the same vocabulary."""
    device: Literal["cpu", "cuda", "mps"] = "cpu"


@dataclass(frozen=True)
class Generate:
    """Sample from the RNN alone, streaming; images become a PNG grid."""

    prompt: str = ""
    """What the RNN reads first: text, or for other data tokens separated by spaces."""
    length: int | None = None
    """Tokens to sample; None is 500, or whole images."""
    temperature: float = 1.0
    """0 takes the likeliest token."""
    top_k: int | None = None
    """Sample among the k likeliest tokens."""
    top_p: float | None = None
    """Sample among the fewest tokens whose probability reaches p."""
    seed: int = 0
    count: int = 32
    """Images only: how many."""
    complete: int | None = None
    """Images only: complete the lower half of this many images of the test split."""
    images: tuple[str, ...] = ()
    """Images only: complete the lower half of these image files."""
    out: str | None = None
    """Images only: the PNG; None is samples.png, or completed.png, in the run folder."""
    compile: bool = False
    """For long texts: compile the step first, which takes a minute, and then costs less for every token."""
    device: Literal["cpu", "cuda", "mps"] = "cpu"


@dataclass(frozen=True)
class Info:
    """Tell what a run folder holds: config, data, progress and results."""

    json: bool = False
    """Print as JSON."""


def main(argv: list[str] | None = None) -> None:
    """Run the command line; exits 0, 2 for a user's mistake, 1 for a failed run, 130 when interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    commands: dict[str, str] = {
        "train": "retain.cli:train_command",
        "eval": "retain.cli:eval_command",
        "generate": "retain.cli:generate_command",
        "info": "retain.cli:info_command",
        "tasks": "retain.task_list:tasks_command",
        "compare": "retain.compare:compare_command",
        "sweep": "retain.sweep:sweep_command",
        "report": "retain.report.command:report_command",
        "plot": "retain.report.command:plot_command",
    }
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return
    if argv[0] in ("-V", "--version"):
        print(f"retain {__version__}")
        return
    try:
        if argv[0] not in commands:
            raise Usage(f"command: {argv[0]!r} is none of {', '.join(commands)}")
        # A user's own cell, module:Class, is looked for where the command is run, too.
        sys.path.append(os.getcwd())
        module, _, function = commands[argv[0]].partition(":")
        getattr(importlib.import_module(module), function)(argv[1:])
    except BrokenPipeError:
        # The reader of our output (head, less) has gone; Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        fail("interrupted", 130)
    except Exception as error:
        code = exit_code(error)
        if code is None or os.environ.get("RETAIN_DEBUG"):
            raise
        if isinstance(error, OSError) and error.strerror:
            fail(f"{error.filename or 'disk'}: {error.strerror}", code)
        fail(str(error), code)


def exit_code(error: Exception) -> int | None:
    """2 for what the user can mend, 1 for a failed run, 130 for Ctrl-C; None for a defect, to be shown in full."""
    if isinstance(error, (Usage, ValueError, OSError)):
        return 2
    name = type(error).__name__
    # Compared by name: to import these here would cost the start-up of every command.
    return {"CheckpointError": 2, "TrainingError": 1, "Interrupted": 130}.get(name)


def fail(message: str, code: int) -> None:
    print(f"retain: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(code)


def train_config(argv: list[str]) -> tuple[RunConfig, Path, bool, bool]:
    """The run that a `retain train` line describes: config, folder, resume, quiet."""
    out, argv = take_option(argv, "--out")
    file, argv = take_option(argv, "--config")
    data, argv = take_option(argv, "--data")
    text_column, argv = take_option(argv, "--text-column")
    image_column, argv = take_option(argv, "--image-column")
    argv = ["--data.stream" if a == "--stream" else a for a in argv]
    resume, quiet = "--resume" in argv, "--quiet" in argv
    argv = [a for a in argv if a not in ("--resume", "--quiet")]
    preset = argv.pop(0) if argv and not argv[0].startswith("-") else None
    if "-h" in argv or "--help" in argv:
        chosen = preset if preset in PRESETS else "stdlib"
        parse(RunConfig, ["--help"], f"retain train {preset or 'PRESET'}", PRESETS[chosen](), TRAIN_HELP)
    if preset is not None and preset not in PRESETS:
        raise Usage(f"preset: {preset!r} is none of {', '.join(PRESETS)}")
    if preset is not None and file is not None:
        raise Usage(f"config: give a preset or --config, not both ({preset} and {file})")
    folder = Path(out or f"runs/{preset}") if out or preset else None
    if resume:
        if folder is None:
            raise Usage("resume: name the run folder with --out")
        if not (folder / "config.json").exists():
            raise Usage(f"resume: {folder} holds no run; leave out --resume to start one")
        base = load_config(folder / "config.json")
        if preset is not None and base.preset != preset:
            raise Usage(f"resume: {folder} is a run of {base.preset}, not of {preset}; leave the preset out")
    elif file is not None:
        base = load_config(Path(file))
        folder = folder or Path(f"runs/{base.preset or 'custom'}")
    elif preset is not None:
        base = PRESETS[preset]()
    else:
        raise Usage(f"retain train: name a preset ({', '.join(PRESETS)}) or give --config FILE")
    assert folder is not None
    if data is not None:
        from retain.data.paths import with_path

        base = dataclasses.replace(base, data=with_path(base.data, data, text_column, image_column))
    elif text_column or image_column:
        raise Usage("--text-column, --image-column: these are columns of a dataset; name it with --data")
    elif preset in NEED_DATA and not resume and not any(a.startswith("--data.path") for a in argv):
        raise Usage(f"data: the {preset} preset needs {NEED_DATA[preset]}; give --data PATH")
    return parse(RunConfig, argv, f"retain train {preset or 'PRESET'}", base), folder, resume, quiet


def train_command(argv: list[str]) -> None:
    dry, as_json = "--dry-run" in argv, "--json" in argv
    if as_json and not dry:
        raise Usage("--json: goes with --dry-run")
    config, out, resume, quiet = train_config([a for a in argv if a not in ("--dry-run", "--json")])
    if dry:
        from retain.dry_run import dry_run, report_lines

        found = dry_run(config)
        print(json.dumps(found, indent=2) if as_json else report_lines(found))
        return
    from retain.train import prepare_folder, train

    prepare_folder(config, out, resume)
    summary = train(config, out, resume=resume, progress_bar=not quiet)
    if summary:
        print(
            f"{out}: {summary['steps']} steps, {summary['tokens']:,} tokens, {summary['seconds']:.0f} s; "
            f"best RNN at step {summary['best_step']}, {summary['validation_bits_per_token']:.3f} bits/token on "
            f"validation\nnext: retain eval {out}, retain generate {out}"
        )


def eval_command(argv: list[str]) -> None:
    path, args = take_run(argv, "eval", Eval)
    for name in ("limit", "batch_size"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise Usage(f"{name}: {value} must be at least 1")
    run = open_run(path, teacher=True, device=args.device)
    from retain.data import load_data
    from retain.data.paths import absolute
    from retain.evaluate import evaluate

    data_config = run.config.data
    if args.data is not None:
        data_config = dataclasses.replace(data_config, path=absolute(args.data))
    data = load_data(data_config)
    if data.vocab_size != run.state["vocab_size"]:
        raise ValueError(f"data: its vocabulary has {data.vocab_size} tokens, the run's {run.state['vocab_size']}")
    # A run of BPTT alone never trained its teacher.
    guide = run.teacher if "smt" in run.config.phases else None
    result = {
        "run": str(path),
        "preset": run.config.preset,
        "split": args.split,
        "phases": list(run.config.phases),
        "parameters": sum(p.numel() for p in run.rnn.parameters()),
        "training_seconds": run.state["progress"]["seconds"],
        "training_tokens": run.state["progress"]["tokens"],
        **evaluate(run.rnn, guide, data.windows(args.split, args.batch_size, args.limit)),
        "chance": data.chance,
        "data": data.info,
        "versions": run.state["versions"],
    }
    if not data.answers:
        result["chance"] = None
    per_token = 1.0 if data.kind == "text" else (data.bytes_per_token or {}).get(args.split)
    for name in ("bits_per_token", "teacher_bits_per_token"):
        bits = result[name]
        result[name.replace("token", "byte")] = None if bits is None or per_token is None else bits / per_token
    from retain.data.documents import DocumentsData

    if isinstance(data, DocumentsData):
        from retain.likelihood import document_likelihood

        result["whole_documents"] = document_likelihood(
            run.rnn, data, args.split, batch_size=args.batch_size, limit=args.limit
        )
    (path / f"eval-{args.split}.json").write_text(json.dumps(result, indent=2) + "\n")
    if args.json:
        print(json.dumps(result, indent=2))
        return
    print(report(result, data.answers))


def report(result: dict[str, Any], answers: bool) -> str:
    """The figures of an evaluation as a few lines for a person."""

    def line(label: str, value: float | None, teacher: float | None, form: str) -> str:
        if value is None:
            return ""
        beside = "" if teacher is None else f"   teacher {teacher:{form}}"
        return f"{label:<18}{value:{form}}{beside}\n"

    text = f"{result['run']} on {result['split']}: {result['sequences']:,} sequences, {result['tokens']:,} targets\n"
    text += line("bits per token", result["bits_per_token"], result["teacher_bits_per_token"], ".3f")
    if result["bits_per_byte"] is not None and result["bits_per_byte"] != result["bits_per_token"]:
        text += line("bits per byte", result["bits_per_byte"], result["teacher_bits_per_byte"], ".3f")
    chance = f"   chance {result['chance']:.3f}\n" if answers and result["chance"] is not None else "\n"
    text += line("accuracy", result["accuracy"], result["teacher_accuracy"], ".3f").rstrip("\n") + chance
    if whole := result.get("whole_documents"):
        text += line("bits per document", whole["bits_per_document"], None, ".1f").rstrip("\n")
        text += f"   over {whole['documents']:,} whole documents\n"
    text += line("drift", result["drift"], None, ".4f")
    text += line("relative drift", result["relative_drift"], None, ".3f")
    text += line("  at the end", result["relative_drift_last"], None, ".3f")
    return (
        text
        + f"{'parameters':<18}{result['parameters']:,}\n{'tokens per second':<18}{result['tokens_per_second']:,.0f}"
    )


def generate_command(argv: list[str]) -> None:
    path, args = take_run(argv, "generate", Generate)
    if args.count < 1:
        raise Usage(f"count: {args.count} must be at least 1")
    if args.out is not None and not args.out.lower().endswith(".png"):
        raise Usage(f"out: {args.out} must be a .png")
    run = open_run(path, teacher=False, device=args.device)
    if args.complete is not None or args.images:
        from retain.complete import complete_images

        write_samples(path, dataclasses.asdict(args), complete_images(run, path, args))
        return
    import torch

    from retain.data import decode, encode
    from retain.generate import check_sampling, fast_step, generate, read_tokenizer, save_image_grid, token_writer

    kind, shape, vocab_size = run.state["kind"], run.state["image_shape"], run.state["vocab_size"]
    tokenizer = read_tokenizer(path)
    prompt = tokenizer.encode(args.prompt, add_special_tokens=False).ids if tokenizer else None
    prompt = encode(args.prompt, kind, vocab_size) if prompt is None else prompt
    image = kind == "image" and shape is not None
    if args.out is not None and not image:
        raise Usage(f"out: {args.out} is for images, and this run is of {kind}; leave it out")
    length = args.length
    if image:
        size = shape[0] * shape[1]
        if length is not None and length != size - len(prompt):
            raise Usage(f"length: {length} does not fill an image of {size} pixels; leave it out")
        if len(prompt) > size:
            raise Usage(f"prompt: {len(prompt)} pixels are more than an image has, {size}")
        length = size - len(prompt)
    length = 500 if length is None else length
    check_sampling(length, args.temperature, args.top_k, args.top_p)
    rows = args.count if image else 1
    start = torch.tensor([prompt] * rows, dtype=torch.long).view(rows, len(prompt))
    stream = generate(
        run.rnn,
        start,
        length,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        seed=args.seed,
        step=fast_step(run.rnn) if args.compile else None,
    )
    settings = dataclasses.asdict(args) | {"length": length}
    if image:
        tokens = torch.cat([start, torch.stack([t.cpu() for t in stream], 1)], 1) if length else start
        target = Path(args.out) if args.out else path / "samples.png"
        save_image_grid(tokens, (shape[0], shape[1]), vocab_size, target)
        write_samples(path, settings, {"images": tokens.tolist(), "png": str(target)})
        print(f"{rows} images in {target}")
        return
    sampled: list[int] = []
    write: Callable[[int], None] = lambda token: print(decode([token], kind), end=" ", flush=True)  # noqa: E731
    if tokenizer:
        write = token_writer(tokenizer)
    elif kind == "text":
        write = text_writer()
    if args.prompt:
        print(args.prompt, end="" if kind == "text" or tokenizer else " ", flush=True)
    for token in stream:
        if int(token[0]) == run.state.get("end"):
            break
        sampled.append(int(token[0]))
        write(sampled[-1])
    print()
    text = tokenizer.decode(sampled) if tokenizer else decode(sampled, kind)
    write_samples(path, settings, {"tokens": sampled, "text": text})


def write_samples(path: Path, settings: dict[str, Any], samples: dict[str, Any]) -> None:
    (path / "samples.json").write_text(json.dumps({"settings": settings, **samples}) + "\n")


def text_writer() -> Callable[[int], None]:
    """Writes bytes to stdout as they come, a character as soon as it is whole."""
    import codecs

    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def write(token: int) -> None:
        sys.stdout.write(decoder.decode(bytes([token])))
        sys.stdout.flush()

    return write


def info_command(argv: list[str]) -> None:
    path, args = take_run(argv, "info", Info)
    run = open_run(path, teacher=False, device="cpu")
    from retain.config import to_dict

    results = {f.stem: json.loads(f.read_text()) for f in sorted(path.glob("eval-*.json"))}
    state = {k: v for k, v in run.state.items() if k != "optimizer"}
    info = {
        "run": str(path),
        "finished": (path / "summary.json").exists(),
        "parameters": sum(p.numel() for p in run.rnn.parameters()),
        "memory": [run.config.memory.tokens, run.config.memory.width],
        **state,
        "results": results,
        "config": to_dict(run.config),
    }
    if args.json:
        print(json.dumps(info, indent=2))
        return
    c, p = run.config, state["progress"]
    made = ", ".join(f"{k} {v}" for k, v in state["versions"].items())
    lines = [
        f"{path}: {c.preset}, {' then '.join(c.phases)}, {'finished' if info['finished'] else 'not finished'}",
        f"  data      {state['data'].get('name')}, vocabulary {state['vocab_size']}, T = {c.data.seq_len}",
        f"  RNN       {c.cell.kind} cell, {info['parameters']:,} parameters",
        f"  memory    {c.memory.tokens} x {c.memory.width}, {c.memory.norm} normalised",
        f"  teacher   {c.teacher.encoder} encoder, width {c.teacher.width}, {c.teacher.layers} layers",
        f"  model     step {p['step']}, after {p['seconds']:.0f} s and {p['tokens']:,} tokens; "
        f"validation {p['best_value']:.3f} bits/token",
        f"  made by   {made}, {state['precision']} on {state['device']}",
    ]
    print("\n".join(lines))
    for name, result in results.items():
        print(f"  {name}   {result['bits_per_token']:.3f} bits/token, accuracy {result['accuracy']:.3f}")

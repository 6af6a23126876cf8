"""`retain train`: a preset or a config, what is changed in it, and where the run goes."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from shlex import quote

from retain.cli.arguments import Usage, parse, take_option
from retain.config import PHASES, READ_BY_CELL, DMTConfig, RunConfig, SMTConfig
from retain.config.json import load_config
from retain.config.presets import NEED_DATA, PRESETS

TRAIN_HELP = """\
Pretrain an RNN by the phases of a preset, into a run folder.

--out DIR        the run folder (default: runs/PRESET)
--resume         go on from the newest checkpoint in --out; its config is kept
--config FILE    start from this config.json instead of a preset
--data PATH      what to train on: a text, an integer .npy, hf:NAME[:CONFIG] of the Hugging Face hub, a parquet,
                 JSON, CSV or Arrow file, or a folder: of texts (each a document), of such files, or of images
--text-column C  the dataset's column of texts (default: text)
--image-column C the dataset's column of images, instead of texts (default: image)
--stream         train straight from the dataset; nothing is prepared on disk
--dry-run        train nothing: print sizes, memory, and FLOPs and time from a few steps (--json: as JSON)
--quiet          no progress bar of training
"""


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
    if _sets(argv, "--preset"):
        raise Usage(f"preset: name it first and without a dash, one of {', '.join(PRESETS)}")
    folder = Path(out or f"runs/{preset}") if out or preset else None
    if resume and file is not None:
        raise Usage(f"config: a run goes on with its own; leave out --config {file} or --resume")
    if resume:
        if folder is None:
            raise Usage("resume: name the run folder with --out")
        if not (folder / "config.json").exists():
            raise Usage(f"resume: {folder} holds no run; leave out --resume to start one")
        base = load_config(folder / "config.json")
        if preset is not None and base.preset != preset:
            other = base.preset or "custom settings"
            raise Usage(f"resume: {folder} is a run of {other}, not of {preset}; leave the preset out")
    elif file is not None:
        base = load_config(Path(file) / "config.json" if Path(file).is_dir() else Path(file))
        folder = folder or Path(f"runs/{base.preset or 'custom'}")
    elif preset is not None:
        base = PRESETS[preset]()
    else:
        raise Usage(f"retain train: name a preset first ({', '.join(PRESETS)}) or give --config FILE")
    assert folder is not None
    if data is not None:
        from retain.data.paths import with_path

        base = dataclasses.replace(base, data=with_path(base.data, data, text_column, image_column))
    elif text_column or image_column:
        raise Usage("--text-column, --image-column: these are columns of a dataset; name it with --data")
    elif preset in NEED_DATA and not resume and not any(a.startswith("--data.path") for a in argv):
        raise Usage(f"data: the {preset} preset needs {NEED_DATA[preset]}; give --data PATH")
    config = parse(RunConfig, argv, f"retain train {preset or 'PRESET'}", base)
    from retain.data.paths import absolute

    if not resume:
        config.data.check_read()
    if not resume or _sets(argv, "--data.path") or data is not None:
        # A run is scored and resumed from other folders, too.
        named = {name: getattr(config.data, name) for name in ("path", "tokenizer")}
        whole = {name: absolute(path) for name, path in named.items() if path is not None}
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, **whole))
    if not resume and config.init_from is not None:
        config = dataclasses.replace(config, init_from=absolute(config.init_from))
    if _sets(argv, "--budget") and all(getattr(config, phase).budget for phase in config.phases):
        raise Usage(f"budget: {config.budget} is shared by no phase, each has its own; leave one or the other out")
    return config, folder, resume, quiet


def _sets(argv: list[str], option: str) -> bool:
    return any(word.partition("=")[0] == option for word in argv)


OF_TEACHER_ALONE = {"encoder", "layers", "future_len", "context_len", "recompute"}
"""Fields of `teacher` that say nothing of the RNN's readout."""


def unread(argv: list[str], config: RunConfig) -> list[str]:
    """A line for each option that was given and this run does not read."""
    found = []
    for option in (word.partition("=")[0] for word in argv if word.startswith("--")):
        section, _, field = option[2:].replace("-", "_").partition(".")
        field = field.removeprefix("no_")
        kind = config.cell.kind
        if (section, field) == ("smt", "lambda_trunk") and config.has_teacher and config.teacher.encoder != "window":
            continue
        if section in PHASES and field and section not in config.phases:
            found.append(f"{option}: not read, {section} is none of this run's phases ({', '.join(config.phases)})")
        elif section == "cell" and field and field not in READ_BY_CELL.get(kind, {field}):
            found.append(f"{option}: not read by a {kind} cell")
        elif section == "teacher" and field in OF_TEACHER_ALONE and not {"smt", "dmt"} & set(config.phases):
            found.append(f"{option}: not read, there is no teacher in a run of {', '.join(config.phases)}")
        elif (section, field) == ("smt", "lambda_trunk") and config.teacher.encoder == "window":
            found.append(f"{option}: not read, a window encoder has no trunk")
        elif (section, field) in (("smt", "on_policy"), ("smt", "horizon")) and covers(config.smt, config):
            found.append(f"{option}: not read, f runs over the whole sequence (smt.unroll)")
        elif section == "dmt" and field.startswith("horizon") and covers(config.dmt, config):
            found.append(f"{option}: not read, f runs over the whole sequence (dmt.unroll)")
        elif (section, field) == ("smt", "horizon") and config.smt.on_policy == 0:
            found.append(f"{option}: not read, with smt.on_policy 0")
        elif (section, field) == ("dmt", "horizon") and config.dmt.horizon_growth == 0:
            found.append(f"{option}: not read, with dmt.horizon_growth 0 it is dmt.horizon_end from the first step on")
    return found


def covers(phase: SMTConfig | DMTConfig, config: RunConfig) -> bool:
    """Whether the phase runs f over the whole sequence at a stretch."""
    length = phase.seq_len or config.data.seq_len
    if isinstance(phase, SMTConfig):
        length = min(length, phase.steps_per_sequence or length)
    return phase.unroll is None or phase.unroll >= length


def train_command(argv: list[str]) -> None:
    dry, as_json = "--dry-run" in argv, "--json" in argv
    if as_json and not dry:
        raise Usage("--json: goes with --dry-run")
    config, out, resume, quiet = train_config([a for a in argv if a not in ("--dry-run", "--json")])
    for line in unread(argv, config):
        print(f"retain: {line}", file=sys.stderr)
    if dry:
        from retain.training.dry_run import dry_run, report_lines

        found = dry_run(config)
        print(json.dumps(found, indent=2) if as_json else report_lines(found))
        return
    from retain.training.loop import train

    summary = train(config, out, resume=resume, progress_bar=not quiet)
    if summary:
        bits = summary["validation_bits_per_token"]
        best = (
            "the RNN alone has no finite score on validation"
            if bits is None
            else f"best RNN at step {summary['best_step']}, {bits:.3f} bits/token on validation"
        )
        print(
            f"{out}: {summary['steps']} steps, {summary['tokens']:,} tokens, {summary['seconds']:.0f} s; {best}\n"
            f"next: retain eval {quote(str(out))}, retain generate {quote(str(out))}"
        )

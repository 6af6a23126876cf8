"""`retain train`: a preset or a config, changes to it, and the run folder."""

from __future__ import annotations

import dataclasses
import json
import sys
from itertools import pairwise
from pathlib import Path
from shlex import quote
from typing import Any, TypeVar

from retain.cli.arguments import Usage, name_option, parse, take_option, warn
from retain.cli.train_help import print_help, reason_unread
from retain.config import DataConfig, RunConfig
from retain.config.data import find_readers
from retain.config.json import load_config
from retain.config.presets import NEED_DATA, PRESETS
from retain.config.recipes import LANGUAGE_MODEL, default_recipe, with_language_model, with_recipe

T = TypeVar("T", RunConfig, DataConfig)


def train_config(argv: list[str]) -> tuple[RunConfig, Path, bool, bool]:
    """Return the run that a `retain train` line describes: config, folder, resume, quiet."""
    taken = []
    for name in ("out", "config", "data", "text-column", "image-column", "recipe", "teacher.from", "labels"):
        value, argv = take_option(argv, f"--{name}")
        taken.append(value)
    out, file, data, text_column, image_column, recipe, source, labels = taken
    asked = {"-h", "--help", "--help-all"} & set(argv)
    resume, quiet = "--resume" in argv, "--quiet" in argv
    argv = [a for a in argv if a not in ("--resume", "--quiet", *asked)]
    preset = argv.pop(0) if argv and not argv[0].startswith("-") else None
    prog = f"retain train {preset or 'PRESET'}"
    given = [name_option(word) for word in argv]
    if asked and preset is None and file is None:
        preset = "stdlib"
    if preset is not None and preset not in PRESETS:
        raise Usage(f"preset: {preset!r} is none of {', '.join(PRESETS)}")
    if preset is not None and file is not None:
        raise Usage(f"config: give a preset or --config, not both ({preset} and {file})")
    if "--preset" in given:
        raise Usage(f"preset: name it first and without a dash, one of {', '.join(PRESETS)}")
    folder = Path(out or f"runs/{preset}") if out or preset else None
    if resume and file is not None:
        raise Usage(f"config: a resumed run keeps its own; leave out --config {file} or --resume")
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
    if (source or labels) and resume:
        raise Usage("teacher.from, labels: a resumed run keeps its own; leave them out, or --resume")
    if asked and (source or labels):  # the help shows the options of a model without loading it
        base = dataclasses.replace(base, teacher=dataclasses.replace(base.teacher, from_=source or labels))
        source = labels = None
    if labels is not None:
        from retain.runs.trunk import with_labels_of

        base, source = with_labels_of(base, Path(labels), source), None
    if data is not None:
        from retain.data.paths import with_path

        subwords = "--data.tokenizer" in given or (source is not None and _has_subwords(source))
        base = dataclasses.replace(base, data=with_path(base.data, data, text_column, image_column, subwords))
    elif text_column or image_column:
        raise Usage("--text-column, --image-column: these are columns of a dataset; name it with --data")
    elif preset in NEED_DATA and not resume and not asked and not labels and "--data.path" not in given:
        raise Usage(f"data: the {preset} preset needs {NEED_DATA[preset]}; give --data PATH")
    if source is not None:
        from retain.runs.trunk import with_source

        base = with_source(base, source)
    if recipe is not None and resume:
        raise Usage(f"recipe: a resumed run keeps its own; leave out --recipe {recipe} or --resume")
    if recipe is None and preset is not None and not resume and base.longest_gradient_path > 1:
        recipe = default_recipe(_value_of(argv, "--cell.kind") or base.cell.kind)
    if recipe == LANGUAGE_MODEL and not asked:
        from retain.runs.trunk import find_width

        base = with_language_model(base, find_width(base))
    elif recipe is not None:
        base = with_recipe(base, "hybrid" if recipe == LANGUAGE_MODEL else recipe)
    _refuse_other_data(argv, base.data)
    config = parse(RunConfig, argv, prog, base)
    if asked:
        print_help(config, prog, everything="--help-all" in asked)
        sys.exit(0)
    # The run may be scored or resumed from another folder.
    if not resume or "--data.path" in given or data is not None:
        config = dataclasses.replace(config, data=_make_absolute(config.data, "path", "tokenizer"))
    if not resume:
        config = _make_absolute(config, "init_from")
    return config, folder, resume, quiet


def _make_absolute(settings: T, *names: str) -> T:
    from retain.data.paths import absolute

    paths = {name: getattr(settings, name, None) for name in names}
    whole: dict[str, Any] = {name: absolute(path) for name, path in paths.items() if path is not None}
    return dataclasses.replace(settings, **whole)


def _has_subwords(source: str) -> bool:
    """Whether the model of --teacher.from has a tokenizer. Only run folders of retain may have none."""
    from retain.runs.trunk import is_run

    return not is_run(source) or (Path(source) / "tokenizer.json").exists()


def _refuse_other_data(argv: list[str], data: DataConfig) -> None:
    """Raise Usage for an option that this data lacks, and name the data that has it."""
    for option in (word.partition("=")[0] for word in argv if word.startswith("--data.")):
        field = option.removeprefix("--data.").replace("-", "_").removeprefix("no_")
        if not hasattr(data, field) and (readers := find_readers(field)):
            raise Usage(f"data.{field}: {option} is for {readers}, not {data.name}; leave it out")


def _value_of(argv: list[str], option: str) -> str | None:
    """Return the value of an option, in any form that tyro accepts."""
    value = None
    for word, following in pairwise([*argv, ""]):
        if name_option(word) == option:
            value = word.partition("=")[2] if "=" in word else following
    return value


def list_unread(argv: list[str], config: RunConfig) -> list[str]:
    """Return a line for each given option that this run does not read, with the reason."""
    found = []
    for option in (word.partition("=")[0] for word in argv if word.startswith("--")):
        section, _, field = option[2:].replace("-", "_").partition(".")
        if reason := reason_unread(config, section, field.removeprefix("no_")):
            found.append(f"{option}: not read, {reason}")
    return found


def train_command(argv: list[str]) -> None:
    """Run `retain train`."""
    dry, as_json = "--dry-run" in argv, "--json" in argv
    if as_json and not dry:
        raise Usage("--json: needs --dry-run")
    config, out, resume, quiet = train_config([a for a in argv if a not in ("--dry-run", "--json")])
    for line in list_unread(argv, config):
        warn(line)
    if dry:
        from retain.training.dry_run import dry_run, report_lines

        found = dry_run(config)
        print(json.dumps(found, indent=2) if as_json else report_lines(found))
        return
    from retain.training.loop import train

    summary = train(config, out, resume=resume, progress_bar=not quiet)
    if summary:
        bits, path = summary["validation_bits_per_token"], summary["longest_gradient_path"]
        then = "forecast" if config.data.name == "series" else "generate"
        best = (
            "the RNN alone has no finite score on validation"
            if bits is None
            else f"best RNN at step {summary['best_step']}, {bits:.3f} bits/token on validation"
        )
        print(
            f"{out}: {summary['steps']} steps, {summary['tokens']:,} tokens, {summary['seconds']:.0f} s, "
            f"gradients through at most {path} step{'s' * (path > 1)} of time; {best}\n"
            f"next: retain eval {quote(str(out))}, retain {then} {quote(str(out))}"
        )

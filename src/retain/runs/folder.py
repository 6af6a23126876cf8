"""Run folders: whether a run can start, resume, or is finished, and where its parts are."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from retain.config import RunConfig
from retain.config.json import flatten, load_config, to_dict
from retain.errors import UserError
from retain.runs.lock import is_free

MAY_CHANGE = {"device", "tracker", "data.path", "teacher.from_", "teacher.labels"}
"""Fields that may change when a run is resumed: its device and tracker, and the places of what it reads."""


def phase_folder(path: Path, config: RunConfig, index: int) -> Path:
    """Return the folder of the model after phase `index` (0, 1, …), such as RUN/phases/1-smt."""
    return path / "phases" / f"{index + 1}-{config.phases[index]}"


def prepare_folder(config: RunConfig, out: Path, resume: bool) -> None:
    """Raise UserError if this would overwrite another run, or resume a run with another config."""
    saved = out / "config.json"
    if resume:
        if not saved.exists():
            raise UserError(f"resume: {out} holds no run; leave out --resume to start one")
        refuse_change(load_config(saved), config, out)
        if not has_begun(out) and has_lost_checkpoints(out):
            raise UserError(
                f"resume: {out / 'checkpoints'} is gone, and so are the trained weights; restore it, or delete "
                f"{out} to train again"
            )
    elif not is_free(out):
        raise UserError(f"out: {out} already exists; add --resume to go on with it, or name another folder")


def refuse_change(before: RunConfig, now: RunConfig, out: Path, remedy: str = "resume without it") -> None:
    """Raise UserError if a run is resumed with other settings. The message names the first of them."""
    then, given = flatten(to_dict(before)), flatten(to_dict(now))
    own = str((out / "tokenizer.json").resolve())  # `load_run` names the copy in the run folder
    for key in sorted(given.keys() - MAY_CHANGE):
        if key in ("data.tokenizer", "data.prune_vocab") and given.get("data.tokenizer") == own:
            continue
        if then.get(key) != given[key]:
            raise UserError(
                f"resume: {key} was {then.get(key)!r} in {out} and is {given[key]!r} now; "
                f"{remedy}, or train into a new --out"
            )


def has_lost_checkpoints(out: Path) -> bool:
    """Whether a run without a checkpoint once had one.

    The first validation with a finite score saves one before the next step.
    """
    if (out / "phases").exists():
        return True
    path = out / "metrics.jsonl"
    lines = path.read_bytes().splitlines() if path.exists() else []
    return any(re.search(rb'"validation_bits_per_token": \d', line) for line in lines[:-1])


def has_begun(out: Path) -> bool:
    """Whether a run ever saved anything to resume from."""
    checkpoints = (f for f in (out / "checkpoints").glob("*") if not f.name.startswith(".tmp-"))
    return any(checkpoints) or (out / "manifest.json").exists()


def finished(path: Path) -> bool:
    """Whether there is nothing to resume: training is over, or the model was trained elsewhere and copied here."""
    return (path / "summary.json").exists() or (
        (path / "manifest.json").exists() and not (path / "checkpoints").exists()
    )


def discard(out: Path) -> None:
    """Delete what a run wrote, if it never saved anything, so that another run can use the folder."""
    if has_begun(out):
        return
    for name in ("config.json", "data.json", "tokenizer.json", "metrics.jsonl"):
        (out / name).unlink(missing_ok=True)
    for name in ("checkpoints", "trackers"):
        shutil.rmtree(out / name, ignore_errors=True)

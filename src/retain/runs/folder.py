"""Run folders: whether a run can start, go on, or is over, and where its parts are."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from retain.config import RunConfig
from retain.config.json import flatten, load_config, to_dict
from retain.errors import UserError
from retain.runs.lock import is_free

MAY_CHANGE = {"device", "tracker", "data.path", "teacher.from_", "teacher.labels"}
"""Fields that may change when a run is resumed: where it runs, whom it tells, and where what it reads has moved to."""


def phase_folder(path: Path, config: RunConfig, index: int) -> Path:
    """Name the folder of the model as phase `index` (0, 1, …) left it: RUN/phases/1-smt."""
    return path / "phases" / f"{index + 1}-{config.phases[index]}"


def prepare_folder(config: RunConfig, out: Path, resume: bool) -> None:
    """Refuse to overwrite another run, or to go on with another config than the run's. Raises UserError."""
    saved = out / "config.json"
    if resume:
        if not saved.exists():
            raise UserError(f"resume: {out} holds no run; leave out --resume to start one")
        refuse_change(load_config(saved), config, out)
        if not has_begun(out) and has_lost_checkpoints(out):
            raise UserError(
                f"resume: {out / 'checkpoints'} is gone, and with it what the run had learnt; bring it back, or delete "
                f"{out} to train anew"
            )
    elif not is_free(out):
        raise UserError(f"out: {out} already exists; add --resume to go on with it, or name another folder")


def refuse_change(before: RunConfig, now: RunConfig, out: Path, remedy: str = "resume without it") -> None:
    """Refuse to go on with settings that the run did not have. Raises UserError naming the first of them."""
    then, given = flatten(to_dict(before)), flatten(to_dict(now))
    own = str((out / "tokenizer.json").resolve())  # what `load_run` says of a run that has a copy
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

    Its first validation that is a number leaves one, before another step is made.
    """
    if (out / "phases").exists():
        return True
    path = out / "metrics.jsonl"
    lines = path.read_bytes().splitlines() if path.exists() else []
    return any(re.search(rb'"validation_bits_per_token": \d', line) for line in lines[:-1])


def has_begun(out: Path) -> bool:
    """Whether a run ever saved anything that resuming could go on from."""
    checkpoints = (f for f in (out / "checkpoints").glob("*") if not f.name.startswith(".tmp-"))
    return any(checkpoints) or (out / "manifest.json").exists()


def finished(path: Path) -> bool:
    """Whether there is nothing to resume: training is over, or it was done elsewhere and the model put here."""
    return (path / "summary.json").exists() or (
        (path / "manifest.json").exists() and not (path / "checkpoints").exists()
    )


def discard(out: Path) -> None:
    """Delete what a run wrote, if it never saved anything, so that another can be trained into its folder."""
    if has_begun(out):
        return
    for name in ("config.json", "data.json", "tokenizer.json", "metrics.jsonl"):
        (out / name).unlink(missing_ok=True)
    for name in ("checkpoints", "trackers"):
        shutil.rmtree(out / name, ignore_errors=True)

"""Resuming a run from its newest checkpoint, and the message of a stopped run."""

from __future__ import annotations

import logging
import shlex
from typing import Any

from retain.config.json import from_dict, save_config
from retain.errors import Interrupted, UserError
from retain.runs.checkpoint import Loaded, latest_checkpoint, load_files
from retain.runs.folder import has_begun, refuse_change
from retain.runs.metrics import truncate_after
from retain.runs.progress import Progress
from retain.training.job import Job

log = logging.getLogger("retain")


def restore(job: Job) -> Loaded | None:
    """Load the newest checkpoint and set the progress to it; None if the run stopped before its first one.

    Lines of later steps are dropped from metrics.jsonl. Raises UserError if the run cannot resume with these settings,
    processes, cell or data.
    """
    saved, out = None, job.out
    if has_begun(out):
        saved = load_files(latest_checkpoint(out), device=job.accelerator.device)
        state = saved[1]
        if "config" in state:  # config.json may have been changed since
            refuse_change(from_dict(state["config"]), job.config, out, "put it back in config.json")
        now, before = job.accelerator.num_processes, state["processes"]
        if now != before:
            raise UserError(
                f"resume: {out} was trained by {before} processes and is resumed by {now}; start as many "
                f"({before} × batch_size is one batch), or train into a new --out"
            )
        _refuse_other_parts(job, state)
        _refuse_other_trunk(job, state)
        if job.is_main:
            _warn_of_other_machine(job, state)
            save_config(job.config, out / "config.json")  # settings that may change may have changed
        job.progress = Progress(**state["progress"])
    elif job.is_main:
        log.warning("%s: stopped before its first checkpoint; starting it from the beginning", out)
    if job.is_main:
        p = job.progress
        truncate_after(out / "metrics.jsonl", p.step, validated=p.validated == p.step)
    return saved


def _refuse_other_parts(job: Job, state: dict[str, Any]) -> None:
    """Refuse to resume with another cell or other data than were given in Python."""
    for what, key, given in (("cell", "own_cell", job.own_cell), ("data", "own_data", job.own_data)):
        before = state.get(key) or None
        if before != (given or None):
            how = f"give it, as in train(config, out, resume=True, {what}=…)" if before else f"leave out {what}="
            whose = f"the {what} given in Python" if before else f"the {what} that its config names"
            raise UserError(f"resume: {job.out} was trained with {whose}; {how}")


def _refuse_other_trunk(job: Job, state: dict[str, Any]) -> None:
    """Refuse to resume with another language model than the teacher's weights were trained for."""
    trunk, before = job.teacher.given_trunk, state.get("teacher_from")
    if trunk is not None and before and any(trunk.identity.get(k) != before.get(k) for k in ("sha256", "revision")):
        raise UserError(
            f"resume: {trunk.identity['from']} is not the model that {job.out} was trained with: its weights differ; "
            f"bring back {before['from']}, or train into a new --out"
        )


def _warn_of_other_machine(job: Job, state: dict[str, Any]) -> None:
    now = job.state()
    for name in ("precision", "device", "threads"):
        then = str(state.get(name)).partition(":")[0]
        if then != str(now[name]).partition(":")[0]:
            change = f"{name} was {then} and is {now[name]}"
            log.warning("%s: %s now, so the run will not be the same bit for bit", job.out, change)


def interrupted(job: Job) -> Interrupted:
    """Return the error of a stopped run, which says how to resume it."""
    if not job.progress.step:
        return Interrupted("interrupted before the first step; nothing is saved")
    processes = job.accelerator.num_processes
    start = f"torchrun --nproc-per-node {processes} -m retain" if processes > 1 else "retain"
    again = f"{start} train --out {shlex.quote(str(job.out))} --resume"
    if job.own_cell or job.own_data:
        again = "retain.train(config, out, resume=True, …) and the same cell and data"
    return Interrupted(f"stopped at step {job.progress.step} and saved; go on with: {again}")

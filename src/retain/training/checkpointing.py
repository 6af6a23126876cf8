"""Checkpoints at regular intervals, the model at the end of each phase, and the export of the best model."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

from retain.config.budget import Budget
from retain.files import replace_file
from retain.runs.checkpoint import best_checkpoint, export, list_checkpoints, load_files, save_checkpoint, save_files
from retain.runs.folder import phase_folder
from retain.runs.optimizer_state import dump_optimizer
from retain.runs.progress import Every
from retain.training.job import Job
from retain.training.losses_log import LossesLog
from retain.training.phases import Phase

EVERY = Budget(60, "s")
"""The longest time between two checkpoints. Each validation saves one, too."""


class Checkpoints:
    """Saves models, optimizer and progress during a phase."""

    def __init__(self, job: Job, phase: Phase, losses: LossesLog):
        self.job, self.phase, self.losses = job, phase, losses
        self.every = Every(EVERY, job.progress)

    def is_due(self) -> bool:
        """Whether it is time for a checkpoint."""
        return self.every.is_due(self.job.progress)

    def save(self, *, again: bool = False) -> None:
        """Save a checkpoint once per step, or `again` if the state at this step has changed."""
        self.losses.fetch()
        job, step = self.job, self.job.progress.step
        if not job.is_main or (job.saved_at == step and not again):
            return
        self.phase.objective.finish()
        tensors, rest = dump_optimizer(self.phase.optimizer.optimizer, self.phase.named)
        groups = {"model": job.rnn.state_dict(), "teacher": job.teacher.state_dict(), "optimizer": tensors}
        save_checkpoint(job.out, step, groups, job.state() | {"optimizer": rest}, best=job.progress.best_step)
        job.saved_at = step

    def save_phase(self) -> None:
        """Save the model at the end of the phase: checkpoints rotate, so only this copy shows what the phase did."""
        job = self.job
        if job.is_main:
            folder = phase_folder(job.out, job.config, self.phase.index)
            tensors = {"model": job.rnn.state_dict(), "teacher": job.teacher.state_dict()}
            save_files(folder, tensors, job.state(), previous=list_checkpoints(job.out))


def export_best(job: Job) -> dict[str, Any]:
    """Export the best model; write and return the summary, which is empty in other processes than the main one."""
    p = job.progress
    summary: dict[str, Any] = {}
    if job.is_main:
        tensors, state = load_files(best_checkpoint(job.out), ["model", "teacher"])
        state.pop("optimizer", None)
        export(job.out, tensors, state)
        best = p.best_value if math.isfinite(p.best_value) else None
        summary = {
            "preset": job.config.preset,
            "phases": list(job.config.trained),
            "steps": p.step,
            "seconds": p.seconds,
            "tokens": p.tokens,
            "sequential_steps": p.sequential,
            "longest_gradient_path": job.config.longest_gradient_path,
            "best_step": p.best_step,
            "validation_bits_per_token": best,
            "parameters": sum(q.numel() for q in job.rnn.parameters()),
            "teacher_parameters": sum(q.numel() for q in job.teacher.parameters()),
            **{key: value for key, value in job.state().items() if key not in ("config", "progress")},
            "progress": dataclasses.asdict(p) | {"best_value": best},
        }
        replace_file(job.out / "summary.json", json.dumps(summary, indent=2).encode() + b"\n")
    job.accelerator.wait_for_everyone()
    return summary

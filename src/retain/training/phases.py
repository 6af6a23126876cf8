"""The parts of a phase: objective, optimizer, learning rate, seeds, and the part of a batch that it reads."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn

from retain.config import PhaseConfig, RunConfig
from retain.model.rnn import RNN
from retain.model.teacher import Teacher
from retain.objectives import BPTT, DMT, SMT
from retain.ops.graphs import forget
from retain.runs.checkpoint import Loaded
from retain.runs.optimizer_state import load_optimizer
from retain.runs.run import load_weights
from retain.runs.trunk import embeddings_of
from retain.training.job import Job

BETAS = (0.9, 0.95)
"""The betas of AdamW, as in the paper."""


@dataclass(frozen=True)
class Phase:
    """A phase in training."""

    index: int
    config: PhaseConfig
    objective: SMT | DMT | BPTT
    wrapped: nn.Module
    """The objective, wrapped by Accelerate for several processes."""
    optimizer: AcceleratedOptimizer
    named: list[tuple[str, nn.Parameter]]
    """The trained parameters, with their names in the objective."""


@contextmanager
def start_phase(job: Job, saved: Loaded | None) -> Iterator[Phase]:
    """Build the objective and optimizer of the current phase, with the state of the checkpoint `saved` if it is given.

    Device memory that the phase holds is released at the end of the `with` block.
    """
    index = job.progress.phase
    config: PhaseConfig = getattr(job.config, job.phase_name())
    objective = objective_of(index, job.config, job.rnn, job.teacher)
    objective.zero_grad()  # a user's cell may bring gradients of its own
    named = [(name, q) for name, q in objective.named_parameters() if q.requires_grad]
    groups = group_by_rate(named, job)
    optimizer = torch.optim.AdamW(
        groups,
        lr=config.lr,
        betas=BETAS,
        weight_decay=job.config.optimizer.weight_decay,
        fused=job.accelerator.device.type in ("cpu", "cuda"),
    )
    if saved is not None:
        tensors, state = saved
        load_weights(job.rnn, tensors["model"], job.out)
        load_weights(job.teacher, tensors["teacher"], job.out)
        load_optimizer(optimizer, named, tensors["optimizer"], state["optimizer"])
    wrapped, prepared = job.accelerator.prepare(objective, optimizer)
    try:
        yield Phase(index, config, objective, wrapped, prepared, named)
    finally:
        forget()
        job.accelerator.free_memory()


def objective_of(index: int, config: RunConfig, rnn: RNN, teacher: Teacher) -> SMT | DMT | BPTT:
    """Build the objective of phase `index` (0, 1, …). Its class documents what it changes in both models."""
    objective = _build_objective(index, config, rnn, teacher)
    if config.teacher.freeze_embeddings:
        for table in embeddings_of(rnn, teacher):
            table.requires_grad_(False)
    return objective


def _build_objective(index: int, config: RunConfig, rnn: RNN, teacher: Teacher) -> SMT | DMT | BPTT:
    name, given = config.phases[index], config.teacher
    if name == "smt":
        fresh = index == 0 and config.init_from is None  # else the readout has been trained
        return SMT(teacher, rnn, config.smt, config.teacher.future_len, fresh=fresh)
    if name == "dmt":
        trained = teacher.given_trunk is not None or (config.has_teacher and config.smt.lambda_trunk > 0)
        return DMT(teacher, rnn, config.dmt, trunk_trained=trained, future_len=config.teacher.future_len)
    # After SMT on sequences with context, sequences start from the teacher's memory of the context.
    taught = given.context_before > 0 and "smt" in config.phases[:index]
    reads = given.from_ is not None and (taught or config.bptt.lambda_distill > 0)
    return BPTT(
        rnn,
        config.bptt.bptt_window,
        lambda_distill=config.bptt.lambda_distill if reads else 0.0,
        teacher=teacher if reads else None,
        taught=taught,
    )


def group_by_rate(named: list[tuple[str, nn.Parameter]], job: Job) -> list[dict[str, Any]]:
    """Group the trained parameters by learning rate: that of a given trunk is `scale` times that of the others."""
    trunk, rate = job.teacher.given_trunk, job.config.teacher.trunk_lr
    own = {id(q) for q in trunk.parameters()} if trunk is not None and trunk.trained else set()
    config: PhaseConfig = getattr(job.config, job.phase_name())
    groups = [
        {"params": [q for _, q in named if id(q) not in own], "scale": 1.0},
        {"params": [q for _, q in named if id(q) in own], "scale": (rate or 0.0) / config.lr},
    ]
    return [group for group in groups if group["params"]]


def learning_rate(config: PhaseConfig, warmup: float, progress: float) -> float:
    """Compute the rate at `progress` (0 … 1) of a phase: linear warm-up, then constant, or a cosine to a hundredth."""
    if progress < warmup:
        return config.lr * max(progress / warmup, 1e-3)
    if getattr(config, "lr_schedule", "cosine") == "constant":
        return config.lr
    over = min(1.0, (progress - warmup) / (1 - warmup))
    return config.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * over)))


def cut_part(batch: dict[str, Any], length: int | None) -> dict[str, Any]:
    """Cut a batch to `length` of its T tokens, from a random start; its first target is that of the memory there."""
    spare = batch["tokens"].shape[1] - (length or 0)
    if length is None or spare <= 0:
        return batch
    start = int(torch.randint(spare + 1, ()))
    lengths = {"tokens": length, "targets": length + 1, "real": length}
    part = batch | {name: batch[name][:, start : start + n] for name, n in lengths.items() if name in batch}
    if "fresh" in batch and start:
        part["fresh"] = torch.zeros_like(batch["fresh"])
    if "offset" in batch:
        part["offset"] = batch["offset"] + start
    if part["targets"].is_floating_point():  # m_0 has no level and scale, so it predicts no numbers
        part["targets"] = torch.cat([torch.full_like(part["targets"][:, :1], math.nan), part["targets"][:, 1:]], 1)
    return part


def mix_seed(seed: int, step: int) -> int:
    """Return a seed for a step, far from the seeds of its neighbours."""
    return (seed * 1_000_003 + step) * 4_099 % (2**62)

"""What the steps of a phase are made of: objective, learning rate, seeds, and how much of a batch they read."""

from __future__ import annotations

import math
from typing import Any

import torch

from retain.config import PhaseConfig, RunConfig
from retain.model.rnn import RNN
from retain.model.teacher import Teacher
from retain.objectives import BPTT, DMT, SMT


def objective_of(index: int, config: RunConfig, rnn: RNN, teacher: Teacher) -> SMT | DMT | BPTT:
    """The objective of phase `index` (0, 1, …); the class says what it does to both models when it is made."""
    name = config.phases[index]
    if name == "smt":
        fresh = index == 0 and config.init_from is None  # else the readout has been trained
        return SMT(teacher, rnn, config.smt, config.teacher.future_len, fresh_readout=fresh)
    if name == "dmt":
        return DMT(teacher, rnn, config.dmt, trunk_trained=config.has_teacher and config.smt.lambda_trunk > 0)
    return BPTT(rnn, config.bptt.bptt_window)


def learning_rate(config: PhaseConfig, warmup: float, progress: float) -> float:
    """Linear warm-up, then constant, or a cosine to a hundredth, over the phase's progress 0 … 1."""
    if progress < warmup:
        return config.lr * max(progress / warmup, 1e-3)
    if config.lr_schedule == "constant":
        return config.lr
    over = min(1.0, (progress - warmup) / (1 - warmup))
    return config.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * over)))


def part_of(batch: dict[str, Any], length: int | None) -> dict[str, Any]:
    """A batch cut to `length` of its T tokens, from a random place; its first target is that of the memory there."""
    spare = batch["tokens"].shape[1] - (length or 0)
    if length is None or spare <= 0:
        return batch
    start = int(torch.randint(spare + 1, ()))
    lengths = {"tokens": length, "targets": length + 1, "real": length}
    return batch | {name: batch[name][:, start : start + n] for name, n in lengths.items() if name in batch}


def seed_of(seed: int, step: int) -> int:
    """A seed for the step, far from those of its neighbours."""
    return (seed * 1_000_003 + step) * 4_099 % (2**62)

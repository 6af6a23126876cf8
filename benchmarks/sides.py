"""The models and steps that are measured: two fixed sizes, and one optimizer step as in the training loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.measure import autocast, device
from retain.config import CellConfig, DMTConfig, MemoryConfig, SMTConfig, TeacherConfig
from retain.config.presets import tinystories_paper
from retain.errors import UserError
from retain.model.compiling import fast_parts
from retain.model.fast import Parts, using
from retain.model.rnn import RNN
from retain.model.teacher import Teacher
from retain.objectives import SMT

VOCAB = 256


@dataclass(frozen=True)
class Size:
    """One of the fixed sizes of the benchmark."""

    memory: MemoryConfig
    teacher: TeacherConfig
    cell: CellConfig
    smt: SMTConfig
    batch: int
    length: int


SMALL = Size(
    memory=MemoryConfig(tokens=2, width=128, norm="batch"),
    teacher=TeacherConfig(encoder="state", width=128, heads=4, layers=3, decoder_layers=2, future_len=16),
    cell=CellConfig(kind="transformer", width=128, heads=4, layers=2),
    smt=SMTConfig(),
    batch=32,
    length=64,
)
_paper = tinystories_paper()
PAPER = Size(_paper.memory, _paper.teacher, _paper.cell, _paper.smt, batch=8, length=_paper.smt.seq_len or 320)


def at(size: Size, *, length: int, batch: int = 8) -> Size:
    """Return a size with another length and batch."""
    return dataclasses.replace(size, length=length, batch=batch)


def models(size: Size, *, recompute: bool = False, **teacher: object) -> tuple[RNN, Teacher]:
    """Build new models, always with the same weights; `teacher` changes fields of the teacher's config."""
    torch.manual_seed(0)
    config = dataclasses.replace(size.teacher, **teacher)  # type: ignore[arg-type]
    rnn = RNN(VOCAB, size.memory, config, size.cell)
    return rnn.to(device()), Teacher(VOCAB, size.memory, config, recompute).to(device())


def batch_of(size: Size) -> dict[str, Tensor]:
    """Return a random batch, always the same."""
    draws = torch.Generator().manual_seed(0)
    windows = torch.randint(VOCAB, (size.batch, size.length + 1), generator=draws).to(device())
    return {"tokens": windows[:, :-1].contiguous(), "targets": windows}


def training_step(
    objective: nn.Module,
    batch: dict[str, Tensor],
    *,
    bf16: bool = True,
    seed: int | None = None,
    parts: Parts | None = None,
) -> Callable[[], Tensor]:
    """Return a function that takes an optimizer step, `using` these parts.

    Every call is seeded with `seed`, or with the number of the call, so that every side draws the same random numbers.
    """
    parameters = [p for p in objective.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    turn = 0

    def step() -> Tensor:
        nonlocal turn
        torch.manual_seed(turn if seed is None else seed)
        turn += 1
        with using(parts or {}), autocast(bf16):
            loss: Tensor = objective(batch)["loss"]
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def full_window(size: Size) -> int:
    """Return a seed with which SMT draws a memory that has a full window of tokens before it.

    Otherwise a step over 50 tokens could be compared with one over 300.

    Raises:
        UserError: The size is too short for a full window.
    """
    context = size.teacher.context_len or size.length
    for seed in range(1000):
        torch.manual_seed(seed)
        if int(torch.randint(size.length, ())) >= context:
            return seed
    raise UserError(f"length: {size.length} has no full window of {context}; give more")


def smt_step(
    size: Size,
    *,
    compiled: bool = False,
    bf16: bool = True,
    seed: int | None = None,
    recompute: bool = False,
    **teacher: object,
) -> Callable[[], Tensor]:
    """Return a function that takes an SMT step; `teacher` changes fields of the teacher's config."""
    rnn, guide = models(size, recompute=recompute, **teacher)
    config = size.smt if guide_labels_all(size, teacher) else dataclasses.replace(size.smt, steps_per_sequence=1)
    objective, parts = SMT(guide, rnn, config, size.teacher.future_len), quicken(rnn, guide, compiled)
    return training_step(objective, batch_of(size), bf16=bf16, seed=seed, parts=parts)


def quicken(rnn: RNN, teacher: Teacher, compiled: bool) -> Parts:
    """Return the fast parts of our side: CUDA graphs on a GPU, where nothing is compiled; on a CPU `compiled` ones."""
    return fast_parts(rnn, teacher, compiled and device().type == "cpu")


def guide_labels_all(size: Size, teacher: dict[str, object]) -> bool:
    """Whether the encoder labels every step in one pass. The window encoder computes each separately."""
    return teacher.get("encoder", size.teacher.encoder) != "window"


WHOLE_ROLLOUT = DMTConfig(horizon_growth=0.0)
"""DMT with rollouts from m_0 to the end of the sequence."""

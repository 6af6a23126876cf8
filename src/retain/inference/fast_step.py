"""The step of an RNN, made fast for long texts."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from retain.inference.generate import Step
from retain.model.cells import CELLS, GRUCell, LSTMCell
from retain.model.rnn import RNN
from retain.ops.graphs import Replayed

log = logging.getLogger("retain")

BF16_PRODUCTS = 8_000_000
"""Multiplications of a step (streams × weights) from which bfloat16 weights are faster on a CPU. Below this number they
are up to three times slower (docs/log.md)."""


def fast_step(rnn: RNN, batch: int = 1) -> Step:
    """Compile `rnn.step` for long texts. The first step includes compiling, which takes about a minute.

    The weights are a copy of the present ones. They are in bfloat16 if the device is fast at it and, on a CPU, if
    `batch` streams make the products large enough. Memory stays float32, and so does a user's own cell. The step's
    results have no gradient and are tensors of inference mode: `.clone()` them before changing them in place. If
    nothing can be compiled, a line is logged and the step runs eagerly.
    """
    from retain.devices import fast_bf16
    from retain.model.compiling import STEP_ON_CPU, can_compile, compiled

    device = rnn.m_0.device
    weights = sum(p.numel() for part in (rnn.cell, rnn.readout) for p in part.parameters())
    bf16 = fast_bf16(device) and (device.type != "cpu" or batch * weights >= BF16_PRODUCTS)
    frozen = copy.deepcopy(rnn).eval()
    if bf16:
        frozen.bfloat16()
        if isinstance(frozen.cell, (GRUCell, LSTMCell)) or type(rnn.cell) not in CELLS.values():
            # These cells compute memory in the dtype of their weights, and a user's own cell might, too.
            frozen.cell.float()
            frozen.embed.float()
    exact: Step = frozen.step
    step = exact
    if can_compile(device):
        if device.type == "cpu":
            fast = compiled(exact, "step", STEP_ON_CPU)
            step = check_first_step(fast, exact, lambda: compiled(exact, "step"), tolerance=0.1 if bf16 else 1e-3)
        else:
            step = compiled(exact, "step")
    if device.type == "cuda" and type(rnn.cell) in CELLS.values():  # a user's own may branch on values
        replayed: Any = Replayed(step, at_first=True)
        step = replayed

    cast = torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()

    def run(token: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        with torch.inference_mode(), cast:
            # Always inference tensors: another kind would compile the step a second time.
            token, memory = (x if x.is_inference() else x.clone() for x in (token, memory))
            logits, memory = step(token, memory)
        return logits, memory

    return run


def check_first_step(fast: Step, exact: Step, otherwise: Callable[[], Step], tolerance: float) -> Step:
    """Use `fast` if its first step equals `exact` up to `tolerance` of the largest value; else `otherwise()`."""
    chosen: Step | None = None

    def step(token: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal chosen
        if chosen is None:
            # The kernels of small products have been wrong before (docs/log.md).
            pairs = zip(fast(token, memory), exact(token, memory), strict=True)
            right = all(float((a - b).abs().max()) <= tolerance * float(b.abs().max()) for a, b in pairs)
            if not right:
                log.warning("compile: the step's fastest kernels are wrong at this size; taking slower ones")
            chosen = fast if right else otherwise()
        return chosen(token, memory)

    return step

"""Losses of a long sequence, chunk by chunk, so that only one chunk's activations are held at a time.

Given the labels, the transitions that SMT trains are independent of each other, so their graphs need not exist at the
same time. Backpropagation through time can save memory only by recomputation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Losses = Callable[[Tensor, int, int], dict[str, Tensor]]


def sum_over_chunks(
    losses: Losses, weights: dict[str, float], memory: Tensor, parameters: Sequence[Tensor], num_chunks: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the weighted sum of the losses, with gradient, and the sum of each loss, without gradient.

    The sums are over `num_chunks` chunks of the sequence. memory (B, S + 1, K, D) is at the ends of S steps.
    losses(memory[:, a : b + 1], a, b) returns scalars of the steps a … b - 1 that add up over the chunks. This forward
    pass computes the gradients of `memory` and `parameters`, chunk by chunk and without recomputation. Anything else
    that the losses depend on gets no gradient.
    """
    steps = memory.shape[1] - 1
    cuts = torch.linspace(0, steps, min(num_chunks, steps) + 1).round().int().tolist()
    found: dict[str, Tensor] = {}

    def weighted(chunk: Tensor, a: int, b: int) -> Tensor:
        of_chunk = losses(chunk, a, b)
        for name, loss in of_chunk.items():
            found[name] = found.get(name, 0) + loss.detach()
        return torch.stack([weights[name] * loss for name, loss in of_chunk.items()]).sum()

    total: Tensor = _Chunks.apply(weighted, cuts, memory, *parameters)
    return total, found


class _Chunks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Callable[..., Tensor], cuts: list[int], memory: Tensor, *parameters: Tensor) -> Tensor:
        gradients = [torch.zeros_like(t) if t.requires_grad else None for t in (memory, *parameters)]
        total = torch.zeros((), device=memory.device)
        for a, b in pairwise(cuts):
            with torch.enable_grad():
                chunk = memory[:, a : b + 1].detach().requires_grad_(memory.requires_grad)
                of_chunk = loss(chunk, a, b)
            total = total + of_chunk.detach()
            into = [None if gradients[0] is None else gradients[0][:, a : b + 1], *gradients[1:]]
            wanted = [(t, g) for t, g in zip((chunk, *parameters), into, strict=True) if g is not None]
            # A backward pass runs outside of autocast.
            with torch.autocast(memory.device.type, enabled=False):
                ours = torch.autograd.grad(of_chunk, [t for t, _ in wanted], allow_unused=True)
            for (_, gradient), one in zip(wanted, ours, strict=True):
                if one is not None:
                    gradient += one
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        return None, None, *(None if g is None else grad * g for g in ctx.saved_tensors)

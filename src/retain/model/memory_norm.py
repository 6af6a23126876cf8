"""The normalisation of memory."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from retain.ops.elementwise import at_least_float32, rms
from retain.ops.fsq import quantise

MOMENTUM = 0.1
"""The smallest weight of a batch's statistics in the running statistics."""


class MemoryNorm(nn.Module):
    """The normalisation of memory, in float32. Teacher and RNN share this setting.

    rms: unit root mean square over D, as in the paper, for the teacher's memory and the cell's output alike.
    batch: zero mean and unit variance of each of the K x D dimensions over the batch and time of the teacher's memories
    (Ioffe & Szegedy 2015, no affine map; running statistics outside training). The cell's output is not normalised.
    Under `torch.distributed` the statistics are those of all processes.
    fsq: each number rounded to one of `levels` levels from -1 to 1, by `retain.ops.fsq.quantise`, for the teacher's
    memory and the cell's output alike.
    none: unchanged. The store encoder's memories would no longer follow from each other by the delta rule.
    """

    mean: Tensor
    variance: Tensor
    seen: Tensor

    def __init__(self, kind: Literal["rms", "batch", "fsq", "none"], tokens: int, width: int, levels: int = 5):
        super().__init__()
        self.kind, self.levels = kind, levels
        if kind == "batch":
            self.register_buffer("mean", torch.zeros(tokens, width))
            self.register_buffer("variance", torch.ones(tokens, width))
            self.register_buffer("seen", torch.zeros(()))

    def forward(self, memory: Tensor, counted: Tensor | None = None) -> Tensor:
        """Normalise memory (…, K, D). The statistics include the memories that are `counted` (…), by default all."""
        memory = at_least_float32(memory)
        if self.kind == "rms":
            return rms(memory)
        if self.kind == "fsq":
            return quantise(memory, self.levels)
        if self.kind == "none":
            return memory
        if self.training:
            mean, variance, count = _moments(memory, counted)
            if dist.is_initialized() and dist.get_world_size() > 1:
                own = torch.stack([mean, variance, count.expand_as(mean)])
                means, variances, counts = _OfAllProcesses.apply(own).unbind(1)
                count = counts.sum(0)
                share = counts / count.clamp_min(1)
                mean = (share * means).sum(0)
                variance = (share * (variances + (means - mean).square())).sum(0)  # Chan, Golub & LeVeque 1979
            with torch.no_grad():
                # A plain average at first, so that the statistics are usable from the first step on.
                some = (count > 0).all()  # without any memory the statistics stay
                self.seen += some
                weight = torch.clamp(1 / self.seen.clamp_min(1), min=MOMENTUM) * some
                self.mean.lerp_(mean, weight)
                self.variance.lerp_(variance, weight)
        else:
            mean, variance = self.mean, self.variance
        return (memory - mean) * torch.rsqrt(variance + 1e-5)


def _moments(memory: Tensor, counted: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean and variance (K, D) of the memories (…, K, D) that are `counted`, and their number."""
    axes = tuple(range(memory.dim() - 2))
    # Not the mean square minus the squared mean: the two cancel if memories lie far from 0.
    if counted is None:
        mean = memory.mean(axes)
        count = memory.new_full((), memory.shape[:-2].numel())
        return mean, (memory - mean).square().mean(axes), count
    left_out, count = ~counted[..., None, None], counted.sum().to(memory.dtype)
    mean = memory.masked_fill(left_out, 0).sum(axes) / count.clamp_min(1)
    return mean, (memory - mean).masked_fill(left_out, 0).square().sum(axes) / count.clamp_min(1), count


def counted_memories(real: Tensor) -> Tensor:
    """Return which of m_0 … m_T count, (B, T + 1): m_0, and each memory after a token that is `real` (B, T)."""
    return F.pad(real, (1, 0), value=True)


class _OfAllProcesses(torch.autograd.Function):
    """A stack of every process's tensor, in the order of ranks.

    Each process's loss depends on every process's tensor. So the gradient of a tensor is the sum of the gradients that
    all processes have for it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        gathered = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, x.contiguous())
        return torch.stack(gathered)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad[dist.get_rank()]

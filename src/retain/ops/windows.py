"""Rollouts with a hand-written gradient, which may be cut at regular intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from retain.ops.graphs import Replayed

Cut = tuple[int, int]
"""(first, every): the gradient stops before step `first` < `every`, and before each `every`-th after it."""

Passes = tuple[Replayed, Replayed]
"""The two passes of a rollout. forward(keep, *starts, inputs, *weights) returns the states and, with `keep`, the values
of each step that the gradient needs, all (T, N, …). backward(streams, comes_around, *gradients of the states, *states
before each step, *weights, *kept), laid out by `Windows`, returns the gradients of starts, inputs and weights."""


def roll(
    passes: Passes, starts: Sequence[Tensor], inputs: Tensor, weights: Sequence[Tensor], cut: Cut | None
) -> tuple[Tensor, ...]:
    """Return the states (T, N, …) of a cell after each of the inputs (T, N, …), from its `starts`, each (N, …)."""
    needed = (*starts, inputs, *weights)
    if torch.is_grad_enabled() and any(x.requires_grad for x in needed):
        rolled: tuple[Tensor, ...] = _Rollout.apply(passes, cut or (0, len(inputs)), len(starts), *needed)
        return rolled
    return passes[0](False, *needed)


class _Rollout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, passes: Passes, cut: Cut, count: int, *needed: Tensor) -> tuple[Tensor, ...]:
        found = passes[0](True, *needed)
        ctx.backward_pass, ctx.cut, ctx.count = passes[1], cut, count
        # The states before and after each step, then the weights and the values kept of each step.
        ctx.save_for_backward(*needed[:count], *found[:count], *needed[count + 1 :], *found[count:])
        ctx.weights = len(needed) - count - 1
        return found[:count]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        count, saved = ctx.count, ctx.saved_tensors
        starts, states, rest = saved[:count], saved[count : 2 * count], saved[2 * count :]
        weights, kept = rest[: ctx.weights], rest[ctx.weights :]
        length, streams = grads[0].shape[:2]
        windows = Windows(length, streams, ctx.cut, grads[0].device)
        laid_grads = map(windows.lay_gradient, grads)
        before = (torch.cat([start[None], after[:-1]]) for start, after in zip(starts, states, strict=True))
        laid = *map(windows.lay, before), *weights, *map(windows.lay, kept)
        found = ctx.backward_pass(streams, windows.comes_around, *laid_grads, *laid)
        return None, None, None, *found[:count], windows.put_back(found[count]), *found[count + 1 :]


def ring(length: int, first: int, every: int, device: torch.device) -> Tensor:
    """Return the steps 0 … length - 1 in windows as `Cut` defines them, one per row, (n, every).

    The steps are a ring, read once around from `first`, so the steps before `first` end the last row. Steps from
    `length` on are padding.
    """
    around = -(-length // every) * every
    return ((first + torch.arange(around, device=device)) % around).view(-1, every)


class Windows:
    """The n windows of (T, N, …) as `every` steps of n · N streams, so that a gradient goes back through all at once.

    Sequences without a cut stay unchanged. In the last `streams` of the n · N, the steps come around to step 0 at index
    `comes_around` (None if they do not). The gradient that arrives there is that of the initial state. The naive twin
    is `RNN.rollout` of a cell without `cuts`, which reads one window after another.
    """

    def __init__(self, length: int, streams: int, cut: Cut, device: torch.device):
        first, every = cut
        self.length, self.streams, self.every = length, streams, every
        self.comes_around = every - first if first else None
        self.where = ring(length, first, every, device).t().flatten() if first > 0 or every < length else None

    def lay(self, x: Tensor) -> Tensor:
        """Rearrange (T, N, …) → (every, n · N, …); padding repeats the last step."""
        if self.where is None:
            return x
        return x.index_select(0, self.where.clamp_max(self.length - 1)).view(self.every, -1, *x.shape[2:])

    def lay_gradient(self, grad: Tensor) -> Tensor:
        """Do as `lay` does, with padding of 0."""
        if self.where is None:
            return grad
        counts = (self.where < self.length).repeat_interleave(self.streams).view(self.every, -1)
        laid = self.lay(grad)
        return laid * counts.view(*counts.shape, *[1] * (laid.dim() - 2))

    def put_back(self, x: Tensor) -> Tensor:
        """Undo `lay`: (every, n · N, …) → (T, N, …)."""
        if self.where is None:
            return x
        return x.view(-1, self.streams, *x.shape[2:]).index_select(0, self.where.argsort()[: self.length])

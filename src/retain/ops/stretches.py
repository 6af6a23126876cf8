"""A sequence whose gradient is cut every so many steps: the stretches between, laid side by side."""

from __future__ import annotations

import torch
from torch import Tensor

Cut = tuple[int, int]
"""(first, every): the gradient stops before step `first` < `every`, and before each `every`-th after it."""


def ring(length: int, first: int, every: int, device: torch.device) -> Tensor:
    """Steps 0 … length - 1 cut as `Cut` says, a stretch a row: (n, every). What lies before `first` ends the last row.

    The steps are a ring, read once around from `first`; steps from `length` on fill it up and stand for nothing.
    """
    around = -(-length // every) * every
    return ((first + torch.arange(around, device=device)) % around).view(-1, every)


class Stretches:
    """The n stretches of (T, N, …), so that a gradient goes back through all at once: `every` steps of n · N streams.

    Sequences that are not cut are given back as they are. In the last `streams` of the n · N the steps come around to
    the first one, at index `comes_around` (None: none does); the gradient that gets there is the initial memory's.
    """

    def __init__(self, length: int, streams: int, cut: Cut, device: torch.device):
        first, every = cut
        self.length, self.streams = length, streams
        self.comes_around = every - first if first else None
        self.where: Tensor | None = None
        if first > 0 or every < length:
            self.where = ring(length, first, every, device).t().flatten()
            self.every = every

    def lay(self, x: Tensor) -> Tensor:
        """(T, N, …) → (every, n · N, …); what stands for nothing repeats the last step."""
        if self.where is None:
            return x
        return x.index_select(0, self.where.clamp_max(self.length - 1)).view(self.every, -1, *x.shape[2:])

    def lay_gradient(self, grad: Tensor) -> Tensor:
        """`lay`, but what stands for nothing is 0."""
        if self.where is None:
            return grad
        counts = (self.where < self.length).repeat_interleave(self.streams).view(self.every, -1)
        laid = self.lay(grad)
        return laid * counts.view(*counts.shape, *[1] * (laid.dim() - 2))

    def back(self, x: Tensor) -> Tensor:
        """(every, n · N, …) → (T, N, …)."""
        if self.where is None:
            return x
        order = torch.arange(len(self.where), device=x.device)
        back = torch.empty_like(order).scatter_(0, self.where, order)[: self.length]
        return x.view(len(self.where), self.streams, *x.shape[2:]).index_select(0, back)

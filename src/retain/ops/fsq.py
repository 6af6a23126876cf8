"""Finite scalar quantisation: each number of a memory is one of a few levels (Mentzer et al. 2023)."""

from __future__ import annotations

import torch
from torch import Tensor


def quantise(x: Tensor, levels: int) -> Tensor:
    """Bound x by tanh and round it to the nearest of `levels` even levels from -1 to 1.

    Results are exactly on the grid. The gradient is that of the tanh, as if nothing were rounded (straight-through).
    """
    half = (levels - 1) / 2
    bounded = x.tanh()
    rounded = ((bounded + 1) * half).round() / half - 1
    if torch.is_grad_enabled() and x.requires_grad:
        return rounded.detach() + (bounded - bounded.detach())  # which adds 0
    return rounded


def unbound(memory: Tensor, levels: int) -> Tensor:
    """Return numbers that `quantise` maps to this memory, from the middle of the interval rounded to each level.

    The outermost levels are moved inwards by a quarter of a level, where the inverse of tanh is finite.
    """
    return (memory.clamp(-1, 1) * (1 - 1 / (2 * (levels - 1)))).atanh()


def number_levels(memory: Tensor, levels: int) -> Tensor:
    """Return the index of each number's level, 0 … levels - 1."""
    return ((memory + 1) * ((levels - 1) / 2)).round().long()

"""Modes for a while: evaluation, and no gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def without_graph() -> Iterator[None]:
    """No gradients inside, and no trace of that outside.

    Autocast keeps the casts of weights for as long as it lasts. One that is made here has no graph, and older versions
    of PyTorch take it for what comes after, too: those weights would never learn.
    """
    with torch.no_grad():
        yield
    torch.clear_autocast_cache()


@contextmanager
def evaluating(*modules: nn.Module | None) -> Iterator[None]:
    """Evaluation mode (no dropout, running statistics) inside, for every part of the modules; then the mode that
    each part had before."""
    modes = [(part, part.training) for module in modules if module is not None for part in module.modules()]
    for module in modules:
        if module is not None:
            module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training

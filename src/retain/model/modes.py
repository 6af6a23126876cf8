"""Modes for a while: evaluation, and no gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def without_graph() -> Iterator[None]:
    """Compute no gradients inside, and leave no trace of that outside.

    Autocast keeps its casts of weights as long as it lasts. A cast that is made in here has no graph, and older
    versions of PyTorch use it again for what comes after: those weights would never learn.
    """
    with torch.no_grad():
        yield
    torch.clear_autocast_cache()


@contextmanager
def evaluating(*modules: nn.Module | None) -> Iterator[None]:
    """Put every part of the modules in evaluation mode (no dropout, running statistics) inside, then in its own."""
    modes = [(part, part.training) for module in modules if module is not None for part in module.modules()]
    for module in modules:
        if module is not None:
            module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training

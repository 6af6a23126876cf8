"""Context managers: evaluation mode, and no gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def without_graph() -> Iterator[None]:
    """Compute no gradients inside, and clear autocast's cache afterwards.

    Autocast caches its casts of weights until it ends. A cast that is made inside has no graph, and older versions of
    PyTorch reuse it afterwards. Those weights would never learn.
    """
    with torch.no_grad():
        yield
    torch.clear_autocast_cache()


@contextmanager
def evaluating(*modules: nn.Module | None) -> Iterator[None]:
    """Put every submodule in evaluation mode (no dropout, running statistics) inside, and restore its mode after."""
    modes = [(part, part.training) for module in modules if module is not None for part in module.modules()]
    for module in modules:
        if module is not None:
            module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training

"""Evaluation mode for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


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

"""Faster versions of modules, compiled or replayed, kept beside them: a module and its copies stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

Parts = dict[nn.Module, Callable[..., Any]]
"""Modules, and functions that compute the same faster. The slow twin of such a function is the module itself."""

_USED: Parts = {}


def fast(module: nn.Module) -> Callable[..., Any]:
    """Return the faster version of this very module that is in use, or the module itself."""
    version = None if torch.compiler.is_compiling() else _USED.get(module)
    if version is None:
        return module
    # Only the module itself calls its hooks.
    hooked = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return module if hooked else version


@contextmanager
def using(parts: Parts) -> Iterator[None]:
    """Run these modules as their faster versions inside, wherever they are called by `fast`."""
    _USED.update(parts)
    try:
        yield
    finally:
        for module in parts:
            _USED.pop(module, None)

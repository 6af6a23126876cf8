"""Pretrain recurrent networks without backpropagation through time."""

from typing import Any

__version__ = "0.1.0"

# Where each public name lives. Imported when first used, so that `retain --help` need not wait for PyTorch. What is
# called like its module (train, evaluate, generate) is to be had from there: from retain.train import train.
_HOMES = {
    "RunConfig": "retain.config",
    "PRESETS": "retain.presets",
    "load": "retain.run",
    "load_run": "retain.run",
    "RNN": "retain.model.rnn",
    "Teacher": "retain.model.teacher",
    "SMT": "retain.objectives",
    "DMT": "retain.objectives",
    "BPTT": "retain.objectives",
    "load_data": "retain.data",
}
__all__ = ["PRESETS", "__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'retain' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)

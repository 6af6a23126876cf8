"""Pretrain recurrent networks without backpropagation through time."""

TYPE_CHECKING = False  # as of `typing`, which takes longer to import than Ctrl-C needs
if TYPE_CHECKING:
    from typing import Any

__version__ = "0.1.0"

# Where each public name lives. Imported when first used, so that `retain --help` need not wait for PyTorch.
_HOMES = {
    "RunConfig": "retain.config",
    "PRESETS": "retain.presets",
    "load": "retain.run",
    "load_run": "retain.run",
    "save": "retain.run",
    "RNN": "retain.model.rnn",
    "Teacher": "retain.model.teacher",
    "SMT": "retain.objectives",
    "DMT": "retain.objectives",
    "BPTT": "retain.objectives",
    "load_data": "retain.data",
}
# Functions called like their modules are to be had from there: retain.train.train, retain.evaluate.evaluate, ...
_MODULES = ("train", "evaluate", "generate")
__all__ = ["__version__", *_HOMES, *_MODULES]


def __getattr__(name: str) -> "Any":
    import importlib

    if name in _MODULES:
        return importlib.import_module(f"retain.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'retain' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)

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

if TYPE_CHECKING:  # the same names, for type checkers and editors
    from retain import evaluate as evaluate
    from retain import generate as generate
    from retain import train as train
    from retain.config import RunConfig as RunConfig
    from retain.data import load_data as load_data
    from retain.model.rnn import RNN as RNN
    from retain.model.teacher import Teacher as Teacher
    from retain.objectives import BPTT as BPTT
    from retain.objectives import DMT as DMT
    from retain.objectives import SMT as SMT
    from retain.presets import PRESETS as PRESETS
    from retain.run import load as load
    from retain.run import load_run as load_run
    from retain.run import save as save
else:  # or any name whatever would be one of type Any

    def __getattr__(name: str) -> "Any":
        import importlib

        if name in _MODULES:
            return importlib.import_module(f"retain.{name}")
        if name not in _HOMES:
            raise AttributeError(f"module 'retain' has no attribute {name!r}")
        return getattr(importlib.import_module(_HOMES[name]), name)

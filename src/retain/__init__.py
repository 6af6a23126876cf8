"""Pretrain recurrent networks without backpropagation through time."""

TYPE_CHECKING = False  # importing it from `typing` would delay the handling of Ctrl-C
if TYPE_CHECKING:
    from typing import Any

__version__ = "0.1.0"

# The module of each public name. It is imported on first use, so that `retain --help` does not wait for PyTorch.
_HOMES = {
    "RunConfig": "retain.config",
    "PRESETS": "retain.config.presets",
    "load": "retain.runs.run",
    "load_run": "retain.runs.run",
    "load_series": "retain.runs.run",
    "series_data": "retain.data.series",
    "SeriesRNN": "retain.model.series_rnn",
    "forecast": "retain.inference.forecast",
    "save": "retain.runs.save",
    "RNN": "retain.model.rnn",
    "Teacher": "retain.model.teacher",
    "data_config": "retain.config",
    "SMTLoss": "retain.config",
    "DMTLoss": "retain.config",
    "SMT": "retain.objectives",
    "DMT": "retain.objectives",
    "BPTT": "retain.objectives",
    "load_data": "retain.data",
    "train": "retain.training.loop",
    "evaluate": "retain.inference.evaluate",
    "generate": "retain.inference.generate",
    "generate_text": "retain.inference.text",
    "stream_text": "retain.inference.text",
    "fast_step": "retain.inference.fast_step",
}
__all__ = ["__version__", *_HOMES]

if TYPE_CHECKING:  # the same names, for type checkers and editors
    from retain.config import DMTLoss as DMTLoss
    from retain.config import RunConfig as RunConfig
    from retain.config import SMTLoss as SMTLoss
    from retain.config import data_config as data_config
    from retain.config.presets import PRESETS as PRESETS
    from retain.data import load_data as load_data
    from retain.data.series import series_data as series_data
    from retain.inference.evaluate import evaluate as evaluate
    from retain.inference.fast_step import fast_step as fast_step
    from retain.inference.forecast import forecast as forecast
    from retain.inference.generate import generate as generate
    from retain.inference.text import generate_text as generate_text
    from retain.inference.text import stream_text as stream_text
    from retain.model.rnn import RNN as RNN
    from retain.model.series_rnn import SeriesRNN as SeriesRNN
    from retain.model.teacher import Teacher as Teacher
    from retain.objectives import BPTT as BPTT
    from retain.objectives import DMT as DMT
    from retain.objectives import SMT as SMT
    from retain.runs.run import load as load
    from retain.runs.run import load_run as load_run
    from retain.runs.run import load_series as load_series
    from retain.runs.save import save as save
    from retain.training.loop import train as train
else:  # type checkers must not see this, or every name would exist, with type Any

    def __getattr__(name: str) -> "Any":
        import importlib

        if name not in _HOMES:
            raise AttributeError(f"module 'retain' has no attribute {name!r}")
        return getattr(importlib.import_module(_HOMES[name]), name)

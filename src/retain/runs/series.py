"""Runs of series, loaded with the series to read."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from retain.config import SeriesDataConfig
from retain.data.frames import Table
from retain.data.paths import absolute
from retain.data.series import check_alike, read_table
from retain.errors import UserError
from retain.model.series_rnn import SeriesRNN
from retain.runs.run import load_run


def load_series_run(path: Path, device: str = "cpu") -> tuple[SeriesRNN, SeriesDataConfig]:
    """Load a run's RNN, and the settings that name its columns. Raises UserError for a run that reads tokens."""
    run = load_run(path, device=device)
    rnn = SeriesRNN(run.rnn).requires_grad_(False).eval()
    config = run.config.data
    if not isinstance(config, SeriesDataConfig):  # trained on data given in Python
        config = SeriesDataConfig(path="in memory", target=rnn.channels.names)
    return rnn, config


def open_series(path: Path, source: str | None, device: str = "cpu") -> tuple[SeriesRNN, Table]:
    """Load a run's RNN and the series of a file; without a file, the run's own series. Raises UserError."""
    rnn, config = load_series_run(path, device)
    if source is not None:
        config = dataclasses.replace(config, path=absolute(source))
    elif config.path == "in memory":
        raise UserError(f"data: {path} was trained on data of your own; name a file")
    table = read_table(config, rnn.channels)
    check_alike(table, rnn.channels)
    return rnn, table

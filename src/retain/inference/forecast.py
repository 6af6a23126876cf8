"""Forecasts of series: the RNN reads a context, then reads its own samples, many in parallel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retain.config import Channels
from retain.data.frames import Floats, OneSeries, Table
from retain.data.times import parse_frequency
from retain.errors import UserError
from retain.model.modes import evaluating
from retain.model.series_rnn import SeriesRNN

READ = 256
"""Rows of a context that are read at once."""
STREAMS = 4096
"""Samples that are drawn in parallel."""


@dataclass(frozen=True)
class Forecast:
    """Samples of the steps after the last value of a series."""

    name: str
    samples: Floats
    """(S, H, C)."""
    times: Any
    """(H,): times of the steps, or their numbers."""
    before: Floats
    """The context (L, C)."""
    times_before: Any
    """(L,): times of the context, or numbers."""


def rows_of(values: Floats, covariates: Floats) -> Tensor:
    """Make the rows (L + 1, C + Q) that the RNN reads from values (L, C) and covariates (L + 1 or more, Q)."""
    shifted = np.concatenate([np.full((1, values.shape[1]), np.nan), values])
    return torch.from_numpy(np.concatenate([shifted, covariates[: len(shifted)]], 1))


def extend(series: OneSeries, length: int, channels: Channels) -> Floats:
    """Extend the covariates of a series beyond its end to (length, Q), by the calendar and by those that never change.

    Raises UserError if others are missing there.
    """
    have, count = series.covariates, len(series.covariates)
    new = np.full((length, have.shape[1]), np.nan)
    new[:count] = have[:length]
    if length > count and series.first is not None and channels.frequency is not None:
        frequency = parse_frequency(channels.frequency)
        for name, part in frequency.features(frequency.times(series.first, length)).items():
            new[count:, channels.covariates.index(name)] = part[count:]
    for number, name in enumerate((*channels.covariates, *channels.categories)):
        if name.startswith(("static ", "category ")) and count:
            new[count:, number] = have[-1, number]
        if np.isnan(new[count:, number]).any():
            raise UserError(
                f"data.covariates: {name!r} is missing in the future; give a row with it and without target "
                "for each step of the horizon"
            )
    return new


@torch.no_grad()
def sample_paths(
    rnn: SeriesRNN, contexts: list[Floats], covariates: list[Floats], horizon: int, samples: int, seed: int = 0
) -> list[Floats]:
    """Sample the steps after each context.

    Args:
        rnn: Reads each context from its beginning, then its own samples.
        contexts: Values (L, C) of each series, NaN for a missing value.
        covariates: (L + horizon, Q) of each.
        horizon: H, steps to sample.
        samples: S, for each series.
        seed: The same seed gives the same samples.

    Returns:
        (S, H, C) for each series.

    Raises:
        UserError: `horizon` or `samples` is below 1.
    """
    for name, value in (("horizon", horizon), ("samples", samples)):
        if value < 1:
            raise UserError(f"{name}: {value} must be at least 1")
    found = []
    device = rnn.rnn.m_0.device
    at_once = max(1, STREAMS // samples)
    with evaluating(rnn), torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
        torch.manual_seed(seed)
        for first in range(0, len(contexts), at_once):
            some = slice(first, first + at_once)
            memory = torch.cat([_read(rnn, v, c) for v, c in zip(contexts[some], covariates[some], strict=True)])
            memory = memory.repeat_interleave(samples, 0)
            steps = []
            for step in range(horizon):
                value = rnn.predict(memory).sample()  # (N · S, C)
                steps.append(value.cpu().double())
                if step + 1 < horizon:
                    pairs = zip(contexts[some], covariates[some], strict=True)
                    after = [c[len(v) + step + 1] for v, c in pairs]
                    beside = torch.from_numpy(np.stack(after)).repeat_interleave(samples, 0).to(device)
                    memory = rnn.read(torch.cat([value, beside.to(value.dtype)], 1)[:, None], memory)
            paths = torch.stack(steps, 1).unflatten(0, (-1, samples))
            found += [part.numpy() for part in paths]
    return found


def _read(rnn: SeriesRNN, values: Floats, covariates: Floats) -> Tensor:
    memory = rnn.init_memory(1)
    for part in rows_of(values, covariates)[None].to(memory.device).split(READ, 1):
        memory = rnn.read(part, memory)
    return memory


def forecast(rnn: SeriesRNN, table: Table, horizon: int, samples: int = 200, seed: int = 0) -> list[Forecast]:
    """Forecast the steps after the last value of each series of a table.

    Rows after the last value give the covariates of the future. Raises UserError if covariates are missing.
    """
    contexts, covariates = [], []
    for one in table.series:
        there = np.flatnonzero(~np.isnan(one.values).all(1))
        length = int(there[-1]) + 1 if len(there) else 0
        contexts.append(one.values[:length])
        covariates.append(extend(one, length + horizon, rnn.channels))
    paths = sample_paths(rnn, contexts, covariates, horizon, samples, seed)
    found = []
    for one, context, path in zip(table.series, contexts, paths, strict=True):
        count = len(context)
        times = _times(one, count + horizon, rnn.channels)
        found.append(Forecast(one.name, path, times[count:], context, times[:count]))
    return found


def _times(one: OneSeries, length: int, channels: Channels) -> Any:
    if one.first is None or channels.frequency is None:
        return np.arange(length)
    return parse_frequency(channels.frequency).times(one.first, length)

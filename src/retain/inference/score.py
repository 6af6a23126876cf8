"""Anomaly scores: how surprising each step of a stream is to an RNN that has read the steps before it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retain.config import SeriesDataConfig
from retain.data.frames import LONGEST_GAP, Floats, Table
from retain.data.times import Frequency, pandas_library, parse_frequency
from retain.errors import UserError
from retain.inference.forecast import READ, rows_of
from retain.model.modes import evaluating
from retain.model.series_rnn import SeriesRNN


@dataclass(frozen=True)
class Scored:
    """A step of a stream."""

    series: str
    time: Any
    """Its time or number."""
    surprise: float | None
    """Nats: minus the logarithm of the probability, or density, of its values. None if all are missing."""


@torch.no_grad()
def score_table(rnn: SeriesRNN, table: Table) -> Iterator[Scored]:
    """Score every step of every series that has a value."""
    with evaluating(rnn):
        for one in table.series:
            memory, length = rnn.init_memory(1), len(one.values)
            times = np.arange(length)
            if one.first is not None and table.frequency is not None:
                times = table.frequency.times(one.first, length)
            rows = rows_of(one.values[:-1], one.covariates)[None].to(memory.device)
            following = torch.from_numpy(one.values)[None].to(memory.device)
            for first in range(0, length, READ):
                part = slice(first, first + READ)
                nats, memory = rnn.surprises(rows[:, part], following[:, part], memory)
                for step, value in enumerate(nats[0].tolist(), first):
                    if not np.isnan(one.values[step]).all():
                        yield Scored(one.name, times[step], value)


@dataclass
class _Stream:
    """State of a series between two lines: memory, values of the last step, time of the first step, last place."""

    memory: Tensor
    values: Floats
    first: Any
    place: int


class LineScorer:
    """Scorer of a stream, line by line as lines arrive. Each series has its own memory.

    Args:
        rnn: Reads the lines.
        config: Names the columns.
        header: The columns of a line.

    Raises:
        UserError: A column that the run reads is missing.
    """

    def __init__(self, rnn: SeriesRNN, config: SeriesDataConfig, header: list[str]):
        self.rnn, self.config, self.header = rnn, config, header
        channels = rnn.channels
        self.frequency: Frequency | None = parse_frequency(channels.frequency) if channels.frequency else None
        self.calendar = self._calendar_names()
        self.numbers = [name for name in channels.covariates if name not in self.calendar]
        named = [*channels.names, *self.numbers, *channels.categories]
        for name in (*named, *((config.time,) if config.time else ()), *((config.series,) if config.series else ())):
            if name not in header:
                raise UserError(
                    f"data: the run reads a column {name!r}, and the header has {', '.join(header)}; add it"
                )
        if self.calendar and not config.time:
            raise UserError("data: the run reads the calendar, and its config names no column of times (data.time)")
        self.streams: dict[str, _Stream] = {}

    def _calendar_names(self) -> tuple[str, ...]:
        if self.frequency is None or not self.frequency.unit:
            return ()
        return tuple(self.frequency.features(pandas_library().DatetimeIndex(["2000-01-01"])))

    @torch.no_grad()
    def score(self, fields: list[str], line: int) -> Scored:
        """Score the values of a line and read them. Raises UserError naming the line if they are wrong."""
        if len(fields) != len(self.header):
            raise UserError(f"line {line}: {len(fields)} fields, and the header has {len(self.header)}; give as many")
        row, config = dict(zip(self.header, fields, strict=True)), self.config
        channels = self.rnn.channels
        values = np.array([_number(row[name], name, line) for name in channels.names])
        known = np.array([_number(row[name], name, line) for name in self.numbers])
        codes = [
            kinds.index(row[name]) + 1 if row[name] in kinds else 0
            for name, kinds in zip(channels.categories, channels.kinds, strict=True)
        ]
        name = row[config.series] if config.series else ""
        time = None if config.time is None else _time(row[config.time], config.time, line, self.frequency)
        stream = self.streams.get(name)
        if stream is None:
            stream = _Stream(self.rnn.init_memory(1), np.full(channels.values, np.nan), time, -1)
            self.streams[name] = stream
        place = stream.place + 1
        if time is not None and self.frequency is not None:
            place = self._place(stream, time, line)
        for missing in range(stream.place + 1, place):  # steps without a line
            self._read(stream, np.full(len(known), np.nan), [0] * len(codes), missing)
            stream.values = np.full(channels.values, np.nan)
        self._read(stream, known, codes, place)
        given = torch.from_numpy(values)[None].to(stream.memory.device)
        surprise = None if np.isnan(values).all() else float(self.rnn.surprise(given, stream.memory)[0])
        stream.values, stream.place = values, place
        return Scored(name, row[config.time] if config.time else place, surprise)

    def _place(self, stream: _Stream, time: Any, line: int) -> int:
        assert self.frequency is not None
        first = stream.first
        pair = np.array([first, time]) if not self.frequency.unit else pandas_library().DatetimeIndex([first, time])
        place = float(self.frequency.places(pair)[1])
        if not abs(place - round(place)) < 1e-3:
            raise UserError(f"line {line}: {time} lies between two steps of {self.frequency}; give each step its time")
        if not stream.place < place <= stream.place + LONGEST_GAP:
            raise UserError(
                f"line {line}: {time} is {place - stream.place:.0f} steps after the line before; give lines in order, "
                f"and gaps of at most {LONGEST_GAP} steps"
            )
        return round(place)

    def _read(self, stream: _Stream, known: Floats, codes: list[int], place: int) -> None:
        """Read the values of the step before and the covariates of step `place`."""
        own = np.zeros(0)
        if self.calendar and self.frequency is not None:
            at = self.frequency.time(stream.first, place)
            own = np.array([part[0] for part in self.frequency.features(at).values()])
        x = torch.from_numpy(np.concatenate([stream.values, known, own, codes]))[None, None]
        stream.memory = self.rnn.read(x.to(stream.memory.device), stream.memory)


def _number(text: str, name: str, line: int) -> float:
    if not text.strip() or text.strip().lower() == "nan":
        return np.nan
    if text.strip().lower() in ("true", "false"):  # as pandas writes them
        return float(text.strip().lower() == "true")
    try:
        value = float(text)
    except ValueError:
        value = np.inf
    if np.isinf(value):
        raise UserError(f"line {line}: {name} is {text!r}, no number; leave it empty if it is missing")
    return value


def _time(text: str, name: str, line: int, frequency: Frequency | None) -> Any:
    if frequency is not None and not frequency.unit:
        return _number(text, name, line)
    try:
        time = pandas_library().Timestamp(text)
        return time if time.tz is None else time.tz_convert(None)
    except ValueError:
        raise UserError(
            f"line {line}: {name} is {text!r}, no time; write it as 2024-01-31 or 2024-01-31T12:00"
        ) from None

"""Times of steps: the frequency of a series, the step of a time, and features of the calendar.

Calendars are those of pandas and NumPy. Times with a zone are converted to UTC.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from retain.errors import UserError

DAY = 86_400
CYCLES = {"day": DAY, "week": 7 * DAY, "year": 365 * DAY}
"""What the calendar repeats, and its length in seconds."""
PERIODS = {"YS": "Y", "QS": "Q", "MS": "M"}
"""Units of the calendar, with pandas' names of their periods."""
WORDS = {"Y": "YS", "A": "YS", "YE": "YS", "Q": "QS", "QE": "QS", "M": "MS", "ME": "MS", "H": "h", "T": "min", "S": "s"}
"""Names of frequencies in older versions of pandas."""


def pandas_library() -> Any:
    """Return pandas. Raises UserError if it is not installed."""
    try:
        import pandas
    except ImportError:
        raise UserError("data: tables of series need pandas; run pip install 'retain[series]'") from None
    return pandas


@dataclass(frozen=True)
class Frequency:
    """The time from one step to the next: `count` seconds or one calendar unit; `count` if steps are numbered."""

    unit: str
    """s, B (a business day), MS, QS or YS (the beginning of a month, quarter or year), or "" if steps are numbered."""
    count: int = 1

    def __str__(self) -> str:
        return self.unit if self.unit in ("B", *PERIODS) else f"{self.count}{self.unit}"

    def places(self, times: Any) -> npt.NDArray[np.float64]:
        """Return how many steps each time (N,) lies after the first. A time on a step gives a whole number."""
        if self.unit in PERIODS:
            periods = times.to_period(PERIODS[self.unit]).astype("int64")
            return np.asarray(periods - periods[0], dtype=np.float64)
        if self.unit == "B":
            days = times.values.astype("datetime64[D]")
            on = np.is_busday(days)
            return np.where(on, np.busday_count(days[0], days), np.nan)
        if self.unit == "s":
            return np.asarray((times - times[0]) / np.timedelta64(1, "s"), dtype=np.float64) / self.count
        return (np.asarray(times, dtype=np.float64) - float(times[0])) / self.count

    def times(self, first: Any, count: int) -> Any:
        """Return the times of `count` steps, beginning with `first`; whole numbers if steps are numbered."""
        pd = pandas_library()
        if self.unit == "":
            return first + self.count * np.arange(count)
        if self.unit in PERIODS:
            return pd.period_range(pd.Period(first, PERIODS[self.unit]), periods=count).to_timestamp()
        if self.unit == "B":
            return pd.DatetimeIndex(np.busday_offset(np.datetime64(first, "D"), np.arange(count), "forward"))
        return first + pd.to_timedelta(self.count * np.arange(count), unit="s")

    def time(self, first: Any, place: int) -> Any:
        """Return the time (1,) of a single step, `place` steps after the first."""
        if self.unit == "s":
            pd = pandas_library()
            return pd.DatetimeIndex([first + pd.Timedelta(seconds=self.count * place)])
        return self.times(first, place + 1)[-1:]

    @property
    def seconds(self) -> float:
        """The length of a step in seconds, about that for a unit of the calendar; 0 if steps are numbered."""
        return {"": 0, "B": DAY, "MS": 28 * DAY, "QS": 90 * DAY, "YS": 365 * DAY}.get(self.unit, self.count)

    def features(self, times: Any) -> dict[str, npt.NDArray[np.float64]]:
        """Return the position of each time (N,) in its day, week and year, as sine and cosine."""
        if self.unit in ("", "YS"):
            return {}
        seconds = times.hour * 3600 + times.minute * 60 + times.second
        shares = {
            "day": seconds / DAY,
            "week": (times.day_of_week + seconds / DAY) / 7,
            "year": (times.day_of_year - 1) / 366 if self.seconds < 28 * DAY else (times.month - 1) / 12,
        }
        found: dict[str, npt.NDArray[np.float64]] = {}
        for name, share in shares.items():
            if self.seconds < CYCLES[name]:
                turn = 2 * np.pi * np.asarray(share, dtype=np.float64)
                found |= {f"{name} sin": np.sin(turn), f"{name} cos": np.cos(turn)}
        return found

    def unseen(self, steps: int) -> set[str]:
        """Return the features of cycles that so many steps do not go through once.

        An RNN that has seen the spring alone knows nothing of the autumn. It is better off without the place in the
        year.
        """
        cycles = {name for name, length in CYCLES.items() if self.unit and steps * self.seconds < length}
        return {f"{name} {part}" for name in cycles for part in ("sin", "cos")}


def read_times(column: Any, name: str) -> Any:
    """Return a column of a frame as times: an index of dates, or an array of whole numbers. Raises UserError."""
    pd = pandas_library()
    if column.isna().any():
        raise UserError(
            f"data.time: {name!r} is empty in row {int(column.isna().argmax()) + 1}; give a time to each row"
        )
    if pd.api.types.is_numeric_dtype(column):
        numbers = column.to_numpy(dtype=np.float64)
        if not np.array_equal(numbers, np.round(numbers)):
            raise UserError(
                f"data.time: {name!r} holds {numbers[numbers != np.round(numbers)][0]:g}; give whole numbers"
            )
        return numbers.astype(np.int64)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # pandas guesses the format row by row
            times = pd.DatetimeIndex(pd.to_datetime(column, utc=True))
    except (ValueError, TypeError) as error:
        said = " ".join(str(error).split())[:120]
        raise UserError(f"data.time: {name!r} does not hold times ({said}); name another column") from None
    return times.tz_localize(None).as_unit("ns")


def parse_frequency(text: str) -> Frequency:
    """Parse a frequency such as h, 15min, D, B, W, M, Q or Y. Raises UserError."""
    pd = pandas_library()
    if text.endswith("s") and text[:-1].isdigit():
        return Frequency("s", int(text[:-1]))
    if text.isdigit():
        return Frequency("", int(text))
    try:
        offset = pd.tseries.frequencies.to_offset(WORDS.get(text, text))
        name = offset.rule_code.partition("-")[0]
        if offset.n == 1 and (name == "B" or WORDS.get(name, name) in PERIODS):
            return Frequency(WORDS.get(name, name))
        seconds = 7 * DAY * offset.n if name == "W" else pd.Timedelta(1 * offset).total_seconds()
    except (ValueError, TypeError, AttributeError):
        seconds = 0
    if seconds < 1 or seconds != int(seconds):
        raise UserError(f"data.freq: {text!r} is not a frequency; give h, 15min, D, B, W, M, Q or Y")
    return Frequency("s", int(seconds))


def find_frequency(parts: list[Any]) -> Frequency:
    """Find the frequency of series by their ordered times: their most common step. Raises UserError."""
    long = [part for part in parts if len(part) > 1]
    if not long:
        raise UserError("data.freq: no series has two times, so the time of a step cannot be found; give data.freq")
    if isinstance(long[0], np.ndarray):
        steps = np.concatenate([np.diff(part) for part in long])
        return Frequency("", _most_common(steps))
    steps = np.concatenate([np.diff(part.values).astype("timedelta64[s]").astype(np.int64) for part in long])
    usual = _most_common(steps)
    if usual < 1:
        raise UserError("data.time: steps of less than a second; number them, as in 0, 1, 2")
    for unit, (low, high) in {"MS": (28, 31), "QS": (90, 92), "YS": (365, 366)}.items():
        if low * DAY <= usual <= high * DAY and usual != 28 * DAY:
            return Frequency(unit)
    if usual == DAY and not any((part.day_of_week > 4).any() for part in long) and (steps == 3 * DAY).any():
        return Frequency("B")
    return Frequency("s", usual)


def _most_common(steps: npt.NDArray[np.int64]) -> int:
    values, counts = np.unique(steps, return_counts=True)
    return int(values[counts.argmax()])

"""Series from tables and records: one row per step in order of time, a row of NaN for a missing step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from retain.config import Channels, SeriesDataConfig
from retain.data.times import Frequency, find_frequency, pandas_library, parse_frequency, read_times
from retain.errors import UserError

Floats = npt.NDArray[np.float64]
LONGEST_GAP = 1000
"""The most steps that a series may have per row. More mean that a time is wrong."""


@dataclass(frozen=True)
class OneSeries:
    """A series of L steps."""

    name: str
    values: Floats
    """(L, C), NaN for a missing value."""
    covariates: Floats
    """(L, Q): numbers first, then codes of categories, 0 for an unknown one."""
    first: Any
    """The time of the first step: a pandas Timestamp or a number. None if there is no column of times."""


@dataclass(frozen=True)
class Table:
    """Series with the same columns and one frequency."""

    series: list[OneSeries]
    names: tuple[str, ...]
    covariates: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    kinds: tuple[tuple[str, ...], ...] = ()
    frequency: Frequency | None = None
    aligned: bool = False
    """Whether all series share one clock, so that splits are cut at the same time in each."""


def from_array(array: npt.NDArray[Any], config: SeriesDataConfig) -> Table:
    """Make a table of floats (N,), (N, C) or (S, N, C). Raises UserError for other arrays or if columns are named."""
    if array.dtype.kind not in "fiub" or array.ndim not in (1, 2, 3) or 0 in array.shape:
        raise UserError(
            f"data.path: an array of {array.dtype} of shape {array.shape} is no series; "
            "give numbers (N, C) or (S, N, C)"
        )
    if named := config.time or config.series or config.target or config.covariates:
        raise UserError(f"data.path: an array has no columns, and {named!r} names one; leave it out, or give a table")
    array = array[:, None] if array.ndim == 1 else array
    parts = array[None] if array.ndim == 2 else array
    names = tuple(str(number) for number in range(parts.shape[2]))
    none = np.zeros((parts.shape[1], 0))
    series = [OneSeries(str(i), np.asarray(part, np.float64), none, None) for i, part in enumerate(parts)]
    return Table(series, names)


def from_frame(frame: Any, config: SeriesDataConfig, like: Channels | None = None) -> Table:
    """Make a table of a pandas or polars frame with the columns that the config names.

    With `like`, the channels of a model, the columns have that model's categories and frequency. Raises UserError for a
    column that is missing or has the wrong type, and for times that are out of order, repeated or between two steps.
    """
    pd = pandas_library()
    if hasattr(frame, "to_pandas"):
        frame = frame.to_pandas()
    frame = frame.reset_index(drop=True)
    for option in ("time", "series", "target", "covariates"):
        named = getattr(config, option) or ()
        for column in (named,) if isinstance(named, str) else named:
            if column not in frame.columns:
                raise UserError(
                    f"data.{option}: {column!r} is not among the columns {', '.join(map(str, frame.columns))}; "
                    "name one of them"
                )
    if not len(frame):
        raise UserError("data.path: the table has no rows; give one with rows")
    target = config.target or _only_numbers(frame, config)
    values = np.stack([_numbers(frame[column], column, "target") for column in target], 1)
    numbers = [c for c in config.covariates if pd.api.types.is_numeric_dtype(frame[c])]
    numbers = [c for c in config.covariates if c in like.covariates] if like is not None else numbers
    categories = [c for c in config.covariates if c not in numbers]
    kinds = like.kinds if like is not None else tuple(_kinds(frame[c]) for c in categories)
    parts = [_numbers(frame[c], c, "covariates") for c in numbers]
    codes = [_codes(frame[c], known) for c, known in zip(categories, kinds, strict=True)]
    groups = {"": np.arange(len(frame))}
    if config.series is not None:
        if frame[config.series].isna().any():
            row = int(frame[config.series].isna().argmax()) + 1
            raise UserError(f"data.series: {config.series!r} is empty in row {row}; name the series of each row")
        groups = {str(name): rows for name, rows in frame.groupby(config.series, sort=False).indices.items()}
    times = None if config.time is None else read_times(frame[config.time], config.time)
    frequency, places = None, {}
    if times is not None:
        for name, rows in groups.items():
            _check_order(times[rows], name, config.time)
        if like is not None and like.frequency:
            frequency = parse_frequency(like.frequency)
        else:
            frequency = (
                parse_frequency(config.freq) if config.freq else find_frequency([times[r] for r in groups.values()])
            )
        places = {name: _places(times[rows], frequency, name) for name, rows in groups.items()}
    found, calendar = [], []
    for name, rows in groups.items():
        at = places.get(name, np.arange(len(rows)))
        length = int(at[-1]) + 1
        own = {}
        first = None
        if times is not None and frequency is not None:
            first = times[rows[0]]
            own = frequency.features(frequency.times(first, length))
            calendar = list(own)
        of = np.full((length, len(target)), np.nan)
        of[at] = values[rows]
        beside = np.full((length, len(numbers) + len(own) + len(codes)), np.nan)
        for i, part in enumerate([*parts, *own.values(), *codes]):
            if len(numbers) <= i < len(numbers) + len(own):
                beside[:, i] = part
            else:
                beside[at, i] = part[rows]
        beside[:, len(numbers) + len(own) :] = np.nan_to_num(beside[:, len(numbers) + len(own) :])
        found.append(OneSeries(name, of, beside, first))
    return Table(
        found, tuple(target), (*numbers, *calendar), tuple(categories), kinds, frequency, aligned=times is not None
    )


def from_records(records: Sequence[Mapping[str, Any]], config: SeriesDataConfig, like: Channels | None = None) -> Table:
    """Make a table of records in the format of GluonTS and `monash_tsf`.

    A record has `start`, `target` (L,) or (C, L) for several values, and perhaps `item_id`, `feat_static_real`,
    `feat_static_cat` and `feat_dynamic_real` (Q, L), which may be longer than the target. Raises UserError for a record
    of another form.
    """
    found: list[OneSeries] = []
    names: list[str] = []
    frequency = None
    if config.freq or (like is not None and like.frequency):
        frequency = parse_frequency(config.freq or like.frequency)  # type: ignore[union-attr, arg-type]
    for number, record in enumerate(records):
        target = np.atleast_2d(_array(record, "target", number))
        start: Any = record.get("start")
        start = start.to_timestamp() if hasattr(start, "to_timestamp") else start
        freq = getattr(record.get("start"), "freqstr", None)
        if frequency is None and freq is not None:
            frequency = parse_frequency(freq)
        dynamic = np.atleast_2d(_array(record, "feat_dynamic_real", number, target.shape[1]))
        if dynamic.size and dynamic.shape[1] < target.shape[1]:
            raise UserError(
                f"feat_dynamic_real: record {number} has {dynamic.shape[1]} steps, fewer than its target; give one for "
                "each step"
            )
        static = np.ravel(_array(record, "feat_static_real", number, 0))
        codes = np.ravel(_array(record, "feat_static_cat", number, 0)) + 1
        length = max(target.shape[1], dynamic.shape[1])
        values = np.full((length, len(target)), np.nan)
        values[: target.shape[1]] = target.T
        parts = [dynamic.T, np.tile(static, (length, 1))]
        names = [f"dynamic {i}" for i in range(len(dynamic))] + [f"static {i}" for i in range(len(static))]
        first = None
        if start is not None and frequency is not None:
            first = pandas_library().Timestamp(start)
            own = frequency.features(frequency.times(first, length))
            parts += [np.stack(list(own.values()), 1)] if own else []
            names += list(own)
        parts.append(np.tile(codes, (length, 1)))
        found.append(OneSeries(str(record.get("item_id", number)), values, np.concatenate(parts, 1), first))
    if not found:
        raise UserError("data.path: there are no records; give some with start and target")
    shapes = {(series.values.shape[1], series.covariates.shape[1]) for series in found}
    if len(shapes) > 1:
        raise UserError(
            f"data.path: records have {' and '.join(map(str, sorted(shapes)))} values and features; make them equal"
        )
    count = found[0].covariates.shape[1] - len(names)
    highest = [int(max(s.covariates[0, len(names) + i] for s in found)) for i in range(count)]
    kinds = tuple(tuple(str(code) for code in range(high)) for high in highest)
    if like is not None:
        kinds = like.kinds
    return Table(
        found,
        tuple(str(i) for i in range(found[0].values.shape[1])) if found[0].values.shape[1] > 1 else ("target",),
        tuple(names),
        tuple(f"category {i}" for i in range(count)),
        kinds,
        frequency,
    )


def _array(record: Mapping[str, Any], name: str, number: int, empty: int | None = None) -> Floats:
    value = record.get(name)
    if value is None:
        if empty is None:
            raise UserError(f"{name}: record {number} has none; each record needs start and target")
        return np.zeros((0, empty))
    try:
        value = [list(part) if hasattr(part, "__len__") else part for part in value]
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise UserError(
            f"{name}: record {number} does not hold numbers in rows of one length; give (L,) or (C, L)"
        ) from None


def _only_numbers(frame: Any, config: SeriesDataConfig) -> tuple[str, ...]:
    pd = pandas_library()
    named = (config.time, config.series, *config.covariates)
    found = tuple(c for c in frame.columns if c not in named and pd.api.types.is_numeric_dtype(frame[c]))
    if len(found) != 1:
        raise UserError(
            f"data.target: {len(found)} columns hold numbers ({', '.join(map(str, found)) or 'none'}); name those to "
            "predict with --data.target"
        )
    return found


def _numbers(column: Any, name: str, option: str) -> Floats:
    pd = pandas_library()
    if not pd.api.types.is_numeric_dtype(column):
        numbers = pd.to_numeric(column, errors="coerce")
        wrong = numbers.isna() & column.notna()
        if wrong.any():
            row = int(wrong.argmax())
            raise UserError(
                f"data.{option}: {name!r} holds {column.iloc[row]!r} in row {row + 1}, which is no number; leave it "
                "empty if it is missing"
            )
        column = numbers
    numbers = column.to_numpy(dtype=np.float64, na_value=np.nan)
    if np.isinf(numbers).any():
        row = int(np.isinf(numbers).argmax())
        raise UserError(
            f"data.{option}: {name!r} holds {numbers[row]} in row {row + 1}; leave it empty if it is missing"
        )
    return np.asarray(numbers)


def _kinds(column: Any) -> tuple[str, ...]:
    return tuple(sorted({str(value) for value in column.dropna().unique()}))


def _codes(column: Any, kinds: tuple[str, ...]) -> Floats:
    known = {kind: code for code, kind in enumerate(kinds, 1)}
    return np.asarray([known.get(str(value), 0) for value in column], dtype=np.float64)


def _check_order(times: Any, name: str, column: str | None) -> None:
    steps = np.diff(np.asarray(times))
    if len(steps) and not (steps > np.zeros(1, steps.dtype)).all():
        row = int((steps <= np.zeros(1, steps.dtype)).argmax())
        where = f" in series {name!r}" if name else ""
        raise UserError(
            f"data.time: {column!r} goes from {times[row]} to {times[row + 1]}{where}; sort the rows by it, and give "
            "each time once (name the series with --data.series if there are several)"
        )


def _places(times: Any, frequency: Frequency, name: str) -> npt.NDArray[np.int64]:
    places = frequency.places(times)
    whole = np.nan_to_num(np.round(places), nan=-1.0)
    off = ~(np.abs(places - whole) < 1e-3)
    where = f" in series {name!r}" if name else ""
    if off.any():
        raise UserError(
            f"data.time: {times[int(off.argmax())]}{where} lies between two steps of {frequency}; give series of one "
            "frequency, or name it with --data.freq"
        )
    if (np.diff(whole) <= 0).any():
        row = int((np.diff(whole) <= 0).argmax())
        raise UserError(f"data.time: {times[row]} and {times[row + 1]}{where} are one step of {frequency}; add them up")
    if whole[-1] >= LONGEST_GAP * len(times) + LONGEST_GAP:
        raise UserError(
            f"data.time: {len(times)} rows{where} span {whole[-1] + 1:.0f} steps of {frequency}; give data.freq, or "
            "correct the times"
        )
    return whole.astype(np.int64)

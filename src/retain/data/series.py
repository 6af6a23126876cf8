"""Series of numbers as training data: windows of series, split by time."""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from retain.config import Channels, SeriesDataConfig
from retain.data.batches import SPLITS, Batch, Data, Ints, Split
from retain.data.files import make_read_error
from retain.data.frames import Floats, Table, from_array, from_frame, from_records
from retain.data.hub import read_frame
from retain.data.times import pandas_library
from retain.errors import UserError
from retain.model.likelihood import count_scores
from retain.ops import scale

LARGEST = 1e6
"""Values above this multiple of their column's median size are refused. They usually encode a missing value."""
STILL = 0.75
"""Largest distance, in scales, between a constant level and the mean of a series or of a quarter of it."""
MEASURED = 512
"""Number of series, and MEASURED_STEPS of each, from which level and scale at the start of a stream are measured."""
MEASURED_STEPS = 4096
UNSEEN = 1e30
"""The stretch of a covariate that the model must not see: divided by it, all values are 0."""


@dataclasses.dataclass(eq=False, repr=False, kw_only=True)
class SeriesData(Data):
    """Windows of T steps of series, split by time.

    A training window may start at any step. It is treated as the start of a stream: it begins at m_0, without a level
    and scale of its own. In the other splits at most the last T/2 steps of a window are scored, or all steps of a
    window at the start of a series. So every value of a split is predicted exactly once. A series of fewer than T
    steps is padded.

    Step t reads the values of t - 1 and the covariates of t. Memory m_{t+1} must predict the values of t. m_0 predicts
    nothing.
    """

    table: Table
    config: SeriesDataConfig
    whole: bool = False

    def __post_init__(self) -> None:
        assert self.channels is not None
        series = self.table.series
        self.cuts = (
            np.array([[0, 0, len(s.values)] for s in series]) if self.whole else find_cuts(self.table, self.config)
        )
        lengths = np.array([len(s.values) for s in series])
        self.starts = np.maximum(self.cuts[:, 0] - self.seq_len + 1, (self.cuts[:, 0] > 0).astype(int))
        self.first = np.concatenate([[0], self.starts.cumsum()])
        self.scored: dict[Split, Ints] = {}
        bounds = [*self.cuts.T, lengths]
        for number, split in enumerate(["all"] if self.whole else SPLITS):
            if self.whole or number:
                begin = np.zeros_like(lengths) if self.whole else bounds[number - 1]
                end = lengths if self.whole else bounds[number] if number < 2 else lengths
                self.scored[split] = self._windows(begin, end)  # type: ignore[index]
        for split in () if self.whole else SPLITS:
            if not self.count(split):
                raise UserError(
                    f"data.split: {self.config.split} leaves {split} no value; give it a larger part, or longer series"
                )
        sizes = {split: self.count(split) for split in self.splits}
        self.info = self.info | {"sequences": sizes}

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits of the data: only "all" if the series are not cut."""
        return ("all",) if self.whole else SPLITS

    def _windows(self, begin: Ints, end: Ints) -> Ints:
        """Cut the steps begin … end - 1 of each series into windows (N, 4), as for `read`."""
        stride, found = max(1, self.seq_len // 2), []
        for number, (first, last) in enumerate(zip(begin.tolist(), end.tolist(), strict=True)):
            values, at = self.table.series[number].values, first
            while at < last:
                # At the start of a series all steps of a window are scored.
                stop = min(last, self.seq_len if at == 0 else at + stride)
                if not np.isnan(values[at:stop]).all():
                    found.append((number, max(0, stop - self.seq_len), at, stop))
                at = stop
        return np.array(found, dtype=np.int64).reshape(-1, 4)

    def count(self, split: Split) -> int:
        """Count the windows of a split. Training windows may start at any step."""
        return int(self.first[-1]) if split == "train" else len(self.scored[split])

    def sequences(self, split: Split, index: Ints) -> Batch:
        """Return the windows of a split with these numbers (B,)."""
        if split == "train":
            number = np.searchsorted(self.first, index, side="right") - 1
            start = index - self.first[number]
            stop = np.minimum(start + self.seq_len, self.cuts[number, 0])
            return self.read(np.stack([number, start, start, stop], 1))
        return self.read(self.scored[split][index])

    def read(self, windows: Ints) -> Batch:
        """Read windows (B, 4): the series, the first step, and the first and the end of the scored steps."""
        channels, length = self.channels, self.seq_len
        assert channels is not None
        count = channels.values
        rows = np.full((len(windows), length, channels.row), np.nan)
        following = np.full((len(windows), length, count), np.nan)
        real = np.zeros((len(windows), length), bool)
        for i, (number, start, first, stop) in enumerate(windows.tolist()):
            series = self.table.series[number]
            there = min(length, stop - start)
            rows[i, 1:there, :count] = series.values[start : start + there - 1]
            rows[i, :there, count:] = series.covariates[start : start + there]
            following[i, first - start : stop - start] = series.values[first:stop]
            real[i, :there] = True
        state = scale.begin(channels, len(windows))
        tokens, levels, scales, _ = scale.read_rows(channels, torch.from_numpy(rows), state)
        targets = scale.target(torch.from_numpy(following), levels, scales)
        padding = torch.from_numpy(~real)[..., None]
        batch = {
            "tokens": tokens.masked_fill(padding, 0.0),
            "targets": torch.cat([torch.full_like(targets[:, :1], torch.nan), targets], 1),
        }
        # If any batch may be padded, every batch has this key, so that all batches have the same form.
        return batch | ({"real": torch.from_numpy(real)} if self.padded else {})

    @property
    def padded(self) -> bool:
        """Whether any window may be padded."""
        return bool((self.cuts < self.seq_len).any())


def find_cuts(table: Table, config: SeriesDataConfig) -> Ints:
    """Find the steps (S, 2) at which each series is cut into train, validation and test.

    Series with common times are cut at the same time. Other series are cut after the same fraction of their own steps.
    """
    shares = np.cumsum(config.split)[:2]
    lengths = np.array([len(series.values) for series in table.series])
    if not table.aligned or table.frequency is None:
        cuts: Ints = np.round(lengths[:, None] * shares).astype(np.int64)
        return cuts
    clocks = [np.asarray(table.frequency.times(s.first, len(s.values))) for s in table.series]
    times = [(t.astype("datetime64[s]") if t.dtype.kind == "M" else t).astype(np.int64) for t in clocks]
    low, high = min(int(t[0]) for t in times), max(int(t[-1]) for t in times)
    step = max(1, (high - low) // max(1, max(len(t) for t in times) - 1))
    at = [low + int((high - low + step) * share) for share in shares]
    return np.array([np.searchsorted(t, at) for t in times])


def measure(table: Table, cuts: Ints, config: SeriesDataConfig, seq_len: int) -> Channels:
    """Measure the channels of a table: the levels and scales in its training split."""
    count = len(table.names)
    by = {"negative_binomial": "mean", "bernoulli": "fixed", "categorical": "fixed"}.get(config.head, "level")
    train = [(s.values[: cut[0]], s.covariates[: cut[0]]) for s, cut in zip(table.series, cuts, strict=True)]
    values = [part for part, _ in train if not np.isnan(part).all()]
    if not values:
        raise UserError("data.target: all values of the training split are missing")
    classes = int(max(np.nanmax(part) for part in values)) + 1 if config.head == "categorical" else 0
    numbers = np.concatenate([covariates[:, : len(table.covariates)] for _, covariates in train])
    there = np.where(np.isnan(numbers).all(0), 0.0, numbers) if len(numbers) else np.zeros((1, numbers.shape[1]))
    hidden = () if table.frequency is None else table.frequency.unseen(int(cuts[:, 0].max()))
    deviation = np.where([name in hidden for name in table.covariates], UNSEEN, np.nanstd(there, 0))
    ones, zeros = (1.0,) * count, (0.0,) * count
    channels = Channels(
        names=table.names,
        head=config.head,
        scale=by,
        steps=max(2, seq_len // 2),
        level=zeros,
        spread=ones,
        least=ones,
        ratio=ones,
        covariates=table.covariates,
        shift=tuple(np.nanmean(there, 0).tolist()),
        stretch=tuple(np.where(deviation > 1e-12, deviation, 1.0).tolist()),
        categories=table.categories,
        kinds=table.kinds,
        classes=classes,
        frequency=None if table.frequency is None else str(table.frequency),
    )
    if by == "fixed":
        return channels
    chosen = [values[i] for i in np.unique(np.linspace(0, len(values) - 1, MEASURED).round().astype(int))]
    one_level, one_spread, alike = find_constants(chosen)
    if config.scale == "fixed" or (config.scale is None and by == "level" and alike):
        if by == "mean":  # counts are measured from 0
            one_level, one_spread = np.zeros(count), np.maximum(one_level, 1e-3)
        level, spread = (tuple(part.tolist()) for part in (one_level, one_spread))
        return dataclasses.replace(channels, scale="fixed", level=level, spread=spread, least=spread)
    level, size, spread = np.array([_measure_one(channels, part) for part in chosen]).transpose(1, 0, 2)  # (S, C) each
    if by == "mean":
        spread = size
    found: dict[str, list[float]] = {name: [] for name in ("level", "spread", "least", "ratio")}
    for c in range(count):
        moves = spread[:, c][spread[:, c] > 0]
        moves = moves if len(moves) else np.maximum(size[:, c], 1.0)[:1]
        found["spread"].append(float(np.median(moves)))
        found["least"].append(float(np.quantile(moves, 0.1)))
        found["level"].append(0.0 if by == "mean" else float(np.median(level[:, c])))
        some = size[:, c] > 0
        ratio = float(np.median(spread[some, c] / size[some, c])) if some.any() else 1.0
        found["ratio"].append(1.0 if by == "mean" else min(1.0, ratio))
    changes: dict[str, Any] = {name: tuple(part) for name, part in found.items()}
    return dataclasses.replace(channels, **changes)


def find_constants(parts: list[Floats]) -> tuple[Floats, Floats, bool]:
    """Find the level and scale (C,) of series (L, C), and whether all of them share both and keep both throughout.

    For 95 % of the series and their quarters the mean must lie within STILL scales of the common level. For 95 % of
    the series the mean absolute deviation must be between a third of the common scale and three times that scale.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # for parts without a value
        means = np.array([np.nanmean(part, 0) for part in parts])
        level = np.nanmedian(means, 0)
        spreads = np.array([np.nanmean(np.abs(part - mean), 0) for part, mean in zip(parts, means, strict=True)])
        spread = np.nanmedian(spreads, 0)
        quarters = [np.nanmean(piece, 0) for part in parts for piece in np.array_split(part, 4) if len(piece)]
    level = np.nan_to_num(level)
    spread = np.where(spread > 0, spread, np.maximum(np.abs(level), 1.0))
    apart = np.abs(np.concatenate([means, np.array(quarters)]) - level) / spread
    ratio = spreads / spread
    some = [np.nanquantile(x, q, axis=0) for x, q in ((apart, 0.95), (ratio, 0.95), (-ratio, 0.95))]
    alike = (some[0] <= STILL) & (some[1] <= 3) & (-some[2] >= 1 / 3)
    return level, spread, bool(alike.all())


def _measure_one(channels: Channels, values: Floats) -> Floats:
    """Return the mean, mean absolute value and mean absolute deviation from the running level, each (C,)."""
    some = values[:MEASURED_STEPS]
    some = np.where(np.isnan(some).all(0), 0.0, some)
    level = np.nanmean(some, 0)
    running, spread, weight = np.zeros((3, some.shape[1]))
    for seen, row in enumerate(some):
        there = ~np.isnan(row)
        apart = np.where(there, row - running, 0.0)
        if seen:
            spread, weight = spread + np.abs(apart), weight + there
        running = running + apart * max(1 / (seen + 1), 1 / channels.steps)
    return np.array([level, np.nanmean(np.abs(some), 0), spread / np.maximum(weight, 1)])


def check_values(table: Table, config: SeriesDataConfig) -> None:
    """Raise UserError for values that the head cannot predict, or that are too large for any scale."""
    every = np.concatenate([series.values for series in table.series])
    for number, name in enumerate(table.names):
        column = every[:, number]
        there = column[~np.isnan(column)]
        if not len(there):
            raise UserError(f"data.target: {name!r} holds no value, all are missing; leave it out")
        if np.isinf(there).any():
            raise UserError(f"data.target: {name!r} holds an infinity; write NaN where a value is missing")
        largest = np.abs(there).max()
        usual = np.median(np.minimum(np.abs(there[there != 0]), scale.LARGEST)) if there.any() else 1.0
        if largest > LARGEST * usual or largest > scale.LARGEST:
            raise UserError(
                f"data.target: {name!r} holds {there[np.abs(there).argmax()]:g}, and its values are about {usual:g}; "
                "leave it empty if it stands for a missing value"
            )
        wrong: npt.NDArray[np.bool_] = np.zeros(len(there), bool)
        what = ""
        if config.head == "negative_binomial":
            wrong, what = (there < 0) | (there != np.round(there)), "a count 0, 1, …"
        elif config.head == "bernoulli":
            wrong, what = (there != 0) & (there != 1), "0 or 1"
        elif config.head == "categorical":
            wrong, what = (there < 0) | (there != np.round(there)) | (there >= 2**16), "a category 0 … 65535"
        if wrong.any():
            raise UserError(
                f"data.head: {config.head} is for {what}, and {name!r} holds {there[wrong.argmax()]:g}; give another"
            )


def make_series(
    table: Table, config: SeriesDataConfig, whole: bool = False, like: Channels | None = None
) -> SeriesData:
    """Make the sequences of a table for a new model, or for one with the channels `like`. Raises UserError."""
    check_values(table, config)
    channels = measure(table, find_cuts(table, config), config, config.seq_len) if like is None else like
    if like is not None:
        check_alike(table, like)
    digest = hashlib.sha256()
    for series in table.series:
        digest.update(series.values.tobytes() + series.covariates.tobytes())
    info = {
        "name": "series",
        "path": config.path,
        "series": len(table.series),
        "steps": sum(len(series.values) for series in table.series),
        "missing": int(sum(np.isnan(series.values).sum() for series in table.series)),
        "frequency": channels.frequency,
        "sha256": digest.hexdigest(),
    }
    return SeriesData(
        vocab_size=count_scores(channels), channels=channels, seq_len=config.seq_len, kind="numbers", info=info,
        table=table, config=config, whole=whole,
    )  # fmt: skip


def check_alike(table: Table, channels: Channels) -> None:
    """Raise UserError if a model with these channels cannot read a table."""
    theirs = {"target": table.names, "covariates": (*table.covariates, *table.categories)}
    for option, mine in {"target": channels.names, "covariates": (*channels.covariates, *channels.categories)}.items():
        if len(theirs[option]) != len(mine):
            raise UserError(
                f"data.{option}: the run has {len(mine)} ({', '.join(mine) or 'none'}), the data {len(theirs[option])} "
                f"({', '.join(theirs[option]) or 'none'}); give as many as the run has"
            )


def read_series(config: SeriesDataConfig, whole: bool = False, like: Channels | None = None) -> SeriesData:
    """Load the series of a file. Raises UserError naming the field, its value and the remedy."""
    return make_series(read_table(config, like), config, whole, like)


def series_data(source: Any, **fields: Any) -> SeriesData:
    """Make training data from a frame, an array or records, for `retain.train(config, out, data=…)`.

    Args:
        source: A frame of pandas or polars; an array of floats (N, C) or (S, N, C); or records in GluonTS's format.
        fields: Fields of SeriesDataConfig: time, series, target, covariates, freq, head, scale, seq_len, split.

    Raises:
        UserError: A field or a value is wrong.
    """
    config = SeriesDataConfig(path="in memory", **fields)
    return make_series(to_table(source, config), config)


def to_table(source: Any, config: SeriesDataConfig, like: Channels | None = None) -> Table:
    """Convert a frame, an array or records into a table of series."""
    if isinstance(source, np.ndarray):
        return from_array(source, config)
    if isinstance(source, Sequence) or not hasattr(source, "columns"):
        records: list[Mapping[str, Any]] = list(source)
        return from_records(records, config, like)
    return from_frame(source, config, like)


def read_table(config: SeriesDataConfig, like: Channels | None = None) -> Table:
    """Read the series of a file in the format of its extension. Raises UserError if that fails."""
    path = Path(config.path)
    endings = path.suffixes
    kind = next((e for e in reversed(endings) if e in READERS), None)
    if config.path.startswith("hf:"):
        return _from_columns(read_frame(config.path), config, like)
    if kind is None:
        raise UserError(
            f"data.path: {config.path!r} ends in none of {', '.join(READERS)}; write the series as one of them"
        )
    try:
        if kind == ".npy":
            with path.open("rb"):
                return from_array(np.load(path), config)
        pd = pandas_library()
        settings = {"lines": True} if kind == ".jsonl" else {}
        frame = getattr(pd, READERS[kind])(path, **({"sep": "\t"} if kind == ".tsv" else settings))
    except OSError as error:
        raise make_read_error(path, error) from None
    except ImportError:
        raise UserError("data: parquet files need pyarrow; run pip install 'retain[series]'") from None
    except UserError:
        raise
    except (ValueError, KeyError) as error:  # pandas and pyarrow raise subclasses of these
        said = " ".join(str(error).split())[:120]
        raise UserError(f"data.path: {config.path!r} cannot be read as its ending says ({said})") from None
    return _from_columns(frame, config, like)


def _from_columns(frame: Any, config: SeriesDataConfig, like: Channels | None) -> Table:
    """Take a frame that has a row for each step, or one for each series, with `start` and a list `target`."""
    if {"start", "target"} <= set(frame.columns) and len(frame) and hasattr(frame["target"].iloc[0], "__len__"):
        return from_records(frame.to_dict("records"), config, like)
    return from_frame(frame, config, like)


READERS = {
    ".csv": "read_csv",
    ".tsv": "read_csv",
    ".parquet": "read_parquet",
    ".jsonl": "read_json",
    ".json": "read_json",
    ".npy": "load",
}
"""File extensions, and the functions of pandas or NumPy that read them."""

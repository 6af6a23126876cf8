"""Scores of forecasts: one step ahead over a split, and over a horizon from many origins."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from retain.config import Channels
from retain.data.batches import Split
from retain.data.frames import Floats
from retain.data.series import SeriesData
from retain.inference.forecast import sample_paths
from retain.model.modes import evaluating
from retain.model.rnn import RNN
from retain.model.series_rnn import SeriesRNN

LEVELS = tuple(round(0.1 * i, 1) for i in range(1, 10))
"""Quantiles whose loss is summed, as in GluonTS' evaluator."""
BANDS = (0.5, 0.8, 0.95)
"""Central bands whose coverage is reported."""
NOMINAL = tuple(round(0.05 * i, 2) for i in range(1, 20))
"""Bands of the calibration plot."""
SAMPLES = 200
DRAWN = 2**22
"""The most samples of one-step predictions held at once."""
SEASONS = {"B": 5, "MS": 12, "QS": 4, "YS": 1}
SECONDS = {60: 1440, 900: 96, 1800: 48, 3600: 24, 86_400: 7, 604_800: 52}


def find_season(channels: Channels) -> int:
    """Return the steps of a season: of a day for hours, of a week for days, of a year for weeks, months or quarters."""
    freq = channels.frequency or ""
    if freq in SEASONS:
        return SEASONS[freq]
    return SECONDS.get(int(freq[:-1]), 1) if freq.endswith("s") else 1


class Scores:
    """Scores of sampled forecasts, summed over values."""

    def __init__(self, seed: int = 0) -> None:
        self.pinball, self.size, self.count = np.zeros(len(LEVELS)), 0.0, 0
        self.ranks: list[Floats] = []
        self.random = np.random.default_rng(seed)

    def add(self, samples: Floats, truth: Floats) -> None:
        """Add truth (N,), NaN for a missing value, with its samples (S, N)."""
        there = ~np.isnan(truth)
        samples, truth = samples[:, there], truth[there]
        if not len(truth):
            return
        apart = truth - np.quantile(samples, LEVELS, axis=0)  # (levels, N)
        levels = np.array(LEVELS)[:, None]
        self.pinball += np.maximum(levels * apart, (levels - 1) * apart).sum(1)
        self.size += float(np.abs(truth).sum())
        self.count += len(truth)
        # The rank of the truth among the samples, random among equal ones: uniform if the forecast is calibrated.
        below, equal = (samples < truth).sum(0), (samples == truth).sum(0)
        self.ranks.append((below + self.random.random(len(truth)) * (equal + 1)) / (len(samples) + 1))

    def results(self) -> dict[str, Any]:
        """Return `wql` (weighted quantile loss), `crps` (its mean, in the values' units), coverage and calibration."""
        if not self.count:
            return {"wql": None, "crps": None, "coverage": None, "calibration": None}
        loss = 2 * float(self.pinball.mean())
        apart = np.abs(np.concatenate(self.ranks) - 0.5) * 2
        return {
            "wql": loss / self.size if self.size else None,
            "crps": loss / self.count,
            "coverage": {f"{band:g}": float((apart < band).mean()) for band in BANDS},
            "calibration": [[band, float((apart < band).mean())] for band in NOMINAL],
        }


@torch.no_grad()
def score_one_step(rnn: RNN, data: SeriesData, split: Split, limit: int | None = None, seed: int = 0) -> dict[str, Any]:
    """Score one-step predictions over a split: `Scores.results` without wql, and `nats` per value."""
    likelihood = rnn.readout.likelihood
    assert likelihood is not None
    found, nats, count = Scores(seed), 0.0, 0
    size = max(1, DRAWN // (SAMPLES * (data.seq_len + 1) * len(likelihood.channels.names)))
    with evaluating(rnn), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for batch in data.windows(split, size, limit):
            tokens, targets = batch["tokens"].to(rnn.m_0.device), batch["targets"].to(rnn.m_0.device)
            memories = rnn.rollout(tokens, rnn.init_memory(len(tokens)))
            truth, scales = targets[:, 1:].chunk(2, -1)
            logits = rnn.readout(memories).float()
            nats += float(likelihood.nats(logits, targets[:, 1:]).sum())
            count += int((~truth.isnan()).sum())
            drawn = likelihood.of(logits, scales).sample(torch.Size([SAMPLES]))  # (S, B, T, C)
            # In the values' own units, less their level, so that values of any level can be summed.
            drawn, truth = (drawn * scales, truth * scales) if likelihood.measured else (drawn, truth * scales)
            found.add(drawn.flatten(1).cpu().double().numpy(), truth.flatten().cpu().double().numpy())
    results = found.results()
    del results["wql"]  # its weights would be values less their level
    return {"nats": nats / max(count, 1), **results}


def find_origins(data: SeriesData, split: Split, horizon: int, limit: int | None) -> npt.NDArray[np.int64]:
    """Find the origins of forecasts, (N, 2) series and step: every `horizon` steps of the split, if a horizon fits."""
    bounds = {"train": (None, 0), "validation": (0, 1), "test": (1, None), "all": (None, None)}[split]
    found = []
    for number, series in enumerate(data.table.series):
        begin = 0 if bounds[0] is None else int(data.cuts[number, bounds[0]])
        end = len(series.values) if bounds[1] is None else int(data.cuts[number, bounds[1]])
        found += [(number, at) for at in range(max(begin, 2), end - horizon + 1, horizon)]
    origins = np.array(found, dtype=np.int64).reshape(-1, 2)
    if limit is not None and len(origins) > limit:
        origins = origins[np.arange(limit) * len(origins) // limit]
    return origins


def backtest(
    rnn: RNN,
    data: SeriesData,
    split: Split,
    horizon: int,
    *,
    samples: int = SAMPLES,
    limit: int | None = 200,
    seed: int = 0,
) -> dict[str, Any]:
    """Forecast from many origins of a split, each from the T steps before it, and score the whole horizon.

    Returns `Scores.results`, `mase` (the median's mean absolute error over that of the seasonal naive forecast before
    the origin), the `naive` forecast's own wql and mase, and the counts of `forecasts`, `horizon` and `season`.
    """
    origins, table = find_origins(data, split, horizon, limit), data.table
    contexts, covariates = [], []
    for number, at in origins:
        start = max(0, at - data.seq_len)
        contexts.append(table.series[number].values[start:at])
        covariates.append(table.series[number].covariates[start : at + horizon])
    paths = sample_paths(SeriesRNN(rnn), contexts, covariates, horizon, samples, seed) if len(origins) else []
    return score_paths(data, origins, paths, horizon, seed)


def score_paths(
    data: SeriesData, origins: npt.NDArray[np.int64], paths: list[Floats], horizon: int, seed: int = 0
) -> dict[str, Any]:
    """Score samples (S, H, C) of the steps from each origin (N, 2), from any forecaster. Returns as `backtest`."""
    assert data.channels is not None
    season, scores, naive = find_season(data.channels), Scores(seed), Scores(seed)
    errors: dict[str, list[float]] = {"own": [], "naive": []}
    for (number, at), path in zip(origins, paths, strict=True):
        values = data.table.series[number].values
        truth, simple = values[at : at + horizon], naive_forecast(values[:at], horizon, season)
        scores.add(path.reshape(len(path), -1), truth.ravel())
        naive.add(np.repeat(simple.reshape(1, -1), 2, 0), np.where(np.isnan(simple), np.nan, truth).ravel())
        scale = naive_error(values[:at], season)  # (C,)
        for name, said in (("own", np.median(path, 0)), ("naive", simple)):
            with np.errstate(invalid="ignore", divide="ignore"):
                error = np.abs(truth - said) / scale
            errors[name] += error[np.isfinite(error)].tolist()
    mase = {name: float(np.mean(part)) if part else None for name, part in errors.items()}
    return {
        "forecasts": len(origins),
        "horizon": horizon,
        "season": season,
        **scores.results(),
        "mase": mase["own"],
        "naive": {"wql": naive.results()["wql"], "mase": mase["naive"]},
    }


def naive_forecast(values: Floats, horizon: int, season: int) -> Floats:
    """Repeat the last season of values (L, C) over the horizon: (H, C). Short series and gaps repeat the last value."""
    last = np.full(values.shape[1], np.nan)
    for row in values[::-1]:
        last = np.where(np.isnan(last), row, last)
        if not np.isnan(last).any():
            break
    if len(values) < season:
        return np.repeat(last[None], horizon, 0)
    said = values[len(values) - season + np.arange(horizon) % season]
    return np.where(np.isnan(said), last, said)


def naive_error(values: Floats, season: int) -> Floats:
    """Return the mean absolute error (C,) of the seasonal naive forecast one season ahead, within values (L, C)."""
    season = season if len(values) > season else 1
    apart = np.abs(values[season:] - values[:-season])
    counts = (~np.isnan(apart)).sum(0)
    return np.where(counts > 0, np.nan_to_num(apart).sum(0) / np.maximum(counts, 1), math.nan)

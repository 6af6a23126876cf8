"""Forecasts as a table of quantiles and a picture with bands."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from retain.data.times import pandas_library
from retain.errors import UserError
from retain.files import replace_file
from retain.inference.forecast import Forecast
from retain.plots import PALETTE, new_figure, tidy_axes

QUANTILES = (0.025, 0.1, 0.25, 0.5, 0.75, 0.9, 0.975)
DRAWN = 8
"""The most plots in a picture."""


def to_frame(forecasts: list[Forecast], names: tuple[str, ...]) -> Any:
    """Make a pandas frame: series, time, target, mean, and a column for each of QUANTILES, named like 0.5."""
    pd = pandas_library()
    parts = []
    for forecast in forecasts:
        for number, name in enumerate(names):
            samples = forecast.samples[..., number]  # (S, H)
            columns = {"series": forecast.name, "time": forecast.times, "target": name, "mean": samples.mean(0)}
            columns |= {f"{q:g}": row for q, row in zip(QUANTILES, np.quantile(samples, QUANTILES, 0), strict=True)}
            parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def write_table(frame: Any, out: Path) -> None:
    """Write a .parquet or .csv, complete or not at all. Raises UserError if pyarrow is missing."""
    buffer = io.BytesIO()
    try:
        frame.to_parquet(buffer, index=False) if out.suffix == ".parquet" else frame.to_csv(buffer, index=False)
    except ImportError:
        raise UserError("out: parquet needs pyarrow; run pip install 'retain[series]', or give a .csv") from None
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_file(out, buffer.getvalue())


def draw(forecasts: list[Forecast], names: tuple[str, ...], out: Path) -> bool:
    """Draw the first DRAWN series with bands of 50, 80 and 95 %. Return False if matplotlib is not installed."""
    pairs = [(f, number, name) for f in forecasts for number, name in enumerate(names)][:DRAWN]
    figure = new_figure(out, 7, 0.6 + 2.2 * len(pairs))
    if figure is None:
        return False
    from matplotlib.dates import ConciseDateFormatter

    shorter: Any = ConciseDateFormatter

    for place, (forecast, number, name) in enumerate(pairs, 1):
        axes = figure.add_subplot(len(pairs), 1, place)
        horizon = len(forecast.times)
        shown = slice(max(0, len(forecast.before) - max(3 * horizon, 30)), None)
        axes.plot(forecast.times_before[shown], forecast.before[shown, number], color=PALETTE[7], lw=1.2)
        low = dict(zip(QUANTILES, np.quantile(forecast.samples[..., number], QUANTILES, 0), strict=True))
        for tau, alpha in ((0.025, 0.15), (0.1, 0.2), (0.25, 0.3)):
            upper = low[round(1 - tau, 3)]
            axes.fill_between(forecast.times, low[tau], upper, color=PALETTE[0], alpha=alpha, lw=0)
        axes.plot(forecast.times, low[0.5], color=PALETTE[0], lw=1.5)
        axes.set_title(" ".join(part for part in (forecast.name, name) if part), fontsize=9)
        tidy_axes(axes)
        if np.issubdtype(forecast.times.dtype, np.datetime64):  # whole dates would run into each other
            axes.xaxis.set_major_formatter(shorter(axes.xaxis.get_major_locator()))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    replace_file(out, buffer.getvalue())
    return True

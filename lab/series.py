"""Compares forecasts of real series: SMT → DMT, BPTT, a GRU, DeepAR, ETS and the seasonal naive, at equal seconds.

    python -m lab.series --out runs/series                      # all sets and methods, three seeds
    python -m lab.series --out runs/series --sets co2 --methods smt,naive --seeds 1 --seconds 20

Every score is a file in the folder, so the same command continues after an interruption. At the end all scores are
written to results.json, from which lab/series_page.py makes a page. The data sets come with statsmodels and
vega_datasets. ETS needs statsforecast. DeepAR needs gluonts and lightning. Both need a pandas below 3.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from retain.config import RunConfig, SeriesDataConfig
from retain.config.presets import PRESETS
from retain.config.recipes import with_recipe
from retain.data import load_data
from retain.data.batches import Split
from retain.data.frames import Floats
from retain.data.series import SeriesData
from retain.experiments.compare import configure_method, with_rate
from retain.files import replace_file
from retain.inference.backtest import SAMPLES, backtest, find_origins, find_season, naive_forecast, score_paths
from retain.inference.evaluate import finite
from retain.runs.run import load_run
from retain.training.loop import train

SPLIT = (0.7, 0.1, 0.2)
GAUSS_80 = 1.2815515655446004
"""Half the width of the central 80 % of a standard normal."""


def read_co2() -> pd.DataFrame:
    """Read the weekly CO2 at Mauna Loa, in which some weeks are missing."""
    import statsmodels.api as sm

    frame = sm.datasets.co2.load_pandas().data.reset_index()
    return frame.set_axis(["time", "value"], axis=1).assign(series="co2")


def read_sunspots() -> pd.DataFrame:
    """Read the yearly sunspots, 1700 to 2008."""
    import statsmodels.api as sm

    frame = sm.datasets.sunspots.load_pandas().data
    return pd.DataFrame({"time": frame.YEAR.astype(int), "value": frame.SUNACTIVITY, "series": "sunspots"})


def read_macro() -> pd.DataFrame:
    """Read quarterly figures of the economy of the USA."""
    import statsmodels.api as sm

    frame = sm.datasets.macrodata.load_pandas().data
    times = pd.PeriodIndex.from_fields(
        year=frame.year.astype(int), quarter=frame.quarter.astype(int), freq="Q"
    ).to_timestamp()
    names = ("realgdp", "realcons", "realinv", "realgovt", "realdpi", "cpi", "m1", "tbilrate", "unemp", "pop")
    return pd.concat([pd.DataFrame({"time": times, "value": frame[name], "series": name}) for name in names])


def read_elnino() -> pd.DataFrame:
    """Read the monthly temperature of the Pacific."""
    import statsmodels.api as sm

    frame = sm.datasets.elnino.load_pandas().data
    values = frame.iloc[:, 1:].to_numpy().ravel()
    times = pd.date_range(f"{int(frame.YEAR[0])}-01-01", periods=len(values), freq="MS")
    return pd.DataFrame({"time": times, "value": values, "series": "elnino"})


def read_temperature() -> pd.DataFrame:
    """Read the hourly temperature in Seattle and San Francisco, 2010."""
    from vega_datasets import data

    frames = {"seattle": data.seattle_temps(), "san francisco": data.sf_temps()}
    frame = pd.concat([f[["date", "temp"]].assign(series=name) for name, f in frames.items()])
    return frame.set_axis(["time", "value", "series"], axis=1).drop_duplicates(["time", "series"])


def read_weather() -> pd.DataFrame:
    """Read the daily extremes of temperature, and the wind, in Seattle."""
    from vega_datasets import data

    frame = data.seattle_weather()
    names = ("temp_max", "temp_min", "wind")
    return pd.concat([pd.DataFrame({"time": frame.date, "value": frame[name], "series": name}) for name in names])


def read_stocks() -> pd.DataFrame:
    """Read the monthly prices of five stocks."""
    from vega_datasets import data

    return data.stocks().rename(columns={"date": "time", "price": "value", "symbol": "series"})


def read_employment() -> pd.DataFrame:
    """Read the monthly employment in the USA by industry."""
    from vega_datasets import data

    frame = data.us_employment().drop(columns="nonfarm_change")
    return frame.melt("month", var_name="series").rename(columns={"month": "time"})


@dataclasses.dataclass(frozen=True)
class Set:
    """A data set: its reader, the length T of training sequences, and the forecast horizon, both in steps."""

    read: Callable[[], pd.DataFrame]
    seq_len: int
    horizon: int


SETS = {
    "co2": Set(read_co2, 104, 13),
    "sunspots": Set(read_sunspots, 44, 5),
    "macro": Set(read_macro, 32, 4),
    "elnino": Set(read_elnino, 48, 12),
    "temperature": Set(read_temperature, 72, 24),
    "weather": Set(read_weather, 64, 14),
    "stocks": Set(read_stocks, 24, 6),
    "employment": Set(read_employment, 36, 6),
}
TRAINED = ("smt", "one-step", "bptt", "gru")
METHODS = (*TRAINED, "deepar", "deepar tuned", "ets", "naive")
RATES = (0.2, 1.0)
"""Factors on the preset's learning rates."""
DEEPAR_RATES = (3e-4, 1e-3, 3e-3, 1e-2)
"""Learning rates of DeepAR, whose default is 1e-3."""


def make_config(name: str, out: Path) -> RunConfig:
    """Write the table of a data set, and return the configuration of a run on it."""
    path = out / "data" / f"{name}.csv"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, SETS[name].read().to_csv(index=False).encode())
    base = PRESETS["series"]()
    data = SeriesDataConfig(
        path=str(path.resolve()), time="time", series="series", target=("value",), seq_len=SETS[name].seq_len,
        split=SPLIT,
    )  # fmt: skip
    future = min(base.teacher.future_len, SETS[name].horizon)
    return dataclasses.replace(
        base, data=data, tracker=None, teacher=dataclasses.replace(base.teacher, future_len=future)
    )


def choose_rate(name: str, method: str, out: Path, rates: Sequence[float], score: Callable[[float], float]) -> float:
    """Return the learning rate (or factor) with the least weighted quantile loss on the validation split.

    The trials are stored in the folder. Each trains one seed for a third of the seconds.
    """
    path = out / "tuned" / f"{name}-{method.replace(' ', '-')}.json"
    if not path.exists():
        tried = {rate: score(rate) for rate in rates}
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps(tried, indent=1).encode())
    tried = json.loads(path.read_text())
    return float(min(tried, key=lambda rate: tried[rate]))


def forecast_trained(
    name: str, method: str, split: Split, factor: float, seed: int, seconds: float, out: Path
) -> dict[str, Any]:
    """Train by one of TRAINED, with the preset's rates times `factor`, and score its forecasts of a split."""
    base = make_config(name, out)
    config = with_recipe(base, "one-step") if method == "one-step" else configure_method(base, method)
    config = with_rate(config, f"{factor:g}")
    config = dataclasses.replace(config, seed=seed, budget=f"{seconds:g}s", validate_every=f"{seconds / 15:g}s")
    folder = out / "runs" / f"{name}-{method}-lr{factor:g}-seed{seed}-{seconds:g}s"
    train(config, folder, resume=(folder / "config.json").exists(), progress_bar=False)
    data = load_data(config.data)
    assert isinstance(data, SeriesData)
    return backtest(load_run(folder).rnn, data, split, SETS[name].horizon, limit=None, seed=seed)


def run_trained(name: str, method: str, seed: int, seconds: float, out: Path) -> dict[str, Any]:
    """Train by one of TRAINED at the better of RATES, and score its forecasts of the test split."""

    def score(factor: float) -> float:
        return float(forecast_trained(name, method, "validation", factor, 0, seconds / 3, out)["wql"])

    factor = choose_rate(name, method, out, RATES, score)
    return {"lr_factor": factor, **forecast_trained(name, method, "test", factor, seed, seconds, out)}


def run_naive(name: str, method: str, seed: int, seconds: float, out: Path) -> dict[str, Any]:
    """Forecast by repeating the last season, and score the forecasts of the test split."""
    data, horizon = open_data(name, out), SETS[name].horizon
    assert data.channels is not None
    origins, season = find_origins(data, "test", horizon, None), find_season(data.channels)
    said = [naive_forecast(data.table.series[number].values[:at], horizon, season) for number, at in origins]
    return score_paths(data, origins, [np.repeat(part[None], 2, 0) for part in said], horizon)


def run_ets(name: str, method: str, seed: int, seconds: float, out: Path) -> dict[str, Any]:
    """Score an ETS of statsforecast, fitted at every origin on ten seasons before it (on 200 steps if that is more)."""
    from statsforecast.models import AutoETS

    data, horizon = open_data(name, out), SETS[name].horizon
    assert data.channels is not None
    origins, season = find_origins(data, "test", horizon, None), find_season(data.channels)
    rng, paths = np.random.default_rng(seed), []
    for number, at in origins:
        values = data.table.series[number].values[max(0, at - max(10 * season, 200)) : at, 0]
        values = pd.Series(values).interpolate(limit_direction="both").to_numpy()  # AutoETS takes no missing values
        season_length = season if season <= 24 else 1  # AutoETS fits no longer season
        said = AutoETS(season_length=season_length).forecast(y=values, h=horizon, level=[80])
        spread = (said["hi-80"] - said["lo-80"]) / (2 * GAUSS_80)
        paths.append((said["mean"] + spread * rng.standard_normal((SAMPLES, horizon)))[..., None])
    return score_paths(data, origins, paths, horizon)


def fit_deepar(
    data: SeriesData, horizon: int, seed: int, seconds: float, out: Path, **settings: float
) -> tuple[Any, Callable[[list[tuple[int, int]]], Any]]:
    """Train gluonts' DeepAR, with its defaults except for `settings`.

    Returns:
        Its predictor, and the function that makes a gluonts data set from pairs of a series' number and its end.
    """
    import lightning.pytorch as lightning
    from gluonts.dataset.common import ListDataset
    from gluonts.torch.model.deepar import DeepAREstimator

    freq = {"MS": "M", "QS": "Q", "604800s": "W", "86400s": "D", "3600s": "h"}.get(str(data.table.frequency), "Y")
    lightning.seed_everything(seed)

    def entries(ends: list[tuple[int, int]]) -> Any:
        rows = []
        for number, end in ends:
            first = data.table.series[number].first
            start = pd.Timestamp(f"{first}-01-01") if isinstance(first, (int, np.integer)) else first
            rows.append({"start": start, "target": data.table.series[number].values[:end, 0]})
        return ListDataset(rows, freq=freq)

    trainer = {"max_epochs": -1, "max_time": {"seconds": round(seconds)}, "accelerator": "cpu", "logger": False}
    trainer |= {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": str(out / "lightning"),
    }
    estimator = DeepAREstimator(
        freq=freq, prediction_length=horizon, context_length=data.seq_len, num_parallel_samples=SAMPLES,
        trainer_kwargs=trainer, **settings,
    )  # fmt: skip
    return estimator.train(entries([(n, int(cut[0])) for n, cut in enumerate(data.cuts)])), entries


def forecast_deepar(name: str, split: Split, seed: int, seconds: float, out: Path, **settings: float) -> dict[str, Any]:
    """Train DeepAR on a data set, and score its forecasts of a split."""
    data, horizon = open_data(name, out), SETS[name].horizon
    predictor, entries = fit_deepar(data, horizon, seed, seconds, out, **settings)
    origins = find_origins(data, split, horizon, None)
    found: list[Floats] = [f.samples[..., None] for f in predictor.predict(entries([(n, at) for n, at in origins]))]
    return score_paths(data, origins, found, horizon)


def run_deepar(name: str, method: str, seed: int, seconds: float, out: Path) -> dict[str, Any]:
    """Train DeepAR for the same seconds as the RNNs, at its default rate or the best of DEEPAR_RATES, and score it."""
    if method == "deepar":
        return forecast_deepar(name, "test", seed, seconds, out)

    def score(lr: float) -> float:
        return float(forecast_deepar(name, "validation", 0, seconds / 3, out, lr=lr)["wql"])

    lr = choose_rate(name, method, out, DEEPAR_RATES, score)
    return {"lr": lr, **forecast_deepar(name, "test", seed, seconds, out, lr=lr)}


def open_data(name: str, out: Path) -> SeriesData:
    """Load a data set."""
    data = load_data(make_config(name, out).data)
    assert isinstance(data, SeriesData)
    return data


def run(name: str, method: str, seed: int, seconds: float, out: Path) -> dict[str, Any]:
    """Return the record of one seed's scores, computed if it is not stored yet."""
    path = out / "scores" / f"{name}-{method.replace(' ', '-')}-seed{seed}.json"
    if path.exists():
        record: dict[str, Any] = json.loads(path.read_text())
        return record
    work = {"naive": run_naive, "ets": run_ets, "deepar": run_deepar, "deepar tuned": run_deepar}.get(
        method, run_trained
    )
    begin = time.perf_counter()
    scores = work(name, method, seed, seconds, out)
    record = {"set": name, "method": method, "seed": seed, "budget_seconds": seconds, **scores}
    record |= {key: finite(record[key]) for key in ("wql", "mase", "crps")}
    record["seconds"] = time.perf_counter() - begin
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, json.dumps(record, indent=1).encode())
    return record


def main() -> None:
    """Compute the scores that are missing, and write all to results.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=30.0, help="seconds of each training, on one thread")
    args = parser.parse_args()
    logging.getLogger("lightning").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")  # from other libraries
    records = []
    for name in args.sets.split(","):
        for method in args.methods.split(","):
            for seed in range(1 if method == "naive" else args.seeds):
                records.append(run(name, method, seed, args.seconds, args.out))
                record = {key: records[-1][key] for key in ("set", "method", "seed", "wql", "mase")}
                print(json.dumps(record), flush=True)
    replace_file(args.out / "results.json", json.dumps(records, indent=1).encode() + b"\n")


if __name__ == "__main__":
    main()

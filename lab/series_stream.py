"""Measures an RNN on streams of numbers: memory, events per second beside DeepAR, and faults found by surprise.

    python -m lab.series_stream --out runs/series-stream

It trains on the data sets of lab/series.py with one thread, and writes the results to docs/results/series-stream.json.
A part whose results are in the folder is not run again. DeepAR needs gluonts, lightning, and a pandas below 3.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]
import torch
from sklearn.metrics import roc_auc_score

from lab.series import SETS, fit_deepar, make_config, open_data
from retain.data import load_data
from retain.data.frames import Floats, OneSeries
from retain.data.series import SeriesData
from retain.experiments.compare import configure_method
from retain.files import replace_file
from retain.inference.backtest import SAMPLES
from retain.inference.forecast import sample_paths
from retain.inference.score import score_table
from retain.model.series_rnn import SeriesRNN
from retain.runs.run import load_series
from retain.training.loop import train

KEPT = Path("docs/results/series-stream.json")
SET = "co2"
"""The data set of the measurements of speed."""
FAULTS = ("spike", "stuck", "shift")
FAULTY = ("co2", "elnino", "weather")
STREAMS = 10_000


def train_run(name: str, method: str, seed: int, seconds: float, out: Path) -> Path:
    """Train on a data set unless that has been done, and return the run's folder."""
    config = configure_method(make_config(name, out), method)
    config = dataclasses.replace(config, seed=seed, budget=f"{seconds:g}s", validate_every=f"{seconds / 15:g}s")
    folder = out / "runs" / f"{name}-{method}-seed{seed}"
    train(config, folder, resume=(folder / "config.json").exists(), progress_bar=False)
    return folder


def resident() -> float:
    """Return the resident memory of this process in MiB."""
    return float(psutil.Process().memory_info().rss / 2**20)


@torch.inference_mode()
def read_long(rnn: SeriesRNN, steps: int, streams: int = 1) -> dict[str, Any]:
    """Read `steps` steps of each stream, and return the events per second and the process's memory over time.

    The values resemble a machine's: each stream has its own level, drift, phase of an oscillation, and noise.
    """
    generator = torch.Generator().manual_seed(0)
    level, drift, phase = torch.randn(3, streams, 1, generator=generator, dtype=torch.float64)
    memory, seen, values = rnn.init_memory(streams), [], torch.full((streams, 1), torch.nan, dtype=torch.float64)
    begin, covariates = time.perf_counter(), rnn.channels.row - 1
    for step in range(steps):
        row = torch.cat([values, torch.zeros(streams, covariates, dtype=torch.float64)], 1)
        _, memory = rnn.step(row, memory)
        noise = torch.randn(streams, 1, generator=generator, dtype=torch.float64)
        values = 100 * level + drift * 1e-3 * step + 10 * torch.sin(step / 8 + phase) + noise
        if step % max(1, steps // 10) == max(1, steps // 10) - 1:
            seen.append(round(resident(), 1))
    assert bool(memory.isfinite().all())
    return {
        "streams": streams,
        "steps": steps,
        "events_per_second": streams * steps / (time.perf_counter() - begin),
        "memory_mib_by_tenth": seen,
        "bytes_per_stream": memory[0].numel() * memory.element_size(),
    }


def time_median(work: Callable[[], object], times: int = 9) -> float:
    """Return the median seconds of a call, after one warm-up call."""
    took = []
    for _ in range(times + 1):
        begin = time.perf_counter()
        work()
        took.append(time.perf_counter() - begin)
    return statistics.median(took[1:])


def predict_once(predictor: Any, dataset: Any) -> None:
    """Draw DeepAR's samples of the next values."""
    list(predictor.predict(dataset))


def time_events(rnn: SeriesRNN, data: SeriesData, name: str, seconds: float, out: Path) -> dict[str, Any]:
    """Time events of one stream, beside DeepAR: predicting the next value, and sampling the whole horizon.

    At an event the model reads a value and predicts from there. The RNN continues from its memory. DeepAR has no state
    to continue from, so it reads its whole context again and draws samples.
    """
    series, horizon, at = data.table.series[0], SETS[name].horizon, len(data.table.series[0].values) - 60
    memory = rnn.init_memory(1)
    row = torch.zeros(1, rnn.channels.row, dtype=torch.float64)

    def steps(count: int = 200) -> None:
        with torch.inference_mode():
            kept = memory
            for _ in range(count):
                _, kept = rnn.step(row, kept)

    def forecast() -> object:
        return sample_paths(
            rnn, [series.values[at : at + 1]], [series.covariates[at : at + 1 + horizon]], horizon, SAMPLES
        )

    found = {"rnn_step": 200 / time_median(steps), "rnn_forecast": 1 / time_median(forecast)}
    for length, key in ((1, "deepar_step"), (horizon, "deepar_forecast")):
        predictor, entries = fit_deepar(data, length, 0, seconds, out)
        found[key] = 1 / time_median(partial(predict_once, predictor, entries([(0, at)])))
    return {"horizon": horizon, "samples": SAMPLES, "context": data.seq_len, "events_per_second": found}


def plant(series: OneSeries, begin: int, kind: str, rng: np.random.Generator) -> tuple[OneSeries, Floats]:
    """Put faults of a kind into a series from step `begin` on, and return it with a mask of the faulty steps (L,).

    A spike moves one value by 4 usual steps. A stuck sensor repeats a value for 8 steps. A shift moves 8 values by 3
    usual steps. The usual step is the mean absolute difference of consecutive values.
    """
    values, faulty = series.values.copy(), np.zeros(len(series.values), bool)
    usual = float(np.nanmean(np.abs(np.diff(values[:begin], axis=0))))
    for at in range(begin + 20, len(values) - 20, 40):
        place = at + int(rng.integers(20))
        length = 1 if kind == "spike" else 8
        part = slice(place, place + length)
        if kind == "stuck":
            values[part] = values[place - 1]
        else:
            values[part] += rng.choice([-1, 1]) * usual * (4 if kind == "spike" else 3)
        faulty[part] = True
    return dataclasses.replace(series, values=values), faulty


def find_faults(name: str, method: str, seeds: int, seconds: float, out: Path) -> list[dict[str, Any]]:
    """Plant faults in the test split, and return the area under the ROC curve of surprise and two simple scores."""
    found = []
    for seed in range(seeds):
        rnn = load_series(train_run(name, method, seed, seconds, out))
        data = open_data(name, out)
        for kind in FAULTS:
            rng = np.random.default_rng(seed)
            planted = [plant(s, int(c[1]), kind, rng) for s, c in zip(data.table.series, data.cuts, strict=True)]
            table = dataclasses.replace(data.table, series=[series for series, _ in planted])
            scored = iter(score_table(rnn, table))
            columns: dict[str, list[float]] = {"surprise": [], "difference": [], "deviation": []}
            labels: list[bool] = []
            for (series, faulty), cut in zip(planted, data.cuts, strict=True):
                values = series.values[:, 0]
                for step in np.flatnonzero(~np.isnan(values)).tolist():
                    surprise = next(scored).surprise
                    before = values[max(0, step - 24) : step]
                    before = before[~np.isnan(before)]
                    if step < int(cut[1]) or not len(before):
                        continue
                    assert surprise is not None
                    usual = float(np.mean(np.abs(np.diff(before)))) if len(before) > 1 else 1.0
                    spread = float(np.median(np.abs(before - np.median(before))))
                    columns["surprise"].append(surprise)
                    columns["difference"].append(abs(values[step] - before[-1]) / max(usual, 1e-9))
                    columns["deviation"].append(abs(values[step] - np.median(before)) / max(spread, 1e-9))
                    labels.append(bool(faulty[step]))
            areas = {column: float(roc_auc_score(labels, scores)) for column, scores in columns.items()}
            found.append(
                {"set": name, "method": method, "seed": seed, "fault": kind, "share": float(np.mean(labels)), **areas}
            )
    return found


def main() -> None:
    """Run the parts that are missing, and store the results of all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/series-stream"))
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--steps", type=int, default=1_000_000, help="steps of one stream; of many streams in all, times 10"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = train_run(SET, "smt", 0, args.seconds, args.out)
    data = load_data(make_config(SET, args.out).data)
    assert isinstance(data, SeriesData)
    rnn = load_series(folder)
    parts: dict[str, Callable[[], Any]] = {
        "events": lambda: time_events(rnn, data, SET, args.seconds / 4, args.out),
        "many": lambda: read_long(rnn, args.steps * 10 // STREAMS, STREAMS),
        "one": lambda: read_long(rnn, args.steps),
        "faults": lambda: [
            row for name in FAULTY for row in find_faults(name, "smt", args.seeds, args.seconds, args.out)
        ],
    }
    for name, work in parts.items():
        path = args.out / f"{name}.json"
        if not path.exists():
            replace_file(path, json.dumps(work(), indent=1).encode())
        print(name, path.read_text()[:600], flush=True)
    whole = {name: json.loads((args.out / f"{name}.json").read_text()) for name in parts}
    replace_file(KEPT, json.dumps(whole, indent=1).encode() + b"\n")


if __name__ == "__main__":
    main()

"""Runs of series as predictors of GluonTS."""

import warnings

import numpy as np
import pandas as pd
import pytest

from conftest import tiny
from retain import series_data, train
from retain.config import SeriesDataConfig

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its own, of its libraries
    gluonts = pytest.importorskip("gluonts", reason="gluonts is an extra, retain[gluonts], and needs pandas below 3")


@pytest.mark.filterwarnings("default")
def test_its_own_evaluation_runs_on_a_run(tmp_path):
    from gluonts.dataset.common import ListDataset
    from gluonts.evaluation import Evaluator, make_evaluation_predictions

    from retain.gluonts import Predictor

    entries = [
        {
            "start": pd.Period("2024-01-01 00:00", "h"),
            "target": 10 + i + np.sin(np.arange(120) * 2 * np.pi / 24),
            "feat_static_cat": [i],
            "item_id": f"T{i}",
        }
        for i in range(3)
    ]
    dataset = ListDataset(entries, freq="h")
    data = series_data([e | {"target": e["target"][:-12]} for e in dataset], seq_len=24)
    assert data.channels.frequency == "3600s"
    config = tiny(data=SeriesDataConfig(path="in memory", seq_len=24), budget="40steps")
    train(config, tmp_path / "run", data=data, progress_bar=False)
    predictor = Predictor(tmp_path / "run", prediction_length=12)
    forecasts, series = make_evaluation_predictions(dataset, predictor, num_samples=20)
    forecasts, series = list(forecasts), list(series)
    assert [f.item_id for f in forecasts] == ["T0", "T1", "T2"]
    assert forecasts[0].samples.shape == (20, 12) and forecasts[0].start_date == series[0].index[-12]
    metrics, _ = Evaluator(quantiles=(0.1, 0.5, 0.9), num_workers=None)(series, forecasts)
    assert np.isfinite(metrics["mean_wQuantileLoss"]) and metrics["mean_wQuantileLoss"] < 0.5
    short = list(Predictor(tmp_path / "run", 3, context_length=24).predict(dataset, num_samples=5))
    assert short[2].samples.shape == (5, 3)

"""Runs of series as GluonTS predictors, for `make_evaluation_predictions` and `Evaluator`.

from gluonts.evaluation import Evaluator, make_evaluation_predictions
from retain.gluonts import Predictor

predictor = Predictor("runs/series", prediction_length=24)
forecasts, series = make_evaluation_predictions(dataset.test, predictor, num_samples=200)
metrics, _ = Evaluator()(series, forecasts)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from retain.config import SeriesDataConfig
from retain.data.frames import from_records
from retain.data.series import check_alike
from retain.errors import UserError
from retain.inference.forecast import extend, sample_paths
from retain.runs.series import load_series_run

try:
    from gluonts.model.forecast import SampleForecast
    from gluonts.model.predictor import RepresentablePredictor
except ImportError:
    raise UserError("gluonts: this needs GluonTS; run pip install 'retain[gluonts]'") from None

AT_ONCE = 64
"""Series that are forecast in one batch."""


class Predictor(RepresentablePredictor):  # type: ignore[misc]
    """A GluonTS predictor that forecasts with the RNN of a run.

    Args:
        run: The run folder, trained on GluonTS records (`retain.series_data`), or on columns of the same meaning:
            targets, then `feat_dynamic_real`, `feat_static_real` and `feat_static_cat`.
        prediction_length: Steps to forecast.
        context_length: Steps to read before the forecast. None: all.
        device: The device of the RNN.
        seed: The same seed gives the same samples.

    Raises:
        UserError: The run reads tokens, or the dataset lacks the run's columns.
    """

    def __init__(
        self,
        run: str | Path,
        prediction_length: int,
        context_length: int | None = None,
        device: str = "cpu",
        seed: int = 0,
    ):
        super().__init__(prediction_length=prediction_length, lead_time=0)
        self.run, self.context_length, self.device, self.seed = str(run), context_length, device, seed
        self.rnn, _ = load_series_run(Path(run), device)

    def predict(self, dataset: Iterable[dict[str, Any]], num_samples: int = 200, **_: Any) -> Iterator[Any]:
        """Yield a `SampleForecast` for each entry of a dataset."""
        some: list[dict[str, Any]] = []
        for entry in dataset:
            some.append(entry)
            if len(some) == AT_ONCE:
                yield from self._predict(some, num_samples)
                some = []
        if some:
            yield from self._predict(some, num_samples)

    def _predict(self, entries: list[dict[str, Any]], num_samples: int) -> Iterator[Any]:
        channels = self.rnn.channels
        config = SeriesDataConfig(path="in memory")
        table = from_records(entries, config, channels)
        check_alike(table, channels)
        contexts, covariates = [], []
        for entry, series in zip(entries, table.series, strict=True):
            length = np.shape(entry["target"])[-1]
            first = 0 if self.context_length is None else max(0, length - self.context_length)
            contexts.append(series.values[first:length])
            covariates.append(extend(series, length + self.prediction_length, channels)[first:])
        paths = sample_paths(self.rnn, contexts, covariates, self.prediction_length, num_samples, self.seed)
        for entry, path in zip(entries, paths, strict=True):
            target = np.asarray(entry["target"])
            yield SampleForecast(
                samples=path[..., 0] if target.ndim == 1 else path,
                start_date=entry["start"] + target.shape[-1],
                item_id=entry.get("item_id"),
                info=entry.get("info"),
            )

"""`retain forecast`: quantiles of the next steps of each series in a file, and a picture with bands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from retain.cli.arguments import Usage, take_run
from retain.config import SEEDS


@dataclass(frozen=True)
class Forecast:
    """Forecast each series of a file beyond its last value. The RNN runs on its own samples."""

    context: str | None = None
    """The file to read first, with the columns that the run was trained on. None: the run's own file.
    Rows after the last value are the future; their covariates are read."""
    horizon: int = 48
    """Steps to forecast."""
    samples: int = 200
    """Samples per series."""
    seed: int = 0
    """The same seed gives the same samples."""
    out: str | None = None
    """The table, .parquet or .csv, with a .png of the same name. None: forecast.parquet in the run folder."""
    device: Literal["cpu", "cuda"] = "cpu"


def forecast_command(argv: list[str]) -> None:
    """Run `retain forecast`."""
    path, args = take_run(argv, "forecast", Forecast)
    for name in ("horizon", "samples"):
        if getattr(args, name) < 1:
            raise Usage(f"{name}: {getattr(args, name)} must be at least 1")
    if not 0 <= args.seed < SEEDS:
        raise Usage(f"seed: {args.seed} must be at least 0 and below {SEEDS}")
    out = Path(args.out) if args.out else path / "forecast.parquet"
    if out.suffix not in (".parquet", ".csv"):
        raise Usage(f"out: {out} must be a .parquet or a .csv")
    from retain.inference.forecast import forecast
    from retain.inference.forecast_files import draw, to_frame, write_table
    from retain.runs.series import open_series

    rnn, table = open_series(path, args.context, args.device)
    found = forecast(rnn, table, args.horizon, args.samples, args.seed)
    write_table(to_frame(found, rnn.channels.names), out)
    picture = out.with_suffix(".png")
    drawn = draw(found, rnn.channels.names, picture)
    print(f"{out}: {len(found)} series, {args.horizon} steps" + (f"\n{picture}" if drawn else ""))

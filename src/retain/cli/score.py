"""`retain score`: the surprise of each step of a series, from a file or line by line from stdin."""

from __future__ import annotations

import csv
import sys
from dataclasses import dataclass
from typing import Literal

from retain.cli.arguments import take_run


@dataclass(frozen=True)
class Score:
    """Print the surprise of each step as CSV, in nats: series, time, surprise. A high surprise is an anomaly."""

    data: str | None = None
    """A file with the columns that the run was trained on. None: the run's own file.
    With - lines of CSV are read from stdin, header first, and each is answered at once."""
    device: Literal["cpu", "cuda"] = "cpu"


def score_command(argv: list[str]) -> None:
    """Run `retain score`."""
    path, args = take_run(argv, "score", Score)
    from retain.inference.score import LineScorer, Scored, score_table
    from retain.runs.series import load_series_run, open_series

    writer = csv.writer(sys.stdout, lineterminator="\n")

    def say(scored: Scored) -> None:
        nats = "" if scored.surprise is None else f"{scored.surprise:.6g}"
        writer.writerow([scored.series, scored.time, nats])

    if args.data != "-":
        rnn, table = open_series(path, args.data, args.device)
        writer.writerow(["series", "time", "surprise"])
        for scored in score_table(rnn, table):
            say(scored)
        return
    rnn, config = load_series_run(path, args.device)
    lines = csv.reader(iter(sys.stdin.readline, ""))
    scorer = None
    for fields in lines:
        if scorer is None:
            scorer = LineScorer(rnn, config, fields)
            writer.writerow(["series", "time", "surprise"])
        elif fields:
            say(scorer.score(fields, lines.line_num))
        sys.stdout.flush()

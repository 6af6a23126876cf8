"""Writes docs/results-series.md, the results on series of numbers, from the stored scores.

    python -m lab.series_page [--from runs/series]

`--from` copies results.json of lab/series.py to docs/results/series.json. lab/series_stream.py stores its own results.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lab.results import write
from lab.series import METHODS
from retain.experiments.tables import mean_and_deviation
from retain.files import replace_file
from retain.plots import FAINT, PALETTE, add_legend, new_figure, tidy_axes
from retain.plots import METHODS as COLOURS

PAGE = Path("docs/results-series.md")
KEPT = Path("docs/results/series.json")
STREAM = Path("docs/results/series-stream.json")
MARKS = ("<!-- series begin -->", "<!-- series end -->")
STREAM_MARKS = ("<!-- streams begin -->", "<!-- streams end -->")
SCORES = {"wql": "weighted quantile loss", "mase": "MASE"}
Records = Sequence[dict[str, Any]]


def collect(records: Records, name: str, method: str, score: str) -> list[float]:
    """Return the scores of a method on a data set, one for each seed that has a score."""
    found = [record for record in records if (record["set"], record["method"]) == (name, method)]
    values = [(r["coverage"] or {}).get("0.8") if score == "coverage" else r[score] for r in found]
    return [value for value in values if value is not None]


def list_methods(records: Records) -> list[str]:
    """Return the methods that have records, in the order of METHODS."""
    return [method for method in METHODS if any(record["method"] == method for record in records)]


def list_sets(records: Records) -> list[str]:
    """Return the data sets in the order of the records."""
    return list(dict.fromkeys(record["set"] for record in records))


def tabulate(records: Records, score: str) -> str:
    """Return a table with a row for each data set (mean and deviation over seeds, best mean in bold) and mean ranks."""
    methods = list_methods(records)
    lines = [f"| set | {' | '.join(methods)} |", f"| --- |{' ---: |' * len(methods)}"]
    ranks: dict[str, list[int]] = {method: [] for method in methods}
    for name in list_sets(records):
        values = {m: v for m in methods if (v := collect(records, name, m, score))}
        order = sorted(values, key=lambda method: statistics.mean(values[method]))
        for rank, method in enumerate(order, 1):
            ranks[method].append(rank)
        cells = [f"**{show(values[m])}**" if m == order[0] else show(values[m]) if m in values else "" for m in methods]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    means = [f"{statistics.mean(ranks[m]):.2f}" if ranks[m] else "" for m in methods]
    return "\n".join([*lines, f"| mean rank | {' | '.join(means)} |"]) + "\n"


def show(values: Sequence[float]) -> str:
    """Format mean and deviation, with more digits for small losses."""
    if statistics.mean(values) >= 0.1:
        return mean_and_deviation(values)
    mean = f"{statistics.mean(values):.5f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.5f}"


def tabulate_coverage(records: Records) -> str:
    """Return a table of the share of values in the central 80 % band: a row for each data set, and the mean."""
    methods = [method for method in list_methods(records) if method != "naive"]
    lines = [f"| set | {' | '.join(methods)} |", f"| --- |{' ---: |' * len(methods)}"]
    every: dict[str, list[float]] = {method: [] for method in methods}
    for name in list_sets(records):
        cells = []
        for method in methods:
            values = collect(records, name, method, "coverage")
            every[method] += [statistics.mean(values)] if values else []
            cells.append(f"{statistics.mean(values):.2f}" if values else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    means = [f"{statistics.mean(every[m]):.2f}" if every[m] else "" for m in methods]
    return "\n".join([*lines, f"| mean | {' | '.join(means)} |"]) + "\n"


def list_behind(records: Records) -> str:
    """Return a sentence that lists where our methods are behind the seasonal naive forecast."""
    found = []
    for name in list_sets(records):
        naive = statistics.mean(collect(records, name, "naive", "wql"))
        behind = [m for m in ("smt", "one-step") if statistics.mean(collect(records, name, m, "wql")) > naive]
        found += [f"{' and '.join(behind)} on {name}"] if behind else []
    return f"Behind the seasonal naive forecast: {'; '.join(found) or 'neither smt nor one-step, on any set'}.\n"


def draw(records: Records, path: Path) -> None:
    """Draw the loss of each method on each data set, over that of the seasonal naive forecast."""
    figure = new_figure(path, 8, 4)
    if figure is None:
        return
    axes, names = figure.subplots(), list_sets(records)
    spare = iter(colour for colour in PALETTE if colour not in {COLOURS.get(m) for m in METHODS})
    methods = [method for method in list_methods(records) if method != "naive"]
    for i, method in enumerate(methods):
        own = COLOURS.get(method) or next(spare)
        for at, name in enumerate(names):
            naive = statistics.mean(collect(records, name, "naive", "wql"))
            values = [value / naive for value in collect(records, name, method, "wql")]
            x = at + (i - (len(methods) - 1) / 2) * 0.1
            label = method if at == 0 else None
            axes.plot([x] * len(values), values, "o", color=own, markersize=4, label=label)
    axes.axhline(1, color=FAINT, linewidth=1)
    axes.set_yscale("log")
    axes.minorticks_off()
    axes.set_yticks([0.1, 0.3, 1, 3], ["0.1", "0.3", "1", "3"])
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel("loss over the seasonal naive's")
    tidy_axes(axes)
    add_legend(axes, ncols=4)
    figure.savefig(path, dpi=110)


def write_scores(saved: dict[str, Any]) -> str:
    """Return the Markdown on forecasts between the page's markers."""
    records = saved["records"]
    parts = [f"`{saved['command']}`, {saved['seconds']:g} s of one thread for each training.\n"]
    parts.append(
        "![Weighted quantile loss of each seed, over that of the seasonal naive forecast](results/series.png)\n"
    )
    for score, title in SCORES.items():
        parts.append(f"### {title[0].upper()}{title[1:]}\n\n{tabulate(records, score)}")
    parts.append(list_behind(records))
    parts.append(f"### Values in the 80 % band\n\n{tabulate_coverage(records)}")
    return "\n".join(parts)


def write_streams(saved: dict[str, Any]) -> str:
    """Return the Markdown on streams between the page's markers."""
    events = saved["events"]["events_per_second"]
    size = saved["events"]
    lines = [
        f"| events per second, one stream | retain | DeepAR, context of {size['context']} |",
        "| --- | ---: | ---: |",
        f"| the next value | {events['rnn_step']:,.0f} | {events['deepar_step']:,.1f} |",
        f"| {size['horizon']} values, {size['samples']} samples | {events['rnn_forecast']:,.1f} "
        f"| {events['deepar_forecast']:,.1f} |",
        "",
        "| streams | steps of each | events per second | bytes of a stream | MiB of the process, by tenth |",
        "| ---: | ---: | ---: | ---: | --- |",
    ]
    for part in ("one", "many"):
        found = saved[part]
        mib = ", ".join(f"{value:,.0f}" for value in found["memory_mib_by_tenth"])
        lines.append(
            f"| {found['streams']:,} | {found['steps']:,} | {found['events_per_second']:,.0f} "
            f"| {found['bytes_per_stream']:,} | {mib} |"
        )
    lines += ["", "| set | fault | surprise | difference | deviation |", "| --- | --- | ---: | ---: | ---: |"]
    for name, fault in dict.fromkeys((row["set"], row["fault"]) for row in saved["faults"]):
        rows = [row for row in saved["faults"] if (row["set"], row["fault"]) == (name, fault)]
        cells = [mean_and_deviation([row[key] for row in rows]) for key in ("surprise", "difference", "deviation")]
        lines.append(f"| {name} | {fault} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(prog="python -m lab.series_page", description=__doc__)
    parser.add_argument("--from", dest="source", type=Path, help="the output folder of lab.series")
    args = parser.parse_args(argv)
    if args.source is not None:
        records = json.loads((args.source / "results.json").read_text())
        saved = {"command": "python -m lab.series", "seconds": records[0]["budget_seconds"], "records": records}
        replace_file(KEPT, json.dumps(saved).encode() + b"\n")
        draw(records, KEPT.with_suffix(".png"))
    for path, text, marks in ((KEPT, write_scores, MARKS), (STREAM, write_streams, STREAM_MARKS)):
        if path.exists():
            write(text(json.loads(path.read_text())), PAGE, marks)
    print(f"written: {PAGE}")


if __name__ == "__main__":
    main()

"""The cost at which each method solves a task, by sequence length: a table and a plot."""

from __future__ import annotations

import statistics
from pathlib import Path

from lab.studies import SOLVED
from retain.experiments.tables import Results, mean_and_deviation, table
from retain.plots import DPI, METHODS, add_legend, new_figure, tidy_axes

COSTS = {"seconds": "seconds", "sequential_steps": "sequential steps"}


def get_length(results: Results) -> int:
    """Return the sequence length that a comparison trained on."""
    return int(results["data"]["seq_len"])


def list_methods(comparisons: list[Results]) -> list[str]:
    """Return the methods that all comparisons have."""
    return [m for m in comparisons[0]["methods"] if all(m in c["methods"] for c in comparisons)]


def find_solved(results: Results, method: str) -> dict[str, float] | None:
    """Return the mean costs over seeds at the first validation with an accuracy of SOLVED; None if a seed has none."""
    curves = [r.get("curve", []) for r in results["methods"][method]["runs"]]
    first = [next((p for p in curve if p["accuracy"] >= SOLVED), None) for curve in curves]
    points = [p for p in first if p is not None]
    if not points or len(points) < len(first):
        return None
    return {cost: statistics.mean(p[cost] for p in points) for cost in COSTS}


def tabulate_by_length(comparisons: list[Results]) -> str:
    """Return the table in Markdown."""
    text = (
        "Accuracy on test; and the seconds and sequential steps, mean over seeds, after which one of the ten\n"
        f"validations of a run saw {SOLVED}.\n\n"
    )
    methods, rows = list_methods(comparisons), []
    for results in sorted(comparisons, key=get_length):
        row = [f"{get_length(results)} ({results['seeds']} seed{'s' if results['seeds'] > 1 else ''})"]
        for method in methods:
            runs, cost = results["methods"][method]["runs"], find_solved(results, method)
            own = mean_and_deviation([r["test"]["accuracy"] for r in runs if "test" in r])
            took = "–" if cost is None else f"{cost['seconds']:,.0f} s, {cost['sequential_steps']:,.0f}"
            row.append(f"{own}; {took}")
        rows.append(row)
    return text + table(["T", *methods], rows)


def plot_by_length(comparisons: list[Results], path: Path) -> bool:
    """Draw the cost of solving against length, a line per method; return False if matplotlib is not installed."""
    figure = new_figure(path, 9, 4)
    if figure is None:
        return False
    from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

    comparisons = sorted(comparisons, key=get_length)
    lengths = [get_length(results) for results in comparisons]
    for axis, (cost, label) in zip(figure.subplots(1, len(COSTS)), COSTS.items(), strict=True):
        for method in list_methods(comparisons):
            found = [find_solved(results, method) for results in comparisons]
            # NaN leaves a length that was not solved out of the line.
            axis.plot(
                lengths,
                [float("nan") if f is None else f[cost] for f in found],
                marker="o",
                color=METHODS[method],
                label=method,
            )
        axis.set_xscale("log", base=2)
        axis.set_xticks(lengths, [str(length) for length in lengths])
        axis.xaxis.set_minor_locator(NullLocator())
        if cost == "sequential_steps":
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_minor_locator(NullLocator())
            axis.yaxis.set_major_formatter(EngFormatter(sep=""))
        else:
            axis.set_ylim(bottom=0)
        axis.set_xlabel("length trained on, T")
        axis.set_ylabel(f"{label} until {SOLVED} was seen")
        tidy_axes(axis)
    add_legend(axis)
    figure.savefig(path, dpi=DPI)
    return True

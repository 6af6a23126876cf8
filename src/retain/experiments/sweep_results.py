"""Results of a sweep, as Markdown tables and as plots of quality and of compression."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

from retain.experiments.tables import (
    COSTS,
    Results,
    describe_quality,
    describe_runs,
    mean_and_deviation,
    table,
    write_tables,
)
from retain.plots import DPI, FAINT, PALETTE, add_legend, new_figure, tidy_axes

LEVELS = 4
"""Number of losses on the compression curve, if none are given."""


def reached_by_all(point: dict[str, Any], level: float, cost: str) -> float:
    """Return the cost until every seed of the RNN alone reached `level` bits per token; inf if one never did."""
    return max(next((p[cost] for p in run["curve"] if p["bits_per_token"] <= level), math.inf) for run in point["runs"])


def choose_levels(points: list[dict[str, Any]]) -> list[float]:
    """Choose losses from the worst memory size's final loss to nearly the best one's, in even steps, rounded up."""
    ends: dict[int, float] = {}
    for point in points:  # the loss that every seed reaches in the end
        loss = max(min((p["bits_per_token"] for p in run["curve"]), default=math.inf) for run in point["runs"])
        ends[point["memory"]] = min(loss, ends.get(point["memory"], math.inf))
    finite = [end for end in ends.values() if math.isfinite(end)]
    if not finite:
        return []
    worst, best = max(finite), min(finite)
    digits = max(0, math.ceil(-math.log10(max(worst - best, 1e-3) / 40)))
    step = 10.0**-digits
    levels = [math.ceil((worst - (worst - best) * i / LEVELS) / step - 1e-9) * step for i in range(LEVELS)]
    return list(dict.fromkeys(round(level, digits) for level in levels))


def find_compression(points: list[dict[str, Any]], levels: tuple[float, ...] = ()) -> Results:
    """Return, per level and cost, the smallest memory that has reached the level, as (cost, numbers in the memory).

    A memory's size is K · D numbers. A size has reached the level when every seed has, with the values of the other
    varied fields that are first.
    """
    found: Results = {"levels": list(levels) or choose_levels(points), "by_level": []}
    for level in found["levels"]:
        entry: Results = {"level": level}
        for cost in ("step", *COSTS):
            smallest, steps = math.inf, list[list[float]]()
            arrivals = sorted((reached_by_all(p, level, cost), p["memory"]) for p in points)
            for spent, size in arrivals:
                if math.isfinite(spent) and size < smallest:
                    # If two sizes reach the level at the same cost, the smaller counts.
                    steps = [s for s in steps if s[0] != spent] + [[spent, size]]
                    smallest = size
            entry[cost] = steps
        found["by_level"].append(entry)
    return found


def write_results(results: Results, out: Path) -> None:
    """Write results.json, results.md and, if matplotlib is installed, results.png and compression.png."""
    write_tables(results, markdown(results), out)
    plot_quality(results, out / "results.png")
    if results["compression"]:
        plot_compression(results, out / "compression.png")


def list_good_runs(point: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the runs that did not diverge."""
    return [run for run in point["runs"] if "validation" in run]


def markdown(results: Results) -> str:
    """Return the table of a sweep, and the table of compression if memory was varied."""
    text = describe_runs(results) + (f", {results['threads']} thread(s) a run" if results["threads"] else "")
    text += "; **validation** split (a sweep is for choosing; the test split is untouched), each RNN alone from m_0; "
    text += "mean ± standard deviation over seeds, the best in bold.\n\n" + _main_table(results)
    return text + ("\n" + _compression_table(results["compression"]) if results["compression"] else "")


def _main_table(results: Results) -> str:
    """Return a table with a row of scores and costs for each combination of values."""
    accuracy, metric = results["metric"] == "accuracy", results["metric"]
    scored = [[run["validation"][metric] for run in list_good_runs(point)] for point in results["points"]]
    means = [statistics.mean(values) for values in scored if values]
    lead = (max if accuracy else min)(means) if len(means) > 1 else None
    rows = []
    for point in results["points"]:
        good, count = list_good_runs(point), len(point["runs"])
        scores = [run["validation"] for run in good]
        shown = mean_and_deviation(s[metric] for s in scores)
        if good and statistics.mean(s[metric] for s in scores) == lead:
            shown = f"**{shown}**"
        if len(good) < count:
            shown += f" ({count - len(good)} of {count} diverged)"
        row = {name: str(value) for name, value in point["values"].items()}
        row["accuracy" if accuracy else "bits/token"] = shown
        if accuracy:
            row["bits/token"] = mean_and_deviation(s["bits_per_token"] for s in scores)
        row["its teacher"] = mean_and_deviation(s[f"teacher_{metric}"] for s in scores)
        row["relative drift"] = mean_and_deviation(s["relative_drift"] for s in scores)
        row["memory"] = str(point["memory"])
        for key in ("parameters", "seconds", "tokens", "sequential_steps"):
            row[key.replace("_", " ")] = mean_and_deviation([run[key] for run in good], ",.0f", deviation=False)
        rows.append(row)
    chance = f"Chance is {results['chance']:.3f}. " if results["chance"] is not None else ""
    text = table(list(rows[0]), [list(row.values()) for row in rows])
    return text + f"\n{chance}Memory: numbers in it, K · D. Its teacher: the same score.\n"


def _compression_table(found: Results) -> str:
    """Return a table of the costs at which each memory was first enough for each loss."""
    text = (
        "Compression: the smallest memory (numbers, K · D) with which every seed of the RNN alone has reached a loss "
    )
    text += "on validation, and what had been spent by then. Read each row as: from … on, this memory is enough.\n\n"
    rows = []
    for entry in found["by_level"]:
        by_size: dict[int, dict[str, float]] = {}
        for cost in ("step", *COSTS):
            for spent, size in entry[cost]:
                by_size.setdefault(size, {})[cost] = spent
        for size, spent in sorted(by_size.items(), reverse=True):
            figures = [f"{spent[cost]:,.0f}" if cost in spent else "–" for cost in ("step", *COSTS)]
            rows.append([f"{entry['level']:g}", str(size), *figures])
        if not by_size:
            rows.append([f"{entry['level']:g}", "none", *["–"] * (1 + len(COSTS))])
    return text + table(["bits/token", "memory", "optimizer steps", *COSTS.values()], rows)


def plot_quality(results: Results, path: Path) -> bool:
    """Draw quality of RNN and teacher against each varied field, a line per combination of the others."""
    fields, metric = list(results["vary"]), results["metric"]
    last = [name.rpartition(".")[2] for name in fields]
    short = {name: word if last.count(word) == 1 else name for name, word in zip(fields, last, strict=True)}
    figure = new_figure(path, max(5.4, 5 * len(fields)), 3.9)
    if figure is None:
        return False
    panels = figure.subplots(1, len(fields), sharey=True, squeeze=False)[0]
    for axes, field in zip(panels, fields, strict=True):
        groups: dict[str, list[dict[str, Any]]] = {}
        for point in results["points"]:
            others = ", ".join(f"{short[name]} {value}" for name, value in point["values"].items() if name != field)
            groups.setdefault(others or "RNN alone", []).append(point)
        places = place_values(axes, results["vary"][field])
        for number, (words, points) in enumerate(groups.items()):
            for who in ("", "teacher_"):
                drawn = []
                for point in points:
                    values = [run["validation"][who + metric] for run in list_good_runs(point)]
                    if values := [v for v in values if v is not None]:
                        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
                        drawn.append((places[point["values"][field]], statistics.mean(values), deviation))
                if not drawn:
                    continue
                x, y, deviations = zip(*sorted(drawn), strict=True)
                if who:
                    look = {"linestyle": ":", "alpha": 0.75, "label": "its teacher" if len(groups) == 1 else None}
                else:
                    look = {"marker": "o", "label": words, "yerr": deviations if results["seeds"] > 1 else None}
                colour = PALETTE[number % len(PALETTE)]
                axes.errorbar(x, y, color=colour, markersize=4, capsize=3, linewidth=1.6, **look)
        if len(groups) > 1:
            axes.plot([], [], ":", color="0.4", label="teachers")
        if results["chance"] is not None:
            axes.axhline(results["chance"], color=FAINT, linestyle=":", linewidth=1)
        axes.set_xlabel(field)
        tidy_axes(axes)
        if axes.get_legend_handles_labels()[0]:
            add_legend(axes)
    panels[0].set_ylabel(describe_quality(results))
    figure.suptitle(describe_runs(results), fontsize=10)
    figure.savefig(path, dpi=DPI)
    return True


def place_values(axes: Any, values: list[Any]) -> dict[Any, float]:
    """Place each value on the axis: positive numbers on a log scale, other values evenly spaced in their order."""
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) and v > 0 for v in values)
    places = {v: float(v) if numbers else float(i) for i, v in enumerate(values)}
    if numbers and len(values) > 1:
        axes.set_xscale("log")
    axes.set_xticks(list(places.values()), [f"{v:g}" if isinstance(v, float) else str(v) for v in values])
    axes.set_xticks([], minor=True)
    return places


def plot_compression(results: Results, path: Path) -> bool:
    """Draw the smallest memory that reaches each level against each cost: a staircase down."""
    figure = new_figure(path, 13, 4)
    if figure is None:
        return False
    sizes = sorted({point["memory"] for point in results["points"]})
    runs = [run for point in results["points"] for run in point["runs"] if run["curve"]]
    panels = figure.subplots(1, len(COSTS), sharey=True)
    for axes, (cost, label) in zip(panels, COSTS.items(), strict=True):
        end = max((run["curve"][-1][cost] for run in runs), default=1)
        for number, entry in enumerate(results["compression"]["by_level"]):
            if not entry[cost]:
                continue
            x = [spent for spent, _ in entry[cost]]
            y = [size for _, size in entry[cost]]
            # A small offset keeps levels apart that share a step.
            y = [size * 1.02 ** (number - 1.5) for size in y]
            colour = PALETTE[number % len(PALETTE)]
            axes.step([*x, end], [*y, y[-1]], where="post", color=colour, linewidth=1.6,
                      label=f"≤ {entry['level']:g} bits/token")  # fmt: skip
            axes.plot(x, y, "o", color=colour, markersize=4)
        starts = [entry[cost][0][0] for entry in results["compression"]["by_level"] if entry[cost]]
        if starts and end > 8 * min(starts):
            axes.set_xscale("log")
        else:
            axes.locator_params(axis="x", nbins=5)  # more numbers of six digits would overlap
        axes.set_yscale("log", base=2)
        axes.set_yticks(sizes, [str(size) for size in sizes])
        axes.set_yticks([], minor=True)
        axes.set_ylim(sizes[0] / 1.3, sizes[-1] * 1.3)
        axes.set_xlabel(label)
        tidy_axes(axes)
    panels[0].set_ylabel("smallest memory, numbers (K · D)")
    if any(entry["tokens"] for entry in results["compression"]["by_level"]):
        add_legend(panels[-1])
    figure.suptitle(f"Compression: {describe_runs(results)}", fontsize=10)
    figure.savefig(path, dpi=DPI)
    return True

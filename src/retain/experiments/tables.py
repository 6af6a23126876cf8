"""Results of a comparison, as Markdown tables and as a plot of quality against cost."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from retain.errors import UserError
from retain.files import replace_file
from retain.plots import DPI, FAINT, METHODS, add_legend, new_figure, tidy_axes

COSTS = {"seconds": "seconds", "tokens": "tokens", "sequential_steps": "sequential steps"}
DRIFT = "relative_drift_last"
Results = dict[str, Any]


def write_results(results: Results, out: Path) -> None:
    """Write results.json, results.md and, if matplotlib is installed, results.png."""
    write_tables(results, markdown(results), out)
    plot(results, out / "results.png")


def write_tables(results: Results, text: str, out: Path) -> None:
    """Write results.json and results.md."""
    replace_file(out / "results.json", json.dumps(results, indent=1).encode() + b"\n")
    replace_file(out / "results.md", text.encode("utf-8", "surrogateescape"))


def describe_runs(results: Results) -> str:
    """Describe the runs in words."""
    return f"{results['preset'] or 'custom'}, {results['budget']} a run, {results['seeds']} seed(s)"


def describe_quality(results: Results) -> str:
    """Return the label of an axis of quality on validation."""
    return f"{'accuracy' if results['metric'] == 'accuracy' else 'bits per token'}, validation"


def markdown(results: Results) -> str:
    """Return the tables of a comparison: methods, the sweep of learning rates, and lengths."""
    said = describe_runs(results) + (f", {results['threads']} thread(s) a run" if results["threads"] else "")
    over = "mean ± standard deviation over seeds" if results["seeds"] > 1 else "one seed is no claim"
    part = f", {results['limit']:,} sequences" if results.get("limit") else ""
    text = f"{said}; test split{part}, each RNN alone from m_0; {over}, the best in bold.\n\n" + _main_table(results)
    if len(results["lrs"]) > 1:
        text += "\n" + _sweep_table(results)
    if results["lengths"]:
        text += "\n" + _length_table(results)
    if any("memory_bits" in r.get("test", {}) for found in results["methods"].values() for r in found["runs"]):
        text += "\n" + _memory_table(results)
    return text


def short_table(results: Results) -> str:
    """Return a table of the scores alone: a row for each method, the best first and in bold."""
    metric = results["metric"]
    words = "accuracy ↑" if metric == "accuracy" else "bits/token ↓"
    ranked = rank_methods(results)
    scores = {name: [r["test"] for r in found["runs"] if "test" in r] for name, found in ranked}
    best = mean_and_deviation((s[metric] for s in scores[ranked[0][0]]), deviation=False)
    rows = []
    for name, found in scores.items():
        own = mean_and_deviation(s[metric] for s in found)
        is_best = found and len(scores) > 1 and own.split()[0] == best
        rows.append([name, f"**{own}**" if is_best else own, mean_and_deviation(s[f"teacher_{metric}"] for s in found)])
    return table(["method", words, "its teacher"], rows)


def _main_table(results: Results) -> str:
    """Return a table with a row of scores and costs per method, why runs failed, and the machines if they differ."""
    metric, every = results["metric"], [r for m in results["methods"].values() for r in m["runs"]]
    drifts = any(r.get("test", {}).get(DRIFT) is not None for r in every)
    subwords = results["data"].get("tokenizer") is not None
    paths = any("longest_gradient_path" in m for m in results["methods"].values())
    rows, best, why = [], None, ""
    for method, found in rank_methods(results):
        good, count = [r for r in found["runs"] if "test" in r], len(found["runs"])
        scores = [r["test"] for r in good]
        name = method if len(good) == count else f"{method} ({count - len(good)} of {count} runs diverged)"
        row = {"method": name, "accuracy": mean_and_deviation(s["accuracy"] for s in scores)}
        if metric == "accuracy":
            row["chance"] = f"{results['chance']:.3f}"
        row["bits/token"] = mean_and_deviation(s["bits_per_token"] for s in scores)
        if subwords:
            row["bits/byte"] = mean_and_deviation(s["bits_per_byte"] for s in scores)
        row["its teacher"] = mean_and_deviation(s[f"teacher_{metric}"] for s in scores)
        if drifts:
            row["relative drift, last position"] = mean_and_deviation((s.get(DRIFT) for s in scores), ".2f")
        # Methods that are equal in the digits shown share the first place.
        shown = mean_and_deviation((s[metric] for s in scores), deviation=False)
        best = best or shown
        if good and shown == best and len(results["methods"]) > 1:
            column = "accuracy" if metric == "accuracy" else "bits/byte" if subwords else "bits/token"
            row[column] = f"**{row[column]}**"
        if paths:
            row["gradient path, steps"] = f"{found['longest_gradient_path']:,}"
        row["learning rate"] = ", ".join(f"{phase} {lr:.2g}" for phase, lr in found["lr"].items())
        for cost, words in COSTS.items():
            row[words] = mean_and_deviation((r[cost] for r in good), ",.0f", deviation=False)
        row["parameters"] = f"{found['parameters']:,}" if found["parameters"] else "–"
        peaks = (r["peak_memory_bytes"] for r in good)
        peaks_in_mib = (None if peak is None else peak / 2**20 for peak in peaks)
        row["peak memory, MiB"] = mean_and_deviation(peaks_in_mib, ",.0f", deviation=False)
        rows.append(row)
        why += "".join(f"{method}, seed {r['seed']}: {r['failed']}\n" for r in found["runs"] if "failed" in r)
    text = table(list(rows[0]), [list(row.values()) for row in rows]) + (f"\n{why}" if why else "")
    machines = {f"{r['machine']} {r['device']} {r['precision']}" for r in every if "machine" in r}
    # Seconds on different machines are not the same budget.
    return text + (f"\nRuns of unlike machines: {'; '.join(sorted(machines))}.\n" if len(machines) > 1 else "")


def _sweep_table(results: Results) -> str:
    text = "Learning rates, as factors on the preset's: validation bits/token of seed 0 after "
    text += f"{results['sweep_budget']}.\n\n"
    rows = []
    for method, found in results["methods"].items():
        row = [method]
        for lr in results["lrs"]:
            value = found["sweep"][lr].get("validation_bits_per_token")
            cell = "diverged" if value is None else f"{value:.3f}"
            row.append(f"**{cell}**" if lr == found["lr_factor"] else cell)
        rows.append(row)
    text += table(["method", *(f"× {lr}" for lr in results["lrs"])], rows)
    ends = {min(results["lrs"], key=parse_factor), max(results["lrs"], key=parse_factor)}
    edge = [method for method, found in results["methods"].items() if found["lr_factor"] in ends]
    if edge and len(results["lrs"]) > 2:
        text += f"\nBest at the edge of what was tried, so that a rate beyond may be better: {', '.join(edge)}.\n"
    return text


def _length_table(results: Results) -> str:
    """Return a table of quality at other lengths, and one of relative drift if there is a teacher to drift from."""
    metric, trained = results["metric"], results["data"]["seq_len"]
    what = "Accuracy" if metric == "accuracy" else "Bits/token"
    text = f"{what} at other lengths (trained at {trained}); its teacher's in brackets.\n\n"
    rows, drifts, lengths = [], [], [str(length) for length in results["lengths"]]
    for method, found in results["methods"].items():
        good = [r["lengths"] for r in found["runs"] if "lengths" in r]
        row, drift = [method], [method]
        for length in lengths:
            own = mean_and_deviation([r[length][metric] for r in good])
            theirs = mean_and_deviation([r[length][f"teacher_{metric}"] for r in good])
            row.append(own if theirs == "–" else f"{own} ({theirs})")
            drift.append(mean_and_deviation([r[length]["relative_drift"] for r in good], ".2g"))
        rows.append(row)
        drifts += [drift] if set(drift[1:]) != {"–"} else []
    text += table(["method", *lengths], rows)
    if drifts:
        text += "\n" + table(["relative drift", *lengths], drifts)
    return text


def _memory_table(results: Results) -> str:
    """Return a table of the bits that fsq memories can hold, and of those that they use."""
    columns = {
        "bits it can hold": ("memory_bits", ".1f"),
        "entropy of whole memories": ("memory_entropy", ".2f"),
        "sum of its numbers' entropies": ("memory_entropy_by_number", ".2f"),
        "different memories": ("different_memories", ",.0f"),
    }
    rows = []
    for method, found in results["methods"].items():
        good = [r["test"] for r in found["runs"] if "memory_bits" in r.get("test", {})]
        cells = [mean_and_deviation([r[key] for r in good], form) for key, form in columns.values()]
        rows += [[method, *cells]] if good else []
    return "What the memory holds, in bits, over the test split.\n\n" + table(["method", *columns], rows)


def parse_factor(text: str) -> float:
    """Read '3', '0.3' or '1/3' as a number. Raises UserError."""
    above, _, below = text.partition("/")
    try:
        value = float(above) / float(below or 1)
    except (ValueError, ZeroDivisionError):
        value = 0.0
    if not 0 < value < float("inf"):
        raise UserError(f"lrs: {text!r} is not a positive factor; write e.g. --lrs 1/3,1,3")
    return value


def rank_methods(results: Results) -> list[tuple[str, dict[str, Any]]]:
    """Order the methods: best mean on the test split first, those without a score last."""
    metric, scored = results["metric"], {}
    for method, found in results["methods"].items():
        values = [r["test"][metric] for r in found["runs"] if "test" in r]
        mean = statistics.mean(values) if values else math.inf
        scored[method] = -mean if values and metric == "accuracy" else mean
    return sorted(results["methods"].items(), key=lambda item: scored[item[0]])


def mean_and_deviation(values: Iterable[float | None], form: str = ".3f", deviation: bool = True) -> str:
    """Return mean ± standard deviation (of a sample) of the values that are not None; – if there are none."""
    known = [v for v in values if v is not None]
    if not known:
        return "–"
    mean = format(statistics.mean(known), form)
    return f"{mean} ± {statistics.stdev(known):{form}}" if deviation and len(known) > 1 else mean


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table with its first column aligned left and the others right."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def is_far_below(chance: float, values: Sequence[float]) -> bool:
    """Return whether a line at chance would flatten the curves above it."""
    return bool(values) and min(values) - chance > max(values) - min(values)


def plot(results: Results, path: Path) -> bool:
    """Draw quality on validation against each cost, a line per method; return False if matplotlib is not installed."""
    figure = new_figure(path, 13, 4)
    if figure is None:
        return False
    from matplotlib.ticker import EngFormatter, LogLocator, NullLocator, ScalarFormatter

    metric, chance = results["metric"], results["chance"]
    values = [p[metric] for found in results["methods"].values() for r in found["runs"] for p in r["curve"]]
    axes = figure.subplots(1, len(COSTS), sharey=True)
    for axis, (cost, label) in zip(axes, COSTS.items(), strict=True):
        for method, found in results["methods"].items():
            draw_curves(axis, found["runs"], cost, metric, METHODS[method], method)
        if chance is not None and not is_far_below(chance, values):
            axis.axhline(chance, color=FAINT, linestyle=":", linewidth=1)
        axis.set_xlabel(label)
        if cost == "sequential_steps":
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(EngFormatter(sep="") if axis.get_xlim()[1] > 1e3 else ScalarFormatter())
        tidy_axes(axis)
    axes[0].set_ylabel(describe_quality(results))
    add_legend(axes[-1])
    figure.suptitle(describe_runs(results), fontsize=10)
    figure.savefig(path, dpi=DPI)
    return True


def draw_curves(axes: Any, runs: list[dict[str, Any]], cost: str, metric: str, colour: str, label: str) -> None:
    """Draw the mean of a method's seeds against a cost, and the range of the seeds as a band."""
    import numpy as np

    # A diverged run ends early and would cut the mean of the others short. It is drawn only if there are no others.
    drawn = [r for r in runs if r["curve"]]
    curves = [r["curve"] for r in [r for r in drawn if "failed" not in r] or drawn]
    if not curves:
        return
    # Seeds are validated at slightly different costs: their mean is taken on a common axis.
    start = max(curve[0][cost] for curve in curves)
    x = np.linspace(start, max(start, min(curve[-1][cost] for curve in curves)), 50)
    y = np.array([np.interp(x, [p[cost] for p in c], [p[metric] for p in c]) for c in curves])
    axes.plot(x, y.mean(0), color=colour, label=label, marker="o" if len(curves[0]) == 1 else None)
    if len(curves) > 1:
        axes.fill_between(x, y.min(0), y.max(0), color=colour, alpha=0.15, linewidth=0)

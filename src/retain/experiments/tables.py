"""What a comparison found: as one JSON object, as Markdown tables, and as a picture of quality against cost."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retain.config.json import from_dict
from retain.experiments.comparison import parse_factor
from retain.files import replace_file
from retain.plots import new_figure

if TYPE_CHECKING:
    from retain.experiments.comparison import Comparison

COSTS = {"seconds": "seconds", "tokens": "tokens", "sequential_steps": "sequential steps"}
DRIFT = "relative_drift_last"
Results = dict[str, Any]


def summarise(
    comparison: Comparison,
    runs: dict[str, list[dict[str, Any]]],
    sweep: dict[str, dict[str, dict[str, Any]]],
    best: dict[str, str],
) -> Results:
    """Return all figures of a comparison as JSON, by method: `runs`, `sweep` by factor, `best` factors."""
    config = comparison.config
    methods = {}
    for method, results in runs.items():
        good = [r for r in results if "failed" not in r]
        run = results[0]["config"]
        methods[method] = {
            "lr_factor": best[method],
            "lr": {phase: run[phase]["lr"] for phase in run["phases"]},
            "cell": run["cell"]["kind"],
            "memory": [run["memory"]["tokens"], run["memory"]["width"]],
            "parameters": good[0]["parameters"] if good else None,
            "longest_gradient_path": from_dict(run, drop=True).longest_gradient_path,
            "sweep": {
                lr: {key: r.get(key) for key in ("validation_bits_per_token", "seconds", "failed") if key in r}
                for lr, r in sweep[method].items()
            },
            "runs": [
                {k: v for k, v in r.items() if k not in ("config", "data")} | {"seed": s} for s, r in enumerate(results)
            ],
        }
    known = next((r for results in runs.values() for r in results if "test" in r), {})
    source = next((r["data"] for results in runs.values() for r in results if "data" in r), None)
    return {
        "preset": config.preset,
        "budget": config.budget,
        "sweep_budget": comparison.sweep_budget or config.budget,
        "seeds": comparison.seeds,
        "lrs": list(comparison.lrs),
        "lengths": list(comparison.lengths),
        "threads": comparison.threads,
        "data": dataclasses.asdict(config.data),
        "source": source,
        "metric": "accuracy" if known.get("answers") else "bits_per_token",
        "chance": known.get("chance"),
        "methods": methods,
    }


def write_results(results: Results, out: Path) -> None:
    """Write results.json, results.md and, where matplotlib is installed, results.png."""
    write_tables(results, markdown(results), out)
    plot(results, out / "results.png")


def write_tables(results: Results, text: str, out: Path) -> None:
    """Write results.json and results.md."""
    replace_file(out / "results.json", json.dumps(results, indent=1).encode() + b"\n")
    replace_file(out / "results.md", text.encode("utf-8", "surrogateescape"))


def headline(results: Results) -> str:
    """Return what each run was, in words."""
    return f"{results['preset'] or 'custom'}, {results['budget']} a run, {results['seeds']} seed(s)"


def quality_axis(results: Results) -> str:
    """Return the words of an axis of quality on validation."""
    return f"{'accuracy' if results['metric'] == 'accuracy' else 'bits per token'}, validation"


def markdown(results: Results) -> str:
    """The tables of a comparison: methods, the sweep of learning rates, and lengths."""
    accuracy = results["metric"] == "accuracy"
    said = headline(results)
    if results["threads"]:
        said += f", {results['threads']} thread(s) a run"
    over = "mean ± standard deviation over seeds" if results["seeds"] > 1 else "one seed is no claim"
    text = f"{said}; test split, each RNN alone from m_0; {over}, the best in bold.\n\n"
    text += main_table(results, accuracy) + unlike(results)
    if len(results["lrs"]) > 1:
        text += "\n" + sweep_table(results)
    if results["lengths"]:
        text += "\n" + length_table(results, accuracy)
    return text


def unlike(results: Results) -> str:
    """Return a line if runs were made on unlike machines, whose seconds are not one budget."""
    runs = [r for found in results["methods"].values() for r in found["runs"] if "machine" in r]
    kinds = {" ".join(str(r[key]) for key in ("machine", "device", "precision")) for r in runs}
    return f"\nRuns of unlike machines: {'; '.join(sorted(kinds))}.\n" if len(kinds) > 1 else ""


def main_table(results: Results, accuracy: bool) -> str:
    """Return a row of scores and costs for each method, and why runs failed."""
    drifts = any(r.get("test", {}).get(DRIFT) is not None for m in results["methods"].values() for r in m["runs"])
    column = "accuracy" if accuracy else "bits/token"
    rows, best = [], None
    for method, found in ranked(results):
        good, count = [r for r in found["runs"] if "test" in r], len(found["runs"])
        scores = [r["test"] for r in good]

        def cost(key: str, scale: float = 1, good: list[dict[str, Any]] = good) -> str:
            return mean_and_deviation([r[key] / scale for r in good if r[key] is not None], ",.0f", deviation=False)

        name = method if len(good) == count else f"{method} ({count - len(good)} of {count} runs diverged)"
        row = {"method": name, "accuracy": mean_and_deviation(s["accuracy"] for s in scores)}
        if accuracy:
            row["chance"] = f"{results['chance']:.3f}"
        row["bits/token"] = mean_and_deviation(s["bits_per_token"] for s in scores)
        row["its teacher"] = mean_and_deviation(s[f"teacher_{results['metric']}"] for s in scores)
        if drifts:
            row["relative drift, last position"] = mean_and_deviation([s.get(DRIFT) for s in scores], ".2f")
        # Methods that the digits shown cannot tell apart share the first place.
        shown = mean_and_deviation([s[results["metric"]] for s in scores], deviation=False)
        best = best or shown
        if good and shown == best and len(results["methods"]) > 1:
            row[column] = f"**{row[column]}**"
        if any("longest_gradient_path" in m for m in results["methods"].values()):
            row["gradient path, steps"] = f"{found['longest_gradient_path']:,}"
        rows.append(
            row
            | {
                "learning rate": ", ".join(f"{phase} {lr:.2g}" for phase, lr in found["lr"].items()),
                "seconds": cost("seconds"),
                "tokens": cost("tokens"),
                "sequential steps": cost("sequential_steps"),
                "parameters": f"{found['parameters']:,}" if found["parameters"] else "–",
                "peak memory, MiB": cost("peak_memory_bytes", 2**20),
            }
        )
    why = [
        f"{method}, seed {r['seed']}: {r['failed']}\n"
        for method, m in ranked(results)
        for r in m["runs"]
        if "failed" in r
    ]
    return table(list(rows[0]), [list(row.values()) for row in rows]) + ("\n" + "".join(why) if why else "")


def sweep_table(results: Results) -> str:
    """Return validation bits per token of each learning rate, seed 0; the one chosen in bold."""
    after = results["sweep_budget"]
    text = f"Learning rates, as factors on the preset's: validation bits/token of seed 0 after {after}.\n\n"
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


def length_table(results: Results, accuracy: bool) -> str:
    """Return the scores at other lengths of the sequence."""
    metric = results["metric"]
    what, trained = "Accuracy" if accuracy else "Bits/token", results["data"]["seq_len"]
    text = f"{what} at other lengths (trained at {trained}); its teacher's in brackets.\n\n"
    rows = []
    for method, found in results["methods"].items():
        good = [r for r in found["runs"] if "lengths" in r]
        row = [method]
        for length in map(str, results["lengths"]):
            own = mean_and_deviation([r["lengths"][length][metric] for r in good])
            theirs = mean_and_deviation([r["lengths"][length][f"teacher_{metric}"] for r in good])
            row.append(own if theirs == "–" else f"{own} ({theirs})")
        rows.append(row)
    return text + table(["method", *map(str, results["lengths"])], rows)


def ranked(results: Results) -> list[tuple[str, dict[str, Any]]]:
    """Order the methods: best mean on the test split first, those without a score last."""
    metric = results["metric"]

    def key(item: tuple[str, dict[str, Any]]) -> float:
        values = [r["test"][metric] for r in item[1]["runs"] if "test" in r]
        if not values:
            return float("inf")
        mean: float = statistics.mean(values)
        return -mean if metric == "accuracy" else mean

    return sorted(results["methods"].items(), key=key)


def mean_and_deviation(values: Iterable[float | None], form: str = ".3f", deviation: bool = True) -> str:
    """Return mean ± standard deviation (of a sample) of the values that are there; – if there are none."""
    known = [v for v in values if v is not None]
    if not known:
        return "–"
    mean = format(statistics.mean(known), form)
    return f"{mean} ± {statistics.stdev(known):{form}}" if deviation and len(known) > 1 else mean


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table, the first column to the left and figures to the right."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def flattens(chance: float, values: Sequence[float]) -> bool:
    """Say whether chance lies so far below all curves that its line would press them flat (the table has it anyway)."""
    return bool(values) and min(values) - chance > max(values) - min(values)


def plot(results: Results, path: Path) -> bool:
    """Draw quality on validation against seconds, tokens and sequential steps, one line per method.

    Returns:
        False, with a line on stderr, if matplotlib is not installed.
    """
    figure = new_figure(path, 13, 4)
    if figure is None:
        return False
    import numpy as np
    from matplotlib.ticker import EngFormatter, LogLocator, NullLocator, ScalarFormatter

    metric, chance = results["metric"], results["chance"]
    values = [p[metric] for found in results["methods"].values() for r in found["runs"] for p in r["curve"]]
    axes = figure.subplots(1, len(COSTS), sharey=True)
    for axis, (cost, label) in zip(axes, COSTS.items(), strict=True):
        for number, (method, found) in enumerate(results["methods"].items()):
            # One that diverged ends early, and the line of the others with it; it is shown where there is no other.
            good = [r["curve"] for r in found["runs"] if r["curve"] and "failed" not in r]
            curves = good or [r["curve"] for r in found["runs"] if r["curve"]]
            if not curves:
                continue
            # Seeds are validated at slightly different costs: their mean is taken on a common axis.
            start = max(curve[0][cost] for curve in curves)
            x = np.linspace(start, max(start, min(curve[-1][cost] for curve in curves)), 50)
            y = np.array([np.interp(x, [p[cost] for p in c], [p[metric] for p in c]) for c in curves])
            color = f"C{number}"
            axis.plot(x, y.mean(0), color=color, label=method, marker="o" if len(curves[0]) == 1 else None)
            if len(curves) > 1:
                axis.fill_between(x, y.min(0), y.max(0), color=color, alpha=0.15, linewidth=0)
        if chance is not None and not flattens(chance, values):
            axis.axhline(chance, color="grey", linestyle=":", linewidth=1)
        axis.set_xlabel(label)
        if cost == "sequential_steps":
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(EngFormatter(sep="") if axis.get_xlim()[1] > 1e3 else ScalarFormatter())
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(quality_axis(results))
    axes[-1].legend(fontsize="small")
    figure.suptitle(headline(results))
    figure.savefig(path, dpi=100)
    return True

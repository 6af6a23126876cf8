"""What a comparison found: as one JSON object, as Markdown tables, and as a picture of quality against cost."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retain.experiments.compare import parse_factor
from retain.plots import new_figure

if TYPE_CHECKING:
    from retain.experiments.compare import Comparison

COSTS = {"seconds": "seconds", "tokens": "tokens", "sequential_steps": "sequential steps"}
DRIFT = "relative_drift_last"
Results = dict[str, Any]


def summarise(
    comparison: Comparison,
    runs: dict[str, list[dict[str, Any]]],
    sweep: dict[str, dict[str, dict[str, Any]]],
    best: dict[str, str],
) -> Results:
    """All figures of a comparison as JSON: `runs` by method, `sweep` by method and factor, the `best` factors."""
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
    """results.json, results.md and, where matplotlib is installed, results.png."""
    from retain.files import replace_file

    replace_file(out / "results.json", json.dumps(results, indent=1).encode() + b"\n")
    replace_file(out / "results.md", markdown(results).encode("utf-8", "surrogateescape"))
    plot(results, out / "results.png")


def markdown(results: Results) -> str:
    """The tables of a comparison: methods, the sweep of learning rates, and lengths."""
    accuracy = results["metric"] == "accuracy"
    said = f"{results['preset'] or 'custom'}, {results['budget']} a run, {results['seeds']} seed(s)"
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
    """A line where runs were not all made on one kind of machine: their seconds are not one budget then."""
    runs = [r for found in results["methods"].values() for r in found["runs"] if "machine" in r]
    kinds = {" ".join(str(r[key]) for key in ("machine", "device", "precision")) for r in runs}
    return f"\nRuns of unlike machines: {'; '.join(sorted(kinds))}.\n" if len(kinds) > 1 else ""


def main_table(results: Results, accuracy: bool) -> str:
    """Return a row of scores and costs for each method, and why runs failed."""
    head = ["method", "accuracy", "chance", "bits/token", "its teacher", "learning rate", "seconds", "tokens"]
    head += ["sequential steps", "parameters", "peak memory, MiB"]
    if not accuracy:
        head.remove("chance")
    drifts = any(r.get("test", {}).get(DRIFT) is not None for m in results["methods"].values() for r in m["runs"])
    if drifts:
        head.insert(head.index("its teacher") + 1, "relative drift, last position")
    rows, best = [], None
    for method, found in ranked(results):
        good = [r for r in found["runs"] if "test" in r]
        failed = len(found["runs"]) - len(good)
        name = method if not failed else f"{method} ({failed} of {len(found['runs'])} runs diverged)"

        def test(key: str, form: str = ".3f", good: list[dict[str, Any]] = good) -> str:
            return mean_and_deviation([r["test"].get(key) for r in good], form)

        def mean(key: str, form: str, scale: float = 1, good: list[dict[str, Any]] = good) -> str:
            return mean_and_deviation([r[key] / scale for r in good if r[key] is not None], form, deviation=False)

        # Methods that the digits shown cannot tell apart share the first place.
        shown = mean_and_deviation([r["test"][results["metric"]] for r in good], ".3f", deviation=False)
        best = best or shown
        lead = good and shown == best and len(results["methods"]) > 1
        bold = f"**{test(results['metric'])}**" if lead else test(results["metric"])
        row = [name, bold if accuracy else test("accuracy")]
        row += [f"{results['chance']:.3f}"] if accuracy else []
        row += [
            test("bits_per_token") if accuracy else bold,
            test(f"teacher_{results['metric']}"),
            *([test(DRIFT, ".2f")] if drifts else []),
            ", ".join(f"{phase} {lr:.2g}" for phase, lr in found["lr"].items()),
            mean("seconds", ",.0f"),
            mean("tokens", ",.0f"),
            mean("sequential_steps", ",.0f"),
            f"{found['parameters']:,}" if found["parameters"] else "–",
            mean("peak_memory_bytes", ",.0f", 2**20),
        ]
        rows.append(row)
    why = [
        f"{method}, seed {r['seed']}: {r['failed']}\n"
        for method, m in ranked(results)
        for r in m["runs"]
        if "failed" in r
    ]
    return table(head, rows) + ("\n" + "".join(why) if why else "")


def sweep_table(results: Results) -> str:
    """Validation bits per token of each learning rate, seed 0; the one chosen in bold."""
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
    """The methods, best mean on the test split first; those without a score last."""
    metric = results["metric"]

    def key(item: tuple[str, dict[str, Any]]) -> float:
        values = [r["test"][metric] for r in item[1]["runs"] if "test" in r]
        if not values:
            return float("inf")
        mean: float = statistics.mean(values)
        return -mean if metric == "accuracy" else mean

    return sorted(results["methods"].items(), key=key)


def mean_and_deviation(values: Iterable[float | None], form: str = ".3f", deviation: bool = True) -> str:
    """Mean ± standard deviation (of a sample) of what is there; – for nothing."""
    known = [v for v in values if v is not None]
    if not known:
        return "–"
    mean = format(statistics.mean(known), form)
    return f"{mean} ± {statistics.stdev(known):{form}}" if deviation and len(known) > 1 else mean


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown, the first column to the left and figures to the right."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def flattens(chance: float, values: Sequence[float]) -> bool:
    """Whether chance lies so far below all curves that its line would press them flat (the table has it anyway)."""
    return bool(values) and min(values) - chance > max(values) - min(values)


def plot(results: Results, path: Path) -> bool:
    """Quality on validation against seconds, tokens and sequential steps, one line per method.

    False, and a line on stderr, where matplotlib is not installed.
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
    axes[0].set_ylabel("accuracy, validation" if metric == "accuracy" else "bits per token, validation")
    axes[-1].legend(fontsize="small")
    figure.suptitle(f"{results['preset'] or 'custom'}, {results['budget']} a run, {results['seeds']} seed(s)")
    figure.savefig(path, dpi=100)
    return True

"""One picture for each claim, drawn from the stored results. Both methods share their axes."""

from __future__ import annotations

import math
import shlex
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lab.claim_list import LENGTHS, TASKS, Claim, Row, line_of
from retain.cli.compare import parse_comparison
from retain.experiments.tables import draw_curves
from retain.plots import DPI, FAINT, METHODS, PALETTE, add_legend, empty_figure, tidy_axes

Keep = Callable[[str], dict[str, Any] | None]
"""Returns the results of a comparison by its name, None if it was not run."""
COLUMNS = 4
WORDS = {"accuracy": "accuracy, validation", "bits_per_token": "bits per token, validation"}


def panels(titles: Sequence[str], height: float = 2.7) -> tuple[Any, list[Any]]:
    """Return a figure, and its axes, one for each title, at most COLUMNS in a row."""
    columns = min(COLUMNS, len(titles))
    rows = math.ceil(len(titles) / columns)
    figure = empty_figure(max(5.5, 3.3 * columns), height * rows + 0.2)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis, title in zip(axes, titles, strict=False):
        axis.set_title(title, fontsize=9)
        tidy_axes(axis)
    for axis in axes[len(titles) :]:
        axis.set_visible(False)
    return figure, axes[: len(titles)]


def plot_rows(rows: Sequence[Row], keep: Keep, along: str = "seconds") -> Any:
    """Draw the curves of one-step and the other method for each row that was run; return None if none was."""
    pairs = [(row, keep(row.name), keep(row.other)) for row in rows if row.length is None]
    found = [(row, ours, theirs) for row, ours, theirs in pairs if ours and theirs]
    if not found:
        return None
    figure, axes = panels([row.what for row, _, _ in found])
    span: dict[str, list[float]] = {}
    for axis, (row, ours, theirs) in zip(axes, found, strict=True):
        metric = ours["metric"]
        for method, results in (("one-step", ours), (row.method, theirs)):
            runs, colour = results["methods"][method]["runs"], METHODS[method]
            draw_curves(axis, runs, along, metric, colour, method)
            scores = [run["test"][metric] for run in runs if "test" in run]
            end = max(run["curve"][-1][along] for run in runs if run["curve"])
            axis.plot(end, statistics.mean(scores), "D", color=colour, markersize=5)
        if ours["chance"] is not None:
            axis.axhline(ours["chance"], color=FAINT, linestyle=":", linewidth=1)
        axis.set_ylabel(WORDS[metric], fontsize=8)
        axis.set_xlabel(along, fontsize=8)
        span.setdefault(metric, []).extend(axis.get_ylim())
    for axis, (_, ours, _) in zip(axes, found, strict=True):
        axis.set_ylim(min(span[ours["metric"]]), max(span[ours["metric"]]))
        add_legend(axis)
    return figure


def plot_drift(keep: Keep) -> Any:
    """Draw the relative drift over training in each one-step comparison; return None if none was run."""
    names = ("text-transformer", "text-gated", *(f"{task}-transformer" for task in TASKS))
    found = [(name, results) for name in names if (results := keep(name))]
    if not found:
        return None
    figure, axes = panels([name for name, _ in found])
    for axis, (_, results) in zip(axes, found, strict=True):
        runs = results["methods"]["one-step"]["runs"]
        draw_curves(axis, runs, "seconds", "relative_drift", METHODS["one-step"], "one-step")
        axis.axhline(1, color=FAINT, linestyle=":", linewidth=1)
        axis.set_yscale("log")
        axis.set_ylabel("relative drift, validation", fontsize=8)
        axis.set_xlabel("seconds", fontsize=8)
    return figure


def plot_lengths(keep: Keep) -> Any:
    """Draw the scores of the RNN and its teacher at and beyond the training length; return None if none was run."""
    found = [(name, results) for name in LENGTHS if "one-step" in line_of(name) and (results := keep(name))]
    if not found:
        return None
    figure, axes = panels([name for name, _ in found])
    for axis, (name, results) in zip(axes, found, strict=True):
        metric, runs, lengths = results["metric"], results["methods"]["one-step"]["runs"], LENGTHS[name]
        for whose, words, look in (("", "RNN alone", "o-"), ("teacher_", "its teacher", "s:")):
            values = [[run["lengths"][str(n)][whose + metric] for run in runs] for n in lengths]
            means, deviations = map(statistics.mean, values), map(statistics.stdev, values)
            axis.errorbar(lengths, list(means), list(deviations), fmt=look, capsize=3, color=METHODS["one-step"],
                          label=words, markersize=4)  # fmt: skip
        axis.set_xscale("log", base=2)
        axis.set_xticks(lengths, [str(n) for n in lengths])
        axis.set_xlabel(f"tokens read from m_0 (trained on {lengths[0]})", fontsize=8)
        axis.set_ylabel(WORDS[metric].replace("validation", "test"), fontsize=8)
        add_legend(axis)
    return figure


def plot_gradients(flows: Sequence[dict[str, Any]] | None) -> Any:
    """Draw the norm of each loss's gradient at m_t over that at m_{T-1}, t = 1 … T - 1; return None if unknown."""
    if not flows:
        return None
    import numpy as np

    figure, axes = panels(["at the start of training", "trained by one-step supervision"])
    for axis, when in zip(axes, ("initial", "trained"), strict=True):
        for loss, method, words in (("smt", "one-step", "SMT"), ("bptt_last", "bptt", "BPTT, the last target alone")):
            norms = np.array([flow[when][loss][1:-1] for flow in flows])
            ratios = norms / norms[:, -1:]
            steps = np.arange(1, ratios.shape[1] + 1)
            axis.plot(steps, np.exp(np.log(ratios).mean(0)), color=METHODS[method], label=words)
            axis.fill_between(steps, ratios.min(0), ratios.max(0), color=METHODS[method], alpha=0.15, linewidth=0)
        axis.set_yscale("log")
        axis.set_ylim(0.02, 50)
        axis.set_xlabel("position t of the memory", fontsize=8)
        axis.set_ylabel("gradient's norm at $m_t$ over that at $m_{T-1}$", fontsize=8)
        add_legend(axis)
    return figure


def plot_credit(curves: dict[int, list[dict[str, Any]]]) -> Any:
    """Draw the RNN's accuracy on retrieval with F = 1 against optimizer steps, for each length."""
    figure, (axis,) = panels(["retrieval, F = 1, one step of f, SMT alone"], 3.2)
    for colour, (length, curve) in zip(PALETTE, curves.items(), strict=False):
        axis.plot([p["step"] for p in curve], [p["accuracy"] for p in curve], color=colour, label=f"T = {length}")
    axis.axhline(0.125, color=FAINT, linestyle=":", linewidth=1)
    axis.set_xlabel("optimizer steps")
    axis.set_ylabel(WORDS["accuracy"])
    add_legend(axis, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def plot_chains() -> Any:
    """Draw the sequential steps of an optimizer step against the sequence length."""
    from retain.experiments.compare import configure_method
    from retain.objectives import BPTT, DMT, SMT
    from retain.runs.run import build

    config = configure_method(parse_comparison(shlex.split(line_of("text-transformer")))[0].config, "one-step")
    rnn, teacher = build(config, 256)
    objectives: dict[str, tuple[Any, str, str]] = {
        "one-step": (SMT(teacher, rnn, config.smt, config.teacher.future_len), "SMT", "-"),
        "hybrid": (DMT(teacher, rnn, config.dmt, trunk_trained=True), "DMT, its last rollouts", "--"),
        "bptt": (BPTT(rnn, None), "BPTT", "-"),
    }
    lengths = [2**n for n in range(4, 13)]
    figure, (axis,) = panels(["the Transformer cell of two layers, one-step recipe"], 3.2)
    for method, (objective, words, dash) in objectives.items():
        chains = [objective.sequential_steps(length, 1.0) for length in lengths]
        colour = METHODS["bptt" if method == "bptt" else "one-step"]
        axis.plot(lengths, chains, dash, color=colour, label=words, marker="o", markersize=3)
    axis.set(xscale="log", yscale="log")
    axis.set_xlabel("length of the sequence, T")
    axis.set_ylabel("sequential steps of an optimizer step")
    add_legend(axis)
    return figure


def anchor(claim: Claim) -> str:
    """Return the anchor of a claim's heading, which also names its picture."""
    return claim.title.lower().replace(" ", "-").replace(",", "")


def save(figure: Any, claim: Claim, folder: Path) -> None:
    """Save a claim's picture."""
    figure.savefig(folder / f"claim-{anchor(claim)}.png", dpi=DPI)

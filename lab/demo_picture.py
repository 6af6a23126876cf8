"""Draws docs/demo.png from the run folders that `make demo` leaves: `python -m lab.demo_picture`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from lab.demo import OUT
from retain.plots import DPI, FAINT, METHODS, add_legend, empty_figure, tidy_axes

PICTURE = Path("docs/demo.png")
ACTS = {
    "Memory over 64 tokens, Transformer cell": (
        "validation_accuracy",
        "accuracy, validation",
        {"recall-one-step": "one-step", "recall-bptt-same-cell": "bptt"},
    ),
    "Python's source, gated cell": (
        "validation_bits_per_token",
        "bits per byte, validation",
        {"text-hybrid": "hybrid", "text-bptt-same-cell": "bptt", "text-bptt-gru": "gru"},
    ),
}
"""Title → the metric, its label, and the method of each run folder."""
WORDS = {"one-step": "SMT → DMT, one step", "hybrid": "SMT → DMT, hybrid", "bptt": "BPTT, same cell", "gru": "GRU"}


def read_curve(folder: Path, value: str) -> tuple[list[float], list[float]]:
    """Return the seconds and values of a run's validations."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    found = [(line["seconds"], line[value]) for line in lines if line.get(value) is not None]
    return [seconds for seconds, _ in found], [score for _, score in found]


def main() -> None:
    """Draw the acts whose run folders exist."""
    acts = {title: act for title, act in ACTS.items() if all((OUT / folder).is_dir() for folder in act[2])}
    if not acts:
        sys.exit(f"{OUT}: contains no demo; run make demo first")
    figure = empty_figure(4.6 * len(acts) + 1.4 * (len(acts) == 1), 2.9)
    for axes, (title, (value, words, runs)) in zip(
        figure.subplots(1, len(acts), squeeze=False)[0], acts.items(), strict=True
    ):
        for folder, method in runs.items():
            axes.plot(*read_curve(OUT / folder, value), color=METHODS[method], label=WORDS[method], marker="o", ms=4)
        if value == "validation_accuracy":
            axes.axhline(1 / 8, color=FAINT, linestyle=":", linewidth=1)
            axes.set_ylim(0, 1.02)
        axes.set_title(title, fontsize=10)
        axes.set(xlabel="seconds of one CPU core", ylabel=words)
        tidy_axes(axes)
        add_legend(axes)
    figure.savefig(PICTURE, dpi=DPI)
    print(f"{PICTURE}: {', '.join(acts)}")


if __name__ == "__main__":
    main()

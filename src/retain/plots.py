"""The style of all plots: a colour for each method, and Matplotlib figures that need no display."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

METHODS = {
    "one-step": "#2381e6",
    "hybrid": "#29bbcf",
    "smt": "#5147dd",
    "smt+bptt": "#7f828a",
    "bptt": "#cd4b03",
    "tbptt": "#e7a637",
    "gru": "#66a04c",
    "lstm": "#a43e9a",
}
"""Method → its colour in every plot. Colour-blind readers can tell any two apart (tests/test_plots.py)."""
PALETTE = tuple(METHODS[name] for name in ("one-step", "bptt", "gru", "lstm", "tbptt", "hybrid", "smt", "smt+bptt"))
"""The same colours, in the order for lines that are not methods."""
FAINT = "#9aa3ad"
"""The colour of marks, of chance, and of anything behind the lines."""
DPI = 110


def pick_colours(methods: Sequence[str | None]) -> list[str]:
    """Return a colour for each line: that of its method, or the next free one if another line has it already."""
    own = [METHODS.get(name or "") if name not in methods[:i] else None for i, name in enumerate(methods)]
    free = [colour for colour in PALETTE if colour not in own] or list(PALETTE)
    spare = iter(free * len(own))
    return [colour or next(spare) for colour in own]


def empty_figure(width: float, height: float) -> Any:
    """Return an empty Matplotlib figure, in inches. Raises ImportError if matplotlib is not installed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # not pyplot, which looks for a display

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def new_figure(path: Path, width: float, height: float) -> Any:
    """Return an empty figure for the file `path`; None, with a line on stderr, if matplotlib is not installed."""
    try:
        return empty_figure(width, height)
    except ImportError:
        print(f"{path}: not drawn, matplotlib is not installed; pip install 'retain[plot]'", file=sys.stderr)
        return None


def tidy_axes(axes: Any) -> None:
    """Give Matplotlib axes a faint grid and no frame above and to the right."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def add_legend(axes: Any, **options: Any) -> None:
    """Give Matplotlib axes a small legend without a frame."""
    axes.legend(frameon=False, fontsize=8, **options)

"""What all pictures share: a figure without a display, and the colours of lines."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

PALETTE = ("#2f7ed8", "#e2711d", "#2a9d5c", "#b5489e", "#c9a227", "#d1495b", "#5f6caf", "#7a8590")
"""Told apart on white and on black, and by most colour-blind readers (order after Okabe and Ito)."""


def new_figure(path: Path, width: float, height: float) -> Any:
    """Return an empty Matplotlib figure, in inches; None, with a line on stderr, if matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure  # without pyplot: no display is looked for
    except ImportError:
        print(f"{path}: not drawn, matplotlib is not installed; pip install 'retain[plot]'", file=sys.stderr)
        return None
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def tidy_axes(axes: Any) -> None:
    """Give Matplotlib axes a faint grid and no frame above and to the right."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def add_legend(axes: Any) -> None:
    """Give Matplotlib axes a small legend without a frame."""
    axes.legend(frameon=False, fontsize=8)

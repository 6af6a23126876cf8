"""One plot of a run as a picture for a paper, drawn by Matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from retain.errors import UserError
from retain.plots import FAINT, add_legend, empty_figure, tidy_axes
from retain.report.charts import Chart, chart_by_name, find_colourings
from retain.report.gather import PARTS, gather

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEMORY = ("memory", "memory-3d", "memory-teacher")
FORMATS = (".png", ".svg", ".pdf")
NEEDS = {
    **dict.fromkeys(("drift", "absolute-drift", "drift-beyond", "quality", "quality-beyond", "length"), "positions"),
    "calibration": "forecast",
    **dict.fromkeys(("gradient-initial", "gradient-trained"), "gradient"),
    **dict.fromkeys(MEMORY, "geometry"),
}
"""Plot → the part to gather for it. Other plots need the history alone."""
STYLE = {"solid": "-", "dash": "--", "dot": ":"}


def save_plot(run: Path, name: str, out: Path, axis: str = "step", colour: str | None = None) -> None:
    """Draw the plot `name` of the run into `out` (.png, .svg, .pdf), against `axis` if the plot has several.

    Raises UserError if `out` cannot be written, or if the run has no such plot; the message lists the plots it has.
    """
    _new_figure()  # says what to install before anything is computed
    found = gather(run, (NEEDS[name],) if name in NEEDS else ())
    if name in MEMORY:
        figure = _draw_memory(found, name, colour)
    elif (chart := chart_by_name([found]).get(name)) is not None:
        figure = _draw_lines(chart, axis)
    else:
        found = gather(run, PARTS[:3])
        geometry = found["geometry"]
        names = sorted(chart_by_name([found]))
        names += [m for m in MEMORY if geometry and (m != "memory-teacher" or geometry["teacher"])]
        missing = f"; missing: {'; '.join(found['notes'])}" if found["notes"] else ""
        raise UserError(f"name: {name!r} is not a plot of {run}; it has {', '.join(names) or 'none'}{missing}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, dpi=200, bbox_inches="tight", metadata={"Date": None} if out.suffix == ".svg" else None)
    except OSError as error:
        raise UserError(f"out: {out} cannot be written, {error.strerror or error}; name another --out") from error


def _new_figure(**options: Any) -> tuple[Figure, Any]:
    try:
        figure = empty_figure(5.2, 3.4)
    except ImportError:
        raise UserError("plot: needs matplotlib; run pip install 'retain[report]'") from None
    return figure, figure.add_subplot(**options)


def _draw_lines(chart: Chart, axis: str) -> Figure:
    if axis not in chart.axes:
        if len(chart.axes) > 1:
            raise UserError(f"x: {axis!r} was not logged by this run; use {', '.join(chart.axes)}")
        (axis,) = chart.axes
    figure, axes = _new_figure()
    for line in chart.lines:
        # A missing value is NaN, which breaks the line.
        y = [float("nan") if v is None else v for v in line.y]
        axes.plot(line.x[axis], y, STYLE[line.dash], color=line.colour, label=line.name, lw=1.5)
    for place, word in chart.marks.get(axis, []):
        axes.axvline(place, color=FAINT, lw=0.8, ls="--")
        axes.annotate(word, (place, 1), xycoords=("data", "axes fraction"), xytext=(3, -3),
                      textcoords="offset points", va="top", fontsize=8, color="0.4")  # fmt: skip
    if chart.log:
        axes.set_yscale("log")
    axes.set(xlabel=chart.axes[axis], ylabel=chart.y.replace("m_t", "$m_t$"))
    tidy_axes(axes)
    if len(chart.lines) > 1:
        add_legend(axes)
    return figure


def _draw_memory(found: dict[str, Any], name: str, colour: str | None) -> Figure:
    geometry = found["geometry"]
    who = "teacher" if name == "memory-teacher" else "rnn"
    if geometry is None or geometry["points"][who] is None:
        why = "; ".join(found["notes"]) or "it never trained a teacher"
        raise UserError(f"name: {name!r} cannot be drawn for {found['path']}: {why}")
    ways = find_colourings(geometry)
    if colour is not None and colour not in ways:
        raise UserError(f"colour: {colour!r} is none of {', '.join(ways)}")
    colouring = ways[colour or next(iter(ways))]
    three = name == "memory-3d"
    figure, axes = _new_figure(projection="3d" if three else None)
    from matplotlib.colors import ListedColormap

    words = [word for word, _ in colouring.words]
    options: dict[str, Any] = {"cmap": "viridis"}
    if words:
        colours = ListedColormap([colour for _, colour in colouring.words])
        options = {"cmap": colours, "vmin": -0.5, "vmax": len(words) - 0.5}
    dots = axes.scatter(*geometry["points"][who][: 3 if three else 2], c=colouring.values, s=5, **options)
    bar = figure.colorbar(dots, ax=axes, shrink=0.8, pad=0.15 if three else 0.05)
    if words:
        bar.set_ticks(range(len(words)), labels=words)
    else:
        bar.set_label("t")
    axes.set(xlabel="component 1", ylabel="component 2")
    if three:
        axes.set_zlabel("component 3")
    return figure

"""One plot of a run as a picture for a paper, by Matplotlib."""

from __future__ import annotations

from html import unescape
from pathlib import Path
from typing import Any

from retain.errors import UserError
from retain.plots import PALETTE
from retain.report.charts import Chart, colourings, named_charts
from retain.report.gather import PARTS, gather

MEMORY = ("memory", "memory-3d", "memory-teacher")
FORMATS = (".png", ".svg", ".pdf")
NEEDS = {"drift": "positions", "absolute-drift": "positions", "drift-beyond": "positions", "quality": "positions",
         "quality-beyond": "positions", "length": "positions", "gradient-initial": "gradient",
         "gradient-trained": "gradient"} | dict.fromkeys(MEMORY, "geometry")  # fmt: skip
STYLE = {"solid": "-", "dash": "--", "dot": ":"}


def save_plot(run: Path, name: str, out: Path, axis: str = "step", colour: str | None = None) -> None:
    """Draw the plot `name` of the run into `out` (.png, .svg, .pdf), against `axis` where it has several.

    Raises UserError for a plot that this run does not have, naming those it has, and where `out` cannot be written.
    """
    _figure()  # says what to install before anything is computed
    part = NEEDS.get(name)
    found = gather(run, (part,) if part else ())
    if name in MEMORY:
        figure = _memory(found, name, colour)
    else:
        charts = named_charts([found])
        if name not in charts:
            found = gather(run, PARTS[:3])
            names = sorted(named_charts([found]))
            names += [
                m for m in MEMORY if found["geometry"] and (m != "memory-teacher" or found["geometry"]["teacher"])
            ]
            missing = f"; missing: {'; '.join(found['notes'])}" if found["notes"] else ""
            raise UserError(f"name: {name!r} is not a plot of {run}; it has {', '.join(names) or 'none'}{missing}")
        figure = _lines(charts[name], axis)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, dpi=200, bbox_inches="tight", metadata={"Date": None} if out.suffix == ".svg" else None)
    except OSError as error:
        raise UserError(f"out: {out} cannot be written, {error.strerror or error}; name another --out") from error


def _figure(**options: Any) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure  # without pyplot: no display is looked for
    except ImportError:
        raise UserError("plot: needs matplotlib; run pip install 'retain[report]'") from None
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    return figure, figure.add_subplot(**options)


def _lines(chart: Chart, axis: str) -> Any:
    if len(chart.axes) > 1 and axis not in chart.axes:
        raise UserError(f"x: {axis!r} was not logged by this run; use {', '.join(chart.axes)}")
    axis = axis if axis in chart.axes else next(iter(chart.axes))
    figure, axes = _figure()
    for line in chart.lines:
        # A lone NaN, where there is no value, breaks the line as it should.
        y = [float("nan") if v is None else v for v in line.y]
        axes.plot(line.x[axis], y, STYLE[line.dash], color=PALETTE[line.colour % len(PALETTE)], label=line.name, lw=1.5)
    for place, word in chart.marks.get(axis, []):
        axes.axvline(place, color="0.6", lw=0.8, ls="--")
        axes.annotate(word, (place, 1), xycoords=("data", "axes fraction"), xytext=(3, -3),
                      textcoords="offset points", va="top", fontsize=8, color="0.4")  # fmt: skip
    if chart.log:
        axes.set_yscale("log")
    axes.set(xlabel=chart.axes[axis], ylabel=chart.y.replace("m_t", "$m_t$"))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if len(chart.lines) > 1:
        axes.legend(frameon=False, fontsize=8)
    return figure


def _memory(found: dict[str, Any], name: str, colour: str | None) -> Any:
    geometry = found["geometry"]
    who = "teacher" if name == "memory-teacher" else "rnn"
    if geometry is None or geometry["points"][who] is None:
        why = "; ".join(found["notes"]) or "it never trained a teacher"
        raise UserError(f"name: {name!r} cannot be drawn for {found['path']}: {why}")
    ways = colourings(geometry)
    if colour is not None and colour not in ways:
        raise UserError(f"colour: {colour!r} is none of {', '.join(ways)}")
    colours = ways[colour or next(iter(ways))]
    x, y, z = geometry["points"][who]
    three = name == "memory-3d"
    figure, axes = _figure(projection="3d" if three else None)
    from matplotlib.colors import LinearSegmentedColormap

    scale = colours["colorscale"]
    colormap = "viridis" if isinstance(scale, str) else LinearSegmentedColormap.from_list("words", scale)
    places = (x, y, z) if three else (x, y)
    dots = axes.scatter(*places, c=colours["color"], cmap=colormap, vmin=colours["cmin"], vmax=colours["cmax"], s=5)
    bar = figure.colorbar(dots, ax=axes, shrink=0.8, pad=0.15 if three else 0.05)
    if "ticktext" in colours["colorbar"]:
        bar.set_ticks(colours["colorbar"]["tickvals"], labels=[unescape(t) for t in colours["colorbar"]["ticktext"]])
    else:
        bar.set_label("t")
    axes.set(xlabel="component 1", ylabel="component 2")
    if three:
        axes.set_zlabel("component 3")
    return figure

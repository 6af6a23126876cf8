"""Charts and memories as Plotly figures: the JSON values that Plotly's script reads.

Colours of text, grid and background follow the reader's theme and are set by page.js. A figure's `layout.meta.switch`
lists what a switch of the page changes in the figure: switch → option → [trace changes, layout changes].
"""

from __future__ import annotations

import html
import textwrap
from functools import partial
from typing import Any

from retain.report.charts import OTHER, Chart, Colouring, find_colourings

escape = partial(html.escape, quote=False)  # Plotly reads a few HTML tags in its texts
MARGIN = {"l": 58, "r": 12, "t": 14, "b": 44}
LINE_LEN = 36
"""Most characters in a line of an axis title. Plotly cuts off a line longer than the plot is high."""


def draw_chart(chart: Chart) -> dict[str, Any]:
    """Return a line plot, drawn against its first axis."""
    first = next(iter(chart.axes))
    # A title equal to the caption above the plot is left out.
    y_words = "" if chart.y == chart.title else chart.y.replace("m_t", "m<sub>t</sub>")
    layout: dict[str, Any] = {
        "height": 300,
        "margin": MARGIN,
        "showlegend": len(chart.lines) > 1,
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"size": 11}},
        "xaxis": _axis(chart.axes[first]),
        "yaxis": _axis(y_words),
        "hovermode": "closest",
        **_marks(chart, first),
    }
    if chart.log:
        layout["yaxis"] |= {"type": "log", "exponentformat": "power"}
    if len(chart.axes) > 1:
        options = {
            axis: [{"x": [line.x[axis] for line in chart.lines]}, {"xaxis.title.text": words, **_marks(chart, axis)}]
            for axis, words in chart.axes.items()
        }
        layout["meta"] = {"switch": {"axis": options}}
    data = [
        {
            "type": "scatter", "x": line.x[first], "y": line.y, "name": line.name,
            "mode": "lines+markers" if len(line.y) <= 40 else "lines",
            "line": {"color": line.colour, "dash": line.dash, "width": 2},
            "marker": {"size": 5}, "hovertemplate": "%{y:.4g} at %{x:,}<extra>%{fullData.name}</extra>",
        }
        for line in chart.lines
    ]  # fmt: skip
    return {"data": data, "layout": layout}


def _axis(words: str) -> dict[str, Any]:
    lines = "<br>".join(textwrap.wrap(words, LINE_LEN))
    return {"title": {"text": lines, "standoff": 6}, "zeroline": False, "automargin": True}


def _marks(chart: Chart, axis: str) -> dict[str, Any]:
    """Return labelled vertical lines as layout. Each label is a line lower than the last, as marks may be close."""
    marks = chart.marks.get(axis, [])
    line = {"color": OTHER, "width": 1, "dash": "dash"}
    return {
        "shapes": [
            {"type": "line", "xref": "x", "yref": "paper", "x0": x, "x1": x, "y0": 0, "y1": 1, "line": line}
            for x, _ in marks
        ],
        "annotations": [
            {
                "x": x, "xref": "x", "y": 1, "yref": "paper", "text": word, "showarrow": False,
                "xanchor": "left", "yanchor": "top", "xshift": 3, "yshift": -14 * number,
                "font": {"size": 11, "color": OTHER},
            }
            for number, (x, word) in enumerate(sorted(marks))
        ],
    }  # fmt: skip


def draw_memory(geometry: dict[str, Any], who: str, components: int) -> dict[str, Any]:
    """Return memories of `who` ("rnn", "teacher") in two or three of the RNN's principal components."""
    points, share = geometry["points"], geometry["explained"]
    places = dict(zip("xyz"[:components], points[who], strict=False))
    tokens = zip(points["position"], points["last_token"], strict=True)
    text = [f"t = {t}<br>last token {escape(token)}" for t, token in tokens]
    if points["hidden"] is not None:
        text = [f"{a}<br>{points['hidden_name']} {escape(b)}" for a, b in zip(text, points["hidden"], strict=True)]
    markers = {name: _marker(colouring) for name, colouring in find_colourings(geometry).items()}
    first = next(iter(markers.values()))
    changes = {name: [{f"marker.{k}": [v] for k, v in marker.items()}, {}] for name, marker in markers.items()}
    layout: dict[str, Any] = {"height": 360, "meta": {"switch": {"colour": changes}}}
    if components == 3:
        look = {"type": "scatter3d", "marker": {"size": 2.5, "opacity": 0.85, **first}}
        layout["margin"] = {"l": 0, "r": 0, "t": 0, "b": 0}
        layout["scene"] = {f"{axis}axis": {"title": {"text": f"PC {i + 1}"}} for i, axis in enumerate("xyz")}
        layout["scene"]["camera"] = {"eye": {"x": 1.6, "y": 1.6, "z": 1.1}}
    else:
        look = {"type": "scatter", "marker": {"size": 5, "opacity": 0.75, **first}}
        layout["margin"] = MARGIN
        for i, axis in enumerate("xy"):
            layout[f"{axis}axis"] = _axis(f"component {i + 1}" + (f" ({share[i]:.0%})" if who == "rnn" else ""))
    trace = {"mode": "markers", "text": text, "hovertemplate": "%{text}<extra></extra>", "showlegend": False}
    return {"data": [places | look | trace], "layout": layout}


def _marker(colouring: Colouring) -> dict[str, Any]:
    bar: dict[str, Any] = {"thickness": 10, "len": 0.9, "outlinewidth": 0}
    count = len(colouring.words)
    if not count:
        ends: tuple[float, float] = min(colouring.values), max(colouring.values)
        scale: Any = "Viridis"
        bar |= {"title": {"text": "t"}, "tickmode": "auto"}
    else:
        ends = -0.5, count - 0.5
        scale = [[(i + step) / count, colour] for i, (_, colour) in enumerate(colouring.words) for step in (0, 1)]
        names = [escape(word) for word, _ in colouring.words]
        bar |= {"title": {"text": ""}, "tickmode": "array", "tickvals": list(range(count)), "ticktext": names}
    return {"color": colouring.values, "colorscale": scale, "cmin": ends[0], "cmax": ends[1], "colorbar": bar}

"""Charts and memories as Plotly figures.

Colours of text, grid and ground belong to the reader's theme and are set by page.js. A figure's `layout.meta.switch`
tells what a switch of the page changes in it: switch → option → [trace changes, layout changes].
"""

from __future__ import annotations

import json
from typing import Any

import plotly.graph_objects as go

from retain.plots import PALETTE
from retain.report.charts import OTHER, Chart, colourings, escape


def chart_figure(chart: Chart) -> dict[str, Any]:
    """A line plot as Plotly's JSON."""
    first = next(iter(chart.axes))
    figure = go.Figure()
    for line in chart.lines:
        few = len(line.y) <= 40
        figure.add_scatter(
            x=line.x[first], y=line.y, name=line.name, mode="lines+markers" if few else "lines",
            line={"color": PALETTE[line.colour % len(PALETTE)], "dash": line.dash, "width": 2}, marker={"size": 5},
            hovertemplate="%{y:.4g} at %{x:,}<extra>%{fullData.name}</extra>",
        )  # fmt: skip
    figure.update_layout(
        height=300,
        margin={"l": 58, "r": 12, "t": 14, "b": 44},
        showlegend=len(chart.lines) > 1,
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"size": 11}},
        xaxis={"title": {"text": chart.axes[first], "standoff": 6}, "zeroline": False},
        # The words above the plot say it already where they are the same.
        yaxis={
            "title": {"text": "" if chart.y == chart.title else _subscripts(chart.y), "standoff": 6},
            "zeroline": False,
        },
        hovermode="closest",
        **_marks(chart, first),
    )
    if chart.log:
        figure.update_yaxes(type="log", exponentformat="power", automargin=True)
    if len(chart.axes) > 1:
        options = {
            axis: [
                {"x": [line.x[axis] for line in chart.lines]},
                {"xaxis.title.text": words, **_marks(chart, axis)},
            ]
            for axis, words in chart.axes.items()
        }
        figure.update_layout(meta={"switch": {"axis": options}})
    return json.loads(figure.to_json())


def _marks(chart: Chart, axis: str) -> dict[str, Any]:
    """Vertical lines with a word, as layout; each word a line lower than the one before, which may stand close."""
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


def memory_figure(geometry: dict[str, Any], who: str, components: int) -> dict[str, Any]:
    """Memories of `who` ("rnn", "teacher") in two or three of the RNN's principal components, with a colour switch."""
    points, share = geometry["points"], geometry["explained"]
    x, y, z = points[who]
    hidden = points["hidden"] or [""] * len(x)
    name = points["hidden_name"]
    text = [
        f"t = {p}<br>last token {escape(t)}" + (f"<br>{name} {escape(h)}" if name else "")
        for p, t, h in zip(points["position"], points["last_token"], hidden, strict=True)
    ]
    options = {key: {"marker.color": [m["color"]], "marker.colorscale": [m["colorscale"]], "marker.cmin": [m["cmin"]],
                     "marker.cmax": [m["cmax"]], "marker.colorbar": [m["colorbar"]]}
               for key, m in colourings(geometry).items()}  # fmt: skip
    first = next(iter(colourings(geometry).values()))
    titles = [f"component {i + 1} ({s:.0%})" if who == "rnn" else f"component {i + 1}" for i, s in enumerate(share)]
    figure = go.Figure()
    common = {"mode": "markers", "text": text, "hovertemplate": "%{text}<extra></extra>", "showlegend": False}
    if components == 3:
        figure.add_scatter3d(x=x, y=y, z=z, marker={"size": 2.5, "opacity": 0.85, **first}, **common)
        figure.update_layout(
            scene={a: {"title": {"text": f"PC {i + 1}"}} for i, a in enumerate(("xaxis", "yaxis", "zaxis"))}
            | {"camera": {"eye": {"x": 1.6, "y": 1.6, "z": 1.1}}}
        )
    else:
        figure.add_scatter(x=x, y=y, marker={"size": 5, "opacity": 0.75, **first}, **common)
        figure.update_xaxes(title={"text": titles[0], "standoff": 6}, zeroline=False)
        figure.update_yaxes(title={"text": titles[1], "standoff": 6}, zeroline=False)
    figure.update_layout(
        height=360,
        margin={"l": 58, "r": 12, "t": 14, "b": 44} if components == 2 else {"l": 0, "r": 0, "t": 0, "b": 0},
        meta={"switch": {"colour": {key: [change, {}] for key, change in options.items()}}},
    )
    return json.loads(figure.to_json())


def _subscripts(text: str) -> str:
    return text.replace("m_t", "m<sub>t</sub>")

"""One self-contained HTML page about runs, and the JSON of every number on it."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path
from typing import Any

from retain import __version__
from retain.errors import UserError
from retain.files import replace_file
from retain.report.charts import Chart, colourings, grouped_charts
from retain.report.gather import Command, by_file, gather
from retain.report.history import AXES
from retain.report.verdict import ablation, result_row, verdict

HERE = Path(__file__).parent


def write_report(paths: list[Path], out: Path, command: Command = by_file) -> dict[str, Any]:
    """Write the page `out` (.html) and the JSON next to it; returns what the JSON holds.

    Raises UserError for a folder that is no run; whatever a run lacks is told on the page.
    """
    report = make_report(paths, out, command)
    keep_report(report, out)
    return report


def make_report(paths: list[Path], out: Path, command: Command = by_file) -> dict[str, Any]:
    """What the JSON next to the page `out` holds. Raises UserError where there is a file that is no report's."""
    numbers = out.with_suffix(".json")
    if numbers.exists() and not _is_report(numbers):
        raise UserError(f"out: {numbers} goes with {out.name}, but is there and no report; name another --out")
    if out.exists() and not numbers.exists():
        raise UserError(f"out: {out} is there and has no {numbers.name} beside it, as a report has; name another --out")
    plotly_script()
    runs = [gather(path, command=command) for path in paths]
    names = [run["name"] for run in runs]
    for run, path in zip(runs, paths, strict=True):
        if names.count(run["name"]) > 1:
            run["name"] = str(path)
    return describe(runs)


def keep_report(report: dict[str, Any], out: Path) -> None:
    """Write the page and its JSON. Raises OSError."""
    page = render(report)
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_file(out.with_suffix(".json"), (json.dumps(report, allow_nan=False) + "\n").encode())
    replace_file(out, page.encode("utf-8", "surrogateescape"))


def plotly_script() -> str:
    """Plotly's own script. Raises UserError where it is not installed, which is told before anything is computed."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise UserError("report: needs plotly; run pip install 'retain[report]'") from None
    return str(get_plotlyjs())


def _is_report(path: Path) -> bool:
    try:
        return "verdicts" in json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def describe(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """What the page says, as JSON."""
    return {
        "retain": __version__,
        "results": [result_row(run) for run in runs],
        "verdicts": [verdict(run) for run in runs],
        "ablation": ablation(runs) if len(runs) > 1 else None,
        "runs": runs,
    }


def render(report: dict[str, Any]) -> str:
    """The page's HTML, with Plotly's script, styles and data inside: it asks the network for nothing."""
    import jinja2

    from retain.report.figures import chart_figure, memory_figure

    runs = report["runs"]
    figures: dict[str, Any] = {}

    def add(chart: Chart) -> dict[str, str]:
        figures[chart.key] = chart_figure(chart)
        return {"key": chart.key, "title": chart.title}

    charts = grouped_charts(runs)
    axes = list(charts["history"][0].axes) if charts["history"] else []
    plots = {name: [add(chart) for chart in some] for name, some in charts.items()}
    memories = []
    for i, run in enumerate(runs):
        if (geometry := run["geometry"]) is None:
            continue
        wanted = [("rnn", 2, "RNN, two components"), ("rnn", 3, "RNN, three components")]
        if geometry["teacher"] is not None:
            wanted.append(("teacher", 2, "its teacher, on the RNN's components"))
        rows = []
        for who, components, title in wanted:
            key = f"memory-{i}-{who}-{components}"
            figures[key] = memory_figure(geometry, who, components)
            rows.append({"key": key, "title": title, "three": components == 3})
        memories.append(
            {"run": run, "plots": rows, "colours": [(c, c) for c in colourings(geometry)], "switch": f"colour-{i}"}
        )
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(HERE), autoescape=True, trim_blocks=True,
                                     lstrip_blocks=True, undefined=jinja2.StrictUndefined)  # fmt: skip
    environment.filters["number"] = number
    environment.filters["pretty"] = lambda value: json.dumps(value, indent=2)
    return environment.get_template("page.html").render(
        report=report,
        runs=runs,
        plots=plots,
        axes=[(axis, AXES[axis]) for axis in axes],
        memories=memories,
        # In a script element only "</" and "<!--" could end the data early.
        figures=json.dumps(figures, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
        plotly=packed(plotly_script()),
        style=(HERE / "page.css").read_text(encoding="utf-8"),
        script=(HERE / "page.js").read_text(encoding="utf-8"),
    )


def packed(script: str) -> str:
    """A script as base64 of gzip, half its size: page.js unpacks it when the words of the page are in sight."""
    return base64.b64encode(gzip.compress(script.encode(), mtime=0)).decode()


def number(value: Any, form: str = ".3f") -> str:
    """A figure for a table, – where there is none."""
    if value is None:
        return "–"
    return format(value, form) if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)

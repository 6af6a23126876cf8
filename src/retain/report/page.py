"""One self-contained HTML page about runs, and a JSON file with every number on it."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path
from typing import Any

from retain import __version__
from retain.errors import UserError
from retain.files import replace_file
from retain.report.charts import find_colourings, group_charts
from retain.report.gather import Command, command_by_file, gather
from retain.report.verdict import describe_run, find_differences, make_row

HERE = Path(__file__).parent


def make_report(paths: list[Path], out: Path, command: Command = command_by_file) -> dict[str, Any]:
    """Gather the content of the JSON file next to the page `out`.

    Raises:
        UserError: A path is not a run, or `out` exists and is not a report.
    """
    numbers = out.with_suffix(".json")
    if numbers.exists() and not _is_report(numbers):
        raise UserError(f"out: {numbers} belongs next to {out.name}, but is not a report; name another --out")
    if out.exists() and not numbers.exists():
        raise UserError(f"out: {out} is not a report: it has no {numbers.name} next to it; name another --out")
    read_plotly()  # says what to install before anything is computed
    runs = [gather(path, command=command) for path in paths]
    names = [run["name"] for run in runs]
    for run, path in zip(runs, paths, strict=True):
        if names.count(run["name"]) > 1:
            run["name"] = str(path)
    return {
        "retain": __version__,
        "results": [make_row(run) for run in runs],
        "verdicts": [describe_run(run) for run in runs],
        "ablation": find_differences(runs) if len(runs) > 1 else None,
        "runs": runs,
    }


def keep_report(report: dict[str, Any], out: Path) -> None:
    """Write the page and its JSON. Raises OSError."""
    page = render(report)
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_file(out.with_suffix(".json"), (json.dumps(report, allow_nan=False) + "\n").encode())
    replace_file(out, page.encode("utf-8", "surrogateescape"))


def read_plotly() -> str:
    """Return Plotly's own script. Raises UserError if it is not installed."""
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


def render(report: dict[str, Any]) -> str:
    """Return the page's HTML with Plotly's script, styles and data inside. It needs no network."""
    import jinja2

    from retain.report.figures import draw_chart, draw_memory

    runs = report["runs"]
    charts = group_charts(runs)
    figures = {chart.key: draw_chart(chart) for some in charts.values() for chart in some}
    memories = []
    for i, run in enumerate(runs):
        if (geometry := run["geometry"]) is None:
            continue
        wanted = [("rnn", 2, "RNN, two components"), ("rnn", 3, "RNN, three components")]
        if geometry["teacher"] is not None:
            wanted.append(("teacher", 2, "its teacher, on the RNN's components"))
        plots = [(f"memory-{i}-{who}-{axes}", title, who, axes) for who, axes, title in wanted]
        figures |= {key: draw_memory(geometry, who, axes) for key, _, who, axes in plots}
        colours = [(name, name) for name in find_colourings(geometry)]
        shown = [{"key": key, "title": title, "three": axes == 3} for key, title, _, axes in plots]
        memories.append({"run": run, "plots": shown, "colours": colours, "switch": f"colour-{i}"})
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(HERE), autoescape=True, trim_blocks=True,
                                     lstrip_blocks=True, undefined=jinja2.StrictUndefined)  # fmt: skip
    environment.filters["number"] = format_number
    environment.filters["pretty"] = lambda value: json.dumps(value, indent=2)
    # Base64 of gzip halves its size. page.js unpacks it once the text of the page is visible.
    packed = base64.b64encode(gzip.compress(read_plotly().encode(), mtime=0)).decode()
    return environment.get_template("page.html").render(
        report=report,
        runs=runs,
        plots=charts,
        axes=list(charts["history"][0].axes.items()) if charts["history"] else [],
        memories=memories,
        # In a script element only "</" and "<!--" could end the data early.
        figures=json.dumps(figures, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
        plotly=packed,
        style=(HERE / "page.css").read_text(encoding="utf-8"),
        script=(HERE / "page.js").read_text(encoding="utf-8"),
    )


def format_number(value: Any, form: str = ".3f") -> str:
    """Format a number for a table; "–" stands for None."""
    if value is None:
        return "–"
    return format(value, form) if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)

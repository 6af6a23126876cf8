"""Stores the results of a benchmark: a table in docs/benchmarks.md for this kind of machine, and JSON beside it."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import platform
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import REPEATS, by_turns, device, large, precision, product
from benchmarks.rows import Row
from lab.results import write
from retain.experiments.scheduler import name_processor
from retain.experiments.tables import table

PAGE = Path("docs/benchmarks.md")
FIGURES = {
    "cpu bfloat16": Path("docs/benchmarks.json"),
    "cpu float32": Path("docs/benchmarks-float32.json"),
    "cuda": Path("docs/benchmarks-cuda.json"),
}
"""Files by device and, on a CPU, precision of matrix products, because ratios differ between them."""
MARKS = {
    "cpu bfloat16": ("<!-- bench begin -->", "<!-- bench end -->"),
    "cpu float32": ("<!-- bench float32 begin -->", "<!-- bench float32 end -->"),
    "cuda": ("<!-- bench cuda begin -->", "<!-- bench cuda end -->"),
}


@functools.cache
def machine() -> dict[str, Any]:
    """Return the machine and the versions of the measurements."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else name_processor()
    seconds = by_turns(product(large()))[0]
    return {
        "processor": name,
        "device": device().type,
        "threads": torch.get_num_threads(),
        "precision": str(precision()).removeprefix("torch."),
        "products_gflops": round(2 * large() ** 3 / seconds / 1e9),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
    }


def save(rows: dict[str, Row]) -> None:
    """Store these rows beside those that were measured earlier on this machine."""
    here = machine()
    which = f"cpu {here['precision']}" if here["device"] == "cpu" else here["device"]
    figures, marks = FIGURES[which], MARKS[which]
    kept = json.loads(figures.read_text(encoding="utf-8")) if figures.exists() else {}
    same = {k: v for k, v in kept.get("machine", {}).items() if k not in ("date", "products_gflops")}
    if same != {k: v for k, v in here.items() if k in same} or not same:
        kept = {}
    found = kept.get("rows", {}) | {
        name: dataclasses.asdict(row) | {"met": row.met, "date": here["date"]} for name, row in rows.items()
    }
    figures.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"machine": here, "rows": found}, indent=1, ensure_ascii=False) + "\n"
    figures.write_text(text, encoding="utf-8")
    write(markdown(here, found), PAGE, marks)


def markdown(here: dict[str, Any], rows: dict[str, dict[str, Any]]) -> str:
    """Return the Markdown of a benchmark: the machine, and the table."""
    text = (
        f"{here['processor']}, {here['threads']} threads, {here['precision']}, one large product at "
        f"{here['products_gflops']:,} GFLOP/s; torch {here['torch']}, Python {here['python']}; {here['date']}. "
        f"Medians of {REPEATS} by turns.\n\n"
    )
    return text + "".join(lines(rows))


def lines(rows: dict[str, dict[str, Any]]) -> str:
    """Return the table of the rows."""
    from benchmarks.rows import ROWS

    body = []
    for name in ROWS:
        if row := rows.get(name):
            goal = f"{'≥' if row['least'] else '≤'} {row['goal']:g}"
            body.append(
                [
                    f"`{name}` {row['what']}",
                    goal,
                    f"{row['reached']:.2f}",
                    "met" if row["met"] else "**not met**",
                    row["note"],
                ]
            )
    return table(["row", "goal", "reached", "", "measured"], body)

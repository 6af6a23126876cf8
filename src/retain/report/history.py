"""metrics.jsonl as curves: read line by line, also if damaged, and thinned without losing extremes."""

from __future__ import annotations

import json
import math
from array import array
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

AXES = {
    "step": "optimizer step",
    "seconds": "seconds",
    "tokens": "tokens read",
    "sequential_steps": "sequential steps",
}
"""The x axes of curves: field of metrics.jsonl → label."""
POINTS = 1200
Floats = npt.NDArray[np.float64]


def read_history(path: Path, points: int = POINTS) -> dict[str, Any]:
    """Read everything that was logged, as JSON values.

    Returns:
        `curves`: name → each axis of AXES that the file has, and `value`, all of the same length, at most about
        `points`, with the extremes kept. `phases`: where each phase begins, in the file's order. `last`: the last good
        line. `lines`: the number of lines. `bad` and `first_bad`: how many lines are not a JSON object, and the number
        of the first, from 1. `cut`: whether the last line has no end, as it is being written or its writer was killed.
    """
    columns: dict[str, array[float]] = {}  # compact arrays, since a long run has millions of numbers
    phases: list[dict[str, Any]] = []
    found: dict[str, Any] = {"lines": 0, "bad": 0, "first_bad": None, "cut": False, "last": None}
    read = 0
    if path.exists():
        with path.open("rb") as file:
            for line in file:
                found["lines"] += 1
                found["cut"] = not line.endswith(b"\n")
                if (record := _record(line)) is None:
                    if line.strip():
                        found["bad"] += 1
                        found["first_bad"] = found["first_bad"] or found["lines"]
                    continue
                for key in record.keys() - columns.keys():
                    columns[key] = array("d", [math.nan]) * read
                for key, column in columns.items():
                    column.append(_number(record.get(key)))
                read += 1
                phase = record.get("phase")
                if isinstance(phase, str) and (not phases or phases[-1]["phase"] != phase):
                    phases.append({"phase": phase} | {a: record[a] for a in AXES if _is_number(record.get(a))})
                found["last"] = record
    whole = {key: np.array(column) for key, column in columns.items()}
    return found | {"curves": thin_curves(whole, points), "phases": phases}


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and _is_number(record.get("step")) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number(value: Any) -> float:
    """Convert to a float, NaN if `value` is not a number. The strings "nan" and "inf" are numbers (`append_line`)."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def thin_curves(columns: dict[str, Floats], points: int) -> dict[str, dict[str, list[float | None]]]:
    """Return the measured columns, thinned, each with the axes it can be drawn against."""
    found = {}
    for name, values in sorted(columns.items()):
        measured = name.startswith(("loss", "validation_", "gradient_norm")) or name == "relative_drift"
        where = np.flatnonzero(np.isfinite(values))
        if measured and name != "validation_seconds" and len(where):
            kept = where[thin(values[where], points)]
            drawn = {axis: columns[axis] for axis in AXES if axis in columns} | {"value": values}
            found[name] = {axis: _round(column[kept]) for axis, column in drawn.items()}
    return found


def thin(values: Floats, points: int) -> npt.NDArray[np.int64]:
    """Return indices of at most about `points` values: the smallest and largest of every bucket, and both ends."""
    count = len(values)
    if count <= points:
        return np.arange(count)
    edges = np.linspace(0, count, points // 2 + 1).astype(np.int64)
    kept = {0, count - 1}
    for start, stop in pairwise(edges.tolist()):
        bucket = values[start:stop]
        kept |= {int(start + bucket.argmin()), int(start + bucket.argmax())}
    return np.array(sorted(kept))


def _round(values: Floats) -> list[float | None]:
    """Round to nine significant digits, to keep the page small. A missing value is None."""
    return [float(f"{v:.9g}") if math.isfinite(v) else None for v in values.tolist()]

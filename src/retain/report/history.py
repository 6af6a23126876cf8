"""metrics.jsonl as curves: read as a stream, thinned so that no extreme is lost, whatever state the file is in."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from itertools import islice, pairwise
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
"""What a curve can be drawn against: field of metrics.jsonl → words."""
BLOCK = 20_000
POINTS = 1200
Floats = npt.NDArray[np.float64]


def read_history(path: Path, points: int = POINTS) -> dict[str, Any]:
    """Everything logged, as JSON values.

    `curves`: name → each axis of AXES that the file has, and `value`, all of one length; at most about `points` of
    them, extremes kept. `phases`: where each phase begins, in the file's order. `last`: the last good line.
    `lines`, `bad` and `first_bad` count lines (from 1) that are no JSON object; `cut` says that the last line has no
    end: it is being written, or its writer was killed.
    """
    columns: dict[str, list[Floats]] = {}
    phases: list[dict[str, Any]] = []
    read = 0
    found: dict[str, Any] = {"lines": 0, "bad": 0, "first_bad": None, "cut": False, "last": None}
    if not path.exists():
        return found | {"curves": {}, "phases": []}
    with path.open("rb") as file:
        while block := list(islice(file, BLOCK)):
            found["cut"] = not block[-1].endswith(b"\n")
            records = list(_records(block, found))
            if not records:
                continue
            keys = {key for record in records for key in record if key != "phase"}
            for key in keys | columns.keys():
                # A key that earlier blocks lacked is NaN there.
                columns.setdefault(key, [np.full(read, math.nan)]).append(_numbers([r.get(key) for r in records]))
            read += len(records)
            for record in records:
                phase = record.get("phase")
                if isinstance(phase, str) and (not phases or phases[-1]["phase"] != phase):
                    phases.append({"phase": phase} | {a: record[a] for a in AXES if _is_number(record.get(a))})
            found["last"] = records[-1]
    whole = {key: np.concatenate(parts) for key, parts in columns.items()}
    return found | {"curves": curves(whole, points), "phases": phases}


def _records(block: list[bytes], found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The JSON objects of a block of lines; one parse for all of them, or line by line where one is damaged."""
    first = found["lines"] + 1
    found["lines"] += len(block)
    try:
        parsed = json.loads(b"[" + b",".join(block) + b"]")
        if len(parsed) == len(block) and all(isinstance(r, dict) and _is_number(r.get("step")) for r in parsed):
            yield from parsed
            return
    except (ValueError, RecursionError):
        pass
    for number, line in enumerate(block, first):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict) and _is_number(record.get("step")):
            yield record
        elif line.strip():
            found["bad"] += 1
            found["first_bad"] = found["first_bad"] or number


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _numbers(values: list[Any]) -> Floats:
    """As floats; what is no number is NaN. The strings "nan" and "inf" are numbers: see `append_line`."""
    try:
        return np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        return np.array([_number(value) for value in values])


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def curves(columns: dict[str, Floats], points: int) -> dict[str, dict[str, list[float | None]]]:
    """The measured columns, thinned, each with the axes it can be drawn against."""
    axes = [axis for axis in AXES if axis in columns]
    found = {}
    for name, values in sorted(columns.items()):
        measured = name.startswith(("loss", "validation_", "gradient_norm")) or name == "relative_drift"
        if not measured or name == "validation_seconds":
            continue
        where = np.flatnonzero(np.isfinite(values))
        if not len(where):
            continue
        kept = where[thin(values[where], points)]
        found[name] = {axis: _rounded(columns[axis][kept]) for axis in axes} | {"value": _rounded(values[kept])}
    return found


def thin(values: Floats, points: int) -> npt.NDArray[np.int64]:
    """Indices of at most about `points` values: of every bucket its least and its greatest, and both ends."""
    count = len(values)
    if count <= points:
        return np.arange(count)
    edges = np.linspace(0, count, points // 2 + 1).astype(np.int64)
    kept = {0, count - 1}
    for start, stop in pairwise(edges.tolist()):
        bucket = values[start:stop]
        kept |= {int(start + bucket.argmin()), int(start + bucket.argmax())}
    return np.array(sorted(kept))


def _rounded(values: Floats) -> list[float | None]:
    """Nine significant digits: more only makes the page larger. What is missing is null."""
    return [float(f"{v:.9g}") if math.isfinite(v) else None for v in values.tolist()]

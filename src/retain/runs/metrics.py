"""metrics.jsonl: one line of strict JSON per logged step, safe against a kill in the middle of a write."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retain.files import replace_file
from retain.runs.checkpoint import explain_failure


def append_line(path: str | Path, record: Mapping[str, Any]) -> None:
    """Append one line of strict JSON. NaN and infinities become the strings "nan", "inf", "-inf", which float() reads.

    Tensors of one element become numbers. Raises CheckpointError if the disk refuses.
    """
    line = json.dumps(_plain(record), allow_nan=False).encode() + b"\n"
    with explain_failure(path), open(path, "ab+") as file:
        if file.tell():
            # End a half line that a killed process left, or this good line would be lost with it.
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else b"\n" + line
        file.write(line)


def truncate_after(path: str | Path, step: int, *, validated: bool = True) -> int:
    """Atomically drop the lines of a metrics file whose "step" is above `step`, and lines cut short by a kill.

    Without `validated` the validation of `step` itself is dropped, too, as it will be repeated. Lines without a step
    stay. Returns how many lines were dropped, 0 if there is no file.
    """
    path = Path(path)
    if not path.exists():
        return 0
    with explain_failure(path):
        lines = [line for line in path.read_bytes().splitlines() if line]
        kept = [line + b"\n" for line in lines if _belongs(line, step, validated)]
        replace_file(path, b"".join(kept))
    return len(lines) - len(kept)


def _belongs(line: bytes, step: int, validated: bool) -> bool:
    try:
        record = json.loads(line)
    except ValueError:
        return False
    at = record.get("step") if isinstance(record, dict) else math.inf
    if at == step and not validated and "validation_seconds" in record:
        return False
    return not isinstance(at, (int, float)) or at <= step


def _plain(value: Any) -> Any:
    """Convert to values of strict JSON: see append_line."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value

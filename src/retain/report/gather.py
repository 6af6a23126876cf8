"""Everything that the page shows about one run, as JSON values. A part that fails becomes a note, not an error."""

from __future__ import annotations

import json
import logging
import math
import os
import shlex
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from retain.config import RunConfig
from retain.config.json import load_config, to_dict
from retain.data import Data, load_data
from retain.errors import CheckpointError, UserError, explain
from retain.report import analyses
from retain.report.history import read_history
from retain.report.samples import sample_beside_data
from retain.runs.data import own_tokenizer, same_checksum
from retain.runs.folder import finished, phase_folder
from retain.runs.run import Run, guided, load_run
from retain.runs.save import of_this_model

T = TypeVar("T")
STILL_WRITING = 180.0
"""An unfinished run counts as running if its last logged line is at most this many seconds old."""
PARTS = ("positions", "gradient", "geometry", "samples", "forecast")
"""Analyses that need the model. A single plot needs one of them."""
log = logging.getLogger("retain")


Command = Callable[[RunConfig, Path], str]
"""Makes the command line that trains a run again."""


def command_by_file(config: RunConfig, path: Path) -> str:
    """Return the command line that reads the run's own config file."""
    return f"retain train --config {shlex.quote(str(path / 'config.json'))} --out NEW"


def gather(path: Path, parts: tuple[str, ...] = PARTS, command: Command = command_by_file) -> dict[str, Any]:
    """Gather everything about the run at `path`. Raises UserError if there is no run."""
    if not path.is_dir() or not (path / "config.json").exists():
        what = "holds no config.json" if path.is_dir() else "is not a folder"
        raise UserError(f"run: {path} {what}; give the folder that `retain train` wrote")
    config = load_config(path / "config.json", drop=True)
    notes: list[str] = []

    def attempt(what: str, work: Callable[[], T]) -> T | None:
        # Every Exception is caught, so that the page shows the other parts of the run.
        try:
            return work()
        except Exception as error:
            if os.environ.get("RETAIN_DEBUG"):
                raise
            if (explained := explain(error)) is None:
                log.error("report: %s failed; this is a defect of retain", what, exc_info=True)
            said = explained[0] if explained else f"failed by a defect of retain, {type(error).__name__}: {error}"
            notes.append(f"{what}: {' '.join(said.split())}")
            return None

    found: dict[str, Any] = {
        "name": path.name or path.resolve().name,
        "path": str(path),
        "notes": notes,
        "config": to_dict(config),
        "longest_gradient_path": config.longest_gradient_path,
        "command": attempt("the command", lambda: command(config, path)),
        "data": attempt("data.json", lambda: _read_json(path / "data.json")),
        "test": attempt("eval-test.json", lambda: _read_json(path / "eval-test.json")),
        "summary": attempt("summary.json", lambda: _read_json(path / "summary.json")),
    }
    history = attempt("metrics.jsonl", lambda: read_history(path / "metrics.jsonl")) or read_history(Path(os.devnull))
    found["history"] = history
    found["status"] = find_status(path, config, history, notes)
    teacher = guided(path)  # a run of BPTT alone never trained its teacher
    # Curves need neither model nor data, and data may have to be downloaded.
    run = attempt("the model", lambda: load_run(path, teacher=teacher)) if parts else None
    data = None
    if parts and run is not None and run.state.get("own_data"):
        notes.append(
            "the data: the run was trained on data of your own, which cannot be loaded here, so it is not analysed"
        )
    elif parts:
        like = None if run is None else run.rnn.channels
        data = attempt("the data", lambda: load_data(own_tokenizer(config.data, path), like=like))
    found["state"] = None
    if run is not None:
        found["state"] = {k: v for k, v in run.state.items() if k != "optimizer"}
        found["parameters"] = sum(p.numel() for p in run.rnn.parameters())
        if isinstance(found["test"], dict) and not of_this_model(found["test"], run.state):
            notes.append(f"eval-test.json is of an earlier model and is not shown; run retain eval {path} again")
            found["test"] = None
    if run is not None and data is not None:
        trained_on = run.state.get("data") or {}
        if any(key.startswith("sha256") for key in trained_on) and not same_checksum(trained_on, data.info):
            notes.append(
                "the data here differ from the data the run was trained on (another checksum), so figures may differ"
            )
        if data.vocab_size != run.state["vocab_size"]:
            own = run.state["vocab_size"]
            notes.append(f"the data: its vocabulary is {data.vocab_size} and the run's {own}, so it is not analysed")
            data = None
    found["answers"] = data.answers if data is not None else None
    found["chance"] = data.chance if data is not None and data.answers else None
    found |= dict.fromkeys(PARTS)
    if run is not None and data is not None:
        work: dict[str, Callable[[Run, Data], Any]] = {
            "positions": partial(score_positions, history=history, notes=notes),
            "gradient": analyses.measure_gradient_flow,
            "geometry": analyses.find_geometry,
            "samples": sample_beside_data,
            "forecast": analyses.score_forecasts,
        }
        found |= {part: attempt(part, partial(work[part], run, data)) for part in parts}
    # Strict JSON has no NaN and infinity; they become null.
    plain: dict[str, Any] = json.loads(json.dumps(found), parse_constant=lambda name: None)
    return plain


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error})") from None


def find_status(path: Path, config: RunConfig, history: dict[str, Any], notes: list[str]) -> str:
    """Return "finished", "running" or "stopped". Missing and damaged parts are added to the notes."""
    if history["bad"] > history["cut"]:
        where = f"the first is line {history['first_bad']}"
        notes.append(f"metrics.jsonl: {history['bad']} of {history['lines']} lines cannot be read; {where}")
    elif history["bad"]:
        notes.append("metrics.jsonl: its last line is cut short and is not read")
    if not history["lines"]:
        notes.append("metrics.jsonl: nothing is logged yet, so there are no curves")
    begun = {p["phase"] for p in history["phases"]}
    notes += config.left_out()
    missing = [phase for phase in config.trained if phase not in begun]
    if missing and history["lines"]:
        notes.append(f"phase {' and '.join(missing)} of {' then '.join(config.trained)} has not begun")
    if finished(path):
        return "finished"
    file = path / "metrics.jsonl"
    age = time.time() - file.stat().st_mtime if file.exists() else math.inf
    if age < STILL_WRITING:
        ago = f"last line {age:.0f} s ago"
        notes.append(f"the run is still being written ({ago}): figures are those of its best so far")
        return "running"
    notes.append(f"the run stopped before its end; go on with: retain train --out {path} --resume")
    return "stopped"


def score_positions(run: Run, data: Data, history: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """Score the model by position on validation, after each phase and beyond the training length."""
    config, path = run.config, run.path
    found: dict[str, Any] = {"final": analyses.score(run, data), "phases": [], "longer": None, "lengths": None}
    for index, name in enumerate(config.phases):
        if phase_folder(path, config, index).is_dir():
            try:
                there = load_run(path, teacher=run.teacher is not None, phase=index)
                found["phases"].append({"phase": name} | analyses.score(there, data))
            except (UserError, CheckpointError) as error:
                notes.append(f"the model after {name}: {' '.join(str(error).split())}")
        elif any(p["phase"] == name for p in history["phases"]):
            notes.append(f"the model after {name} is not in {path / 'phases'}, so it is not compared")
    found["settles"] = analyses.find_settling(found["final"])
    if data.answers:
        found["lengths"] = analyses.score_lengths(run)
    longer, why = analyses.load_longer(config)
    if longer is not None:
        found["longer"] = analyses.score(run, longer, analyses.SEQUENCES // analyses.LONGER)
        found["settles_beyond"] = analyses.find_settling(found["longer"])
    found["why_not_longer"] = why
    return found

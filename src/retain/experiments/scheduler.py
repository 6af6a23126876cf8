"""A scheduler of runs, each in its own process. Finished runs are not repeated, and interrupted runs are resumed.

A finished run leaves a small `result.json` with all its figures, so its weights may be deleted. For a diverged run,
`result.json` says why it failed.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import json
import math
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from retain.config import RunConfig
from retain.config.json import flatten, from_dict, to_dict
from retain.errors import Interrupted, TrainingError, UserError, explain
from retain.files import replace_file
from retain.runs.lock import alone, is_free
from retain.runs.progress import STOPS, stop_signals

if TYPE_CHECKING:
    from retain.data.batches import Split

WORK = "import sys; sys.path.append(sys.path.pop(0)); from retain.experiments.scheduler import work; work()"
"""The current folder comes last on the path, as for the command line: a user's random.py must not replace Python's."""
CURVE = 40
"""Points of the validation curve that a result keeps."""
LENGTH_SEQUENCES = 512
"""Sequences that are scored at each length other than the training length."""
SUMMARY = (
    "steps", "seconds", "tokens", "sequential_steps", "best_step", "validation_bits_per_token", "parameters",
    "teacher_parameters", "device", "precision", "threads", "versions", "data",
)  # fmt: skip
"""Fields of a run's summary that a result keeps."""
SCORES = (
    "bits_per_token", "accuracy", "teacher_bits_per_token", "teacher_accuracy", "relative_drift",
    "relative_drift_last", "sequences", "tokens",
)  # fmt: skip
"""Scores that a result keeps."""
MEMORY_USE = ("memory_bits", "memory_entropy", "memory_entropy_by_number", "memories", "different_memories")
"""Further scores of an fsq memory (`retain.inference.memory_use`)."""
POINT = (
    "step", "seconds", "tokens", "sequential_steps", "validation_bits_per_token", "validation_accuracy",
    "validation_teacher_bits_per_token", "validation_teacher_accuracy", "validation_relative_drift",
)  # fmt: skip
"""Fields of each validation that a result keeps."""
Result = dict[str, Any]


class RunError(Exception):
    """A defect that ended the process of a run; the message has its traceback."""


def run_all(
    runs: dict[str, RunConfig],
    out: str | Path,
    *,
    jobs: int = 1,
    threads: int | None = None,
    split: Split | None = None,
    limit: int | None = None,
    lengths: Sequence[int] = (),
    quiet: bool = True,
) -> dict[str, Result]:
    """Train each run under `out`/NAME, `jobs` at a time with `threads` threads each (None: PyTorch's choice).

    Each trained RNN is then scored once, on at most `limit` sequences of `split` (None: all), and at other sequence
    `lengths`. A run with a result is not repeated, so the same call continues after a kill.

    Returns:
        Name → result. If a loss was not finite, the result has "failed", a message.

    Raises:
        UserError: A folder holds another run, or a run is impossible.
        RunError: A run failed because of a defect.
        Interrupted: On Ctrl-C, SIGTERM or SIGHUP, after every run is saved.
    """
    out = Path(out)

    def read_results() -> dict[str, Result]:
        return {name: read_result(out / name, config) or {} for name, config in runs.items()}

    results = read_results()
    waiting = [name for name, r in results.items() if not r or (split and split not in r and "failed" not in r)]
    if not waiting:
        return results
    _refuse_changed_data(runs, results, out)
    total = len(waiting)
    processes: dict[str, tuple[subprocess.Popen[str], IO[str]]] = {}
    with alone(out), stop_signals() as stop:
        try:
            while (waiting or processes) and not stop.is_set():
                while waiting and len(processes) < jobs:
                    name = waiting.pop(0)
                    if not quiet:
                        print(f"{name} ({total - len(waiting)} of {total})", file=sys.stderr, flush=True)
                    processes[name] = _start(runs[name], out / name, threads, split, limit, lengths)
                time.sleep(0.05)
                for name in [n for n, (p, _) in processes.items() if p.poll() is not None]:
                    _finish(name, *processes.pop(name), out / name)
        finally:
            for process, _ in processes.values():
                process.terminate()  # each saves a checkpoint first
            for process, _ in processes.values():
                process.wait()
        if stop.is_set():
            raise Interrupted("stopped and saved; the same command continues")
    return read_results()


def read_result(folder: Path, config: RunConfig) -> Result | None:
    """Return the result of a run, None if it is not finished. Raises UserError if the result is another run's."""
    path = folder / "result.json"
    if not path.exists():
        return None
    try:
        result: Result = json.loads(path.read_text(encoding="utf-8"))
        same = from_dict(result["config"]) == config
    except (ValueError, KeyError, TypeError):
        raise UserError(f"out: {path} is not a result of this version; delete {folder} to run it anew") from None
    if not same:
        raise UserError(f"out: {folder} holds another run; name another --out, or delete it")
    return result


def _refuse_changed_data(runs: dict[str, RunConfig], results: dict[str, Result], out: Path) -> None:
    """Raise UserError if a finished run was trained on other data."""
    from retain.data import load_data
    from retain.runs.data import data_changed

    read_info = functools.cache(lambda data: load_data(data).info)
    for name, config in runs.items():
        trained_on = results[name].get("data", {})
        has_checksum = any(key.startswith("sha256") for key in trained_on)
        if has_checksum and (difference := data_changed(trained_on, read_info(config.data))):
            raise UserError(f"out: {out / name}: {difference}; bring it back, or name another --out")


def _start(
    config: RunConfig,
    folder: Path,
    threads: int | None,
    split: Split | None,
    limit: int | None,
    lengths: Sequence[int],
) -> tuple[subprocess.Popen[str], IO[str]]:
    job = {
        "config": to_dict(config), "folder": str(folder), "threads": threads,
        "split": split, "limit": limit, "lengths": list(lengths),
    }  # fmt: skip
    env = os.environ | {"PYTHONIOENCODING": "utf-8"}  # for its stderr, whatever the locale
    if threads is not None:
        env |= {"OMP_NUM_THREADS": str(threads), "TORCHINDUCTOR_COMPILE_THREADS": str(threads)}
    complaints = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - a pipe would fill up; _finish closes it
    process = subprocess.Popen(
        [sys.executable, "-c", WORK],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=complaints, encoding="utf-8", env=env,
        start_new_session=True,  # Ctrl-C reaches only this process, which then stops the others
    )  # fmt: skip
    assert process.stdin is not None
    # stdin stays open until this process dies, by whatever cause. Then the run stops, too.
    process.stdin.write(json.dumps(job) + "\n")
    process.stdin.flush()
    return process, complaints


def _finish(name: str, process: subprocess.Popen[str], complaints: IO[str], folder: Path) -> None:
    assert process.stdin is not None
    process.stdin.close()
    complaints.seek(0)
    lines = complaints.read().strip().splitlines()
    complaints.close()
    code, last = process.returncode, lines[-1] if lines else ""
    if not code:
        return
    where = f"(run folder: {folder})"
    if last.startswith("retain: "):
        raise UserError(f"{name}: {last.removeprefix('retain: ')} {where}")
    if -code in (*STOPS, signal.SIGKILL):  # sent from outside; any other signal is a crash
        why = ", perhaps for lack of memory; try --jobs 1 or smaller batches" if -code == signal.SIGKILL else ""
        raise UserError(f"{name}: killed by signal {-code}{why} {where}")
    raise RunError("\n".join([f"{name}: ended with code {code} {where}", *lines]))


def claim(out: Path, file: str, spec: dict[str, Any], what: str, free: Sequence[str] = ()) -> None:
    """Write `spec` (JSON values, with a run's "config") to `out`/`file`, which identifies the folder.

    Raises UserError if the folder holds another `what`, with differences beyond the `free` fields.
    """
    path = out / file
    now = json.loads(json.dumps(spec))
    if path.exists():
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
            saved["config"] = to_dict(from_dict(saved["config"]))
            before, after = flatten(saved), flatten(now)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"out: {path} is not readable as a {what}; name another --out") from None
        for key, value in after.items():
            if key not in free and before.get(key) != value:
                raise UserError(
                    f"out: {out} holds another {what} ({key.removeprefix('config.')} is {before.get(key)!r} there, "
                    f"{value!r} here); name another --out"
                )
    elif not is_free(out):
        raise UserError(f"out: {out} already exists and holds no {what}; name another folder")
    out.mkdir(parents=True, exist_ok=True)
    replace_file(path, json.dumps(now, indent=2).encode() + b"\n")


def work() -> None:
    """Train and score the run that stdin describes, and write its result.json."""
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        _work(job)
    except Exception as error:
        explained = explain(error)
        if explained is None or os.environ.get("RETAIN_DEBUG"):
            raise
        print(f"retain: {explained[0]}", file=sys.stderr)
        raise SystemExit(explained[1]) from None


def _die_with_parent() -> None:
    # Exit at once, without saving: the next start must not meet a run that is still writing.
    sys.stdin.read()
    os._exit(1)


def _work(job: dict[str, Any]) -> None:
    import torch

    if job["threads"] is not None:
        torch.set_num_threads(job["threads"])
    config, folder, split = from_dict(job["config"]), Path(job["folder"]), job["split"]
    result = read_result(folder, config) or train_one(config, folder)
    if split and "failed" not in result and split not in result:
        device = "cuda" if result["device"].startswith("cuda") else "cpu"
        _write(folder, result | score(config, folder, split, job["limit"], job["lengths"], device))


def train_one(config: RunConfig, folder: Path) -> Result:
    """Train or resume a run, and write its result."""
    from retain.training.loop import train

    resume = (folder / "config.json").exists()
    result: Result = {"config": to_dict(config)}
    if config.compile and not resume:
        result["rehearsal_seconds"] = rehearse(config, folder.parent)
    try:
        summary = train(config, folder, resume=resume, progress_bar=False)
    except TrainingError as error:
        result["failed"] = str(error)
    else:
        # The peak of the process that began a resumed run is not known.
        peak = None if resume else measure_peak_memory(summary["device"])
        result |= {key: summary[key] for key in SUMMARY} | {"machine": name_processor(), "peak_memory_bytes": peak}
    result["curve"] = read_curve(folder / "metrics.jsonl")
    _write(folder, result)
    return result


def rehearse(config: RunConfig, beside: Path) -> float:
    """Train a few steps of each phase in a temporary folder, and return the seconds that it took.

    This fills the compiler's cache on disk. Otherwise the first run of each size would compile for all later ones,
    within its own budget.
    """
    import torch

    from retain.training.loop import train

    start = time.perf_counter()
    phases: dict[str, Any] = {name: dataclasses.replace(getattr(config, name), share=1.0) for name in config.phases}
    short = dataclasses.replace(config, tracker=None, budget=f"{3 * len(config.phases)}steps", **phases)
    beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=beside) as folder, suppress(TrainingError):  # the run says it
        train(short, Path(folder) / "run", progress_bar=False)
    torch.compiler.reset()
    gc.collect()
    return time.perf_counter() - start


def score(
    config: RunConfig, folder: Path, split: Split, limit: int | None, lengths: Sequence[int], device: str = "cpu"
) -> Result:
    """Score the trained RNN and its teacher on at most `limit` sequences of a split, then at other lengths."""
    from retain.data import load_data
    from retain.inference.evaluate import batch_for, evaluate
    from retain.runs.run import guided, load_run
    from retain.runs.trunk import for_scoring

    if not (folder / "manifest.json").exists() or not (folder / "model.safetensors").exists():
        raise UserError(f"its weights were deleted before it was scored; delete {folder} to run it anew")
    run = load_run(folder, teacher=guided(folder), device=device)
    guide = run.teacher
    data = for_scoring(config, load_data(run.config.data))
    whole = evaluate(run.rnn, guide, data.windows(split, batch_for(data, run.rnn), limit))
    if not math.isfinite(whole["bits_per_token"]):
        return {"failed": f"the RNN alone has {whole['bits_per_token']} bits per token on {split}"}
    result: Result = {"answers": data.answers, "chance": data.chance if data.answers else None}
    kept = SCORES + (MEMORY_USE if run.rnn.norm == "fsq" else ())
    result[split] = {key: whole[key] for key in kept}
    if (size := data.bytes_in_token(split)) is not None:
        result[split]["bits_per_byte"] = whole["bits_per_token"] / size
    for length in lengths:
        other = for_scoring(config, load_data(run.config.data.at_length(length)))
        batch = min(batch_for(other, run.rnn), max(1, 2**14 // length))
        scores = evaluate(run.rnn, guide, other.windows(split, batch, LENGTH_SEQUENCES))
        result.setdefault("lengths", {})[str(length)] = {key: scores[key] for key in kept}
    return result


def read_curve(metrics: Path, points: int = CURVE) -> list[dict[str, float]]:
    """Read the validations of a run, thinned to about `points` at most. The last is always kept.

    A validation that was not finite is a string in metrics.jsonl, and is left out.
    """
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()] if metrics.exists() else []
    lines = [line for line in lines if isinstance(line.get("validation_bits_per_token"), float)]
    every = -(-len(lines) // points) or 1
    thinned = lines[::-1][::every][::-1]
    return [{key.removeprefix("validation_"): line[key] for key in POINT if key in line} for line in thinned]


def measure_peak_memory(device: str) -> int:
    """Return the peak memory of this process in bytes: of the accelerator if there is one, else of the machine."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated()
    with suppress(OSError):  # Linux: getrusage also counts what the parent held when it started this process
        text = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
        if found := re.search(r"^VmHWM:\s+(\d+)", text, re.MULTILINE):
            return int(found[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def name_processor() -> str:
    """Return the processor's name, and its instruction sets that affect the precision of a run."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(re.findall(r"^(\S.*?)\s*:[ \t]*(.*)$", text, re.MULTILINE))
    units = [unit for unit in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if unit in fields.get("flags", "").split()]
    return f"{fields.get('model name', platform.machine())} ({', '.join(units)})"


def _write(folder: Path, result: Result) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / "result.json", json.dumps(result, indent=1).encode() + b"\n")

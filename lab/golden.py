"""Records the losses of the first steps of every preset. A refactoring must keep them equal bit for bit.

    python -m lab.golden before.json            # on the code before the change
    python -m lab.golden after.json before.json # on the code after it: names each run that differs, and then exits 1

Losses are comparable only on the same machine with the same PyTorch. The runs include compiled, resumed and two-process
ones.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from retain.config.presets import NEED_DATA, PRESETS

SMALL = ["--smt.batch-size", "2", "--dmt.batch-size", "2", "--teacher.layers", "1", "--cell.layers", "1"]
COMMON = ["--budget", "10steps", "--tracker", "None", "--quiet", "--device", "cpu"]
COMMON += ["--validate-every", "1000steps", "--validation-sequences", "4"]


def make_data(folder: Path) -> dict[str, list[str]]:
    """Write data for the presets that need some, and return each preset's arguments for it."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    rng = np.random.default_rng(0)
    (folder / "text.txt").write_text("".join(chr(c) for c in rng.integers(97, 123, 20_000)), encoding="utf-8")
    np.save(folder / "series.npy", np.random.default_rng(1).normal(size=(600, 2)).cumsum(0))
    stories = ["".join(chr(c) for c in rng.integers(97, 123, 900)) for _ in range(200)]
    pq.write_table(pa.table({"text": stories}), folder / "stories.parquet")
    (folder / "images").mkdir()
    for i in range(80):
        Image.fromarray(rng.integers(0, 256, (28, 28)).astype(np.uint8)).save(folder / "images" / f"{i}.png")
    found = {}
    for name in PRESETS:
        config = PRESETS[name]()
        if config.data.name == "series":
            found[name] = ["--data", str(folder / "series.npy")]
        elif config.data.name == "text":
            found[name] = ["--data", str(folder / "text.txt")]
        elif config.data.name in ("documents", "images") or name in NEED_DATA:
            source = "images" if config.data.name == "images" else "stories.parquet"
            found[name] = ["--data", str(folder / source), "--data.split", "0.6", "0.2", "0.2"]
    return found


def losses(out: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl without the fields that a clock measured."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    clocks = ("seconds", "tokens_per_second", "data_wait", "validation_seconds")
    return [{key: value for key, value in line.items() if key not in clocks} for line in lines]


def train(words: list[str], out: Path, processes: int = 1) -> list[dict[str, Any]]:
    """Run `retain train` and return the losses."""
    start = [sys.executable, "-m"]
    if processes > 1:
        start += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    subprocess.run(
        [*start, "retain", "train", *words, "--out", str(out)],
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )
    return losses(out)


def train_in_two(words: list[str], out: Path) -> list[dict[str, Any]]:
    """Run `retain train`, stop it after some steps, resume it, and return the losses."""
    command = [sys.executable, "-m", "retain", "train"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, *words, "--out", str(out)], env=env, stderr=subprocess.DEVNULL)
    while process.poll() is None and not ((out / "metrics.jsonl").exists() and len(losses(out)) > 3):
        time.sleep(0.01)
    process.terminate()
    process.wait()
    subprocess.run([*command, "--out", str(out), "--resume", "--quiet"], check=True, env=env, stdout=subprocess.DEVNULL)
    return losses(out)


def all_runs(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Run every preset. Run stdlib also compiled, interrupted, by BPTT, and with two processes."""
    data = make_data(folder)
    found = {}
    for name in PRESETS:
        print(name, file=sys.stderr, flush=True)
        paper = SMALL if name.endswith("-paper") else []
        found[name] = train([name, *data.get(name, []), *COMMON, *paper], folder / "runs" / name)
    cell = ["--recipe", "hybrid", "--cell.kind", "transformer", "--cell.layers", "2", "--cell.width", "64"]
    more = {
        "compiled": ["stdlib", *cell, "--compile", *COMMON],
        "bptt": ["stdlib", "--phases", "bptt", *COMMON],
        "transformer": ["stdlib", *cell, *COMMON],
    }
    for name, words in more.items():
        print(name, file=sys.stderr, flush=True)
        found[name] = train(words, folder / "runs" / name)
    found["resumed"] = train_in_two(["stdlib", *COMMON, "--budget", "60steps"], folder / "runs" / "resumed")
    found["two processes"] = train(["stdlib", *COMMON], folder / "runs" / "two", processes=2)
    return found


def main() -> None:
    """Write the losses, and compare them with another file's if one is named."""
    with tempfile.TemporaryDirectory() as folder:
        found = all_runs(Path(folder))
    Path(sys.argv[1]).write_text(json.dumps(found, indent=1), encoding="utf-8")
    if len(sys.argv) > 2:
        before = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
        other = [name for name in before if before[name] != json.loads(json.dumps(found.get(name)))]
        print(f"{len(before)} runs; not equal: {', '.join(other) or 'none'}")
        sys.exit(bool(other))


if __name__ == "__main__":
    main()

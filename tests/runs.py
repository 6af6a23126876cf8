"""Training in tests: stopped or crashed where they say, and what two runs have in common."""

import io
import json
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch

from retain.config import IGNORE
from retain.data import load_data
from retain.data.prefetch import Prefetch
from retain.experiments import scheduler as grid
from retain.runs.checkpoint import latest_checkpoint, load_files
from retain.training.loop import train

PHASES = ("smt", "dmt", "bptt")
KEYS = {"tokens": "tokens", "sequential": "sequential_steps"}
CLOCKS = ("seconds", "tokens_per_second", "validation_seconds", "data_wait")
LOSSES = {
    "smt": {"loss", "loss_dec", "loss_trunk", "loss_dyn", "loss_readout", "loss_unif"},
    "dmt": {"loss", "loss_dyn", "loss_readout", "relative_drift", "horizon"},
    "bptt": {"loss", "loss_readout"},
}


OWN_CELL = """
from torch import nn


class Cell(nn.Module):
    def __init__(self, memory, config):
        super().__init__()
        self.mix = nn.Linear(memory.width, memory.width)

    def forward(self, memory, inputs):
        return memory + self.mix(inputs)[:, None]
"""
"""A cell as a user would write one."""


class Changed:
    """The data of a config, to be given other batches."""

    def __init__(self, config):
        self.inner = load_data(config.data)

    def __getattr__(self, name):
        return getattr(self.inner, name)


class Padded(Changed):
    """Sequences that end before the batch does: in rank 1 every third batch has none, and says nothing of it."""

    def batch(self, seed, step, rank, batch_size):
        batch = self.inner.batch(seed, step, rank, batch_size)
        if rank == 1 and step % 3 == 0:
            return batch
        draws = torch.Generator().manual_seed(2 * step + rank)
        lengths = torch.randint(1 + rank, batch["tokens"].shape[1], (batch_size, 1), generator=draws)
        real = torch.arange(batch["tokens"].shape[1]) < lengths
        batch["targets"][:, 1:][~real] = IGNORE
        return batch | {"real": real}


class Crash(Exception):
    pass


def watched(at):
    """Within it `at(number)` is called before each batch is taken, which is not when a thread prepares it."""

    class Watched(Prefetch):
        def take(self, number, size):
            at(number)
            return super().take(number, size)

    return patch("retain.training.batches.Prefetch", Watched)


def run(config, out, at=lambda number: None, **more):
    """Train; `at(number)` is called before each batch is taken."""
    with watched(at):
        return train(config, out, progress_bar=False, **more)


def wait_for(condition):
    """The limit of time is that of every test."""
    while not condition():
        time.sleep(0.01)


def hold_at(step, folder):
    """Make a file `here` after so many steps, and go on when there is a file `go`."""

    def at(number):
        if number == step:
            (Path(folder) / "here").touch()
            wait_for((Path(folder) / "go").exists)

    return at


def die_at(step, calls):
    """SIGKILL at a call of a function, so many after so many steps: wherever that is, it is the same on any machine."""
    left = calls

    def count(frame, event, argument):
        nonlocal left
        left -= event == "call"
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return lambda number: sys.setprofile(count) if number == step else None


def grids_here(patch):
    """Make `run_all` train in this process: importing torch takes longer than a tiny run. Returns who was started.

    That a run's own process comes to the same is the matter of test_grid.py.
    """
    started = []

    def start(config, folder, threads, split, limit, lengths):
        started.append(folder.name)
        job = {"config": grid.to_dict(config), "folder": str(folder), "threads": threads}
        grid._work(json.loads(json.dumps(job | {"split": split, "limit": limit, "lengths": list(lengths)})))
        return SimpleNamespace(poll=lambda: 0, returncode=0, stdin=io.StringIO()), io.StringIO()

    patch.setattr(grid, "_start", start)
    return started


def stop_after(steps, accumulate=1, number=signal.SIGINT):
    """Ctrl-C, or another signal, during the step that makes it `steps`."""
    return lambda step: signal.raise_signal(number) if step == steps * accumulate - 1 else None


def crash_at(steps):
    def at(step):
        if step == steps:
            raise Crash

    return at


def lines(out):
    """The lines of metrics.jsonl without what a clock says."""
    read = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in CLOCKS} for line in read]


def losses(out):
    return [line["loss"] for line in lines(out) if "loss" in line]


def assert_same_run(a, b):
    """Bitwise: the exported weights, those of the last checkpoint, its optimizer, and every line of the metrics."""
    assert lines(a) == lines(b)
    last = latest_checkpoint(a)
    assert latest_checkpoint(b).name == last.name
    for one, two in ((a, b), (last, latest_checkpoint(b))):
        first, second = load_files(one)[0], load_files(two)[0]
        assert first.keys() == second.keys() >= {"model", "teacher"}
        for name, tensors in first.items():
            assert tensors.keys() == second[name].keys()
            for key, value in tensors.items():
                assert torch.equal(value, second[name][key]), f"{name} {key}"


def write_report(paths, out):
    """Write the page and its JSON as `retain report` does; returns what the JSON holds."""
    from retain.report.page import keep_report, make_report

    report = make_report(paths, out)
    keep_report(report, out)
    return report

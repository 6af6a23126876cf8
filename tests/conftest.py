"""A run so small that it trains in a second, and the data sets that stop it."""

import dataclasses
import gc
import json
import os
import shutil
import signal
import sys
from contextlib import contextmanager

# Timings and bitwise comparisons must not depend on how many threads a machine has.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

from retain.config import (
    BPTTConfig,
    CellConfig,
    DMTConfig,
    MemoryConfig,
    OptimizerConfig,
    RunConfig,
    SMTConfig,
    TeacherConfig,
    data_config,
)
from retain.config.budget import parse_budget
from retain.config.json import save_config

# A shell has what it runs in the background ignore Ctrl-C, and nohup a hang-up, and so would the processes that are
# interrupted here.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def tiny(**changes):
    """A config that no default can change: `smt__lr=1.0` sets smt.lr, anything else a field of the run itself."""
    shared = {"batch_size": 4, "lr": 1e-3}
    fields = {
        "preset": "tiny",
        "seed": 1,
        "phases": ("smt", "dmt"),
        "budget": "12steps",
        "data": data_config(name="retrieval", seq_len=8, symbols=4),
        "memory": MemoryConfig(tokens=2, width=8, norm="batch"),
        "teacher": TeacherConfig(encoder="state", width=16, heads=2, layers=1, decoder_layers=1, future_len=4),
        "cell": CellConfig(kind="mlp", width=16, heads=2, layers=1, residual=True),
        "optimizer": OptimizerConfig(gradient_accumulation_steps=1, warmup=0.1),
        "smt": SMTConfig(**shared, decodes_per_sequence=4, on_policy=0.5, lambda_dyn=0.1, lambda_unif=0.001),
        "dmt": DMTConfig(**shared, horizon=None, horizon_growth=0.7),
        "bptt": BPTTConfig(**shared, bptt_window=4),
        "device": "cpu",
        "precision": "fp32",
        "compile": False,
        "validate_every": "1000steps",
        "validation_sequences": 16,
        "tracker": None,
    }
    for name, value in changes.items():
        part, _, field = name.partition("__")
        fields[part] = dataclasses.replace(fields[part], **{field: value}) if field else value
    return RunConfig(**fields)


def pytest_collection_modifyitems(items):
    """Slow ones first, or one process would end with them and the other with nothing."""
    items.sort(key=lambda item: "slow" not in item.keywords)


def pytest_runtest_setup():
    """Training collects garbage after every phase: what is there before a test need not be looked through each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch):
    """Only a power cut shows whether a file was on the disk. `fstat` refuses what is no open file, as `fsync` does."""
    monkeypatch.setattr(os, "fsync", os.fstat)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)  # no test hangs on what ran before it


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """The command line puts the current folder on sys.path for users' cells; no test may keep it there."""
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RETAIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def sources(tmp_path_factory):
    """Local copies of the three data sets, for tests that only read them."""
    from hubdata import mnist, sketches, stories

    root = tmp_path_factory.mktemp("sources")
    stories(root / "stories")
    mnist(root / "mnist")
    sketches(root / "sketches")
    return root


@pytest.fixture
def tiny_file(tmp_path):
    """A tiny config on disk, for `retain train --config`."""
    path = tmp_path / "tiny.json"
    save_config(tiny(), path)
    return path


def train_tiny(out, **changes):
    from retain.training.loop import train

    train(tiny(**changes), out, progress_bar=False)
    return out


@contextmanager
def checkpoints_every(budget):
    """Inside, a run in this process leaves a checkpoint so often."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("retain.training.checkpointing.EVERY", parse_budget(budget))
        yield


@pytest.fixture(scope="session")
def text_run(tmp_path_factory):
    """A finished run on a small text, for tests that only read it."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "small.txt").write_text("to be or not to be, that is the question: é. " * 60)
    data = data_config(name="text", path=str(folder / "small.txt"), seq_len=8)
    return train_tiny(folder / "run", data=data, preset="text")


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory):
    data = data_config(name="digits", seq_len=63)
    return train_tiny(tmp_path_factory.mktemp("digits") / "run", data=data, preset="digits", budget="4steps")


@pytest.fixture(scope="session")
def retrieval_run(tmp_path_factory):
    with checkpoints_every("3steps"):
        return train_tiny(tmp_path_factory.mktemp("retrieval") / "run", preset="retrieval")


@pytest.fixture(scope="session")
def bptt_run(tmp_path_factory):
    return train_tiny(tmp_path_factory.mktemp("bptt") / "run", phases=("bptt",), budget="4steps")


@pytest.fixture(scope="session")
def hf_folder(text_run, tmp_path_factory):
    """What `retain export --to hf` writes of a run of bytes, for tests that only read it."""
    pytest.importorskip("transformers", reason="needs transformers, of retain[hf]")
    from retain.hf import export_hf
    from retain.runs.run import load_run

    path = tmp_path_factory.mktemp("hf") / "model"
    export_hf(load_run(text_run), path, command="retain train text --data small.txt")
    return path


@pytest.fixture
def broken(retrieval_run, tmp_path):
    """A copy of a run, to be damaged."""
    return shutil.copytree(retrieval_run, tmp_path / "broken")


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory):
    """A run of 4 steps in each phase, with checkpoints and validations in between."""
    from runs import PHASES, run

    def of(**changes):
        key = json.dumps(changes, sort_keys=True)
        if key not in done:
            config = tiny(phases=PHASES, budget="12steps", validate_every="5steps", **changes)
            done[key] = config, tmp_path_factory.mktemp("whole") / "run"
            with checkpoints_every("3steps"):
                run(*done[key])
        return done[key]

    done = {}
    return of


@pytest.fixture
def retain(capsys):
    """The command line, in this process: (exit code, stdout, stderr)."""
    from retain.cli import main

    def call(*arguments):
        code = 0
        capsys.readouterr()
        try:
            main([str(a) for a in arguments])
        except SystemExit as stop:
            code = stop.code or 0
        said = capsys.readouterr()
        return code, said.out, said.err

    return call

"""Ctrl-C at any moment is one line and exit code 130, and leaves nothing in the way of the next run."""

import importlib
import signal
import subprocess
import sys

import pytest

from conftest import tiny
from retain.config.json import save_config
from retain.errors import Interrupted
from retain.runs.checkpoint import latest_checkpoint
from retain.runs.lock import alone
from runs import run

MODULE = importlib.import_module("retain.training.loop")
PHASES = importlib.import_module("retain.training.phases")
STEP = importlib.import_module("retain.training.step")
ENDING = importlib.import_module("retain.training.checkpointing")
AT_IMPORT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r} and self in sys.meta_path:
            sys.meta_path.remove(self)
            try:
                signal.raise_signal(signal.SIGINT)
            except {swallowed}:
                pass
sys.meta_path.insert(0, Finder())
from retain.__main__ import main
main()
"""
LIBRARIES = ("torch", "numpy", "accelerate", "torch.optim")


@pytest.fixture(autouse=True)
def heard():
    """A shell has what runs in its background ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("name", "swallowed"),
    [(name, "()") for name in ("retain.cli", "retain.config", "retain.training.loop", *LIBRARIES)]
    + [(name, "BaseException") for name in LIBRARIES],
)
def test_while_something_is_imported(name, swallowed, tiny_file, tmp_path):
    """Some libraries take any exception while they are imported for their own, and go on without what they lack."""
    code = AT_IMPORT.format(name=name, swallowed=swallowed)
    line = ["train", "--config", str(tiny_file), "--out", str(tmp_path / "run")]
    done = subprocess.run([sys.executable, "-c", code, *line], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "retain: interrupted\n")
    assert not (tmp_path / "run").exists()


def interrupting(function, times, *, after=False):
    """`function`, at whose first call Ctrl-C is pressed so many times."""
    left = [times]

    def called(*arguments, **options):
        found = function(*arguments, **options) if after else None
        while left[0]:
            left[0] -= 1
            signal.raise_signal(signal.SIGINT)
        return found if after else function(*arguments, **options)

    return called


MOMENTS = [
    # what is going on, how often Ctrl-C is pressed, what is said
    (MODULE, "load_data", 1, "interrupted"),
    (MODULE, "build", 1, "interrupted"),
    (MODULE, "alone", 1, "interrupted before the first step; nothing is saved"),
    (MODULE, "save_config", 1, "interrupted before the first step; nothing is saved"),
    (MODULE, "start_trackers", 1, "interrupted before the first step; nothing is saved"),
    (MODULE, "start_trackers", 2, "interrupted"),
    (PHASES, "objective_of", 1, "interrupted before the first step; nothing is saved"),
    (PHASES, "objective_of", 2, "interrupted"),
    (STEP, "learning_rate", 2, "interrupted"),
]


@pytest.mark.parametrize(("module", "name", "times", "words"), MOMENTS)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_before_anything_is_saved(module, name, times, words, after, retain, tiny_file, tmp_path, monkeypatch):
    out = tmp_path / "run"
    line = ["train", "--config", tiny_file, "--out", out, "--quiet"]
    with monkeypatch.context() as patch:
        function = getattr(module, name)
        patch.setattr(module, name, interrupting(function, times, after=after))
        assert retain(*line) == (130, "", f"retain: {words}\n")
    assert not out.exists() or {file.name for file in out.iterdir()} <= {".lock"}
    assert retain(*line)[0] == 0, "nothing is in the way"


@pytest.mark.parametrize("name", ["export", "best_checkpoint"])
def test_while_the_result_is_written(name, retain, tiny_file, tmp_path, monkeypatch):
    """What is nearly done is done; pressed again, it stops, and can be resumed."""
    for times, code, words in ((1, 0, ""), (2, 130, "retain: interrupted\n")):
        out = tmp_path / f"run{times}"
        with monkeypatch.context() as patch:
            patch.setattr(ENDING, name, interrupting(getattr(ENDING, name), times))
            found, _, complaint = retain("train", "--config", tiny_file, "--out", out, "--quiet")
            assert (found, complaint) == (code, words)
        assert (out / "summary.json").exists() == (not code)
        assert not code or retain("train", "--out", out, "--resume", "--quiet")[0] == 0


def test_in_the_first_step_that_step_is_saved(tmp_path):
    with pytest.raises(Interrupted, match="stopped at step 1 and saved"):
        run(tiny(), tmp_path / "run", at=lambda number: number or signal.raise_signal(signal.SIGINT))
    assert latest_checkpoint(tmp_path / "run").name == "step-00000001"


def test_what_another_process_writes_is_left_alone(retain, tiny_file, tmp_path, monkeypatch):
    """Interrupted while it waits for a run that has not saved anything either."""
    out = tmp_path / "run"
    monkeypatch.setattr("retain.runs.lock.PATIENCE", 0.1)
    with alone(out):
        save_config(tiny(), out / "config.json")
        monkeypatch.setattr(MODULE, "prepare_folder", lambda *arguments: None)
        monkeypatch.setattr(MODULE, "alone", interrupting(alone, 2))
        assert retain("train", "--config", tiny_file, "--out", out, "--quiet")[0] == 130
        assert (out / "config.json").exists()


def test_a_folder_that_is_resumed_is_left_as_it_was(retain, tiny_file, tmp_path, monkeypatch):
    """It was made by an earlier start, whose settings it has."""
    out = tmp_path / "run"
    out.mkdir()
    save_config(tiny(), out / "config.json")
    with monkeypatch.context() as patch:
        patch.setattr(PHASES, "objective_of", interrupting(PHASES.objective_of, 1))
        assert retain("train", "--out", out, "--resume", "--quiet")[0] == 130
    assert (out / "config.json").exists()
    assert retain("train", "--out", out, "--resume", "--quiet")[0] == 0


def test_the_handler_is_put_back(retain):
    before = signal.getsignal(signal.SIGINT)
    retain("tasks")
    assert signal.getsignal(signal.SIGINT) is before

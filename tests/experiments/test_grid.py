"""Runs side by side: killed, interrupted, diverged; they go on where they were."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile

import pytest

import retain.training.loop
from conftest import tiny
from retain.config.json import save_config, to_dict
from retain.errors import UserError
from retain.experiments.scheduler import RunError, _finish, read_curve, read_result, run_all, score, train_one
from runs import OWN_CELL, grids_here, run, wait_for


def grid_process(config, out, tmp_path):
    save_config(config, tmp_path / "config.json")
    code = (
        "import sys; from pathlib import Path; from retain.config.json import load_config\n"
        "from retain.experiments.scheduler import run_all\n"
        "run_all({'one': load_config(Path(sys.argv[1]))}, sys.argv[2], threads=1)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "config.json"), str(out)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def steps_of(metrics):
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    return [json.loads(x)["step"] for x in lines if x.endswith("}") and '"loss"' in x]


def locked(path):
    import fcntl

    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


HELD = """
from pathlib import Path
import held_cell
calls = 0
class Cell(held_cell.Cell):
    def forward(self, memory, inputs):
        global calls
        calls += 1
        while calls > 8 * 60 and Path("hold").exists():
            time.sleep(0.01)
        return super().forward(memory, inputs)
"""
"""A cell that stops after some 60 steps of 8 tokens."""


@pytest.mark.slow
def test_a_killed_grid_leaves_no_one_training_and_goes_on_where_it_was(tmp_path, monkeypatch, request):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name, text in (("held_cell.py", OWN_CELL), ("held.py", HELD), ("hold", "")):
        (tmp_path / name).write_text(text)
    request.addfinalizer(lambda: (tmp_path / "hold").unlink(missing_ok=True))  # no run waits for ever
    config = tiny(phases=("bptt",), budget="80steps", validate_every="20steps", cell__kind="held:Cell")
    out, metrics = tmp_path / "out", tmp_path / "out/one/metrics.jsonl"
    process = grid_process(config, out, tmp_path)
    wait_for(lambda: len(steps_of(metrics)) > 45 or process.poll() is not None)
    monkeypatch.setattr("retain.runs.lock.PATIENCE", 0.1)
    with pytest.raises(ValueError, match="another process is at work"):
        run_all({"one": config}, out)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    wait_for(lambda: not locked(out / "one/.lock"))  # the run sees its parent's death at once, wherever it is
    assert 45 < max(steps_of(metrics)) < 80
    assert read_result(out / "one", config) is None
    early = metrics.read_text().splitlines()[:40]
    (tmp_path / "hold").unlink()
    grids_here(monkeypatch)
    result = run_all({"one": config}, out, threads=1)["one"]
    assert result["steps"] == 80
    assert result["peak_memory_bytes"] is None, "its first process had a peak of its own"
    assert metrics.read_text().splitlines()[:40] == early, "it went on, it did not begin again"
    assert steps_of(metrics) == list(range(1, 81))


@pytest.mark.slow
def test_ctrl_c_saves_every_run(tmp_path):
    config = tiny(phases=("bptt",), budget="100000steps")
    out = tmp_path / "out"
    process = grid_process(config, out, tmp_path)
    wait_for(lambda: len(steps_of(out / "one/metrics.jsonl")) > 30 or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    complaints = process.communicate()[1]
    assert "the same command continues" in complaints
    assert list((out / "one/checkpoints").glob("step-*"))


def test_a_loss_that_is_not_finite_is_a_result(tmp_path):
    config = tiny(phases=("bptt",), budget="6steps", bptt__lr=1e30, optimizer__warmup=0.0)
    found = train_one(config, tmp_path / "out/bad")
    assert "became" in found["failed"]
    assert run_all({"bad": config}, tmp_path / "out", split="test")["bad"] == found, (
        "done: neither run again nor scored"
    )


@pytest.mark.parametrize("compiled", [True, False])
def test_what_is_compiled_is_rehearsed_so_that_no_run_pays_for_the_others(compiled, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)  # no compiler: it is about the order of things
    trained, train = [], retain.training.loop.train

    def watched(config, out, **options):
        trained.append((config.budget, out))
        return train(config, out, **options)

    monkeypatch.setattr("retain.training.loop.train", watched)
    config = tiny(compile=compiled, budget="9steps")
    found = train_one(config, tmp_path / "run")
    *rehearsed, run = trained
    assert run == ("9steps", tmp_path / "run") and found["steps"] == 9
    assert [budget for budget, _ in rehearsed] == ["6steps"] * compiled
    assert not any(folder.exists() for _, folder in rehearsed)
    assert (found.get("rehearsal_seconds", 0) > 0) == compiled and found["config"] == to_dict(config)
    train_one(config, tmp_path / "run")
    assert len(trained) == compiled + 2, "what goes on was rehearsed before"


def test_peak_memory_is_of_the_process_alone():
    """A child is not charged for what its parent holds."""
    held = bytearray(b"x") * 600_000_000
    code = "from retain.experiments.scheduler import measure_peak_memory; print(measure_peak_memory('cpu'))"
    found = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert 5e6 < found < len(held) / 2


def test_files_beside_a_comparison_do_not_replace_pythons(tmp_path, monkeypatch):
    (tmp_path / "random.py").write_text("raise RuntimeError('not this one')")
    monkeypatch.chdir(tmp_path)
    found = run_all({"one": tiny(phases=("bptt",), budget="2steps")}, tmp_path / "out", threads=2)
    assert found["one"]["threads"] == 2
    assert found["one"]["steps"] == 2 and len(found["one"]["data"]["sha256"]) == 64


def test_a_validation_that_was_not_finite_is_no_point_of_the_curve(tmp_path):
    good = {"step": 1, "seconds": 1.0, "tokens": 8, "sequential_steps": 3, "validation_bits_per_token": 2.5}
    lines = [good, good | {"step": 2, "validation_bits_per_token": "nan"}, {"step": 3, "loss": 1.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [point["step"] for point in read_curve(tmp_path / "metrics.jsonl")] == [1]


@pytest.mark.parametrize("jobs", [1, 2, 9])
def test_no_more_than_so_many_run_at_once(tmp_path, monkeypatch, jobs):
    running, seen = set(), []

    class Process:
        def __init__(self):
            self.polls = iter([None, 0])

        def poll(self):
            return next(self.polls)

    def start(config, folder, *rest):
        running.add(folder.name)
        seen.append(len(running))
        return Process(), None

    monkeypatch.setattr("retain.experiments.scheduler._start", start)
    monkeypatch.setattr("retain.experiments.scheduler._finish", lambda name, *rest: running.discard(name))
    run_all({name: tiny() for name in "abcd"}, tmp_path / "out", jobs=jobs)
    assert len(seen) == 4 and max(seen) == min(jobs, 4)


@pytest.mark.parametrize(
    "code, words",
    [
        ("import os; os.kill(os.getpid(), 9)", "one: killed by signal 9, perhaps for lack of memory; try --jobs 1"),
        ("import sys; print('noise', file=sys.stderr); sys.exit('retain: smt.lr: 3')", "one: smt.lr: 3 (run folder: "),
        ("import os; os.kill(os.getpid(), 15)", "one: killed by signal 15 (run folder: "),
    ],
)
def test_a_run_that_dies_is_one_line(code, words, tmp_path):
    with pytest.raises(UserError) as error:
        ended(code, tmp_path)
    assert str(error.value).startswith(words) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "code, words",
    [
        ("raise SystemExit(3)", "one: ended with code 3 (run folder: "),
        ("import os; os.kill(os.getpid(), 11)", "one: ended with code -11 (run folder: "),
        ("print(1 / 0)", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_run_that_crashes_is_a_defect(code, words, tmp_path):
    with pytest.raises(RunError, match=re.escape(words)):
        ended(code, tmp_path)


def ended(code, folder):
    complaints = tempfile.TemporaryFile("w+")  # noqa: SIM115 - _finish closes it
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stderr=complaints, text=True)
    process.wait()
    _finish("one", process, complaints, folder)


def test_a_damaged_result_is_told_of(tmp_path):
    (tmp_path / "out/one").mkdir(parents=True)
    (tmp_path / "out/one/result.json").write_text("{")
    with pytest.raises(ValueError, match="one/result.json is not a result of this version; delete .* to run it anew"):
        run_all({"one": tiny()}, tmp_path / "out")


def test_an_rnn_without_finite_bits_has_failed(tmp_path, monkeypatch):
    """Its loss may have been finite throughout: alone it runs away. It must not be ranked with the others."""
    config = tiny(phases=("bptt",), budget="2steps")
    run(config, tmp_path / "one")
    monkeypatch.setattr("retain.inference.evaluate.evaluate", lambda *a: {"bits_per_token": float("nan")})
    found = score(config, tmp_path / "one", "test", None, ())
    assert found == {"failed": "the RNN alone has nan bits per token on test"}

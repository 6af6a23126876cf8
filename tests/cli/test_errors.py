"""What the user can mend is one line; everything else is a defect, and its traceback is shown."""

import errno
import json
import os
from types import SimpleNamespace

import pytest
import torch
from test_cli import python

from conftest import tiny
from retain.cli import main
from retain.cli.arguments import Usage
from retain.config import data_config
from retain.config.json import load_config
from retain.errors import CheckpointError, Interrupted, TrainingError, UserError
from retain.experiments.scheduler import RunError, run_all
from retain.training import accelerator
from retain.training.accelerator import together

MENDABLE = [
    # the error, the line, the exit code
    (UserError("smt.lr: -1 must be\n  positive"), "smt.lr: -1 must be positive", 2),
    (UserError("data: ran out of memory tokens"), "data: ran out of memory tokens", 2),
    (Usage("--out needs a value"), "--out needs a value", 2),
    (CheckpointError("run: is damaged"), "run: is damaged", 2),
    (TrainingError("loss became nan"), "loss became nan", 1),
    (Interrupted("stopped at step 3"), "stopped at step 3", 130),
    (KeyboardInterrupt(), "interrupted", 130),
    (FileNotFoundError(errno.ENOENT, "No such file or directory", "a.txt"), "a.txt: No such file or directory", 2),
    (PermissionError(errno.EACCES, "Permission denied", b"a.txt"), "a.txt: Permission denied", 2),
    (OSError(errno.ENOSPC, "No space left on device"), "disk: No space left on device", 2),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk: Disk quota exceeded", 2),
    (MemoryError(), "memory: there is not enough", 2),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory: there is not enough", 2),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), "memory: there is not enough", 2),
    (torch.OutOfMemoryError("CUDA out of memory. Tried"), "RETAIN_CUDA_GRAPHS=0", 2),
]
DEFECTS = [
    ValueError("zip() argument 2 is longer than argument 1"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    KeyError("CUDA out of memory"),
    AssertionError(),
    json.JSONDecodeError("Expecting value", "", 0),
    UnicodeDecodeError("ascii", b"\xff", 0, 1, "ordinal not in range"),
    OSError("of a library's own"),
    OSError(errno.EBADF, "Bad file descriptor"),
    OSError(errno.EBADF, "Bad file descriptor", 7),
    BrokenPipeError(errno.EPIPE, "Broken pipe"),
    ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
    TimeoutError("timed out"),
    type("Foreign", (Exception,), {"exit_code": 2})("of another library"),
]


def named(value):
    return f"{type(value).__name__} {value}" if isinstance(value, BaseException) else ""


def raising(error):
    def function(*arguments, **options):
        raise error

    return function


@pytest.mark.parametrize(("error", "line", "code"), MENDABLE, ids=named)
def test_what_can_be_mended_is_one_line(error, line, code, retain, monkeypatch):
    monkeypatch.setattr("retain.cli.tasks.tasks_command", raising(error))
    found, said, complaint = retain("tasks")
    assert (found, said) == (code, "")
    assert complaint.startswith("retain: ") and line in complaint and complaint.count("\n") == 1


@pytest.mark.parametrize("error", DEFECTS, ids=named)
def test_a_defect_is_never_dressed_up(error, monkeypatch, capsys):
    monkeypatch.setattr("retain.cli.tasks.tasks_command", raising(error))
    with pytest.raises(type(error)) as caught:
        main(["tasks"])
    assert caught.value is error and capsys.readouterr().err == ""


def test_a_defect_is_a_traceback_and_exit_code_1():
    code = (
        "import retain.cli.tasks; from retain.cli import main\n"
        "def tasks(argv): list(zip([1], [], strict=True))\n"
        "retain.cli.tasks.tasks_command = tasks; main(['tasks'])"
    )
    done = python(code)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("Traceback") and "ValueError: zip()" in done.stderr


def test_debugging_shows_the_traceback_of_every_error(monkeypatch):
    monkeypatch.setenv("RETAIN_DEBUG", "1")
    monkeypatch.setattr("retain.cli.tasks.tasks_command", raising(Usage("--out needs a value")))
    with pytest.raises(Usage):
        main(["tasks"])


@pytest.mark.parametrize("error", [e for e, *_ in MENDABLE if isinstance(e, Exception)] + DEFECTS, ids=named)
def test_processes_that_are_one_run_fail_together(error, monkeypatch):
    """The others are told before the main process raises: waiting for a broadcast that never comes, they would hang."""
    sent = []
    monkeypatch.setattr(accelerator, "broadcast_object_list", lambda said: sent.append(list(said)))
    with pytest.raises(type(error)) as caught:
        together(SimpleNamespace(is_main_process=True), raising(error))
    assert caught.value is error
    (told,) = sent

    def receive(said):
        said[:] = told

    monkeypatch.setattr(accelerator, "broadcast_object_list", receive)
    mendable = not any(error is defect for defect in DEFECTS)
    with pytest.raises(UserError if mendable else RuntimeError) as caught:
        together(SimpleNamespace(is_main_process=False), lambda: pytest.fail("it is the main process that checks"))
    assert mendable or (type(error).__name__ in str(caught.value) and "the main process failed" in str(caught.value))


def test_a_defect_of_one_run_of_many_is_a_traceback(tmp_path, monkeypatch):
    """What the user got wrong, a lost run and a defect are told apart in another process, too."""
    (tmp_path / "sitecustomize.py").write_text(
        "import retain.experiments.scheduler\ndef broken(config, folder): return [][1]\n"
        "retain.experiments.scheduler.train_one = broken\n"
    )
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    with pytest.raises(RunError, match=r"^one: ended with code 1 \(run folder: .*/out/one\)\nTraceback") as caught:
        run_all({"one": tiny(budget="1steps")}, tmp_path / "out")
    assert "IndexError: list index out of range" in str(caught.value)


def test_a_bad_value_of_one_run_of_many_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"^one: data.seq_len: 300 .*\(run folder: .*/out/one\)$"):
        run_all({"one": tiny(data=data_config(name="digits", seq_len=300))}, tmp_path / "out")


def test_a_defect_in_a_sweeps_models_is_no_bad_value(retain, tiny_file, monkeypatch):
    monkeypatch.setattr("retain.runs.run.build", raising(RuntimeError("mat1 and mat2")))
    line = ["sweep", "--config", tiny_file, "--vary", "smt.lr=1,2"]
    with pytest.raises(RuntimeError, match="mat1"):
        main([str(word) for word in line])


def test_a_defect_in_one_part_of_a_report_is_seen(retain, retrieval_run, tmp_path, monkeypatch, caplog):
    """The page shows the other parts."""
    pytest.importorskip("plotly")
    monkeypatch.setattr("retain.report.analyses.find_geometry", raising(KeyError("points")))
    code, said, _ = retain("report", retrieval_run, "--out", tmp_path / "page.html")
    assert code == 0 and "note: geometry: failed by a defect of retain, KeyError: 'points'" in said
    (record,) = caplog.records
    assert "geometry failed" in record.message and record.exc_info[0] is KeyError
    assert json.loads((tmp_path / "page.json").read_text())["runs"][0]["positions"] is not None


@pytest.mark.parametrize("content", ["{", "[]", '"text"', "[" * 100_000, '{"bits_per_token": 1}'], ids=lambda s: s[:9])
def test_a_damaged_result_is_no_defect(content, retain, broken):
    (broken / "eval-test.json").write_text(content)
    code, said, complaint = retain("info", broken)
    assert (code, said) == (2, "") and "eval-test.json: is damaged" in complaint and complaint.count("\n") == 1


@pytest.mark.parametrize("content", ["[" * 100_000, '{"seed": ' + "9" * 5000 + "}"], ids=["deep", "long"])
def test_a_config_that_json_cannot_be_made_of_is_no_defect(content, tmp_path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json: not a config in JSON"):
        load_config(tmp_path / "config.json")

"""Whatever becomes of stdout and stderr, a run is trained to its end, and nothing is a traceback."""

import contextlib
import io
import json
import os
import subprocess
import sys

import pytest

from conftest import tiny
from forks import NAMES, Forked
from retain.cli import main
from retain.streams import Lossy, is_terminal, lossy_streams
from retain.training.loop import train

CODE = "from retain.cli import main; main()"
TALKATIVE = """
import logging, sys, warnings
import retain.training.loop
step = retain.training.loop.take_step
def talk(job, *arguments):
    if job.progress.step > 1:
        assert sys.stdin.readline() == "gone" + chr(10) or job.progress.step > 2
        print("out", flush=True)
        print("err", file=sys.stderr, flush=True)
        warnings.warn("warning")
        logging.getLogger("retain").warning("log")
    return step(job, *arguments)
retain.training.loop.take_step = talk
"""
"""Steps that talk in every way, as a user's cell may, once the test has closed what they talk to."""


def started(*arguments, before="", **streams):
    return Forked(f"import warnings; warnings.simplefilter('default')\n{before}\n{CODE}", *arguments, **streams)


def command(*arguments):
    return [sys.executable, "-c", CODE, *map(str, arguments)]


@pytest.mark.parametrize("gone", [("stdout",), ("stderr",), ("stdout", "stderr")], ids="+".join)
def test_training_goes_on_when_nobody_reads_it(gone, tiny_file, tmp_path):
    out = tmp_path / "run"
    line, pipes = ["train", "--config", tiny_file, "--out", out], dict.fromkeys(NAMES, subprocess.PIPE)
    with started(*line, before=TALKATIVE, **pipes) as process:
        assert process.stderr.read(1), "it has begun"
        for name in gone:
            getattr(process, name).close()
        process.stdin.write(b"gone\n")
        process.stdin.close()
        said = [stream.read() for stream in (process.stdout, process.stderr) if not stream.closed]
    assert process.returncode == 0, said
    assert json.loads((out / "summary.json").read_text())["steps"] == 12
    assert (out / "model.safetensors").exists() and (out / "phases/2-dmt").is_dir()
    if "stdout" not in gone:
        assert b"12 steps" in said[0], "the other stream is heard to the end"


@pytest.mark.parametrize("line", ["train --help", "--help", "--version", "tasks", "eval RUN --json"])
def test_a_command_that_prints_ends_quietly_when_nobody_reads_it(line, retrieval_run):
    words = [str(retrieval_run) if word == "RUN" else word for word in line.split()]
    reader, writer = os.pipe()
    os.close(reader)
    process = started(*words, stdout=writer)
    os.close(writer)
    complaints = process.communicate()[1]
    assert (process.returncode, complaints) == (0, "")


def test_generating_stops_when_nobody_reads_it(text_run):
    line = ["generate", text_run, "--length", 10**9]
    with started(*line, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert len(process.stdout.read(1)) == 1
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0
    assert json.loads((text_run / "samples.json").read_text())["samples"][0]["count"] >= 1, "what was sampled is kept"


CLOSED = [
    ("<&- >&- 2>&-", "train --config FILE --out NEW"),
    (">&-", "train --config FILE --out NEW"),
    ("2>&-", "eval RUN"),
    (">&- 2>&-", "generate RUN"),
    *((redirection, line) for redirection in ("<&- >&-", "2>&-", ">&- 2>&-") for line in ("--help", "fly")),
]


@pytest.mark.parametrize(("redirection", "line"), CLOSED)
def test_streams_that_are_closed_from_the_start(redirection, line, tiny_file, retrieval_run, tmp_path):
    places = {"FILE": tiny_file, "NEW": tmp_path / "new", "RUN": retrieval_run}
    words = [str(places.get(word, word)) for word in line.split()]
    shell = ["sh", "-c", f'exec "$@" {redirection}', "sh"]
    done = subprocess.run([*shell, *command(*words)], capture_output=True, text=True)
    assert done.returncode == (2 if line == "fly" else 0)
    assert "Traceback" not in done.stderr
    if ">&-" in redirection.split():
        assert done.stdout == ""
    if line.startswith("train"):
        assert json.loads((tmp_path / "new/summary.json").read_text())["steps"] == 12
        for file in (tmp_path / "new").rglob("*.json"):
            json.loads(file.read_text())  # nothing was printed into a file that took the stream's number


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize(("stream", "code"), [("stdout", 2), ("stderr", 0)])
def test_a_full_disk_takes_messages_but_no_results(stream, code, tiny_file, tmp_path):
    with open("/dev/full", "w") as full:
        process = started("train", "--config", tiny_file, "--out", tmp_path / "run", **{stream: full})
    complaints = process.communicate()[1]
    assert process.returncode == code
    if stream == "stdout":
        assert complaints.splitlines()[-1] == "retain: disk: No space left on device"
    assert (tmp_path / "run/summary.json").exists()


class Plain:
    """A stream with nothing but what print needs."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text
        return len(text)


class Closed(io.StringIO):
    def __init__(self):
        super().__init__()
        self.close()


NONE = {"none": lambda: None, "plain": Plain, "StringIO": io.StringIO, "closed": Closed}


@pytest.mark.parametrize("make", NONE.values(), ids=NONE)
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_streams_that_are_no_files(name, make, tiny_file, retrieval_run, tmp_path, monkeypatch):
    stream = make()
    with monkeypatch.context() as patch:
        patch.setattr(sys, name, stream)
        for line in (f"train --config {tiny_file} --out {tmp_path / 'run'}", f"eval {retrieval_run}", "tasks", "fly"):
            with contextlib.suppress(SystemExit):
                main(line.split())
        assert getattr(sys, name) is stream
    assert (tmp_path / "run/summary.json").exists()


@pytest.mark.parametrize("make", [lambda: None, Plain, io.StringIO], ids=["none", "plain", "StringIO"])
def test_training_from_python_asks_little_of_stderr(make, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", make())
    train(tiny(budget="2steps"), tmp_path / "run")


def test_a_stream_that_says_nothing_of_itself_is_no_terminal():
    reader, writer = os.openpty()
    with open(writer, "w") as terminal:
        assert is_terminal(terminal) and is_terminal(Lossy(terminal))
    assert not any(map(is_terminal, (terminal, None, Plain(), Closed(), io.StringIO())))
    os.close(reader)


def test_what_a_terminal_that_is_gone_is_told_is_lost():
    reader, writer = os.openpty()
    os.close(reader)
    with open(writer, "w", buffering=1) as terminal:
        stream = Lossy(terminal)
        stream.write("a line\n")
        stream.flush()
        assert stream.unread


def test_streams_come_back_as_they_were():
    before = sys.stdout, sys.stderr
    with contextlib.suppress(KeyError), lossy_streams():
        assert sys.stdout is not before[0] and sys.stdout.encoding == before[0].encoding
        raise KeyError
    assert (sys.stdout, sys.stderr) == before

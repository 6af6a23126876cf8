"""A run folder that may only be read: what is asked of it is printed, and a line says what could not be kept."""

import errno
import json
import os
import shutil
import subprocess
import sys

import pytest

from retain import files

SAID = {
    "eval RUN": "bits per token",
    "eval RUN --split validation --limit 2 --json": '"split": "validation"',
    "generate RUN --length 3": "",
    "info RUN": "finished",
    "report RUN": "its teacher",
    "generate DIGITS --count 2 --out PNG": "2 images in",
    "generate DIGITS --complete 1 --out PNG": "1 images in",
}
NOT_KEPT = {"eval": "eval-", "generate": "samples.json", "report": "report."}


def content(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def runs(retrieval_run, digits_run, tmp_path):
    for name, run in (("run", retrieval_run), ("digits", digits_run)):
        shutil.copytree(run, tmp_path / "runs" / name)
    return tmp_path / "runs"


def words(line, runs, tmp_path):
    places = {"RUN": runs / "run", "DIGITS": runs / "digits", "PNG": tmp_path / "a.png"}
    return [str(places.get(word, word)) for word in line.split()]


@pytest.fixture
def may_not_write(runs, monkeypatch):
    """As the system of files would answer; it asks nothing of who runs the tests."""

    def forbid(number):
        real = files.write_file

        def write(path, data):
            if runs in path.parents:
                raise OSError(number, os.strerror(number), str(path))
            real(path, data)

        monkeypatch.setattr(files, "write_file", write)

    return forbid


def check(line, code, said, complaint):
    command = line.split()[0]
    assert code == 0 and SAID[line] in said, (code, said, complaint)
    if command == "info":
        assert complaint == ""
        return
    assert complaint.startswith("retain: ") and complaint.count("\n") == 1, complaint
    assert NOT_KEPT[command] in complaint and "cannot be written" in complaint


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM], ids=errno.errorcode.get)
@pytest.mark.parametrize("line", SAID)
def test_its_answers_are_printed_all_the_same(line, number, runs, tmp_path, retain, may_not_write):
    if line.startswith("report"):
        pytest.importorskip("plotly")
    may_not_write(number)
    before = content(runs)
    check(line, *retain(*words(line, runs, tmp_path)))
    assert content(runs) == before
    assert ("PNG" in line) == (tmp_path / "a.png").exists()


MOUNT = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
ALL = """
import contextlib, io, json, sys
from retain.cli import main
found = []
for line in json.loads(sys.argv[1]):
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(line)
        except SystemExit as stop:
            code = stop.code
    found.append((code, out.getvalue(), err.getvalue()))
print(json.dumps(found))
"""


def test_on_a_disk_that_is_mounted_for_reading(runs, tmp_path):
    pytest.importorskip("plotly")
    mount = ["unshare", "-rm", "sh", "-c", MOUNT, str(runs)]
    probe = [*mount, "sh", "-c", "! touch $0/x", str(runs)]
    if not shutil.which("unshare") or subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    before = content(runs)
    refused = [f"generate DIGITS --count 2|digits/samples.png cannot be written, {os.strerror(errno.EROFS)}"]
    refused += ["generate DIGITS --complete 1|digits/completed.png cannot be written", "plot RUN loss|run/loss.png"]
    lines = [*SAID, *(line.partition("|")[0] for line in refused)]
    asked = json.dumps([words(line, runs, tmp_path) for line in lines])
    done = subprocess.run([*mount, sys.executable, "-c", ALL, asked], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for line, answer in zip(SAID, found, strict=False):
        check(line, *answer)
    for line, (code, said, complaint) in zip(refused, found[len(SAID) :], strict=True):
        assert (code, said) == (2, "") and complaint.count("\n") == 1
        assert complaint.startswith("retain: out: ") and line.partition("|")[2] in complaint and "--out" in complaint
    assert content(runs) == before


@pytest.mark.parametrize("line", ["generate DIGITS --count 2", "generate DIGITS --complete 1", "plot RUN loss"])
def test_a_picture_that_cannot_be_written_names_the_remedy(line, runs, tmp_path, retain):
    (tmp_path / "file").touch()
    code, said, complaint = retain(*words(line, runs, tmp_path), "--out", tmp_path / "file/a.png")
    assert (code, said) == (2, "") and complaint.count("\n") == 1
    assert complaint.startswith(f"retain: out: {tmp_path}/file/a.png cannot be written, ") and "--out" in complaint


def test_a_page_that_was_asked_for_elsewhere_and_cannot_be_written_is_an_error(runs, tmp_path, retain):
    pytest.importorskip("plotly")
    (tmp_path / "file").touch()
    code, _, complaint = retain("report", runs / "run", "--out", tmp_path / "file/a.html")
    assert code == 2 and complaint.count("\n") == 1 and "file" in complaint


def test_a_full_disk_is_still_an_error(runs, tmp_path, retain, may_not_write):
    may_not_write(errno.ENOSPC)
    for line in ("eval RUN", "generate RUN --length 3"):
        code, said, complaint = retain(*words(line, runs, tmp_path))
        assert code == 2 and said and "No space left on device" in complaint

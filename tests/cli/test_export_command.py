"""`retain export`: what it refuses, and that nothing half-written is left."""

import errno
import sys
from types import SimpleNamespace

import pytest

from retain.files import new_folder


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("run new --to tflite", "to: 'tflite' is none of hf, onnx, web"),
        ("run new", "Missing from retain export: --to hf|onnx|web"),
        ("run --to hf", "Missing from retain export: DIR"),
        ("run new --to hf --runtime ort", "runtime: ort is for --to web, not for hf; leave it out"),
        ("run new --to web --int8", "int8: it is for --to onnx, not for web; leave it out"),
        ("run full --to hf", "directory: full already exists; name another folder, or delete it"),
        ("run full/file --to hf", "directory: full/file already exists; name another folder, or delete it"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(retain, tmp_path, monkeypatch, line, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    code, said, complaint = retain("export", *line.split())
    assert (code, said) == (2, "") and words in complaint and complaint.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture
def target(monkeypatch):
    """What `--to web` calls, in place of the real function."""
    calls = []

    def export(run, directory, **options):
        with new_folder(directory) as folder:
            calls.append((run, directory, options))
            (folder / "a").write_text("whole")
            if options["runtime"] == "full":
                raise OSError(errno.ENOSPC, "No space left on device", str(folder / "b"))

    monkeypatch.setitem(sys.modules, "retain.export.web", SimpleNamespace(export_web=export))
    return calls


def test_the_run_and_the_options_arrive(retain, text_run, tmp_path, target):
    (tmp_path / "empty").mkdir()
    for name in ("new", "empty", "deep/er"):
        code, said, complaint = retain("export", text_run, "--to", "web", tmp_path / name, "--runtime", "ort")
        assert (code, said, complaint) == (0, f"{tmp_path / name}: 5 bytes\n", "")
        run, directory, options = target.pop()
        assert (run.path, directory, options) == (text_run, tmp_path / name, {"runtime": "ort"})
        assert [file.name for file in (tmp_path / name).iterdir()] == ["a"]


def test_the_current_folder_and_a_link_can_be_written(retain, text_run, tmp_path, target, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("elsewhere")
    assert retain("export", text_run, "--to", "web", tmp_path / "link")[0] == 0
    assert (tmp_path / "elsewhere" / "a").exists()
    monkeypatch.chdir(tmp_path / "empty")
    assert retain("export", text_run, "--to", "web", ".")[0] == 0
    assert [file.name for file in (tmp_path / "empty").iterdir()] == ["a"]


def test_a_full_disk_leaves_nothing(retain, text_run, tmp_path, target):
    code, _, complaint = retain("export", text_run, tmp_path / "new", "--to", "web", "--runtime", "full")
    assert (code, complaint) == (2, f"retain: {tmp_path / 'new'}: No space left on device\n")
    assert target and list(tmp_path.iterdir()) == []

"""A user without a name, a home or a place to write, as containers have them."""

import getpass
import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from conftest import tiny
from retain.config import data_config
from retain.config.json import save_config
from retain.data.paths import absolute, expand_path
from retain.data.prepare import find_cache_folder

NAMES = ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "XDG_CACHE_HOME", "RETAIN_CACHE", "TORCHINDUCTOR_CACHE_DIR")


@pytest.fixture
def nameless(monkeypatch, tmp_path):
    """What Python answers where the passwd file lacks the user; temporary files go to the test's own folder."""

    def unknown(user):
        raise KeyError(f"getpwuid(): uid not found: {user}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises((KeyError, OSError)):
        getpass.getuser()
    return tmp_path


def test_from_python_what_is_prepared_lies_among_temporary_files(nameless):
    assert find_cache_folder() == nameless / f"temporary/retain-{os.getuid()}"
    assert expand_path("~/a.txt") == Path("~/a.txt") and absolute("~/a.txt") == str(nameless / "~/a.txt")


@pytest.mark.parametrize("home", [None, "", "/proc", "/proc/nowhere"])
def test_commands_give_such_a_user_a_name_and_a_home(home, nameless, retain, monkeypatch):
    """Libraries ask for both; without them they fail, or make a folder that is called ~."""
    pytest.importorskip("datasets")
    if home is not None:
        monkeypatch.setenv("HOME", home)
    if home == "/proc" and os.access(home, os.W_OK):
        pytest.skip("this user may write anywhere")
    config = tiny(data=data_config(name="documents", path="x", seq_len=8), budget="2steps")
    save_config(config, nameless / "config.json")
    rows = [json.dumps({"text": f"to be or not to be {number} " * 4}) for number in range(40)]
    (nameless / "rows.jsonl").write_text("\n".join(rows))
    line = ["train", "--config", "config.json", "--data", "rows.jsonl", "--out", "run", "--quiet"]
    assert retain(*line)[::2] == (0, "")
    assert getpass.getuser() == f"uid{os.getuid()}"
    assert Path.home() == nameless / f"temporary/retain-{os.getuid()}"
    assert list((Path.home() / ".cache/retain").iterdir()) and not (nameless / "~").exists()


def test_a_user_with_a_home_keeps_it(retain, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert retain("tasks")[0] == 0
    assert Path.home() == tmp_path


def test_a_cache_that_cannot_be_written_names_the_remedy(retain, monkeypatch, tmp_path):
    pytest.importorskip("datasets")
    (tmp_path / "file").touch()
    monkeypatch.setenv("RETAIN_CACHE", str(tmp_path / "file/cache"))
    save_config(tiny(data=data_config(name="documents", path="x", seq_len=8)), tmp_path / "config.json")
    (tmp_path / "rows.jsonl").write_text('{"text": "to be"}\n')
    line = ["train", "--config", tmp_path / "config.json", "--data", tmp_path / "rows.jsonl", "--out", tmp_path / "run"]
    code, said, complaint = retain(*line)
    assert (code, said) == (2, "") and complaint.count("\n") == 1
    assert f"data: {tmp_path}/file/cache cannot be written, Not a directory; set RETAIN_CACHE" in complaint


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0 or not shutil.which("setpriv"), reason="needs root")
def test_as_a_user_whom_nobody_knows(tiny_file):
    uid = next(uid for uid in range(54321, 60000) if uid not in {user.pw_uid for user in pwd.getpwall()})
    with tempfile.TemporaryDirectory() as folder:  # those of pytest are its user's alone
        shutil.copy(tiny_file, f"{folder}/config.json")
        for path in (folder, f"{folder}/config.json"):
            os.chown(path, uid, -1)
        env = {key: value for key, value in os.environ.items() if key not in NAMES} | {"TMPDIR": folder}
        line = ["setpriv", "--reuid", str(uid), "--clear-groups", sys.executable, "-c"]
        if subprocess.run([*line, "import torch"], env=env, cwd=folder, capture_output=True).returncode:
            pytest.skip("that user may not read this Python")
        line += ["from retain.cli import main; main()", "train", "--config", "config.json", "--out", "run", "--quiet"]
        done = subprocess.run(line, env=env, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0 and not done.stderr, done.stderr

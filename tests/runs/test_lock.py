"""Folders that hold nothing of anyone's are free to be trained into, and keep what lies in them."""

import pytest

from conftest import tiny
from lab import demo
from retain.cli.arguments import Usage
from retain.config.json import to_dict
from retain.errors import UserError
from retain.experiments import scheduler as grid
from retain.runs.folder import prepare_folder
from retain.runs.lock import is_free
from retain.runs.run import build
from retain.runs.save import save

NAMES = (".gitkeep", ".gitignore", ".DS_Store", "Thumbs.db", "desktop.ini", "._notes", ".nfs0000", ".lock")
OTHERS = ("notes.txt", ".env", "gitkeep", "config.json", ".git")


@pytest.fixture
def place(tmp_path):
    folder = tmp_path / "out"
    (folder / "lost+found").mkdir(parents=True)
    for name in NAMES:
        (folder / name).write_text(name)
    return folder


def claim(folder):
    grid.claim(folder, "compare.json", {"config": to_dict(tiny())}, "comparison")


def saved(folder):
    config = tiny()
    save(build(config, 9)[0], config, folder)


def started(folder):
    prepare_folder(tiny(), folder, resume=False)


@pytest.mark.parametrize("write", [started, saved, claim])
def test_litter_is_no_run_and_stays(write, place, tmp_path):
    write(place)
    assert all((place / name).read_text() == name for name in NAMES)
    assert (place / "lost+found").is_dir()
    write(tmp_path / "new")


@pytest.mark.parametrize("write", [started, saved, claim])
@pytest.mark.parametrize("name", OTHERS)
def test_what_is_someones_is_no_litter(write, name, place):
    (place / name).touch()
    with pytest.raises(UserError, match="out: .* already exists"):
        write(place)
    assert not is_free(place / name), "a file is no folder"


def test_a_run_is_trained_beside_it(retain, tiny_file, place):
    assert retain("train", "--config", tiny_file, "--out", place, "--quiet", "--budget", "2steps")[0] == 0
    assert (place / ".gitkeep").read_text() == ".gitkeep" and (place / "summary.json").exists()


def test_a_demo_takes_away_its_own_alone(place, monkeypatch):
    class Reached(Exception):
        pass

    def train(config, folder, **options):
        raise Reached

    (place / "smt-dmt").mkdir()
    (place / "demo.json").touch()
    monkeypatch.setattr(demo, "OUT", place)
    monkeypatch.setattr("sys.argv", ["demo", "1"])
    monkeypatch.setattr("retain.training.loop.train", train)
    with pytest.raises(Reached):
        demo.main()
    assert {file.name for file in place.iterdir()} == {*NAMES, "lost+found"}
    (place / "notes.txt").touch()
    with pytest.raises(Usage, match=r"contains notes.txt, which no earlier demo wrote"):
        demo.main()
    assert (place / "notes.txt").exists()

"""What the files around the code say of it: versions, rooms, targets and paths."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from test_floor_plan import ROOMS

ROOT = Path(__file__).parents[1]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))


def parsed(path):
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def test_contributing_names_every_room_from_the_top_down():
    assert re.findall(r"^\| `(\w+)` \|", CONTRIBUTING, re.M) == ROOMS


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "README.md", ".github/pull_request_template.md"])
def test_what_pages_name_is_there(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert set(re.findall(r"`make ([\w-]+)", text)) <= TARGETS
    for path in re.findall(r"`((?:src|tests|lab|examples|benchmarks|docs)/[\w/.]*)`|\]\(([\w/.]+)\)", text):
        assert (ROOT / "".join(path)).exists(), path


def test_workflows_run_targets_that_are_there_on_the_oldest_and_newest_python():
    pytest.importorskip("yaml")
    for path in (ROOT / ".github/workflows").glob("*.yml"):
        workflow = parsed(path)
        steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
        assert all(("run" in step) != ("uses" in step) for step in steps)
        assert set(re.findall(r"\bmake ([\w-]+)", path.read_text(encoding="utf-8"))) <= TARGETS
    job = parsed(".github/workflows/test.yml")["jobs"]["test"]["strategy"]["matrix"]
    assert {name.split("-")[0] for name in job["os"]} == {"ubuntu", "macos"}
    versions = re.findall(r'Python :: (3\.\d+)"', PROJECT)
    assert {entry["python"] for entry in job["versions"]} == {versions[0], versions[-1]}
    assert f'requires-python = ">={versions[0]}"' in PROJECT
    oldest = re.search(r'"torch>=([\d.]+)"', PROJECT)[1]
    assert {entry["torch"] for entry in job["versions"]} == {"pinned", f"=={oldest}.*", f">={oldest}"}


def test_forms_have_what_github_asks_for():
    for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"):
        form = parsed(path)
        assert {"name", "description", "body"} <= form.keys()
        ids = [part["id"] for part in form["body"]]
        assert len(ids) == len(set(ids)) and all(part["attributes"]["label"] for part in form["body"])


def test_pre_commit_has_the_ruff_of_make_lint():
    (repository,) = parsed(".pre-commit-config.yaml")["repos"]
    pinned = re.search(r"^ruff==([\d.]+)", (ROOT / "constraints.txt").read_text(), re.M)[1]
    assert repository["rev"] == f"v{pinned}"


def test_changelog_has_a_section_for_the_version():
    import retain

    sections = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert sections[0] == "Unreleased" and retain.__version__ in sections


def test_modules_that_the_changelog_names_are_there():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    now = re.findall(r"`(retain\.\w+\.\w+)` \(", text) + re.findall(r"`((?:lab\.\w+|benchmarks))`", text)
    assert len(now) >= 8
    found = "import importlib.util, sys; print([n for n in sys.argv[1:] if importlib.util.find_spec(n) is None])"
    done = subprocess.run([sys.executable, "-c", found, *now], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

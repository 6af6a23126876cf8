"""Imports run one way, from a room to those below it, and never in a circle."""

import ast
import inspect
from pathlib import Path

import pytest

import retain

ROOT = Path(retain.__file__).parent
ROOMS = [
    "cli",
    "experiments",
    "report",
    "training",
    "hf",
    "gluonts",
    "export",
    "serve",
    "inference",
    "runs",
    "objectives",
    "data",
    "model",
    "ops",
    "config",
]
"""From top to bottom. What stands in no room (errors, files, devices, ...) is below all of them."""
SIDE_BY_SIDE = {("experiments", "report"), ("hf", "export"), ("hf", "gluonts"), ("objectives", "data")}
"""Neither may look into the other, whichever is named first."""


def module_of(path):
    return ".".join(["retain", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")


MODULES = {module_of(path): path for path in ROOT.rglob("*.py")}


def imports(path):
    """The modules of the package that a file imports anywhere, lazily or for types alone, too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "retain":
            for name in node.names:
                whole = f"{node.module}.{name.name}"
                found.add(whole if whole in MODULES else node.module)
    return found & MODULES.keys()


GRAPH = {module: imports(path) for module, path in MODULES.items()}


def room(module):
    return module.partition(".")[2].partition(".")[0]


@pytest.mark.parametrize("module", [m for m in MODULES if m != "retain" and m != "retain.__main__"])
def test_a_room_looks_at_the_rooms_below_it(module):
    for other in GRAPH[module]:
        mine, its = room(module), room(other)
        if other == "retain" or mine == its:
            continue  # the version
        assert its not in ROOMS or mine in ROOMS, f"{module} is below all rooms and imports {other}"
        if its in ROOMS:
            assert ROOMS.index(mine) < ROOMS.index(its) and (mine, its) not in SIDE_BY_SIDE, f"{module} imports {other}"


def test_no_circle():
    done, path = set(), []

    def visit(module):
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module in done:
            return
        path.append(module)
        for other in sorted(GRAPH[module] - {"retain"}):
            visit(other)
        done.add(path.pop())

    for module in sorted(MODULES.keys() - {"retain"}):
        visit(module)


def test_every_file_is_read_in_one_sitting():
    lengths = {str(path): len(path.read_text(encoding="utf-8").splitlines()) for path in ROOT.rglob("*.py")}
    assert {path: length for path, length in lengths.items() if length > 400} == {}


def test_the_training_loop_is_one_screen():
    from retain.training.loop import train_phases

    assert len(inspect.getsource(train_phases).splitlines()) <= 65

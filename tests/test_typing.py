"""What type checkers and editors know of the package's public names."""

import ast
import re
from pathlib import Path

from mypy import api

import retain

ROOT = Path(__file__).parents[1]
SOURCE = Path(retain.__file__)


def revealed(expressions, tmp_path, monkeypatch):
    """The type of each expression, without the names of modules, by mypy on code that uses the package."""
    file = tmp_path / "mine.py"
    file.write_text("import retain\n" + "".join(f"reveal_type(retain.{name})\n" for name in expressions))
    monkeypatch.setenv("MYPYPATH", str(SOURCE.parents[1]))
    # The cache that `make lint` has filled: without it PyTorch is read anew.
    settings = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".mypy_cache")]
    said, complaints, code = api.run([*settings, "--no-error-summary", str(file)])
    types = re.findall(r'^\S+:(\d+): note: Revealed type is "(.*)"$', said, re.M)
    assert (complaints, code, len(types)) == ("", 0, len(expressions)), said
    return {name: re.sub(r"\b\w+\.", "", found) for name, (_, found) in zip(expressions, types, strict=True)}


def test_every_public_name_has_a_type(tmp_path, monkeypatch):
    types = revealed([*retain.__all__, 'load("x").step', 'load_run("x").rnn'], tmp_path, monkeypatch)
    assert not [name for name, found in types.items() if found == "Any"]
    assert types['load("x").step'] == "def (token: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]"
    assert (types['load_run("x").rnn'], types["__version__"]) == ("RNN", "str")


def test_the_typed_names_are_the_public_ones():
    (block,) = [node for node in ast.parse(SOURCE.read_text()).body if isinstance(node, ast.If) and node.orelse]
    imports = {alias.asname: node.module for node in block.body for alias in node.names}
    assert imports == retain._HOMES
    assert {*imports, "__version__"} == set(retain.__all__)
    assert len(retain.__all__) == len(set(retain.__all__))


def test_a_name_that_is_not_there_is_found_by_mypy(tmp_path, monkeypatch):
    try:
        revealed(["nothing_like_it"], tmp_path, monkeypatch)
    except AssertionError as error:
        assert 'Module has no attribute "nothing_like_it"' in str(error)
    else:
        raise AssertionError("mypy takes any name")


def test_the_types_are_shipped():
    assert SOURCE.with_name("py.typed").exists()

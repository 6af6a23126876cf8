"""docs/language_model.md: its commands, run in their order on a model of a few kilobytes, with short budgets."""

import re
from pathlib import Path

import pytest

pytest.importorskip("transformers")

import language_models as made
from retain.cli import main
from runs import grids_here

PAGE = (Path(__file__).parents[2] / "docs/language_model.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_page_runs(tmp_path, monkeypatch, capsys):
    grids_here(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RETAIN_CACHE", str(tmp_path / "cache"))
    Path("book.txt").write_text(made.text(800))
    made.llama(tmp_path / "model")
    lines = [line for block in re.findall(r"^```bash\n(.*?)^```", PAGE, re.M | re.S) for line in block.splitlines()]
    ours = [line for line in lines if line.startswith("retain ")]
    assert [line.split()[1] for line in ours] == [
        "train",
        "eval",
        "generate",
        "label",
        *["train"] * 2,
        *["compare"] * 4,
    ]
    for line in ours:
        argv = ["3steps" if re.fullmatch(r"\d+m", word) else word for word in line.split()[1:]]
        argv = re.findall(r'"[^"]*"|\S+', " ".join(argv))
        small = {"train": ["--validation-sequences", "4", "--tracker", "None", "--quiet"], "label": ["--quiet"]}
        main([word.strip('"') for word in argv] + small.get(argv[0], []))
        assert capsys.readouterr().out.strip(), line

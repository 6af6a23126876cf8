"""The commands and code of the README and of docs/data.md, run as they stand but for their budgets."""

import re
from pathlib import Path

import numpy as np
import pytest

from hubdata import few_modules, mnist, sketches, stories
from retain.cli import main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text() + (ROOT / "docs/data.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


@pytest.mark.slow
def test_readme_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("mybook.txt").write_text("It was a dark and stormy night; the rain fell in torrents.\n" * 200)
    for name in ("sensor.npy", "later.npy"):
        np.save(name, np.random.default_rng(len(name)).integers(0, 32, 20_000))
    monkeypatch.setattr("retain.data.text.list_stdlib_files", few_modules)
    # What the lines would take from the hub, or a user has: local copies, the column of one under another name.
    monkeypatch.setenv("RETAIN_CACHE", str(tmp_path / "cache"))
    stories(tmp_path / "stories", train=900)
    mnist(tmp_path / "mnist", train=200)
    sketches(tmp_path / "sketches", 200)
    Path("notes").mkdir()
    for i in range(20):
        Path(f"notes/{i}.txt").write_text(f"Note {i} of many: what was thought of on that day, and by whom.\n" * 20)
    Path("other.jsonl").write_text("".join(f'{{"story": "once there was a cat no. {i}"}}\n' for i in range(400)))
    local = {"tinystories": "stories", "tinystories-paper": "stories", "mnist": "mnist"}
    lines = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("retain ")]
    assert len(lines) >= 17, "the README lost its commands, or this test can no longer find them"
    for line in lines:
        argv = re.findall(r'"[^"]*"|\S+', line.partition("  #")[0])[1:]
        argv = [a.strip('"') for a in argv]
        if argv[0] == "train":
            argv = ["3steps" if re.fullmatch(r"\d+s", a) else a for a in argv]
            argv += ["--budget", "3steps"] if "--budget" not in argv else []
            argv += ["--validation-sequences", "8", "--tracker", "None", "--quiet"]
            argv = ["other.jsonl" if a.startswith("hf:") else a for a in argv]
            if argv[1] in local and "--data" not in argv:
                argv += ["--data", local[argv[1]]]
            if argv[1].endswith("-paper"):  # as the paper has it, but for its size
                argv += ["--teacher.layers", "1", "--cell.layers", "1", "--teacher.width", "32", "--memory.width", "32"]
                argv += ["--cell.width", "32", "--teacher.heads", "2", "--cell.heads", "2", "--precision", "fp32"]
        elif argv[0] == "eval":
            argv += ["--limit", "16"]
        elif argv[0] == "generate" and "--complete" not in argv:
            argv += ["--length", "20"]
        main(argv)
        assert capsys.readouterr().out.strip(), line
    code = blocks("python")
    assert len(code) == 5
    for block in code:
        exec(compile(block, "README.md", "exec"), {"__name__": "readme"})

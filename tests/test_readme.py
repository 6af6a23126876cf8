"""The README's commands and code, run as they stand but for their budgets."""

import re
from pathlib import Path

import pytest

from retain.cli import main

README = (Path(__file__).parents[1] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


@pytest.mark.slow
def test_readme_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("mybook.txt").write_text("It was a dark and stormy night; the rain fell in torrents.\n" * 200)
    lines = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("retain ")]
    assert len(lines) >= 8, "the README lost its commands, or this test can no longer find them"
    for line in lines:
        argv = re.findall(r'"[^"]*"|\S+', line.partition("  #")[0])[1:]
        argv = [a.strip('"') for a in argv]
        if argv[0] == "train":
            argv = [a if a != "240s" else "3steps" for a in argv]
            argv += ["--budget", "3steps"] if "--budget" not in argv else []
            argv += ["--validation-sequences", "8", "--tracker", "None", "--quiet"]
        elif argv[0] == "eval":
            argv += ["--limit", "16"]
        elif argv[0] == "generate":
            argv += ["--length", "20"]
        main(argv)
        assert capsys.readouterr().out.strip(), line
    code = blocks("python")
    assert len(code) == 2
    for block in code:
        exec(compile(block, "README.md", "exec"), {"__name__": "readme"})

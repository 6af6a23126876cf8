"""What the README and pages in docs/ say: commands and code are run as they stand, but for their budgets."""

import json
import re
import statistics
from pathlib import Path

import numpy as np
import pytest

import retain
from hubdata import few_modules, mnist, sketches, stories
from lab import diagram
from retain.cli import main

ROOT = Path(__file__).parents[2]
PAGES_OF_DOCS = ("start", "train", "data", "python", "report", "resume", "gpu", "memory")
PAGES = [ROOT / name for name in ("README.md", *(f"docs/{n}.md" for n in PAGES_OF_DOCS))]
"""In this order: a run that a page trains, a later page may use."""


def blocks(language: str) -> list[str]:
    return [block for page in PAGES for block in re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.S)]


@pytest.mark.parametrize("name", diagram.PICTURES)
def test_the_diagrams_are_what_their_script_draws(name):
    assert (ROOT / diagram.DOCS / name).read_text(encoding="utf-8") == diagram.PICTURES[name]()


def test_the_table_of_the_readme_is_of_kept_results():
    """Row by row: the comparison and method of each figure, and what is scored."""
    bits, accuracy = "bits_per_token", "accuracy"
    kept = [
        (bits, "claims/text-transformer-compiled one-step", "claims/text-transformer-compiled-bptt bptt"),
        (bits, "claims/text-transformer-256 one-step", "claims/text-transformer-256-bptt bptt"),
        (bits, "claims/mnist-transformer one-step", "claims/mnist-transformer-bptt bptt"),
        (bits, "stdlib smt", "stdlib bptt", "stdlib gru"),
        (bits, *(f"digits {method}" for method in ("smt", "bptt", "tbptt", "gru"))),
        (accuracy, *(f"modular {method}" for method in ("smt", "bptt", "tbptt", "gru"))),
    ]
    rows = [re.findall(r"[\d.]+ ± [\d.]+", line) for line in PAGES[0].read_text().splitlines()]
    rows = [row for row in rows if row]
    for row, (score, *sources) in zip(rows, kept, strict=True):
        for figure, source in zip(row, sources, strict=True):
            name, method = source.split()
            found = json.loads((ROOT / f"docs/results/{name}.json").read_text())["results"]["methods"][method]
            scores = [run["test"][score] for run in found["runs"]]
            assert figure == f"{statistics.mean(scores):.3f} ± {statistics.stdev(scores):.3f}", source


def test_the_reference_has_every_public_name():
    named = re.findall(r"^::: retain\.(\w+)$", (ROOT / "docs/api.md").read_text(encoding="utf-8"), re.M)
    assert set(named) == set(retain.__all__) - {"__version__"}


@pytest.mark.slow
def test_pages_run(tmp_path, monkeypatch, capsys):
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
    assert len(lines) >= 17, "the pages lost their commands, or this test can no longer find them"
    for line in dict.fromkeys(lines):  # what two pages show is run once
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
    assert len(code) == 6
    for block in code:
        exec(compile(block, "pages", "exec"), {"__name__": "pages"})

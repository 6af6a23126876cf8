"""The scripts of examples/, run as they stand on tiny budgets."""

import re
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
LINES = {
    "train_on_text": "book.txt --budget 10steps --out runs/book",
    "stream": "runs/book book.txt",
    "own_cell": "--budget 4steps",
    "own_loop": "--steps 3",
    "compare_with_bptt": "--preset copy --budget 2steps",
}
"""In this order: a stream is read by the RNN that was trained on text."""


def test_every_example_is_run():
    assert sorted(path.stem for path in EXAMPLES.glob("*.py")) == sorted(LINES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("examples")
    (folder / "book.txt").write_text("It was a dark and stormy night; the rain fell in torrents.\n" * 30)
    return folder


@pytest.fixture
def example(folder, monkeypatch, capsys):
    def call(name):
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *LINES[name].split()])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return call


def test_train_on_text_and_stream(example):
    out = example("train_on_text")
    assert re.match(r"\d+\.\d{3} bits per byte", out) and len(out) > 300
    halves, whole = re.findall(r"([\d.]+) bits per byte", example("stream"))
    assert halves == whole  # the memory was restored, not begun anew
    assert float(whole) < 8  # a byte by chance


def test_own_cell(example):
    assert re.match(r"accuracy 0\.\d{3} on the test split; chance is 0\.\d{3}\n$", example("own_cell"))


def test_own_loop(example):
    out = example("own_loop")
    assert out.startswith("SMT {") and "\nDMT {" in out and "\naccuracy 0." in out


def test_compare_with_bptt(example, folder):
    methods = re.findall(r"^(\S+): [\d.]+ bits per token, accuracy 0\.\d{3}", example("compare_with_bptt"), re.M)
    assert methods == ["smt-dmt", "bptt"]
    assert len(list((folder / "runs/fair").glob("*/summary.json"))) == 6

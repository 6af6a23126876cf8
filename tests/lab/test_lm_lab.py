"""The lab's table of RNNs from a language model, and their speeds, on a model of a few kilobytes."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

pytest.importorskip("transformers")

import language_models as made
from conftest import train_tiny
from lab import language_model, lm_speed, own_teacher, texts
from retain.cli import main
from retain.cli.train import train_config
from retain.experiments.scheduler import SCORES
from runs import grids_here

PAGE = Path(__file__).parents[2] / "docs/language_model.md"
SIZES = (
    "--memory.tokens 1 --memory.width 16 --teacher.width 16 --cell.width 16 --teacher.future-len 4 --data.seq-len 40 "
    "--validation-sequences 8 --device cpu"
)


@pytest.mark.slow
def test_the_table_is_made_once_and_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/language_model.md").write_text(
        "# Words\n\n<!-- language models begin -->\n<!-- language models end -->\nMore words.\n"
    )
    (tmp_path / "texts").mkdir()
    for number in range(30):
        (tmp_path / f"texts/{number}.txt").write_text(made.text(60, seed=number))
    made.llama(tmp_path / "model")
    started = grids_here(monkeypatch)
    rows = {row: language_model.ROWS[row] for row in ("SMT → DMT, hybrid", "BPTT from scratch")}
    monkeypatch.setattr(language_model, "ROWS", rows)
    monkeypatch.setattr(language_model, "WRITTEN", 8)
    line = ["small", "--model", "model", "--text", "texts", "--budget", "3steps", "--sizes", SIZES, "--context", "20"]
    line += ["--train-bytes", "30000"]
    language_model.main(line)
    page = (tmp_path / "docs/language_model.md").read_text()
    assert page.startswith("# Words") and page.endswith("More words.\n") and "BPTT from scratch" in page
    kept = tmp_path / "docs/results/language-model/small"
    saved = {path.stem: json.loads(path.read_text())["results"] for path in kept.iterdir()}
    for row in rows:
        found = saved[language_model.slug(row)]
        (bits,), (cold,) = found["bits_per_byte"], found["cold_bits_per_byte"]
        assert 0 < bits != cold > 0 and found["parameters"] > found["vocabulary_parameters"] > 0
        assert f"| {row} | {bits:.3f} |\n" in page, "in the table of all results"
    own = saved[language_model.MODEL]
    assert 0 < own["score"]["bits_per_byte"] < own["score"]["bits_per_token"]
    assert [set(drawn) for drawn in own["samples"]] == [{"prompt", "text", "model"}] * 3
    assert page.count("[RNN]") == 3
    folder = tmp_path / "runs/language-model/small/text"
    parts = {split: list((folder / split).iterdir()) for split in texts.PARTS}
    sizes = {split: sum(file.stat().st_size for file in files) for split, files in parts.items()}
    assert 29_900 < sizes["train"] <= 30_000 and min(sizes.values()) > 1000
    count = len(started)
    language_model.main(line)
    language_model.main(["--tables"])
    assert len(started) == count, "what is kept is not run again"
    for path in kept.iterdir():
        path.unlink()
    language_model.main([*line, "--rows", "1"])
    page = (tmp_path / "docs/language_model.md").read_text()
    assert len(started) == count, "nor is what was run"
    assert "BPTT from scratch" in page and "hybrid" not in page, "one row at a time can be run"
    monkeypatch.setitem(rows, "BPTT from scratch", ("bptt", "--bptt.lr 1"))
    language_model.main(["--tables"])
    assert (
        "BPTT from scratch (with an earlier form of its options)" in (tmp_path / "docs/language_model.md").read_text()
    )


def test_the_recipe_has_the_settings_of_the_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RETAIN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "book.txt").write_text(made.text(60))
    made.llama(tmp_path / "model")
    line = "text --data book.txt --teacher.from model --data.seq-len 12"
    row = language_model.ROWS["SMT → DMT, hybrid"][1].replace("576", "16")
    long = train_config(f"{line} --memory.tokens 1 --memory.width 16 {row}".split())[0]
    assert train_config(f"{line} --recipe language-model".split())[0] == long
    row = language_model.ROWS["SMT → DMT, one step"][1].replace("576", "16")
    (advised,) = re.findall(r"one-step supervision add `(.*?)`", PAGE.read_text(encoding="utf-8"), re.S)
    one_step = train_config(f"{line} --memory.tokens 1 --memory.width 16 {row}".split())[0]
    assert train_config(f"{line} --recipe language-model {advised}".split())[0] == one_step, "as the page says"
    main(f"label book.txt --teacher.from model --data.seq-len 12 --out {tmp_path / 'labels'} --quiet".split())
    kept = train_config(f"text --labels {tmp_path / 'labels'} --recipe language-model".split())[0]
    assert (kept.memory, kept.smt, kept.dmt) == (long.memory, long.smt, long.dmt)
    assert kept.teacher == dataclasses.replace(long.teacher, labels=kept.teacher.labels)


def test_a_text_is_cut_by_files_or_by_lines(tmp_path):
    (tmp_path / "book.txt").write_text("a line\n" * 1000)
    parts = texts.cut_parts(str(tmp_path / "book.txt"))
    assert b"".join(parts["train"] + parts["validation"] + parts["test"]) == b"a line\n" * 1000
    assert [len(parts[split][0]) for split in parts] == [6300, 350, 350]
    assert texts.cut_bytes([b"one\ntwo\n", b"three\nfour\n"], 17) == [b"one\ntwo\n", b"three\n"]
    (tmp_path / "short.txt").write_text("one line")
    with pytest.raises(ValueError, match="too short to be cut"):
        texts.cut_parts(str(tmp_path / "short.txt"))


@pytest.mark.parametrize("make", [made.llama, made.gpt2])
def test_speeds_are_measured_at_each_context_and_drawn(make, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    make(tmp_path / "model")
    train_tiny(tmp_path / "run", budget="2steps")
    out = tmp_path / "out" / "speed"
    line = [str(tmp_path / "model"), str(tmp_path / "run"), "--contexts", "8,64", "--tokens", "3", "--out", str(out)]
    lm_speed.main(line)
    rows = json.loads(out.with_suffix(".json").read_text())["rows"]
    assert [row["context"] for row in rows] == [8, 64]
    first, last = rows
    assert first["rnn"]["state_bytes"] == last["rnn"]["state_bytes"] == 2 * 8 * 4
    assert first["rnn"]["tokens_per_second"] > 0
    if make is made.llama:  # keys and values of 16 numbers in two layers, for the context, two steps before and three
        sizes = [row["model"]["state_bytes"] for row in rows]
        assert sizes == [2 * 2 * 16 * 4 * (row["context"] + 5) for row in rows]
    else:  # it has 32 learnt positions
        assert first["model"] is not None and last["model"] is None
    assert out.with_suffix(".png").stat().st_size > 1000


@pytest.mark.slow
def test_rnns_of_several_cells_follow_one_teacher(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/language_model.md").write_text("Words.\n")
    started = grids_here(monkeypatch)
    monkeypatch.setattr(own_teacher, "CELLS", {"gated": "", "gru": "--cell.kind gru"})
    small = "--memory.width 16 --cell.width 16 --smt.batch-size 2 --dmt.batch-size 2 --bptt.batch-size 2"
    line = ["--teacher-budget", "2steps", "--budget", "3steps", "--seeds", "1"]
    line += ["--more", f"{small} --validation-sequences 4 --device cpu"]
    scores = {"test": dict.fromkeys((*SCORES, "bits_per_byte"), 5.0), "answers": False, "chance": None}
    monkeypatch.setattr("retain.experiments.scheduler.score", lambda *_: scores)
    own_teacher.main(line)
    page = (tmp_path / "docs/language_model.md").read_text()
    assert page.startswith("Words.") and page.count("| 5.000 | 5.000 | 5.000 |") == 2
    count = len(started)
    assert count == 6
    own_teacher.main(line)
    assert len(started) == count

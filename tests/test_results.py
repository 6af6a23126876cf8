"""`make results`: every line is a comparison that can be run, what is kept is not run again, pages keep their words."""

import json
import shlex
import shutil

import pytest

from retain import results
from retain.compare import comparison_of
from retain.config_json import from_dict, to_dict
from retain.presets import PRESETS
from retain.results import BEGIN, END, comparisons, credit_line, credit_runs, credit_table, kept, main, write


@pytest.mark.parametrize("quick", [False, True])
def test_every_line_is_a_comparison_of_equal_budgets(quick):
    lines = {name: line for section in comparisons(quick).values() for name, line in section.items()}
    assert {"retrieval", "copy", "stack", "keys_values", "modular", "retrieval-512", "s3", "stdlib"} <= set(lines)
    outs = set()
    for name, line in lines.items():
        if line.split()[0] not in PRESETS:
            continue
        comparison, out, jobs = comparison_of(shlex.split(line))
        assert (jobs, comparison.threads) == (2, 1)
        assert {"smt", "bptt", "gru"} <= set(comparison.methods)
        assert comparison.seeds == 1 or not quick
        outs.add(str(out))
        if name.startswith("retrieval-"):
            assert comparison.config.data.seq_len == int(name.split("-")[1])
    assert len(outs) == sum(line.split()[0] in PRESETS for line in lines.values())


def test_all_of_it_fits_its_time():
    """Seconds of training, two runs side by side; starting and scoring come on top."""
    for quick, hours in ((False, 5.5), (True, 0.4)):
        seconds = 0.0
        for section in comparisons(quick).values():
            for line in section.values():
                words = shlex.split(line)
                value = dict(zip(words[1::2], words[2::2], strict=False))
                budget = float(value["--budget"][:-1])
                sweep = 0 if "--lrs" in value else 3 * float(value["--sweep-budget"][:-1])
                seconds += len(value["--methods"].split(",")) * (int(value["--seeds"]) * budget + sweep)
        assert seconds / 2 / 3600 < hours


def test_the_credit_line_is_what_is_run():
    from retain.commands.train import train_config

    for quick in (False, True):
        runs = credit_runs(quick)
        for name, config in runs.items():
            kind, length = name.split("-")
            line, _, only = credit_line(quick).removeprefix("retain train ").rstrip(")").partition(" (detached: ")
            line = (
                f"{line.replace('seq-len T', f'seq-len {length}')} {only if kind == 'detached' else ''} --tracker None"
            )
            assert train_config(shlex.split(line))[0] == config
            assert from_dict(type(config), to_dict(config)) == config


def test_credit_table_says_when_each_length_was_solved():
    def run(*accuracies):
        return {"curve": [{"step": 100 * (i + 1), "accuracy": a} for i, a in enumerate(accuracies)]}

    found = {f"{kind}-{n}": run(0.2, 0.3) for n in (8, 16, 32, 64) for kind in ("joint", "detached")}
    found["joint-16"] = run(0.5, 0.995, 0.98)
    lines = [[c.strip() for c in line.strip("|").split("|")] for line in credit_table(found).splitlines()[4:]]
    assert lines[0] == ["8", "–", "–", "0.300", "0.300"]
    assert lines[1] == ["16", "200", "–", "0.980", "0.300"]


@pytest.fixture
def small(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    line = "retrieval --methods bptt --seeds 1 --budget 3steps --lrs 1 --jobs 1 --threads 1 --data.seq-len 8"
    line += " --cell.width 8 --teacher.width 16 --memory.width 16 --out runs/results/retrieval"
    monkeypatch.setattr(results, "comparisons", lambda quick: {"Tasks": {"retrieval": line, "other": "nothing --x 1"}})
    return f"retain compare {line}"


def test_what_is_kept_is_not_run_again(small, tmp_path, monkeypatch, capsys):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/results.md").write_text(f"# Figures\n\nWords before.\n\n{BEGIN}\nstale\n{END}\n\nWords after.\n")
    main(["retrieval", "other"])
    assert "other: there is no preset" in capsys.readouterr().err
    text = (tmp_path / "docs/results.md").read_text()
    assert text.startswith("# Figures\n\nWords before.\n") and text.endswith(f"{END}\n\nWords after.\n")
    assert "stale" not in text and f"`{small}`" in text and "| bptt |" in text and text.count("Not run yet.") == 2
    assert (tmp_path / "docs/results/retrieval.png").exists() and "(results/retrieval.png)" in text
    assert (tmp_path / "docs/results/retrieval.json").stat().st_size < 10_000
    shutil.rmtree(tmp_path / "runs")
    monkeypatch.setattr(results, "compare", lambda *a, **k: pytest.fail("it is done"))
    main(["retrieval"])
    assert (tmp_path / "docs/results.md").read_text() == text
    saved = json.loads((tmp_path / "docs/results/retrieval.json").read_text())
    saved["command"] += " --lengths 4"
    (tmp_path / "docs/results/retrieval.json").write_text(json.dumps(saved))
    assert kept("retrieval", small, tmp_path / "docs/results") is None, "another command, another comparison"


def test_unknown_names_are_refused(small, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["retrieval", "chess"])
    assert stop.value.code == 2
    assert "names: chess not among retrieval, other, credit" in capsys.readouterr().err


def test_a_page_without_marks_gets_them(tmp_path):
    (tmp_path / "page.md").write_text("# Mine\n")
    write("one\n", tmp_path / "page.md")
    write("two\n", tmp_path / "page.md")
    assert (tmp_path / "page.md").read_text() == f"# Mine\n\n{BEGIN}\ntwo\n{END}\n"

"""`make results`: every line is a comparison that can be run, what is kept is not run again, pages keep their words."""

import dataclasses
import functools
import json
import re
import shlex
import shutil

import pytest

from lab import figures, kept, results
from lab.by_length import find_solved, plot_by_length, tabulate_by_length
from lab.kept import STALE, find_study, fingerprint, leave_out_none
from lab.results import BY_NAME, comparisons, fill, main, write
from lab.studies import ABLATED, WITHOUT, ablation, ablation_table, credit, credit_table, slug
from retain.cli.compare import parse_comparison
from retain.config.json import from_dict, to_dict
from retain.config.presets import PRESETS
from runs import grids_here

_ablated = functools.cache(ablation)


def ablated(quick=False):
    """The ablation, made once for all tests: nobody changes a study, and no test the presets it is of."""
    return _ablated(quick)


@pytest.fixture(autouse=True)
def ablation_once(monkeypatch):
    monkeypatch.setitem(results.STUDIES, "ablation", ablated)


@pytest.mark.parametrize("quick", [False, True])
def test_every_line_is_a_comparison_of_equal_budgets(quick):
    lines = {name: line for section in comparisons(quick).values() for name, line in section.items()}
    assert {"retrieval", "copy", "stack", "keys_values", "modular", "retrieval-512", "s3", "stdlib"} <= set(lines)
    outs, only_named = set(), {name for section in BY_NAME for name in comparisons(quick).get(section, {})}
    for name, line in lines.items():
        comparison, out, jobs = parse_comparison(shlex.split(line))
        assert (jobs, comparison.threads) == (2, 1)
        assert {"smt", "one-step"} & set(comparison.methods)
        assert {"bptt", "gru"} <= set(comparison.methods) or name in only_named
        assert comparison.seeds == 1 or not quick
        outs.add(str(out))
        if name.startswith("retrieval-") and name not in only_named:
            assert comparison.config.data.seq_len == int(name.split("-")[1])
    assert len(outs) == len(lines)


def test_all_of_it_fits_its_time():
    """Seconds of training, two runs side by side; starting and scoring come on top."""
    for quick, hours in ((False, 6), (True, 0.4)):
        seconds = 0.0
        for section, lines in comparisons(quick).items():
            for line in lines.values() if section not in BY_NAME else ():
                words = shlex.split(line)
                value = dict(zip(words[1::2], words[2::2], strict=False))
                budget = float(value["--budget"][:-1])
                rates = len(value.get("--lrs", "1/3,1,3").split(","))
                sweep = rates * float(value["--sweep-budget"][:-1]) if rates > 1 else 0
                seconds += len(value["--methods"].split(",")) * (int(value["--seeds"]) * budget + sweep)
        assert seconds / 2 / 3600 < hours


def test_the_lines_of_studies_are_what_is_run():
    from retain.cli.train import train_config

    for quick in (False, True):
        study = credit(quick)
        for name, config in study.runs.items():
            line = study.command.removeprefix("retain train ").replace("seq-len T", f"seq-len {name.split('-')[1]}")
            line += " --tracker None"
            assert train_config(shlex.split(line))[0] == config
            assert from_dict(to_dict(config)) == config
        study = ablated(quick)
        line = study.command.removeprefix("retain train ").partition(", and ")[0]
        for preset in ABLATED:
            words = line.replace("PRESET", preset).replace("SEED", "0")
            assert train_config(shlex.split(words + " --tracker None"))[0] == study.runs[f"{preset}-as-shipped-seed0"]
            names = [f"{preset}-{slug(row)}-seed0" for row in WITHOUT]
            runs = [study.runs[name] for name in names if name in study.runs]
            assert len({str(to_dict(run)) for run in runs}) == len(runs) >= len(WITHOUT) - 1
        assert "stack-no-probabilities-of-the-teacher-seed0" not in study.runs, "it has none to begin with"


def test_every_recipe_of_the_ablation_takes_as_many_steps():
    for config in ablated().runs.values():
        assert config.budget == "600steps" and sum(b.amount for b in config.budgets()) == 600


def test_ablation_table_has_a_row_for_each_ingredient():
    def run(value):
        names = ("bits_per_token", "accuracy", "teacher_bits_per_token", "teacher_accuracy", "relative_drift")
        return {"validation": dict.fromkeys(names, value)}

    found = {name: run(0.5 + int(name[-1]) / 10) for name in ablated().runs}
    for seed in range(3):
        found[f"stack-one-step-of-f-the-papers-seed{seed}"] = {"failed": "loss became nan"}
        if seed:
            found[f"digits-stretches-of-8-seed{seed}"] = {"failed": "loss became nan"}
        del found[f"stack-gru-cell-seed{seed}"], found[f"digits-gru-cell-seed{seed}"]  # kept figures without this row
    found["digits-a-row-of-old-seed0"] = run(0.9)
    text = ablation_table(found)
    assert "3 seed(s)" in text
    lines = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    assert lines[0][1] == "digits: bits per token" and lines[0][4] == "stack: accuracy"
    assert lines[2] == ["as shipped"] + ["0.600 ± 0.100"] * 9
    assert lines[3][0] == "one step of f, the paper's: `smt.bptt_window=1,dmt.bptt_window=1`"
    assert lines[3][4:7] == ["– (3 diverged)", "–", "–"] and lines[3][7] == "0.600 ± 0.100"
    assert lines[4][1:3] == ["0.500 (2 diverged)", "0.500"]
    (row,) = (line for line in lines if line[0].startswith("no probabilities of the teacher"))
    assert row[1:] == ["0.600 ± 0.100"] * 3 + ["as shipped", "", ""] + ["0.600 ± 0.100"] * 3
    assert lines[-1] == ["GRU cell: `cell.kind=gru`"] + ["–"] * 6 + ["0.600 ± 0.100"] * 3
    assert len(lines) == 2 + len(WITHOUT)


def test_credit_table_says_when_each_length_was_solved():
    def run(*accuracies):
        return {"curve": [{"step": 100 * (i + 1), "accuracy": a} for i, a in enumerate(accuracies)]}

    found = {f"{kind}-{n}": run(0.2, 0.3) for n in (8, 16, 32, 64) for kind in ("joint", "detached")}
    found["joint-16"] = run(0.5, 0.995, 0.98)
    del found["joint-64"]
    lines = [[c.strip() for c in line.strip("|").split("|")] for line in credit_table(found).splitlines()[4:]]
    assert lines[0] == ["8", "–", "–", "0.300", "0.300"]
    assert lines[1] == ["16", "200", "–", "0.980", "0.300"]
    assert lines[3] == ["64", "–", "–", "–", "0.300"]


PAGE = "docs/results-tasks.md"
REST = ("other", "ablation", "credit")


@pytest.fixture
def small(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    grids_here(monkeypatch)
    line = "retrieval --methods bptt --seeds 1 --budget 3steps --lrs 1 --jobs 1 --threads 1 --data.seq-len 8"
    line += " --data.min-seq-len None --cell.width 8 --teacher.width 16 --memory.width 16 --out runs/results/retrieval"
    monkeypatch.setattr(results, "comparisons", lambda quick: {"Tasks": {"other": line + "-2", "retrieval": line}})
    (tmp_path / "docs").mkdir()
    marks = "".join(f"\n<!-- {name} begin -->\nstale\n<!-- {name} end -->\n" for name in ("retrieval", *REST))
    (tmp_path / PAGE).write_text(f"# Figures\n\nWords before.\n{marks}\nWords after.\n")
    return f"retain compare {line}"


def test_what_is_kept_is_not_run_again(small, tmp_path, monkeypatch, capsys):
    main(["retrieval"])
    text = (tmp_path / PAGE).read_text()
    assert text.startswith("# Figures\n\nWords before.\n") and text.endswith("<!-- credit end -->\n\nWords after.\n")
    assert "stale" not in text and f"\n{small}\n" in text and "| bptt |" in text and text.count("Not run yet.") == 3
    assert (tmp_path / "docs/results/retrieval.png").exists() and "(results/retrieval.png)" in text
    assert (tmp_path / "docs/results/retrieval.json").stat().st_size < 10_000
    shutil.rmtree(tmp_path / "runs")
    monkeypatch.setattr(results, "compare", lambda *a, **k: pytest.fail("it is done"))
    main(["retrieval"])
    assert (tmp_path / PAGE).read_text() == text


def test_figures_of_an_earlier_command_stay_under_it_and_are_run_again(small, tmp_path):
    main(["retrieval"])
    path = tmp_path / "docs/results/retrieval.json"
    saved = json.loads(path.read_text())
    saved["command"] += " --lengths 4"
    path.write_text(json.dumps(saved))
    main(["--tables"])
    text = (tmp_path / PAGE).read_text()
    assert f"<!-- retrieval begin -->\n{STALE}" in text and f"\n{small} --lengths 4\n" in text and "| bptt |" in text
    main(["retrieval"])
    assert json.loads(path.read_text())["command"] == small
    assert STALE not in (tmp_path / PAGE).read_text()


def test_what_a_preset_no_longer_says_is_shown_as_such_and_run_again(small, tmp_path, monkeypatch, capsys):
    main(["retrieval"])
    before = PRESETS["retrieval"]
    monkeypatch.setitem(PRESETS, "retrieval", lambda: dataclasses.replace(before(), validation_sequences=7))
    main(["--tables"])
    assert STALE in (tmp_path / PAGE).read_text()
    with pytest.raises(SystemExit) as stop:  # the run folder is of the old preset, and nothing of it is lost
        main(["retrieval", "other"])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.endswith("retain: not done: retrieval (see above)\n")
    assert "retrieval: out: runs/results/retrieval holds another comparison" in said
    assert "delete runs/results/retrieval\n" in said
    assert (tmp_path / "docs/results/other.json").exists(), "what comes after it is done all the same"
    shutil.rmtree(tmp_path / "runs")
    main(["retrieval"])
    assert STALE not in (tmp_path / PAGE).read_text()


def test_kept_results_name_no_folder_and_fit_the_same_data_in_any_folder(tmp_path):
    def settings(path):
        return kept.find_comparison("x", f"mnist --data.path {path} --methods one-step", tmp_path).settings

    assert settings("/a/mnist") == settings("/b/mnist") != settings("/a/other")
    made = {"data": {"path": "/a/mnist", "seq_len": 783}, "source": {"path": "/a/mnist", "prepared": "/c", "splits": 3}}
    left = kept.leave_out_folders(made)
    assert left == {"data": {"path": "mnist", "seq_len": 783}, "source": {"splits": 3}}
    assert kept.leave_out_folders({"data": {}, "source": None}) == {"data": {}, "source": None}


def test_an_option_that_is_off_makes_no_figures_old():
    config = PRESETS["retrieval"]()
    known = to_dict(config)
    known["data"]["of_tomorrow"] = None
    assert (
        leave_out_none(known) == leave_out_none(to_dict(config)) and "of_tomorrow" not in leave_out_none(known)["data"]
    )
    for part, added in kept.ADDED.items():
        assert added.items() <= known[part].items(), "these are the defaults"
    changed = dataclasses.replace(config, data=dataclasses.replace(config.data, min_seq_len=4))
    assert len({fingerprint([config]), fingerprint([changed]), fingerprint([config, changed])}) == 3


def test_figures_of_a_study_hang_on_the_phases_it_runs():
    def changed(study, part, **fields):
        runs = {
            name: dataclasses.replace(config, **{part: dataclasses.replace(getattr(config, part), **fields)})
            for name, config in study.runs.items()
        }
        now = dataclasses.replace(study, runs=runs)
        return find_study("", now, results.KEPT).settings != find_study("", study, results.KEPT).settings

    assert not changed(credit(), "dmt", lambda_dyn=3.0) and not changed(credit(), "smt", share=9)
    assert changed(credit(), "smt", lambda_dyn=3.0) and changed(credit(), "memory", tokens=9)
    assert changed(ablated(), "dmt", lambda_dyn=3.0) and changed(ablated(), "smt", share=9)
    assert not changed(ablated(), "bptt", lr=3.0)


def test_a_study_is_run_once_on_its_split_and_kept(small, tmp_path, monkeypatch):
    names = ("bits_per_token", "accuracy", "teacher_bits_per_token", "teacher_accuracy", "relative_drift")
    calls = []

    def run_all(runs, out, *, split, **options):
        calls.append((len(runs), str(out), split))
        return {name: {"config": {}, "validation": dict.fromkeys(names, 0.5)} for name in runs}

    monkeypatch.setattr("retain.experiments.scheduler.run_all", run_all)
    main(["ablation"])
    main(["ablation"])
    assert calls == [(len(ablated().runs), "runs/results/ablation", "validation")]
    assert "| as shipped | 0.500 ± 0.000 |" in (tmp_path / PAGE).read_text()
    kept = json.loads((tmp_path / "docs/results/ablation.json").read_text())["results"]
    assert kept.keys() == ablated().runs.keys() and not any("config" in r for r in kept.values())


@pytest.mark.parametrize("module, pages", [(results, results.PAGES), (figures, [figures.PAGE])])
def test_the_pages_in_the_repository_are_of_their_figures(module, pages):
    """Every table has one place, and what stands there is what the kept numbers make."""
    made = module.blocks(False, results.KEPT) if module is results else module.blocks(figures.KEPT)
    written = [page.read_text(encoding="utf-8") for page in pages]
    places = [name for text in written for name in re.findall("<!-- (.+) begin -->", text)]
    assert sorted(places) == sorted(made)

    def plain(text):  # whether presets have changed since is another matter
        for said in (STALE.replace("Run", "Some of it run"), STALE):
            text = text.replace(said, "")
        return text

    for text in written:
        assert plain(fill(text, made)) == plain(text)


def test_unknown_names_are_refused(small, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["retrieval", "chess"])
    assert stop.value.code == 2
    assert "names: chess not among other, retrieval, ablation, credit" in capsys.readouterr().err


def test_a_page_without_marks_gets_them(tmp_path):
    (tmp_path / "page.md").write_text("# Mine\n")
    write("one\n", tmp_path / "page.md")
    write("two\n", tmp_path / "page.md")
    assert (tmp_path / "page.md").read_text() == f"# Mine\n\n{results.BEGIN}\ntwo\n{results.END}\n"


def test_lengths_in_one_table_tell_when_each_was_solved(tmp_path):
    def found(length, **methods):
        def curve(points):
            return [{"seconds": s, "sequential_steps": 100 * s, "accuracy": a} for s, a in points]

        runs = {
            name: [{"test": {"accuracy": score}, "curve": curve(points)} for score, points in of_seeds]
            for name, of_seeds in methods.items()
        }
        seeds = len(next(iter(runs.values())))
        return {"seeds": seeds, "data": {"seq_len": length}, "methods": {name: {"runs": r} for name, r in runs.items()}}

    long = found(128, smt=[(0.5, [(30, 0.2), (60, 0.5)])], gru=[(1.0, [(30, 0.99)])])
    short = found(
        64, smt=[(1.0, [(10, 1.0)]), (0.98, [(10, 0.5), (30, 0.99), (50, 0.9)])], lstm=[], gru=[(1.0, [])] * 2
    )
    short["methods"]["gru"]["runs"].append({"failed": "diverged"})
    lines = [
        [c.strip() for c in line.strip("|").split("|")] for line in tabulate_by_length([long, short]).splitlines()[3:]
    ]
    assert lines[0] == ["T", "smt", "gru"]
    assert find_solved(long, "gru") == {"seconds": 30, "sequential_steps": 3000} and find_solved(short, "gru") is None
    assert plot_by_length([long, short], tmp_path / "lengths.png") and (tmp_path / "lengths.png").stat().st_size > 5000
    assert lines[2] == ["64 (2 seeds)", "0.990 ± 0.014; 20 s, 2,000", "1.000 ± 0.000; –"]
    assert lines[3] == ["128 (1 seed)", "0.500; –", "1.000; 30 s, 3,000"]

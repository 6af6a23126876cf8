"""`retain compare`: equal parameters, a sweep by validation, nothing done twice, tables that say what was measured."""

import copy
import dataclasses
import json
import re
import shutil
import statistics
import sys

import pytest

from conftest import tiny
from retain.config import RunConfig
from retain.config.json import save_config
from retain.config.presets import PRESETS
from retain.data import load_data
from retain.experiments.compare import Comparison, compare, count_parameters, match_parameters
from retain.experiments.scheduler import read_curve, run_all
from retain.experiments.tables import is_far_below, markdown, mean_and_deviation, plot, rank_methods
from retain.inference.evaluate import evaluate
from retain.runs.run import build, load_run
from runs import grids_here

# A whole comparison

BASE = tiny(budget="6steps", validate_every="2steps")
SMALL = Comparison(config=BASE, methods=("smt", "gru"), seeds=2, lrs=("1", "1e6"), lengths=(8, 12), threads=1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("comparison") / "out"
    with pytest.MonkeyPatch.context() as patch:
        grids_here(patch)
        return out, compare(SMALL, out, jobs=2)


def test_runs_of_a_comparison(finished):
    out, results = finished
    best = {m: found["lr_factor"] for m, found in results["methods"].items()}
    for method in ("smt", "gru"):
        values = {lr: t.get("validation_bits_per_token", 1e9) for lr, t in results["methods"][method]["sweep"].items()}
        assert best[method] == min(values, key=values.get)
    names = {f"{m}-lr{lr}-seed0" for m in best for lr in SMALL.lrs} | {f"{m}-lr{lr}-seed1" for m, lr in best.items()}
    assert {p.name for p in (out / "runs").iterdir() if p.is_dir()} == names, "seed 0 at the best rate is not run twice"
    for name in names:
        result = json.loads((out / "runs" / name / "result.json").read_text())
        method, _, rest = name.partition("-lr")
        chosen = rest.rpartition("-seed")[0] == best[method]
        assert ("test" in result) == chosen, "the test split is for the chosen rate only"


def test_results_are_those_of_the_runs(finished):
    out, results = finished
    for method, found in results["methods"].items():
        assert [r["seed"] for r in found["runs"]] == [0, 1]
        for r in found["runs"]:
            folder = out / "runs" / f"{method}-lr{found['lr_factor']}-seed{r['seed']}"
            run = load_run(folder, teacher=True)
            data = load_data(run.config.data)
            guide = run.teacher if method == "smt" else None
            again = evaluate(run.rnn, guide, data.windows("test", 256))
            for key, value in r["test"].items():
                assert value == again[key], key
            assert (r["test"]["teacher_accuracy"] is None) == (method == "gru")
            longer = load_data(dataclasses.replace(run.config.data, seq_len=12))
            again = evaluate(run.rnn, guide, longer.windows("test", 256, 512))
            assert r["lengths"]["12"]["accuracy"] == pytest.approx(again["accuracy"])
            assert set(r["lengths"]) == {"8", "12"}
            summary = json.loads((folder / "summary.json").read_text())
            for key in ("seconds", "tokens", "sequential_steps", "parameters", "steps", "best_step"):
                assert r[key] == summary[key]
            assert found["parameters"] == sum(p.numel() for p in run.rnn.parameters())
            assert 50e6 < r["peak_memory_bytes"] < 4e9
            lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
            seen = [x["step"] for x in lines if "validation_accuracy" in x]
            assert [p["step"] for p in r["curve"]] == seen
            assert {"seconds", "tokens", "sequential_steps", "accuracy", "bits_per_token"} <= set(r["curve"][0])
    assert (results["metric"], results["chance"]) == ("accuracy", 0.25)


def rows(text, first):
    """Cells of the Markdown table whose head begins with `first`, by the first cell of each row."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first} |"))
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines[start:]]
    end = next((i for i, line in enumerate(lines[start:]) if not line.startswith("|")), len(cells))
    head, body = cells[0], cells[2:end]
    return {row[0]: dict(zip(head, row, strict=True)) for row in body}


def test_the_table_says_mean_and_deviation(finished):
    out, results = finished
    text = (out / "results.md").read_text()
    assert text == markdown(json.loads((out / "results.json").read_text())), "tables can be made from the JSON alone"
    means = {}
    for method, row in rows(text, "method | accuracy").items():
        runs = [
            json.loads(
                (out / f"runs/{method}-lr{results['methods'][method]['lr_factor']}-seed{s}/result.json").read_text()
            )
            for s in (0, 1)
        ]
        accuracy = [r["test"]["accuracy"] for r in runs]
        means[method] = statistics.mean(accuracy)
        bits = [r["test"]["bits_per_token"] for r in runs]
        assert row["accuracy"].strip("*") == f"{sum(accuracy) / 2:.3f} ± {abs(accuracy[0] - accuracy[1]) / 2**0.5:.3f}"
        assert row["bits/token"] == f"{sum(bits) / 2:.3f} ± {abs(bits[0] - bits[1]) / 2**0.5:.3f}"
        assert row["chance"] == "0.250"
        assert (row["its teacher"] == "–") == (method == "gru")
        drift = [r["test"]["relative_drift_last"] for r in runs]
        assert row["relative drift, last position"].split(" ")[0] == ("–" if None in drift else f"{sum(drift) / 2:.2f}")
        assert row["tokens"] == f"{6 * 4 * 8}"
        assert row["parameters"].replace(",", "") == str(runs[0]["parameters"])
        assert row["sequential steps"] == f"{statistics.mean(r['sequential_steps'] for r in runs):,.0f}"
        assert row["peak memory, MiB"] == f"{statistics.mean(r['peak_memory_bytes'] for r in runs) / 2**20:,.0f}"
        config, found = runs[0]["config"], results["methods"][method]
        assert row["learning rate"] == ", ".join(f"{p} {config[p]['lr']:.2g}" for p in config["phases"])
        assert row["seconds"] == f"{statistics.mean(r['seconds'] for r in runs):,.0f}"
        if method == "smt":
            assert row["its teacher"] == mean_and_deviation([r["test"]["teacher_accuracy"] for r in runs])
        for lr, trial in found["sweep"].items():
            value = trial.get("validation_bits_per_token")
            cell = "diverged" if value is None else f"{value:.3f}"
            said = rows(text, "method | × 1")[method][f"× {lr}"]
            assert said == (f"**{cell}**" if lr == found["lr_factor"] else cell)
        for n in ("8", "12"):
            own, theirs = (
                mean_and_deviation([r["lengths"][n][f"{who}accuracy"] for r in runs]) for who in ("", "teacher_")
            )
            assert rows(text, "method | 8")[method][n] == (own if method == "gru" else f"{own} ({theirs})")
    order = list(rows(text, "method | accuracy"))
    assert order == sorted(means, key=lambda m: -means[m]) == [m for m, _ in rank_methods(results)]
    assert text.count("**") == 2 * (1 + len(order)), "the best result, and the chosen rate of each method"
    assert set(rows(text, "method | × 1")) == {"smt", "gru"}
    lengths = rows(text, "method | 8")
    assert "(" in lengths["smt"]["12"] and "(" not in lengths["gru"]["12"]
    drifts = rows(text, "relative drift | 8")
    assert set(drifts) == {"smt"} and drifts["smt"]["12"].count("±") == 1, "a gru has no teacher to drift from"


def test_unlike_machines_and_unknown_peaks_are_told(finished):
    results = copy.deepcopy(finished[1])
    assert "unlike" not in markdown(results)
    runs = results["methods"]["gru"]["runs"]
    runs[0] |= {"machine": "another", "peak_memory_bytes": None}
    text = markdown(results)
    assert text.count("Runs of unlike machines: ") == 1 and "another cpu fp32" in text
    assert rows(text, "method | accuracy")["gru"]["peak memory, MiB"] == f"{runs[1]['peak_memory_bytes'] / 2**20:,.0f}"


def test_methods_that_the_table_cannot_tell_apart_are_all_the_best(finished):
    results = copy.deepcopy(finished[1])
    for accuracy, method in ((0.99999, "smt"), (0.99996, "gru")):
        for run in results["methods"][method]["runs"]:
            run["test"]["accuracy"] = accuracy
    bold = [row["accuracy"] for row in rows(markdown(results), "method | accuracy").values()]
    assert bold == ["**1.000 ± 0.000**"] * 2
    results["methods"]["gru"]["runs"][0]["test"]["accuracy"] = 0.99
    bold = [row["accuracy"].startswith("**") for row in rows(markdown(results), "method | accuracy").values()]
    assert bold == [True, False]


@pytest.mark.parametrize(("chosen", "edge"), [("1/3", True), ("1", False), ("3", True)])
def test_a_best_rate_at_the_edge_of_what_was_tried_is_named(finished, chosen, edge):
    results = copy.deepcopy(finished[1])
    assert "edge" not in markdown(results), "of two rates each is at the edge"
    results["lrs"] = ["1", "1/3", "3"]
    for name, method in results["methods"].items():
        method["sweep"] = {lr: {"validation_bits_per_token": 1.0} for lr in results["lrs"]}
        method["lr_factor"] = chosen if name == "gru" else "1"
    assert ("a rate beyond may be better: gru.\n" in markdown(results)) == edge


def test_weights_that_are_gone_before_they_were_scored_are_told_of(finished, tmp_path, monkeypatch):
    grids_here(monkeypatch)
    out = tmp_path / "copy"
    shutil.copytree(finished[0], out)
    run = next((out / "runs").glob("smt-*-seed1"))
    result = json.loads((run / "result.json").read_text())
    del result["test"]
    (run / "result.json").write_text(json.dumps(result))
    (run / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=rf"weights were deleted before it was scored; delete .*{run.name} to run it"):
        compare(SMALL, out)


def test_the_picture(finished, tmp_path, monkeypatch, capsys):
    from PIL import Image

    out, results = finished
    with Image.open(out / "results.png") as image:
        assert image.size[0] > 2 * image.size[1] > 400
    for name in ("matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    assert not plot(results, tmp_path / "none.png")
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and "matplotlib" in said and "pip install" in said
    assert not (tmp_path / "none.png").exists()


@pytest.mark.parametrize(
    ("values", "far"),
    [([0.13, 0.9], False), ([0.5, 0.99], False), ([0.9, 0.99], True), ([0.95], True), ([0.1, 0.2], False), ([], False)],
)
def test_a_chance_far_below_all_curves_has_no_line(values, far):
    assert is_far_below(0.125, values) is far


def test_only_what_is_missing_is_run_again(finished, tmp_path, monkeypatch):
    grids_here(monkeypatch)
    out = tmp_path / "copy"
    shutil.copytree(finished[0], out)
    for path in [*out.rglob("*.safetensors"), *out.rglob("checkpoints")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    best = finished[1]["methods"]["gru"]["lr_factor"]
    again = f"gru-lr{best}-seed1"
    shutil.rmtree(out / "runs" / again)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("result.json")}
    assert len(before) == 5
    results = compare(SMALL, out)
    after = {p: p.stat().st_mtime_ns for p in out.rglob("result.json")}
    assert {p: t for p, t in after.items() if p in before} == before
    assert {p.parent.name for p in after if p not in before} == {again}
    new, old = (r["methods"]["gru"]["runs"][1] for r in (results, finished[1]))
    assert new["test"] == old["test"], "the same seed, the same run"
    monkeypatch.setattr("retain.experiments.scheduler._start", lambda *a: pytest.fail("nothing is left to do"))
    assert compare(SMALL, out)["methods"]["gru"]["runs"][1] == new


def test_a_diverged_run_is_told_and_not_hidden(finished):
    results = json.loads(json.dumps(finished[1]))
    gru = results["methods"]["gru"]
    gru["runs"][1] = {"seed": 1, "failed": "loss became nan", "curve": []}
    gru["sweep"]["1e6"] = {"failed": "loss became nan"}
    text = markdown(results)
    assert "gru (1 of 2 runs diverged)" in text
    assert "\ngru, seed 1: loss became nan\n" in text
    assert rows(text, "method | × 1")["gru"]["× 1e6"] == "diverged"
    gru["runs"][0] = {"seed": 0, "failed": "loss became nan", "curve": []}
    gru["parameters"] = None
    assert list(rows(markdown(results), "method | accuracy"))[-1] == "gru (2 of 2 runs diverged)"


def test_spread():
    assert mean_and_deviation([1.0]) == "1.000"
    assert mean_and_deviation([1.0, 2.0, 6.0], ".1f") == "3.0 ± 2.6"
    assert mean_and_deviation([None]) == mean_and_deviation([]) == "–"


def test_a_curve_is_thinned_and_keeps_its_end(tmp_path):
    lines = [{"step": i, "validation_bits_per_token": 1.0, "loss": 2.0} for i in range(100)] + [{"step": 100}]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    kept = read_curve(tmp_path / "m.jsonl", 10)
    assert [p["step"] for p in kept] == list(range(9, 100, 10))
    assert kept[0] == {"step": 9, "bits_per_token": 1.0}


def test_a_folder_of_another_run_is_refused(finished):
    out, results = finished
    name = f"smt-lr{results['methods']['smt']['lr_factor']}-seed0"
    with pytest.raises(ValueError, match=f"{name} holds another run"):
        run_all({name: tiny(seed=5)}, out / "runs")


# Bad input

WRONG = [
    ("compare", ["retain compare", "preset", "retrieval"]),
    ("compare --methods smt", ["retain compare", "preset"]),
    ("compare imagenet", ["preset", "'imagenet'", "digits"]),
    ("{new} --methods smt,gur", ["methods", "'gur'", "tbptt", "lstm"]),
    ("{new} --methods smt,smt", ["methods", "smt,smt", "twice"]),
    ("{new} --methods", ["--methods", "value"]),
    ("{new} --budget 300", ["budget", "'300'", "unit", "240s", "500ksequential"]),
    ("{new} --sweep-budget 300", ["sweep-budget", "'300'", "unit"]),
    ("{new} --lrs 1,0", ["lrs", "'0'", "1/3"]),
    ("{new} --lrs 1/0", ["lrs", "'1/0'", "positive"]),
    ("{new} --seeds 0", ["seeds", "'0'", "at least 1"]),
    ("{new} --jobs two", ["jobs", "'two'", "whole number"]),
    ("{new} --limit 0", ["limit", "'0'", "at least 1"]),
    ("{old} --limit 5", ["another comparison", "limit", "None", "5"]),
    ("{new} --lengths 8,x", ["lengths", "'x'", "64,128"]),
    ("{new} --lengths 8,2", ["lengths", "2", "too short for retrieval"]),
    ("{new} --data.seq-len 2", ["data.seq_len", "2", "too short"]),
    ("{new} --nonsense 3", ["nonsense"]),
    ("{old} --budget 7steps", ["out", "another comparison", "budget", "6steps", "7steps", "another --out"]),
    ("{old} --lrs 1", ["another comparison", "lrs"]),
    *(
        (f"{{new}} {option} 3", [option, "retain compare does not take it"])
        for option in ("--seed", "--validate-every", "--tracker")
    ),
    ("{new} --methods smt --phases smt bptt", ["phases", "smt+bptt", "--phases smt dmt"]),
    ("{new} --bptt.bptt-window 4", ["--bptt.bptt-window", "tbptt"]),
    ("{new} --methods smt --methods gru", ["--methods", "given twice", "smt", "gru"]),
    ("{new} --quiet", ["--quiet", "retain compare does not take it"]),
    ("{new} --lrs 1,1", ["lrs", "1,1", "twice"]),
    ("{old} --data.symbols 5", ["another comparison", "data.symbols", "4", "5"]),
    ("compare --config tiny.json --out run", ["out", "run", "holds no comparison"]),
]


@pytest.fixture
def place(finished, tmp_path, monkeypatch):
    save_config(BASE, tmp_path / "tiny.json")
    shutil.copytree(finished[0], tmp_path / "old")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("line, words", WRONG, ids=[line for line, _ in WRONG])
def test_bad_input_is_one_clear_line_and_nothing_is_lost(retain, place, line, words):
    before = {p: p.read_bytes() for p in place.rglob("*") if p.is_file()}
    line = line.replace("{new}", "compare --config tiny.json --out new").replace(
        "{old}", "compare --config tiny.json --out old --lrs 1,1e6 --lengths 8,12 --threads 1"
    )
    if line.count("--lrs") == 2:
        line = line.replace("--lrs 1,1e6 ", "")
    code, said, complaints = retain(*line.split())
    assert (code, said) == (2, "")
    assert re.fullmatch(r"retain: [^\n]+\n", complaints), complaints
    for word in words:
        assert word in complaints, complaints
    assert {p: p.read_bytes() for p in place.rglob("*") if p.is_file()} == before


def test_a_limit_scores_fewer_test_sequences(tmp_path, monkeypatch):
    grids_here(monkeypatch)
    small = dataclasses.replace(SMALL, methods=("gru",), seeds=1, lrs=("1",), lengths=(), limit=5)
    results = compare(small, tmp_path / "out")
    assert results["methods"]["gru"]["runs"][0]["test"]["sequences"] == 5
    assert "; test split, 5 sequences, each RNN" in markdown(results)


def test_the_same_line_again_says_the_same_and_methods_may_be_dropped(retain, place, finished):
    line = "compare --config tiny.json --out old --lrs 1,1e6 --lengths 8,12 --threads 1 --methods smt,gru --seeds 2"
    code, said, complaints = retain(*line.split())
    assert (code, complaints) == (0, "")
    assert said.startswith((finished[0] / "results.md").read_text())
    code, said, _ = retain(*line.replace("smt,gru --seeds 2", "gru --seeds 1").split())
    assert code == 0 and "| gru |" in said and "| smt |" not in said


def test_comparisons_are_checked_when_built():
    assert isinstance(SMALL.config, RunConfig)
    for changes, message in [({"methods": ()}, "methods"), ({"seeds": 0}, "seeds"), ({"lengths": (0,)}, "lengths: 0")]:
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(SMALL, **changes)


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_a_baseline_beside_the_store_encoder_can_be_built(kind):
    config = match_parameters(dataclasses.replace(PRESETS["mqar"](), phases=("bptt",)), kind)
    rnn, _ = build(config, 64)
    assert type(rnn.cell).__name__.lower().startswith(kind)
    wanted = count_parameters(PRESETS["mqar"](), 64)
    assert abs(sum(p.numel() for p in rnn.parameters()) / wanted - 1) < 0.1

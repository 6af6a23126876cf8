"""`retain sweep` and `make figures`: the runs that were asked for, nothing done twice, figures that are true."""

import dataclasses
import json
import math
import random
import shlex
import shutil
import statistics

import pytest
import torch
from test_grid import steps_of

from conftest import tiny
from lab import figures
from retain.cli.sweep import parse_sweep
from retain.cli.train import train_config
from retain.config.budget import parse_budget
from retain.config.json import load_config, save_config
from retain.data import load_data
from retain.experiments import scheduler as grid
from retain.experiments.compare import count_parameters
from retain.experiments.sweep import Sweep, check_sweep, describe_budget, list_runs, parse_value, run_sweep
from retain.experiments.sweep_results import choose_levels, find_compression, markdown, place_values, plot_quality
from retain.inference.evaluate import evaluate
from retain.plots import PALETTE
from retain.runs.run import load_run
from runs import OWN_CELL, Crash, crash_at, grids_here, watched

BASE = tiny(budget="4steps", validate_every="2steps")


SMALL = Sweep(config=BASE, vary={"memory.width": (4, 8), "cell.width": (8, 16)}, seeds=2)


@pytest.fixture
def here(monkeypatch):
    return grids_here(monkeypatch)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A sweep of two fields and two seeds, on disk, and its results."""
    out = tmp_path_factory.mktemp("sweep") / "out"
    with pytest.MonkeyPatch.context() as patch:
        grids_here(patch)
        return out, run_sweep(SMALL, out)


# What is run


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("data.seq_len", "32", 32),
        ("smt.lambda_dyn", "1", 1.0),
        ("smt.lambda_dyn", "1e-1", 0.1),
        ("smt.lambda_dyn_end", "None", None),
        ("cell.kind", "gru", "gru"),
        ("memory.norm", "rms", "rms"),
        ("budget", "300s", "300s"),
        ("compile", "true", True),
        ("teacher.context_len", "16", 16),
    ],
)
def test_values_have_their_fields_type(name, text, value):
    found = parse_value(name, text)
    assert (found, type(found)) == (value, type(value))


def test_every_run_is_what_train_would_make_of_it():
    line = "retrieval --vary data.seq-len=32,64 --vary=smt.lambda_dyn=0.1,1 --seeds 2 --budget 200steps --cell.width 64"
    sweep, out, jobs = parse_sweep(shlex.split(f"{line} --jobs 2 --threads 1 --out here"))
    assert (str(out), jobs, sweep.threads) == ("here", 2, 1)
    runs = list_runs(sweep)
    assert list(runs)[:2] == [
        "data.seq_len=32,smt.lambda_dyn=0.1-seed0",
        "data.seq_len=32,smt.lambda_dyn=1.0-seed0",
    ]
    assert len(runs) == 8 and [n[-1] for n in runs] == ["0"] * 4 + ["1"] * 4, "seed by seed"
    for seed in (0, 1):
        for length in (32, 64):
            for weight in (0.1, 1.0):
                own = "retrieval --budget 200steps --cell.width 64 --validate-every 10steps --tracker None"
                own += f" --seed {seed} --data.seq-len {length} --smt.lambda-dyn {weight}"
                assert runs[f"data.seq_len={length},smt.lambda_dyn={weight}-seed{seed}"] == train_config(own.split())[0]


def test_runs_are_validated_twenty_times_unless_told_otherwise():
    def every(line):
        return parse_sweep(shlex.split(f"retrieval --vary memory.width=8,16 {line}"))[0].config.validate_every

    assert every("--budget 2000steps") == "100steps"
    assert every("--budget 20s") == "1s"
    assert every("--budget 2000steps --validate-every 5steps") == "5steps"


def test_runs_of_varied_budgets_have_as_many_validations_and_say_so(finished):
    line = "retrieval --vary memory.width=8 --vary budget=200steps,2000steps"
    swept = parse_sweep(shlex.split(line))[0]
    assert [run.validate_every for run in list_runs(swept).values()][:2] == ["10steps", "100steps"]
    fixed = parse_sweep(shlex.split(f"{line} --validate-every 7steps"))[0]
    assert {run.validate_every for run in list_runs(fixed).values()} == {"7steps"}
    assert describe_budget(swept) == "budgets as varied" and describe_budget(SMALL) == "smt 2steps + dmt 2steps"


def test_any_value_has_a_folder_of_its_own():
    kinds = ("mlp", "my.module:Cell", "my.module:Cell2")
    names = list(list_runs(Sweep(config=BASE, vary={"cell.kind": kinds}, seeds=1)))
    assert len(set(names)) == 3 and not any(set(n) & set("/: ") for n in names)


# What it says


def test_results_are_those_of_the_runs_on_validation(finished):
    out, results = finished
    assert [p["values"] for p in results["points"]] == SMALL.combinations()
    assert [p["memory"] for p in results["points"]] == [8, 8, 16, 16]
    assert (results["metric"], results["chance"], results["seeds"]) == ("accuracy", 0.25, 2)
    point = results["points"][2]
    for run in point["runs"]:
        folder = out / f"runs/memory.width=8,cell.width=8-seed{run['seed']}"
        config = load_config(folder / "config.json")
        assert (config.memory.width, config.cell.width, config.seed) == (8, 8, run["seed"])
        loaded = load_run(folder, teacher=True)
        whole = evaluate(loaded.rnn, loaded.teacher, load_data(config.data).windows("validation", 256))
        for key in ("bits_per_token", "accuracy", "teacher_accuracy", "relative_drift", "sequences"):
            assert math.isclose(run["validation"][key], whole[key], rel_tol=1e-6)
        assert "test" not in run, "a sweep is for choosing: the test split is never looked at"
        assert [p["step"] for p in run["curve"]] == [2, 4]
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(results))
    assert (out / "results.md").read_text() == markdown(results)


def table_of(text, first):
    """The rows of the table that begins with the column `first`: cells by column."""
    lines = [[c.strip() for c in x.strip("|").split("|")] for x in text.splitlines() if x.startswith("|")]
    start = next(i for i, cells in enumerate(lines) if cells[0] == first)
    width, rows = len(lines[start]), []
    for cells in lines[start + 2 :]:
        if len(cells) != width or cells[1].startswith("---"):
            break
        rows.append(dict(zip(lines[start], cells, strict=True)))
    return rows


def test_the_table_has_mean_and_deviation_and_one_best(finished):
    _, results = finished
    text = markdown(results)
    assert "**validation** split" in text and "Chance is 0.250" in text
    rows = table_of(text, "memory.width")[:4]
    assert [(r["memory.width"], r["cell.width"]) for r in rows] == [("4", "8"), ("4", "16"), ("8", "8"), ("8", "16")]
    for row, point in zip(rows, results["points"], strict=True):
        scores = [run["validation"]["accuracy"] for run in point["runs"]]
        assert row["accuracy"].strip("*") == f"{statistics.mean(scores):.3f} ± {statistics.stdev(scores):.3f}"
        assert row["tokens"] == "128" and row["memory"] == str(point["memory"])
    bold = [statistics.mean(r["validation"]["accuracy"] for r in p["runs"]) for p in results["points"]]
    assert [r["accuracy"].startswith("**") for r in rows] == [b == max(bold) for b in bold]


def test_the_pictures(finished, tmp_path):
    from PIL import Image

    out, results = finished
    for name, least in (("results", 2), ("compression", 1)):
        with Image.open(out / f"{name}.png") as image:
            assert image.width > 900 and image.height > 300
            colours = {c for n, c in image.convert("RGB").getcolors(2**24) if n > 20}
        # The first colours of the palette, one for each line.
        assert len(colours & {tuple(bytes.fromhex(colour[1:])) for colour in PALETTE[:4]}) >= least
    one = json.loads(json.dumps(results))
    one |= {"vary": {"memory.width": [4]}, "points": one["points"][:1], "seeds": 1}
    one["points"][0] |= {"values": {"memory.width": 4}, "runs": [{"seed": 0, "failed": "loss became nan", "curve": []}]}
    assert plot_quality(one, tmp_path / "one.png"), "a sweep of which everything diverged has a picture, too"


def test_places_on_the_axis():
    class Axes:
        scale = "linear"

        def set_xscale(self, scale):
            self.scale = scale

        def set_xticks(self, places, labels=(), minor=False):
            self.ticks = self.ticks if minor else (places, labels)

    for values, scale, places in (
        ([8, 32, 128], "log", [8, 32, 128]),
        ([0.0, 0.1, 1.0], "linear", [0, 1, 2]),
        (["mlp", "gru"], "linear", [0, 1]),
        ([None, 16], "linear", [0, 1]),
        ([False, True], "linear", [0, 1]),
    ):
        axes = Axes()
        assert list(place_values(axes, values).values()) == places
        assert (axes.scale, axes.ticks[0]) == (scale, places)


def test_a_diverged_run_is_told(finished):
    results = json.loads(json.dumps(finished[1]))
    results["points"][0]["runs"][1] = {"seed": 1, "failed": "loss became nan", "curve": []}
    results["points"][1]["runs"] = [{"seed": s, "failed": "loss became nan", "curve": []} for s in (0, 1)]
    rows = table_of(markdown(results), "memory.width")
    assert "(1 of 2 diverged)" in rows[0]["accuracy"] and rows[1]["accuracy"] == "– (2 of 2 diverged)"


# Compression


def random_points(seed):
    draw = random.Random(seed)
    points = []
    for size in (4, 8, 8, 16, 32):
        runs = []
        for _ in range(2):
            curve, loss, seconds = [], 3.0, 0.0
            for i in range(1, 12):
                loss -= draw.random() * 0.05 * math.log2(size)
                seconds, step = seconds + draw.random(), 10 * i
                cost = {"step": step, "seconds": seconds, "tokens": 64 * step}
                curve.append(cost | {"sequential_steps": 3 * step, "bits_per_token": loss + draw.uniform(0, 0.1)})
            runs.append({"curve": curve})
        points.append({"memory": size, "runs": runs})
    return points


@pytest.mark.parametrize("seed", range(8))
def test_compression_is_the_smallest_memory_at_every_cost(seed):
    """Against looking at every size anew at every cost."""
    points = random_points(seed)
    found = find_compression(points)
    assert found["levels"] == sorted(found["levels"], reverse=True) and len(found["levels"]) == 4
    for entry in found["by_level"]:
        for cost in ("step", "seconds", "tokens", "sequential_steps"):
            for spent in {p[cost] for point in points for run in point["runs"] for p in run["curve"]}:
                enough = [
                    point["memory"]
                    for point in points
                    if all(
                        any(p["bits_per_token"] <= entry["level"] and p[cost] <= spent for p in run["curve"])
                        for run in point["runs"]
                    )
                ]
                read = [size for at, size in entry[cost] if at <= spent]
                assert (read[-1] if read else None) == min(enough, default=None)


@pytest.mark.parametrize("seed", range(8))
def test_levels_are_within_reach_and_some_only_of_larger_memories(seed):
    points = random_points(seed)
    found = find_compression(points)
    assert all(entry["step"] for entry in found["by_level"])
    assert {size for _, size in found["by_level"][0]["step"]} != {size for _, size in found["by_level"][-1]["step"]}
    assert find_compression(points, (2.0, 0.1))["levels"] == [2.0, 0.1]
    assert find_compression(points, (0.1,))["by_level"][0]["step"] == []
    assert choose_levels([{"memory": 4, "runs": [{"curve": []}]}]) == []


def test_compression_only_where_memory_is_varied(finished, here, tmp_path):
    assert finished[1]["compression"]["by_level"]
    results = run_sweep(Sweep(config=BASE, vary={"smt.lambda_unif": (0.0, 0.1)}, seeds=1), tmp_path / "out")
    assert results["compression"] is None and not (tmp_path / "out/compression.png").exists()
    assert "Compression" not in markdown(results)


# Nothing twice


def test_values_and_seeds_may_be_added_and_only_they_are_run(finished, here, tmp_path):
    out = shutil.copytree(finished[0], tmp_path / "out")
    again = run_sweep(SMALL, out)
    assert here == [] and again["points"] == finished[1]["points"]
    more = Sweep(config=BASE, vary=SMALL.vary | {"memory.width": (8, 12), "cell.width": (8,)}, seeds=3)
    results = run_sweep(more, out)
    news = ["memory.width=12,cell.width=8-seed0", "memory.width=12,cell.width=8-seed1"]
    assert here == [*news, "memory.width=8,cell.width=8-seed2", "memory.width=12,cell.width=8-seed2"]
    assert results["points"][0]["runs"][:2] == finished[1]["points"][2]["runs"]


def test_a_sweep_that_was_cut_short_goes_on(here, tmp_path, monkeypatch):
    """That a kill of the process cuts it short, too, is the matter of test_grid.py."""
    config = tiny(phases=("bptt",), budget="40steps", validate_every="10steps")
    sweep, out = Sweep(config=config, vary={"cell.width": (8, 16)}, seeds=1), tmp_path / "out"
    metrics = out / "runs/cell.width=8-seed0/metrics.jsonl"
    with watched(crash_at(25)), pytest.raises(Crash):
        run_sweep(sweep, out)
    early = metrics.read_text().splitlines()
    assert len(steps_of(metrics)) == 25
    results = run_sweep(sweep, out)
    assert metrics.read_text().splitlines()[:20] == early[:20], "it went on, it did not begin again"
    assert steps_of(metrics) == list(range(1, 41))
    assert [run["steps"] for p in results["points"] for run in p["runs"]] == [40, 40]


# Bad input

WRONG = [
    ("sweep", ["retain sweep", "preset", "retrieval"]),
    ("sweep --vary memory.width=4", ["retain sweep", "preset"]),
    ("sweep imagenet --vary memory.width=4", ["preset", "'imagenet'", "digits"]),
    ("{new}", ["vary", "at least one field", "data.seq-len=32"]),
    ("{new} --vary", ["--vary", "value"]),
    ("{new} --vary memory.width", ["vary", "'memory.width'", "FIELD=A,B,C"]),
    ("{new} --vary memory.width=", ["vary", "memory.width", "no values"]),
    ("{new} --vary memory.depth=1,2", ["vary", "memory.depth", "unknown field", "tokens, width"]),
    ("{new} --vary memories.width=1,2", ["vary", "memories.width", "unknown field", "memory"]),
    ("{new} --vary memory.width.x=1", ["vary", "memory.width is a value"]),
    ("{new} --vary memory=1,2", ["vary", "memory", "memory.tokens, memory.width"]),
    ("{new} --vary phases=smt,bptt", ["vary", "phases", "list"]),
    ("{new} --vary seed=1,2", ["vary", "seed", "--seeds N"]),
    ("{new} --vary preset=digits,copy", ["vary", "preset", "label"]),
    ("{new} --vary memory.width=8,wide", ["vary", "memory.width", "'wide'", "int"]),
    ("{new} --vary memory.width=8,8.5", ["vary", "memory.width", "8.5", "int"]),
    ("{new} --vary memory.norm=rms,layer", ["vary", "memory.norm", "'layer'", "batch"]),
    ("{new} --vary smt.lambda-dyn=0.1,1e-1", ["vary", "smt.lambda_dyn", "twice"]),
    ("{new} --vary memory.width=8 --vary memory.width=16", ["vary", "memory.width", "given twice"]),
    ("{new} --vary memory.width=8,16 --memory.width 4", ["vary", "memory.width", "leave one"]),
    ("{new} --vary memory.width=8,0", ["vary", "memory.width: 0", "positive"]),
    ("{new} --vary teacher.width=16,18", ["vary", "teacher.width=18", "multiple"]),
    ("{new} --vary data.seq-len=8,2", ["vary", "data.seq_len=2", "too short"]),
    ("{new} --vary cell.kind=mlp,none:Cell", ["vary", "cell.kind=none:Cell"]),
    ("{new} --vary memory.width=4,8 --vary dmt.horizon=3 --seeds 0", ["seeds", "'0'", "at least 1"]),
    ("{new} --vary memory.width=4 --levels 2,x", ["levels", "'2,x'", "numbers"]),
    ("{new} --vary memory.width=4 --levels -1", ["levels", "-1", "positive"]),
    ("{new} --vary cell.width=8,16 --levels 2.5", ["levels", "memories of several sizes", "memory.tokens"]),
    ("{new} --vary memory.width=4 --jobs two", ["jobs", "'two'", "whole number"]),
    ("{new} --vary memory.width=4 --budget 300", ["budget", "'300'", "unit"]),
    ("{new} --vary memory.width=4 --nonsense 3", ["nonsense"]),
    ("{old} --vary memory.width=4,8", ["out", "another sweep", "fields", "another --out"]),
    ("{old} --vary memory.width=4,8 --vary cell.width=8,16 --smt.lr 1", ["another sweep", "smt.lr", "0.001", "1.0"]),
    ("sweep --config tiny.json --vary memory.width=4 --out run", ["out", "run", "holds no sweep"]),
]


@pytest.fixture
def placed(finished, tmp_path, monkeypatch):
    save_config(BASE, tmp_path / "tiny.json")
    shutil.copytree(finished[0], tmp_path / "old")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RETAIN_DEBUG", raising=False)
    return tmp_path


@pytest.mark.parametrize(("line", "words"), WRONG)
def test_mistakes_are_one_clear_line_before_anything_is_run(retain, placed, monkeypatch, line, words):
    monkeypatch.setattr(grid, "run_all", lambda *a, **k: pytest.fail("something was run"))
    line = line.replace("{new}", "sweep --config tiny.json --out new")
    line = line.replace("{old}", "sweep --config tiny.json --out old --validate-every 2steps")
    before = sorted(str(p) for p in placed.rglob("*"))
    code, said, complaints = retain(*shlex.split(line))
    assert (code, said, len(complaints.splitlines())) == (2, "", 1), complaints
    for word in words:
        assert word in complaints, complaints
    assert sorted(str(p) for p in placed.rglob("*")) == before


def test_a_users_cell_may_look_at_values(tmp_path, monkeypatch):
    """As it may in `retain train`: what is built without weights has none to look at."""
    looks = OWN_CELL.replace("        return memory", "        assert inputs.abs().max() < 1e9\n        return memory")
    assert looks != OWN_CELL
    (tmp_path / "looks.py").write_text(looks)
    monkeypatch.syspath_prepend(tmp_path)
    config = dataclasses.replace(BASE, cell=dataclasses.replace(BASE.cell, kind="looks:Cell"))
    check_sweep(Sweep(config=config, vary={"memory.width": (4, 8)}, seeds=1))
    state = torch.random.get_rng_state()
    assert count_parameters(config, 9) > 0
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_command_says_what_it_wrote(retain, placed, here):
    line = "sweep --config tiny.json --out old --validate-every 2steps --vary memory.width=4,8 --vary cell.width=8,16"
    code, said, _ = retain(*shlex.split(f"{line} --seeds 2 --levels 2.5"))
    assert code == 0 and here == [], "the same sweep, whatever the levels"
    assert said.startswith(markdown(json.loads((placed / "old/results.json").read_text())))
    assert "old: results.md, results.json, results.png, compression.png" in said
    assert "| 2.5 |" in said


# The set of figures


def test_every_figure_is_a_sweep_that_can_be_built_and_all_fit_about_an_hour():
    """Two runs side by side, at 0.12 s an optimizer step on one slow core."""
    found = {name: parse_sweep(shlex.split(figures.line(name))) for name in figures.FIGURES}
    assert len({out for _, out, _ in found.values()}) == len(found)
    steps, varied = 0.0, set()
    for sweep, _, jobs in found.values():
        check_sweep(sweep)
        assert (jobs, sweep.threads) == (2, 1) and parse_budget(sweep.config.budget).unit == "steps"
        steps += len(list_runs(sweep)) * parse_budget(sweep.config.budget).amount
        varied |= set(sweep.vary)
    assert steps * 0.12 / 2 / 3600 < 1.15
    assert varied >= {"data.seq_len", "memory.width", "cell.width", "cell.layers", "teacher.future_len"}
    assert varied >= {"smt.lambda_dyn", "smt.lambda_unif"}


def test_figures_are_kept_and_not_run_again(here, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_config(BASE, tmp_path / "tiny.json")
    line = "--config tiny.json --vary memory.width=4,8 --seeds 1"
    other = "retrieval --vary data.seq-len=16"
    monkeypatch.setattr(figures, "FIGURES", {"memory": ("Memory", line), "other": ("Other", other)})
    (tmp_path / "docs").mkdir()
    marks = "".join(f"<!-- {name} begin -->\nstale\n<!-- {name} end -->\n" for name in ("memory", "other"))
    (tmp_path / "docs/figures.md").write_text(f"# Mine\n\nBefore.\n\n{marks}\nAfter.\n")
    figures.main(["memory"])
    text = (tmp_path / "docs/figures.md").read_text()
    assert text.startswith("# Mine\n\nBefore.\n") and text.endswith("After.\n") and "stale" not in text
    assert f"`retain sweep {line} --jobs 2 --threads 1 --out runs/figures/memory`" in text
    assert "(figures/memory.png)" in text and "(figures/memory-compression.png)" in text and "Not run yet." in text
    for name in ("memory.png", "memory-compression.png", "memory.json"):
        assert 1000 < (tmp_path / "docs/figures" / name).stat().st_size < 150_000
    assert len(here) == 2
    shutil.rmtree(tmp_path / "runs")
    figures.main(["memory"])
    assert len(here) == 2 and (tmp_path / "docs/figures.md").read_text() == text
    with pytest.raises(SystemExit) as stop:
        figures.main(["chess"])
    assert stop.value.code == 2 and "chess not among memory, other" in capsys.readouterr().err

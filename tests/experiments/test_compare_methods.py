"""The methods of `retain compare`: equal parameters, budgets and rates, and what is tried before what is claimed."""

import dataclasses
import json

import numpy as np
import pytest

from conftest import tiny
from retain.cli.compare import parse_comparison
from retain.config import data_config
from retain.config.json import to_dict
from retain.config.presets import PRESETS
from retain.config.recipes import with_recipe
from retain.data import load_data
from retain.data.batches import find_symbols
from retain.data.rows import choose_codec
from retain.errors import UserError
from retain.experiments import compare as module
from retain.experiments.compare import METHODS, Comparison, choose_rate, compare, configure_method, count_parameters
from retain.experiments.tables import parse_factor
from retain.runs.run import build
from runs import OWN_CELL, grids_here


@pytest.mark.parametrize("preset", [n for n in PRESETS if n != "text"])
def test_every_method_has_the_parameters_of_smt_within_a_tenth(preset, monkeypatch, tmp_path):
    base = PRESETS[preset]()
    if preset == "series":
        np.save(tmp_path / "x.npy", np.arange(2000.0).reshape(1000, 2))
        base = dataclasses.replace(base, data=dataclasses.replace(base.data, path=str(tmp_path / "x.npy")))
    if base.data.name in ("documents", "images"):  # on the hub; the vocabulary is known without it
        monkeypatch.setattr("retain.data.load_data", choose_codec)
        vocab_size = choose_codec(base.data).vocab_size
    else:
        vocab_size = find_symbols(load_data(base.data))
    wanted = sum(p.numel() for p in build(base, vocab_size)[0].parameters())
    for method in METHODS:
        config = configure_method(base, method)
        real = sum(p.numel() for p in build(config, vocab_size)[0].parameters())
        assert count_parameters(config, vocab_size) == real
        assert abs(real / wanted - 1) <= 0.1, (method, real, wanted)
        if method in ("gru", "lstm"):
            assert (config.cell.kind, config.phases, config.bptt.bptt_window) == (method, ("bptt",), None)
        else:
            assert real == wanted
        assert config.data == base.data and config.budget == base.budget


def test_a_cell_of_ones_own_has_its_parameters_counted(tmp_path, monkeypatch):
    (tmp_path / "thecell.py").write_text(OWN_CELL)
    monkeypatch.syspath_prepend(tmp_path)
    own = tiny(cell__kind="thecell:Cell")
    assert count_parameters(own, 9) == sum(p.numel() for p in build(own, 9)[0].parameters())
    assert count_parameters(configure_method(own, "gru"), 9) == pytest.approx(count_parameters(own, 9), rel=0.1)


def test_what_a_comparison_costs_is_said_first():
    def said(jobs=2, **settings):
        comparison = Comparison(config=tiny(budget=settings.pop("budget", "300s")), **settings)
        return module.describe_cost(comparison, jobs)

    assert said().startswith("in all 12 trials of 300s and 8 runs of 300s, 2 at a time: 50 minutes of training")
    assert said(sweep_budget="100s", jobs=1).startswith(
        "in all 12 trials of 100s and 12 runs of 300s, 1 at a time: 80 "
    )
    assert said(lrs=("1",), seeds=1).startswith("in all 4 runs of 300s, 2 at a time: 10 minutes")
    assert said(sweep_budget="9steps") == "in all 12 trials of 9steps and 12 runs of 300s"
    assert said(lrs=("1",), seeds=1, budget="9steps") == "in all 4 runs of 9steps"


def test_a_file_that_has_changed_is_another_comparison(tmp_path, monkeypatch):
    grids_here(monkeypatch)
    (tmp_path / "book.txt").write_text("to be or not to be. " * 80)
    data = data_config(name="text", path=str(tmp_path / "book.txt"), seq_len=8)
    shared = {"config": tiny(data=data, budget="2steps", phases=("smt",)), "lrs": ("1",), "threads": 1}
    compare(Comparison(methods=("bptt",), seeds=1, **shared), tmp_path / "out")
    with open(tmp_path / "book.txt", "a") as file:
        file.write("more of it")
    compare(Comparison(methods=("bptt",), seeds=1, **shared), tmp_path / "out")  # nothing to train, nothing to mix
    with pytest.raises(ValueError, match=r"out: .*bptt.*: the data has changed: .* name another --out"):
        compare(Comparison(methods=("bptt",), seeds=2, **shared), tmp_path / "out")


def test_embedded_data_of_another_version_is_another_comparison(tmp_path, monkeypatch):
    """As the library's source is, under another Python."""
    grids_here(monkeypatch)
    shared = {"config": tiny(budget="2steps"), "methods": ("bptt",), "lrs": ("1",), "threads": 1}
    compare(Comparison(seeds=1, **shared), tmp_path / "out")
    (path,) = (tmp_path / "out/runs").glob("*/result.json")
    result = json.loads(path.read_text())
    path.write_text(json.dumps(result | {"data": result["data"] | {"sha256": "another"}}))
    with pytest.raises(ValueError, match=r"out: .*bptt.*: the data has changed: its sha256 was 'another'"):
        compare(Comparison(seeds=2, **shared), tmp_path / "out")


def test_truncated_is_a_quarter_of_what_is_read():
    text = tiny(bptt__bptt_window=None, bptt__seq_len=4, data=data_config(name="stdlib", seq_len=8))
    assert configure_method(text, "tbptt").bptt.bptt_window == 1


def test_phases_and_budgets_of_the_methods():
    base = tiny(smt__share=3, dmt__share=1, budget="90steps")
    assert [b.amount for b in configure_method(base, "smt").budgets()] == [68, 22]
    both = configure_method(base, "smt+bptt")
    assert both.phases == ("smt", "dmt", "bptt")
    assert [round(b.amount) for b in both.budgets()] == [45, 15, 30]
    assert both.bptt.bptt_window is None
    assert [b.amount for b in configure_method(base, "tbptt").budgets()] == [90]
    assert configure_method(base, "tbptt").bptt.bptt_window == 4, "the preset's"
    assert configure_method(tiny(bptt__bptt_window=None), "tbptt").bptt.bptt_window == 2, "a quarter of 8"
    assert configure_method(tiny(bptt__bptt_window=None, dmt__bptt_window=5), "tbptt").bptt.bptt_window == 5, (
        "as DMT is cut"
    )
    uncut = {"bptt__bptt_window": None}
    for unroll in (None, 8):  # DMT is not cut
        assert configure_method(tiny(**uncut, dmt__bptt_window=unroll), "tbptt").bptt.bptt_window == 2
    assert configure_method(tiny(**uncut, dmt__bptt_window=5, phases=("smt",)), "tbptt").bptt.bptt_window == 2
    assert configure_method(base, "bptt").bptt.bptt_window is None


def test_rates_and_the_choice_among_them():
    run = module.with_rate(configure_method(tiny(smt__lr=0.3, dmt__lr=0.03), "smt"), "1/3")
    assert (run.smt.lr, run.dmt.lr) == (pytest.approx(0.1), pytest.approx(0.01))
    assert run.bptt.lr == tiny().bptt.lr
    assert parse_factor("1/3") == pytest.approx(1 / 3) and parse_factor("2.5") == 2.5
    rates = {
        "1/3": {"validation_bits_per_token": 2.0, "test": {"bits_per_token": 0.1}},
        "1": {"validation_bits_per_token": 1.5, "test": {"bits_per_token": 0.9}},
        "3": {"failed": "loss became nan"},
    }
    assert choose_rate(rates) == "1", "by validation, whatever the test says; a diverged trial is last"


@pytest.mark.parametrize("sweep_budget", [None, "60steps", "20steps"])
def test_trials_have_their_own_budget_and_are_judged_by_validation(tmp_path, monkeypatch, sweep_budget):
    base, calls = tiny(budget="60steps"), []

    def run_all(runs, out, *, split=None, **options):
        calls.append((split, runs))
        found = {}
        for name, config in runs.items():
            bits = abs(config.bptt.lr / base.bptt.lr - 1)  # × 1 is the best on validation, by test the worst
            found[name] = {"config": to_dict(config), "parameters": 7, "curve": [], "validation_bits_per_token": bits}
            found[name]["test"] = {"bits_per_token": -bits, "accuracy": bits}
        return found

    monkeypatch.setattr("retain.experiments.scheduler.run_all", run_all)
    monkeypatch.setattr("retain.experiments.tables.write_results", lambda *a: None)
    described = Comparison(config=base, methods=("bptt",), seeds=2, sweep_budget=sweep_budget)
    results = compare(described, tmp_path / "out")
    (of_trials, trials), (of_runs, runs) = calls
    own = sweep_budget == "20steps"
    assert (of_trials, of_runs) == (None, "test")
    wanted = ("20steps", "2steps", 0) if own else ("60steps", "6steps", 0)
    assert [(c.budget, c.validate_every, c.seed) for c in trials.values()] == [wanted] * 3
    assert results["methods"]["bptt"]["lr_factor"] == "1"
    assert list(runs) == ["bptt-lr1-seed0", "bptt-lr1-seed1"] and {c.budget for c in runs.values()} == {"60steps"}
    assert ("bptt-lr1-seed0" in trials) != own, "a trial of the whole budget is the run of seed 0"


def test_recipes_are_methods_whatever_the_base_has():
    for base in (PRESETS["retrieval"](), with_recipe(PRESETS["retrieval"](), "one-step")):
        one, hybrid = (configure_method(base, method) for method in ("one-step", "hybrid"))
        assert (one.smt.bptt_window, one.dmt.bptt_window, one.dmt.lambda_dyn, one.dmt.horizon_growth) == (
            1,
            1,
            1.0,
            0.7,
        )
        assert (hybrid.smt.bptt_window, hybrid.dmt.bptt_window, hybrid.dmt.lambda_dyn) == (16, 32, 0.02)
        assert (one.longest_gradient_path, hybrid.longest_gradient_path) == (1, 32)
        assert (
            configure_method(base, "smt").smt == base.smt and configure_method(base, "bptt").longest_gradient_path == 64
        )


@pytest.mark.parametrize(
    "option", ["--smt.bptt-window 4", "--dmt.bptt_window=4", "--dmt.lambda-dyn 1", "--dmt.horizon 9", "--recipe hybrid"]
)
def test_what_a_recipe_decides_is_not_taken_beside_it(option):
    line = f"retrieval --methods one-step,bptt {option}"
    with pytest.raises(UserError, match="the methods one-step decide it; leave it out, or compare smt"):
        parse_comparison(line.split())
    assert parse_comparison(line.replace("one-step", "smt").split())

"""Budgets are shared out to the last step, and a phase that nothing is left for is skipped and told of."""

import json
import random

import pytest

from conftest import tiny
from retain.config.budget import Budget, parse_budget
from retain.errors import Interrupted, UserError
from retain.training.loop import train
from runs import PHASES, lines, run, stop_after

UNITS = ("steps", "tokens", "sequential")


def draws(count=300):
    rng = random.Random(0)
    for _ in range(count):
        weights = [rng.choice([1, 2, 3, 7, 100, 0.1, 0.3, 1 / 3, 1e-6]) for _ in range(rng.randint(1, 5))]
        yield rng.choice([1, 2, 3, 5, 10, 101, 5000, 10**6, 10**12, 10**15]), weights


@pytest.mark.parametrize("unit", UNITS)
def test_shares_add_up(unit):
    for total, weights in draws():
        parts = [part.amount for part in Budget(total, unit).split(weights)]
        exact = [total * weight / sum(weights) for weight in weights]
        assert sum(parts) == total and all(isinstance(part, int) for part in parts)
        assert all(part > 0 for part in parts[:total]) and not any(parts[total:]), "the last go without, no other"
        if min(exact) >= 1:
            assert all(abs(part - share) < 1 for part, share in zip(parts, exact, strict=True))


def test_what_divides_evenly_is_as_it_was():
    for total, weights in draws(2000):
        exact = [total * weight / sum(weights) for weight in weights]
        if all(share >= 1 and share == int(share) for share in exact):
            before = [max(1, round(total * (weight / sum(weights)))) for weight in weights]
            assert [part.amount for part in Budget(total, "steps").split(weights)] == before


def test_seconds_are_shared_exactly():
    for total, weights in draws():
        parts = [part.amount for part in Budget(total, "s").split(weights)]
        assert parts == pytest.approx([total * weight / sum(weights) for weight in weights], rel=1e-12)


@pytest.mark.parametrize(
    ("total", "weights", "parts"),
    [
        *((1, (1, 1), (1, 0)), (1, (1, 100), (1, 0)), (2, (1, 1, 1), (1, 1, 0)), (3, (1, 1), (2, 1)), (4, (), ())),
        *((10, (7, 3), (7, 3)), (3, (1, 100), (1, 2)), (5, (1, 1, 1, 97), (1, 1, 1, 2)), (8, (1, 1, 1), (3, 3, 2))),
    ],
)
def test_the_first_come_first(total, weights, parts):
    assert tuple(part.amount for part in Budget(total, "steps").split(weights)) == parts


def test_an_amount_beyond_measure_is_refused():
    assert parse_budget("1e15steps").amount == 1e15
    for text in ("1e16steps", "1e300tokens", "1e200s", "1e14h"):
        with pytest.raises(UserError, match=f"budget: '{text}' is more than any run lasts"):
            parse_budget(text)


@pytest.mark.parametrize("budget", [1, 2, 3, 4, 5, 7])
def test_a_run_has_as_many_steps_as_its_budget(budget, tmp_path, caplog):
    config = tiny(phases=PHASES, budget=f"{budget}steps", smt__share=5.0)
    summary = train(config, tmp_path / "run", progress_bar=False)
    assert summary["steps"] == budget and summary["phases"] == list(PHASES[:budget])
    assert [line["step"] for line in lines(tmp_path / "run") if "loss" in line] == list(range(1, budget + 1))
    said = [f"budget: {budget}steps leaves nothing for {name}; it is skipped" for name in PHASES[budget:]]
    assert [record.message for record in caplog.records] == said
    folders = [f"{number}-{name}" for number, name in enumerate(PHASES[:budget], 1)]
    assert sorted(path.name for path in (tmp_path / "run/phases").iterdir()) == folders


def test_a_run_whose_last_phase_is_skipped_is_a_run(tmp_path, retain, tiny_file, caplog):
    out = tmp_path / "run"
    skipped = "budget: 1steps leaves nothing for dmt; it is skipped"
    code, said, _ = retain("train", "--config", tiny_file, "--budget", "1steps", "--out", out, "--quiet")
    assert code == 0 and f"{out}: 1 steps" in said
    assert retain("eval", out)[0] == retain("generate", out, "--length", "3")[0] == 0
    assert "smt, finished" in retain("info", out)[1]
    assert json.loads((out / "eval-test.json").read_text())["phases"] == ["smt"]
    assert retain("train", "--out", out, "--resume", "--quiet")[0] == 0
    code, said, _ = retain("train", "--config", tiny_file, "--budget", "1steps", "--dry-run", "--json")
    assert code == 0 and list(json.loads(said)["phases"]) == ["smt"]
    assert [record.message for record in caplog.records] == [skipped] * 3
    line = ["train", "--config", tiny_file, "--phases", "dmt", "--init-from", out, "--out", tmp_path / "dmt", "--quiet"]
    assert retain(*line)[0] == 0, "its teacher is trained"
    pytest.importorskip("plotly")
    code, said, _ = retain("report", out)
    assert code == 0 and f"note: {skipped}" in said and "has not begun" not in said


def test_one_that_is_stopped_goes_on(tmp_path):
    config = tiny(phases=PHASES, budget="2steps")
    with pytest.raises(Interrupted):
        run(config, tmp_path / "run", at=stop_after(1))
    assert train(config, tmp_path / "run", resume=True, progress_bar=False)["steps"] == 2


def test_no_phase_follows_a_teacher_that_is_not_trained():
    for steps, trained in ((1, ("bptt",)), (2, ("bptt", "smt")), (3, ("bptt", "smt", "dmt"))):
        assert tiny(budget=f"{steps}steps", phases=("bptt", "smt", "dmt")).trained == trained
    assert not tiny(budget="1steps", phases=("bptt", "smt")).has_teacher
    with pytest.raises(UserError, match=r"smt.lambda_readout: nothing trains the readout"):
        tiny(budget="1steps", smt__lambda_dec=0.0, smt__lambda_readout=0.0)

"""The studies of true bits, of rollouts for all steps at once and of recall: lines, measurements, tables, pictures."""

import shlex

import pytest

from conftest import tiny
from lab import limit_studies
from lab.limit_studies import (
    PAIRS,
    ROLLOUTS,
    WIDTHS,
    compression,
    compression_table,
    count_iterations,
    recall,
    recall_tables,
    rollout_tables,
    rollouts,
)
from retain.cli.train import train_config
from retain.config import data_config
from retain.training.loop import train

PARITY = {"data": data_config(name="parity", seq_len=8), "teacher__trunk": "delta"}


@pytest.mark.parametrize("quick", [False, True])
def test_the_lines_are_what_is_run(quick):
    study = rollouts(quick)
    assert len(study.runs) == 2 * len(ROLLOUTS) and study.by_name
    for name, config in study.runs.items():
        rollout, budget = name.split("-")
        line = study.command.replace("ROLLOUT", rollout).replace("BUDGET", budget)
        assert train_config([*shlex.split(line.removeprefix("retain train ")), "--tracker", "None"])[0] == config
        assert config.longest_gradient_path == 1
    study = compression(quick)
    assert len(study.runs) == sum(map(len, WIDTHS.values())) + len(WIDTHS)
    for preset, widths in WIDTHS.items():
        for width in widths:
            line = study.command.replace("PRESET", preset).replace("WIDTH", str(width))
            found = train_config([*shlex.split(line.removeprefix("retain train ")), "--tracker", "None"])[0]
            assert found == study.runs[f"{preset}-{width}"]
        assert study.runs[f"{preset}-float"].memory.tokens * study.runs[f"{preset}-float"].memory.width == widths[-1]
    study = recall(quick)
    assert len(study.runs) == 2 * len(PAIRS)
    for pairs in PAIRS:
        for method, phases in (("one-step", ("smt", "dmt")), ("bptt", ("bptt",))):
            config, line = study.runs[f"{method}-{pairs}"], study.command.replace("PAIRS", str(pairs))
            line = line.replace("PHASES", " ".join(phases)).replace("LENGTH", str(8 * pairs))
            line = line.replace("SECONDS", config.budget)
            assert train_config([*shlex.split(line.removeprefix("retain train ")), "--tracker", "None"])[0] == config
            assert config.longest_gradient_path == (1 if method == "one-step" else 8 * pairs)


def test_iterations_are_counted_on_a_trained_rnn(tmp_path, monkeypatch):
    train(tiny(**PARITY), tmp_path / "run", progress_bar=False)
    rows = count_iterations(tmp_path / "run", (8, 16))
    assert [(row["length"], row["teacher"]) for row in rows] == [
        (n, of) for n in (8, 16) for of in [False] * 3 + [True]
    ]
    for row in rows:
        for method in ("jacobi", "newton"):
            assert 1 <= row[f"{method}_iterations"] <= row["length"] and row[f"{method}_error"] < 0.01
    monkeypatch.setattr(limit_studies, "MOST_ITERATIONS", 1)
    rows += count_iterations(tmp_path / "run", (8,))
    assert rows[-1]["newton_iterations"] is None and rows[-1]["newton_error"] == 0, "the loop was run"
    last = {"accuracy": 0.5, "relative_drift": 0.1}
    run = {
        "curve": [{"accuracy": 0.9, "relative_drift": 0.9}, last],
        "steps": 40,
        "seconds": 2.0,
        "sequential_steps": 4000,
    }
    results = {"loop-40steps": run, "newton-40steps": {"failed": "loss became nan", "curve": []}, "measured": rows}
    lines = [[c.strip() for c in line.strip("|").split("|")] for line in rollout_tables(results).splitlines()]
    assert ["loop", "40steps", "0.500", "0.1000", "40", "2", "4,000"] in lines
    assert lines[-1][0] == "8" and lines[-1][1].endswith("(teacher)") and lines[-1][2] == lines[-1][5] == "–"
    assert limit_studies.plot_iterations(results, tmp_path / "rollouts.png")
    assert (tmp_path / "rollouts.png").stat().st_size > 5000


def test_bits_of_memory_in_a_table_and_a_picture(tmp_path):
    test = {"bits_per_token": 2.5, "relative_drift": 0.25}
    bits = {"memory_bits": 18.6, "memory_entropy": 5.0, "memory_entropy_by_number": 11.4}
    results = {"digits-8": {"test": test | bits}, "digits-float": {"test": test}, "digits-4": {"failed": "nan"}}
    lines = [[c.strip() for c in line.strip("|").split("|")] for line in compression_table(results).splitlines()]
    assert lines[-2] == ["digits", "8 numbers of 5 levels", "19", "5.0 to 11", "2.500", "0.25"]
    assert lines[-1] == ["digits", "128 float32 numbers", "4,096", "–", "2.500", "0.25"]
    assert limit_studies.plot_compression(results, tmp_path / "bits.png")
    assert (tmp_path / "bits.png").stat().st_size > 5000


def test_recall_is_scored_beyond_the_pairs_and_length_of_training(tmp_path):
    sizes = {"seq_len": 16, "pairs": 2, "symbols": 8}
    train(tiny(data=data_config(name="mqar", **sizes)), tmp_path / "run", progress_bar=False)
    scores = limit_studies.score_recall(tmp_path / "run", (2, 4))
    assert list(scores) == ["2/16", "4/32", "2/32", "2/64", "2/128"]
    assert all(0 <= score <= 1 for score in scores.values())
    test = {"accuracy": 0.75, "teacher_accuracy": 0.5, "relative_drift": 0.125}
    run = {"test": test, "steps": 1000, "seconds": 60.0}
    results = {f"{method}-{n}": run for method in ("one-step", "bptt") for n in PAIRS} | {
        "one-step-64": {"failed": "nan"}
    }
    results["measured"] = {"one-step-32": scores}
    lines = [[c.strip() for c in line.strip("|").split("|")] for line in recall_tables(results).splitlines()]
    assert ["bptt-64", "0.750", "0.500", "0.12", "1,000", "60"] in lines
    assert lines[-1] == ["one-step-32", *(f"{scores[p]:.3f}" for p in ("2/16", "2/32", "2/64", "2/128", "4/32"))]
    assert limit_studies.plot_recall(results, tmp_path / "recall.png")
    assert (tmp_path / "recall.png").stat().st_size > 5000


def test_an_ideal_store_forgets_when_it_holds_more_than_addresses_apart():
    found = [limit_studies.ideal_recall(2, 16, pairs) for pairs in (1, 8, 32)]
    assert found[0] == 1 and found[0] >= found[1] > found[2]

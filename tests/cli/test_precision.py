"""The figures of validation are those of `retain eval`, whatever a run is trained in."""

import json

import pytest

from conftest import train_tiny

KEYS = ("bits_per_token", "accuracy", "teacher_bits_per_token", "teacher_accuracy", "relative_drift")


@pytest.mark.parametrize("phases", [("smt", "dmt"), ("bptt",)], ids="+".join)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_eval_gives_the_figures_of_validation(precision, phases, tmp_path, retain):
    out = train_tiny(tmp_path / "run", precision=precision, phases=phases, budget="4steps", validation_sequences=40)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["precision"] == precision
    validated = next(x for x in lines if "validation_seconds" in x and x["step"] == summary["best_step"])
    code, said, _ = retain("eval", out, "--split", "validation", "--limit", "40", "--json")
    found = json.loads(said)
    assert (code, found["precision"], found["sequences"]) == (0, "fp32", 40)
    for key in KEYS:
        if found[key] is None:
            assert f"validation_{key}" not in validated
        else:
            assert validated[f"validation_{key}"] == pytest.approx(found[key], rel=1e-6), key
    assert summary["validation_bits_per_token"] == pytest.approx(found["bits_per_token"], rel=1e-6)
    assert retain("eval", out, "--limit", "3")[1].endswith("sequences at once, fp32\n")

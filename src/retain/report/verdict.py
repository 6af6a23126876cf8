"""The figures of a run in a sentence or two."""

from __future__ import annotations

from typing import Any

from retain.config.json import flatten
from retain.inference.evaluate import LEFT, has_left


def verdict(run: dict[str, Any]) -> str:
    """How far the RNN is from its teacher, whether drift levels off, whether memory has collapsed."""
    positions = run["positions"]
    if positions is None:
        return "No figures: the model or its data could not be loaded (see the notes below)."
    final = positions["final"]
    parts = [_quality(final, bool(run["answers"]), run["chance"])]
    if (settles := positions["settles"]) is not None:
        parts.append(_drift(settles, positions.get("settles_beyond"), has_left(final)))
    elif final["relative_drift"] is None:
        parts.append("it has no trained teacher, so there is no drift to measure")
    geometry = run["geometry"]
    if geometry is not None:
        bad = geometry["rnn"]["collapsed"]
        parts.append("its memory HAS COLLAPSED" if bad else "its memory shows no sign of collapse")
    if lacks := _lacks(run["history"]["curves"]):
        parts.append(lacks)
    text = "; ".join(parts) + "."
    return text[0].upper() + text[1:]


def _quality(final: dict[str, Any], answers: bool, chance: float | None) -> str:
    if final["bits_per_token"] is None:
        return "the RNN's bits per token are not finite"
    if answers:
        own, theirs = final["accuracy"], final["teacher_accuracy"]
        text = f"the RNN answers {own:.1%} right"
        if theirs is not None:
            text += f", its teacher {theirs:.1%}"
        return text + (f", chance is {chance:.1%}" if chance else "")
    own, theirs = final["bits_per_token"], final["teacher_bits_per_token"]
    if theirs is None:
        return f"the RNN needs {own:.3f} bits per token"
    gap = own - theirs
    if abs(gap) < 0.005:
        return f"the RNN equals its teacher at {own:.2f} bits per token"
    return f"the RNN is {abs(gap):.2f} bits {'above' if gap > 0 else 'below'} its teacher ({own:.2f} to {theirs:.2f})"


def _lacks(curves: dict[str, Any]) -> str | None:
    """Whether the teacher's trunk knows what its memory does not hold; no RNN can follow it then."""
    if not {"loss_dec", "loss_trunk"} <= curves.keys():
        return None
    last = [[v for v in curves[name]["value"][-10:] if v is not None] for name in ("loss_dec", "loss_trunk")]
    decoder, trunk = (sum(values) / max(len(values), 1) for values in last)
    if decoder < trunk + 0.3 or decoder < 2 * trunk:
        return None
    return (
        f"its teacher's memory does NOT hold the future that its trunk can tell (loss_dec {decoder:.2f}, loss_trunk "
        f"{trunk:.2f}), and no RNN can follow that: docs/following.md says what to turn"
    )


def _drift(settles: dict[str, Any], beyond: dict[str, Any] | None, left: bool) -> str:
    end, before = settles["last_quarter"], settles["third_quarter"]
    blind = ", as far off as a memory that knows nothing of its sequence" if end > 0.9 else ""
    if left:
        blind = f" ({LEFT}: judge it by its bits)"
    if not settles["levels_off"]:
        return f"relative drift still grows at the end of the sequence, {before:.2f} to {end:.2f}{blind}"
    text = f"relative drift levels off at {end:.2f}{blind}"
    if beyond is None:
        return text
    far = format(beyond["last_quarter"], ".2f" if beyond["last_quarter"] < 100 else ",.0f")
    return text + (
        f" ({far} far beyond the training length)"
        if beyond["levels_off"]
        else f", but grows to {far} beyond the training length"
    )


def result_row(run: dict[str, Any]) -> dict[str, Any]:
    """The headline figures of a run, null where there are none."""
    positions, state = run["positions"], run["state"] or {}
    final = positions["final"] if positions else {}
    progress, test = state.get("progress", {}), run["test"] or {}
    geometry = run["geometry"]
    keys = ("bits_per_token", "teacher_bits_per_token", "accuracy", "teacher_accuracy", "drift", "relative_drift")
    last = run["history"]["last"] or {}
    return {
        "name": run["name"],
        "status": run["status"],
        "phases": " → ".join(run["config"]["phases"]),
        "longest_gradient_path": run["longest_gradient_path"],
        **{key: final.get(key) for key in keys},
        "test_bits_per_token": test.get("bits_per_token"),
        "test_accuracy": test.get("accuracy"),
        "effective_rank": geometry["rnn"]["effective_rank"] if geometry else None,
        "steps": last.get("step") or progress.get("step"),
        "seconds": last.get("seconds") or progress.get("seconds"),
        "tokens": last.get("tokens") or progress.get("tokens"),
        "parameters": run.get("parameters"),
    }


def ablation(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """What differs in the configs of several runs: `fields`, and per run their `values`."""
    flat = [flatten(run["config"]) for run in runs]
    fields = [key for key in flat[0] if any(f.get(key) != flat[0][key] for f in flat)]
    fields += sorted({key for f in flat for key in f} - set(flat[0]))
    # Settings of a phase that neither run has do nothing.
    used = {phase for run in runs for phase in run["config"]["phases"]}
    fields = [k for k in fields if k.partition(".")[0] not in {"smt", "dmt", "bptt"} - used]
    return {"fields": fields, "values": [[f.get(key) for key in fields] for f in flat]}

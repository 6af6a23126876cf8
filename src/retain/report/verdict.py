"""The results of a run in a sentence or two."""

from __future__ import annotations

from typing import Any

from retain.config.json import flatten
from retain.inference.evaluate import LEFT, has_left


def describe_run(run: dict[str, Any]) -> str:
    """Say how far the RNN is from its teacher, whether drift levels off, whether memory has collapsed."""
    positions = run["positions"]
    if positions is None:
        return "No figures: the model or its data could not be loaded (see the notes below)."
    final = positions["final"]
    parts = [_describe_quality(final, bool(run["answers"]), run["chance"])]
    if (settles := positions["settles"]) is not None:
        parts.append(_describe_drift(settles, positions.get("settles_beyond"), has_left(final)))
    elif final["relative_drift"] is None:
        source = run["config"]["teacher"].get("from_")
        why = f"its teacher reads with {source}, which is not loaded" if source else "it has no trained teacher"
        parts.append(f"{why}, so there is no drift to measure")
    geometry = run["geometry"]
    if geometry is not None:
        bad = geometry["rnn"]["collapsed"]
        parts.append("its memory HAS COLLAPSED" if bad else "its memory shows no sign of collapse")
    parts += _describe_lack(run["history"]["curves"])
    text = "; ".join(parts) + "."
    return text[0].upper() + text[1:]


def _describe_quality(final: dict[str, Any], answers: bool, chance: float | None) -> str:
    if final["bits_per_token"] is None:
        return "the RNN's bits per token are not finite"
    if answers:
        theirs = "" if final["teacher_accuracy"] is None else f", its teacher {final['teacher_accuracy']:.1%}"
        return f"the RNN answers {final['accuracy']:.1%} right{theirs}" + (
            f", chance is {chance:.1%}" if chance else ""
        )
    own, theirs = final["bits_per_token"], final["teacher_bits_per_token"]
    if theirs is None:
        return f"the RNN needs {own:.3f} bits per token"
    gap = own - theirs
    if abs(gap) < 0.005:
        return f"the RNN equals its teacher at {own:.2f} bits per token"
    return f"the RNN is {abs(gap):.2f} bits {'above' if gap > 0 else 'below'} its teacher ({own:.2f} to {theirs:.2f})"


def _describe_lack(curves: dict[str, Any]) -> list[str]:
    """Report if the teacher's trunk predicts what its memory does not hold. No RNN can then follow the teacher."""
    if not {"loss_dec", "loss_trunk"} <= curves.keys():
        return []
    last = [[v for v in curves[name]["value"][-10:] if v is not None] for name in ("loss_dec", "loss_trunk")]
    decoder, trunk = (sum(values) / max(len(values), 1) for values in last)
    if decoder < trunk + 0.3 or decoder < 2 * trunk:
        return []
    return [
        f"its teacher's memory does NOT hold the future that its trunk can predict (loss_dec {decoder:.2f}, loss_trunk "
        f"{trunk:.2f}), so no RNN can follow it: docs/following.md says what to change"
    ]


def _describe_drift(settles: dict[str, Any], beyond: dict[str, Any] | None, left: bool) -> str:
    end, before = settles["last_quarter"], settles["third_quarter"]
    note = ", as far off as a memory that knows nothing of its sequence" if end > 0.9 else ""
    if left:
        note = f"; {LEFT}, so judge it by its bits"
    if not settles["levels_off"]:
        return f"relative drift still grows at the end of the sequence, {before:.2f} to {end:.2f}{note}"
    text = f"relative drift levels off at {end:.2f}"
    if beyond is None:
        return text + note
    far = format(beyond["last_quarter"], ".2f" if beyond["last_quarter"] < 100 else ",.0f")
    if beyond["levels_off"]:
        return f"{text} ({far} far beyond the training length){note}"
    return f"{text}, but grows to {far} beyond the training length{note}"


def make_row(run: dict[str, Any]) -> dict[str, Any]:
    """Return the headline figures of a run; a missing one is None."""
    positions, geometry, test = run["positions"], run["geometry"], run["test"] or {}
    final = positions["final"] if positions else {}
    progress, last = (run["state"] or {}).get("progress", {}), run["history"]["last"] or {}
    keys = ("bits_per_token", "teacher_bits_per_token", "accuracy", "teacher_accuracy", "drift", "relative_drift")
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
        **{key: last.get(key) or progress.get(key) for key in ("seconds", "tokens")},
        "parameters": run.get("parameters"),
    }


def find_differences(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Find what differs between the configs of several runs: `fields`, and their `values` per run."""
    flat = [flatten(run["config"]) for run in runs]
    fields = [key for key in flat[0] if any(f.get(key) != flat[0][key] for f in flat)]
    fields += sorted({key for f in flat for key in f} - set(flat[0]))
    # Settings of a phase that no run has do nothing.
    used = {phase for run in runs for phase in run["config"]["phases"]}
    fields = [k for k in fields if k.partition(".")[0] not in {"smt", "dmt", "bptt"} - used]
    return {"fields": fields, "values": [[f.get(key) for key in fields] for f in flat]}

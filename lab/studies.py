"""Studies of `make results` that compare no methods: credit by bootstrapping, and an ablation of the recipe.

Each is a grid of SMT → DMT runs with fixed numbers of steps, so that other load on the machine has no effect.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retain.config import RunConfig
from retain.config.presets import PRESETS
from retain.experiments.sweep import describe, with_values
from retain.experiments.tables import mean_and_deviation, table

if TYPE_CHECKING:  # the import would load PyTorch, even for --help
    from retain.data.batches import Split

CREDIT_LENGTHS = (8, 16, 32, 64)
"""Sequence lengths of retrieval. All train for the same number of optimizer steps."""
SOLVED = 0.99
"""The validation accuracy of a task that counts as solved."""
ABLATED = {"digits": "bits_per_token", "stack": "accuracy", "stdlib": "bits_per_token"}
"""Preset whose recipe is ablated → metric of its RNN."""
WITHOUT: dict[str, dict[str, Any]] = {
    "as shipped": {},
    "one step of f, the paper's": {"smt.bptt_window": 1, "dmt.bptt_window": 1},
    "stretches of 8": {"smt.bptt_window": 8, "dmt.bptt_window": 8},
    "less uniformity, the paper's": {"smt.lambda_unif": 0.001},
    "SMT from the teacher's memories alone": {"smt.on_policy": 0.0},
    "no probabilities of the teacher": {"smt.lambda_distill": 0.0, "dmt.lambda_distill": 0.0},
    "SMT's rate falling": {"smt.lr_schedule": "cosine"},
    "SMT for all the steps, no DMT": {"phases": ["smt"], "smt.lr_schedule": "cosine"},  # as DMT's rate would fall
    "DMT over the whole sequence": {"dmt.bptt_window": None},
    "weight 0.1 on the teacher's memory in DMT": {"dmt.lambda_dyn": 0.1},
    "DMT held to the teacher, its horizon growing": {"dmt.lambda_dyn": 1.0, "dmt.horizon_growth": 0.7},
    "no loss of the trunk": {"smt.lambda_trunk": 0.0},
    "memory of unit RMS, the paper's": {"memory.norm": "rms"},
    "residual cell": {"cell.kind": "mlp", "cell.width": 512},
    "GRU cell": {"cell.kind": "gru"},
}
"""Row of the ablation → settings in which it differs from the preset."""


@dataclasses.dataclass(frozen=True)
class Study:
    """Runs, the command that makes one of them, and the function that tabulates their results."""

    title: str
    command: str
    runs: dict[str, RunConfig]
    table: Callable[[Mapping[str, Any]], str]
    split: Split | None = None
    """The split, read whole, that the trained RNNs are scored on; None: they are not scored."""
    measure: Callable[[Path], Any] | None = None
    """What is measured besides, on the folder of all runs; the results have it as "measured"."""
    plot: Callable[[Mapping[str, Any], Path], bool] | None = None
    by_name: bool = False
    """Whether it runs only if it is named."""


def credit(quick: bool = False) -> Study:
    """Return the study of retrieval with one token of future, where all credit comes through the teacher's memories."""
    steps = 200 if quick else 2000
    runs = {}
    for length in CREDIT_LENGTHS:
        runs[f"joint-{length}"] = with_values(
            PRESETS["retrieval"](),
            {
                "phases": ("smt",),
                "budget": f"{steps}steps",
                "validate_every": f"{steps // 40}steps",
                "tracker": None,
                "data.seq_len": length,
                "data.min_seq_len": None,
                "teacher.future_len": 1,
                # Every memory is decoded: with one token of future only the last two have a target.
                "smt.decodes_per_sequence": None,
                # One step of f, always from the teacher's memory: no gradient reaches the teacher from an on-policy
                # start.
                "smt.bptt_window": 1,
                "smt.on_policy": 0.0,
            },
        )
    line = (
        f"retain train retrieval --phases smt --budget {steps}steps --validate-every {steps // 40}steps "
        "--data.seq-len T --data.min-seq-len None --teacher.future-len 1 --smt.decodes-per-sequence None "
        "--smt.bptt-window 1 --smt.on-policy 0"
    )
    return Study("Credit through bootstrapping", line, runs, credit_table)


def credit_table(results: Mapping[str, Any]) -> str:
    """Return a table of the optimizer steps until the RNN solves validation, and its final accuracy, by length."""

    def solved(curve: list[dict[str, Any]]) -> str:
        steps = [p["step"] for p in curve if p["accuracy"] >= SOLVED]
        return f"{steps[0]:,}" if steps else "–"

    def last(curve: list[dict[str, Any]]) -> str:
        return f"{curve[-1]['accuracy']:.3f}" if curve else "–"

    head = ["T", "joint: steps to solve", "detached: steps to solve", "joint: accuracy", "detached: accuracy"]
    rows = []
    for length in CREDIT_LENGTHS:
        joint, detached = (results.get(f"{kind}-{length}", {}).get("curve", []) for kind in ("joint", "detached"))
        rows.append([str(length), solved(joint), solved(detached), last(joint), last(detached)])
    return (
        f"Solved: the RNN alone reaches {SOLVED} on validation. – is never. One seed, SMT only. Detached: no gradient "
        "of f reached the teacher's memories, by an option that retain had once.\n\n" + table(head, rows)
    )


def ablation(quick: bool = False) -> Study:
    """Return the ablation: the presets' recipe with one change at a time, all for the same number of steps.

    The phases share the steps as in the preset.
    """
    steps, seeds = (60, 1) if quick else (600, 3)
    runs = {}
    for preset in ABLATED:
        for name, changes in WITHOUT.items():
            for seed in range(seeds):
                shared = {"budget": f"{steps}steps", "validate_every": f"{steps}steps", "seed": seed, "tracker": None}
                config = with_values(PRESETS[preset](), shared | changes)
                if not changes or config != with_values(PRESETS[preset](), shared):  # else it is the preset
                    runs[f"{preset}-{slug(name)}-seed{seed}"] = config
    line = (
        f"retain train PRESET --budget {steps}steps --validate-every {steps}steps --seed SEED, and for each row what "
        "it names"
    )
    return Study("The recipe taken apart", line, runs, ablation_table, "validation")


def slug(name: str) -> str:
    """Return a row's name for its run folders, which does not change when other rows are added or removed."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower().replace("'", "")).strip("-")


def ablation_table(results: Mapping[str, Any]) -> str:
    """Return a table with a row per change: mean ± standard deviation over seeds of RNN, teacher and relative drift."""
    head = ["recipe"]
    for preset, quality in ABLATED.items():
        head += [f"{preset}: {quality.replace('_', ' ')}", "its teacher", "relative drift"]
    rows = []
    for name, changes in WITHOUT.items():
        row = [f"{name}: `{describe(changes)}`" if changes else name]
        for preset, quality in ABLATED.items():
            if changes and with_values(PRESETS[preset](), changes) == PRESETS[preset]():
                row += ["as shipped", "", ""]
                continue
            mine = f"{preset}-{slug(name)}-seed"
            found = [r["validation"] for run, r in results.items() if run.startswith(mine) and "validation" in r]
            diverged = sum(run.startswith(mine) and "failed" in r for run, r in results.items())
            for key in (quality, f"teacher_{quality}", "relative_drift"):
                row.append(mean_and_deviation([r[key] for r in found]))
            row[-3] += f" ({diverged} diverged)" if diverged else ""
        rows.append(row)
    held = []
    for preset in ABLATED:
        dmt = PRESETS[preset]().dmt
        grows = (
            f"grows over {dmt.horizon_growth:g} of it" if dmt.horizon_growth else "is the whole sequence from the first"
        )
        held.append(f"{preset} has λ_dyn {dmt.lambda_dyn:g} and a horizon that {grows}")
    shipped = slug(next(iter(WITHOUT)))
    seeds = max(sum(run.startswith(f"{preset}-{shipped}-seed") for run in results) for preset in ABLATED)
    return (
        f"Each RNN alone, the whole validation split, mean ± standard deviation over {seeds} seed(s); equal steps, not "
        f"equal seconds. In DMT as shipped, {'; '.join(held)}.\n\n" + table(head, rows)
    )

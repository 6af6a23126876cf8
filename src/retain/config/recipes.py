"""Recipes: whether f is trained one step at a time, as the paper does, or over windows of steps."""

from __future__ import annotations

import dataclasses
from typing import Any

from retain.config.presets import PRESETS
from retain.config.run import RunConfig
from retain.errors import UserError

RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    # No gradient goes back past one application of f. The teacher's memory carries the credit, so DMT holds the RNN to
    # it, and its horizon grows over most of the phase. As DMT starts from the RNN's own memories, SMT need not.
    "one-step": {
        "smt": {"bptt_window": 1, "on_policy": 0.0},
        "dmt": {"bptt_window": 1, "lambda_dyn": 1.0, "horizon": None, "horizon_growth": 0.7, "label_every": 1},
    },
    # Truncated backpropagation through time from where the teacher's labels start it.
    "hybrid": {
        "smt": {"bptt_window": 16, "on_policy": 0.5},
        "dmt": {"bptt_window": 32, "lambda_dyn": 0.02, "horizon": None, "horizon_growth": 0.0, "label_every": 1},
    },
}
ONE_STEP_CELLS = ("transformer",)
"""Cells whose default is one-step supervision, as it is ahead of BPTT there (docs/claims.md)."""


def with_recipe(config: RunConfig, recipe: str) -> RunConfig:
    """The run by this recipe, "one-step" or "hybrid"; all else stays. A preset's own recipe is as the preset has it.

    Raises:
        UserError: for a recipe that is neither.
    """
    if recipe not in RECIPES:
        raise UserError(f"recipe: {recipe!r} is none of {', '.join(RECIPES)}")
    preset = PRESETS[config.preset]() if config.preset in PRESETS else None
    is_own = preset is not None and recipe == ("one-step" if preset.longest_gradient_path == 1 else "hybrid")
    parts: dict[str, Any] = {}
    for name, settings in RECIPES[recipe].items():
        own = {field: getattr(getattr(preset, name), field) for field in settings} if is_own else settings
        parts[name] = dataclasses.replace(getattr(config, name), **own)
    return dataclasses.replace(config, **parts)


def default_recipe(kind: str) -> str:
    """The recipe of a run with this kind of cell, unless one is named."""
    return "one-step" if kind in ONE_STEP_CELLS else "hybrid"

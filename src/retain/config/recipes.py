"""Recipes: whether f is trained one step at a time, as the paper does, or over windows of steps."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from retain.config.presets import PRESETS
from retain.config.run import RunConfig
from retain.errors import UserError

RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    # No gradient crosses more than one application of f, so credit over time comes from the teacher's memories alone.
    # Therefore lambda_dyn is large in DMT, and the horizon grows over most of the phase. Rollouts from the RNN's own
    # memories are left to DMT.
    "one-step": {
        "smt": {"bptt_window": 1, "on_policy": 0.0},
        "dmt": {"bptt_window": 1, "lambda_dyn": 1.0, "horizon": None, "horizon_growth": 0.7, "label_every": 1},
    },
    # Truncated backpropagation through time that starts from the teacher's labels.
    "hybrid": {
        "smt": {"bptt_window": 16, "on_policy": 0.5},
        "dmt": {"bptt_window": 32, "lambda_dyn": 0.02, "horizon": None, "horizon_growth": 0.0, "label_every": 1},
    },
}
LANGUAGE_MODEL = "language-model"
"""The recipe for memory labels that are a frozen language model's states. See `with_language_model`."""
ONE_STEP_CELLS = ("transformer",)
"""Cells whose default is one-step supervision, because it is ahead of BPTT with them (docs/claims.md)."""


def with_recipe(config: RunConfig, recipe: str) -> RunConfig:
    """Return the run with the recipe "one-step" or "hybrid". Its other settings stay.

    If the preset has this recipe already, the preset's own values are used.

    Raises:
        UserError: The recipe is neither.
    """
    if recipe not in RECIPES:
        raise UserError(f"recipe: {recipe!r} is none of {', '.join((*RECIPES, LANGUAGE_MODEL))}")
    preset = PRESETS[config.preset]() if config.preset in PRESETS else None
    is_own = preset is not None and recipe == ("one-step" if preset.longest_gradient_path == 1 else "hybrid")
    parts: dict[str, Any] = {}
    for name, settings in RECIPES[recipe].items():
        own = {field: getattr(getattr(preset, name), field) for field in settings} if is_own else settings
        parts[name] = dataclasses.replace(getattr(config, name), **own)
    return dataclasses.replace(config, **parts)


def with_language_model(config: RunConfig, width: int) -> RunConfig:
    """Return the run with the hybrid recipe, and with a frozen language model's states as its memory labels.

    A memory is one state of the model, `width` numbers. The decoder and the RNN's readout predict through the model's
    own output layer. Map and decoder stay as they start, so lambda_dyn can be large without changing the labels.
    """
    config = with_recipe(config, "hybrid")
    step = 2 * config.teacher.heads
    readout = math.ceil(width / step) * step
    weights: dict[str, Any] = {"lambda_dyn": 20.0, "lambda_distill": 1.0, "lr": 1e-3}
    return dataclasses.replace(
        config,
        memory=dataclasses.replace(config.memory, tokens=1, width=width),
        teacher=dataclasses.replace(config.teacher, width=readout, init_embeddings=True, freeze_embeddings=True),
        smt=dataclasses.replace(config.smt, lambda_dec=0.0, lambda_dyn_end=None, **weights),
        dmt=dataclasses.replace(config.dmt, **weights),
    )


def default_recipe(kind: str) -> str:
    """Return the default recipe for this kind of cell."""
    return "one-step" if kind in ONE_STEP_CELLS else "hybrid"

"""Settings of the optimizer."""

from __future__ import annotations

from retain.config.checks import BelowOne, NotNegative, Positive, Width, settings


@settings
class OptimizerConfig:
    """AdamW with betas 0.9 and 0.95, the same in every phase."""

    gradient_accumulation_steps: Width = 1
    """Micro-batches per optimizer step. The loss of each is a mean over its targets, and all have the same weight."""
    max_grad_norm: Positive = 1.0
    """Gradients are clipped to this norm."""
    warmup: BelowOne = 0.02
    """Fraction of a phase over which the learning rate rises from 0."""
    weight_decay: NotNegative = 0.01

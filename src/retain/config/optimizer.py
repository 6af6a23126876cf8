"""Settings of the optimizer."""

from __future__ import annotations

from retain.config.checks import BelowOne, NotNegative, Positive, Width, settings


@settings
class OptimizerConfig:
    """AdamW, the same in every phase: betas 0.9 and 0.95."""

    gradient_accumulation_steps: Width = 1
    """Micro-batches per optimizer step. Each is a mean over its own targets, and all count alike."""
    max_grad_norm: Positive = 1.0
    """Gradients are scaled down to this norm."""
    warmup: BelowOne = 0.02
    """Fraction of a phase in which its learning rate rises from 0."""
    weight_decay: NotNegative = 0.01

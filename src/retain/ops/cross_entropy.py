"""Cross-entropies of many logits, against true tokens and against probabilities of which the largest are known.

With the vocabulary of a language model, the logits of a batch do not fit a cache, and every pass over them costs as
much as the product that made them. `cross_entropies` does all its passes over a few rows at a time. Its naive twin is
`_cross_entropies`, which autograd differentiates.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from retain.ops.elementwise import at_least_float32, is_by_hand

BLOCK = 2**18
"""How many logits are read at a time."""
LARGE = 2**22
"""With more logits than this, the passes over blocks are faster."""


class Guide(NamedTuple):
    """Probabilities to be followed: k tokens (N, k) have `excess` (N, k) above the `shared` (N,) of every token."""

    tokens: Tensor
    excess: Tensor
    shared: Tensor


def cross_entropies(logits: Tensor, targets: Tensor, guide: Guide | None = None) -> tuple[Tensor, ...]:
    """Compute the cross-entropy of each row in nats, in float32 at least.

    Args:
        logits: (N, V).
        targets: (N,), tokens.
        guide: Probabilities to compare with as well.

    Returns:
        Against the targets, (N,), and with a guide against its probabilities, (N,).
    """
    if is_by_hand(logits) and logits.numel() > LARGE:
        found: tuple[Tensor, ...] = _CrossEntropies.apply(logits, targets, *(guide or ()))
        return found
    return _cross_entropies(logits, targets, guide)


def _cross_entropies(logits: Tensor, targets: Tensor, guide: Guide | None) -> tuple[Tensor, ...]:
    log_probs = at_least_float32(logits).log_softmax(-1)
    of_targets = F.nll_loss(log_probs, targets, reduction="none")
    if guide is None:
        return (of_targets,)
    of_guide = guide.shared * log_probs.sum(-1) + (log_probs.gather(-1, guide.tokens) * guide.excess).sum(-1)
    return of_targets, -of_guide


class _CrossEntropies(torch.autograd.Function):
    """The gradient of logit v is p_v (a + b) - a [v is the target] - b q_v, for p of the logits and q of the guide.

    a and b are the gradients of the two cross-entropies.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, *of_guide: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(logits, targets, *of_guide)
        blocks = _split(logits, targets, *of_guide)
        found = [_cross_entropies(x, asked, Guide(*guide) if guide else None) for x, asked, *guide in blocks]
        return tuple(torch.cat(losses) for losses in zip(*found, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        logits, targets, *of_guide = ctx.saved_tensors
        found = torch.empty_like(logits)
        blocks = _split(found, logits, targets, sum(grads[1:], grads[0]), *grads, *of_guide)
        for into, x, asked, both, a, *rest in blocks:
            grad = at_least_float32(x).softmax(-1).mul_(both[:, None])
            if rest:
                b, guide = rest[0][:, None], Guide(*rest[1:])
                grad.sub_(b * guide.shared[:, None]).scatter_add_(-1, guide.tokens, -b * guide.excess)
            into.copy_(grad.scatter_add_(-1, asked[:, None], -a[:, None]))
        return found, None, *(None for _ in of_guide)


def _split(logits: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Split logits (N, V) and `others` (N, …) into blocks of rows."""
    rows = max(1, BLOCK // logits.shape[1])
    return zip(*(part.split(rows) for part in (logits, *others)), strict=True)

"""The losses, Eq. 2–4 of the paper, as plain functions of tensors."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from retain.config import IGNORE
from retain.model.layers import at_least_float32


def predictive_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats (Eq. 2). logits (..., V), targets (...) where IGNORE never counts.

    Zero where no target counts. Under `torch.distributed` the mean over processes of what is returned is the
    mean over all their targets.
    """
    total = F.cross_entropy(
        at_least_float32(logits).flatten(0, -2), targets.flatten(), ignore_index=IGNORE, reduction="sum"
    )
    return total / _count_over_processes(targets != IGNORE)


def _count_over_processes(counted: Tensor) -> Tensor:
    """How many targets count, the mean over processes; never below a tiny number, so that nothing over it is 0."""
    count = counted.sum().float()
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(count)
        count = count / dist.get_world_size()
    return count.clamp_min(1e-9)


def readout_losses(logits: Tensor, teacher_logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """`predictive_loss` of the logits, and their mean cross-entropy in nats against the teacher's probabilities
    (Hinton et al. 2015), where a target counts.

    logits and teacher_logits (..., V), targets (...). The teacher's logits are taken as they are: no gradient.
    """
    log_probabilities = at_least_float32(logits).flatten(0, -2).log_softmax(-1)  # once, for both
    probabilities = at_least_float32(teacher_logits.detach()).flatten(0, -2).softmax(-1)
    targets = targets.flatten()
    counted = (targets != IGNORE).to(log_probabilities.dtype)
    predictive = F.nll_loss(log_probabilities, targets, ignore_index=IGNORE, reduction="sum")
    distilled = -((probabilities * log_probabilities).sum(-1) * counted).sum()
    count = _count_over_processes(counted)
    return predictive / count, distilled / count


def dynamics_loss(predicted: Tensor, memory: Tensor) -> Tensor:
    """Mean squared error between f(m_t, x_t) and m_{t+1} (Eq. 3). Both (..., K, D)."""
    return F.mse_loss(at_least_float32(predicted), at_least_float32(memory))


def uniformity_loss(memory: Tensor, sample: int = 512) -> Tensor:
    """log mean over pairs of exp(-2 ‖u_a − u_b‖²), u the L2-normalised memory tokens (Eq. 4; Wang & Isola 2020).

    memory (..., K, D); at most `sample` memory tokens are drawn from it. Lies in [-8, 0]; 0 is collapse.
    """
    tokens = at_least_float32(memory).flatten(0, -2)
    if len(tokens) > sample:
        # Each once: one that is drawn twice would be its own neighbour.
        tokens = tokens[torch.randperm(len(tokens), device=tokens.device)[:sample]]
    u = F.normalize(tokens, dim=-1)
    itself = torch.eye(len(u), dtype=torch.bool, device=u.device)
    # ‖a − b‖² = 2 − 2 a·b on the unit sphere: one product gives every pair, twice. To leave them all in place is
    # faster than to pick each once.
    exponent = (4 * at_least_float32(u @ u.T) - 4).masked_fill(itself, -math.inf)
    return torch.logsumexp(exponent.flatten(), 0) - math.log(len(u) * (len(u) - 1))

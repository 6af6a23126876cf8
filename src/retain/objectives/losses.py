"""The losses, Eq. 2–4 of the paper, as plain functions of tensors."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from retain.config import IGNORE


def predictive_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats (Eq. 2). logits (..., V), targets (...) where IGNORE never counts.

    Zero where no target counts. Under `torch.distributed` the mean over processes of what is returned is the
    mean over all their targets.
    """
    total = F.cross_entropy(logits.flatten(0, -2).float(), targets.flatten(), ignore_index=IGNORE, reduction="sum")
    count = (targets != IGNORE).sum().float()
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(count)
        count = count / dist.get_world_size()
    return total / count.clamp_min(1e-9) if count > 0 else total


def dynamics_loss(predicted: Tensor, memory: Tensor) -> Tensor:
    """Mean squared error between f(m_t, x_t) and m_{t+1} (Eq. 3). Both (..., K, D)."""
    return F.mse_loss(predicted.float(), memory.float())


def uniformity_loss(memory: Tensor, sample: int = 512) -> Tensor:
    """log mean over pairs of exp(-2 ‖u_a − u_b‖²), u the L2-normalised memory tokens (Eq. 4; Wang & Isola 2020).

    memory (..., K, D); at most `sample` memory tokens are drawn from it. Lies in [-8, 0]; 0 is collapse.
    """
    tokens = memory.flatten(0, -2).float()
    if len(tokens) > sample:
        tokens = tokens[torch.randint(len(tokens), (sample,), device=tokens.device)]
    u = F.normalize(tokens, dim=-1)
    a, b = torch.triu_indices(len(u), len(u), offset=1, device=u.device)
    # ‖a − b‖² = 2 − 2 a·b on the unit sphere: one product gives every pair.
    squared = (2 - 2 * (u @ u.T))[a, b]
    return torch.logsumexp(-2 * squared, 0) - torch.log(torch.tensor(float(len(squared)), device=u.device))

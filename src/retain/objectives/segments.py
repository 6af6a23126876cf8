"""Sequences cut into segments that the RNN runs through side by side."""

from __future__ import annotations

import torch
from torch import Tensor

from retain.model.rnn import RNN


def unroll(rnn: RNN, memory: Tensor, tokens: Tensor, steps: int) -> Tensor:
    """What f makes of `memory` at each token, on its own for at most `steps` steps: (B, T, K, D).

    memory (B, T or more, K, D) before each token, tokens (B, T). The sequence is cut into segments of `steps`, at a
    random offset; each starts from `memory`, goes on from what f made, and all run side by side. So the sequential
    depth is `steps`, forward and in the gradient, however long the sequence is; and f is applied about T times per
    sequence, T + 2 · steps at most. One step is f of every memory at once.
    """
    length = tokens.shape[1]
    if steps == 1:
        return rnn.update(memory[:, :length], tokens)
    steps = min(steps, length)
    offset = int(torch.randint(steps, ())) if steps < length else 0
    starts = torch.arange(offset, length, steps, device=tokens.device)
    if offset:
        starts = torch.cat([starts.new_zeros(1), starts])
    # All segments run for the same number of steps; what the first does beyond the second's start, or the last
    # beyond the end, is thrown away.
    where = starts[:, None] + torch.arange(steps, device=tokens.device)  # (n, steps)
    kept = where < length
    if offset:
        kept[0] &= where[0] < offset
    segments = tokens[:, where.clamp_max(length - 1)]  # (B, n, steps)
    memories = rnn.rollout(segments.flatten(0, 1), memory[:, starts].flatten(0, 1))
    return memories.unflatten(0, segments.shape[:2])[:, kept]


@torch.no_grad()
def rollout_from_teacher(rnn: RNN, memory: Tensor, tokens: Tensor, horizon: int) -> Tensor:
    """The RNN's own memories m̂_0 … m̂_{T-1}, each at most `horizon` steps away from a teacher's, without a graph.

    memory (B, T + 1, K, D) the teacher's, tokens (B, T) → (B, T, K, D). m̂_0 is m_0.
    """
    return torch.cat([memory[:, :1], unroll(rnn, memory, tokens, horizon)[:, :-1]], 1)

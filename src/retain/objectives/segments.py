"""Sequences cut into windows that the RNN runs through in parallel."""

from __future__ import annotations

import torch
from torch import Tensor

from retain.model.modes import without_graph
from retain.model.rnn import RNN
from retain.ops.windows import ring


def window_len(bptt_window: int | None, length: int) -> int:
    """Return how many steps of f the gradient crosses in a sequence of this length. None is all of them."""
    return length if bptt_window is None else min(bptt_window, length)


def unroll(rnn: RNN, memory: Tensor, tokens: Tensor, steps: int, own: Tensor | None = None, horizon: int = 1) -> Tensor:
    """Run f over each token, at most `steps` steps on its own from `memory`; return the new memories, (B, T, K, D).

    The sequence is cut into windows of `steps`, at a random offset. Each window starts from `memory` and continues with
    f's own memories. All windows run in parallel, so the sequential depth is `steps`, forward and backward, for a
    sequence of any length. If `steps` is 1, f is applied to every memory at once.

    Args:
        rnn: The RNN whose f is run.
        memory: (B, T or more, K, D), before each token.
        tokens: (B, T).
        steps: The length of a window.
        own: (n,), indices into the batch. These sequences start from f's own memories instead, without a graph.
        horizon: How many steps those own memories are away from `memory` at most.
    """
    length = tokens.shape[1]
    horizon = min(horizon, length)
    if steps == 1:
        start = memory[:, :length]
        if own is not None:
            start = start.index_copy(0, own, rollout_from_teacher(rnn, memory[own], tokens[own], horizon))
        return rnn.update(start, tokens)
    steps = min(steps, length)
    offset = int(torch.randint(steps, ())) if steps < length else 0
    where = ring(length, offset, steps, tokens.device).clamp_max(length - 1)  # (n, steps)
    segments, start = tokens[:, where].flatten(0, 1), memory[:, where[:, 0]]
    if own is not None and steps < length:
        at = where[int(offset == 0) :, 0]  # the teacher and f share m_0
        apart = own_memories(rnn, memory[own], tokens[own], at, horizon)
        start = start.index_copy(0, own, torch.cat([start[own, : -len(at)], apart], 1))
    if offset:
        # After `around` steps the last segment wraps around to t = 0 and starts again, from m_0.
        around = steps - offset
        before = rnn.rollout(segments[:, :around], start.flatten(0, 1))
        start = before[:, -1].unflatten(0, start.shape[:2])
        start = torch.cat([start[:, :-1], memory[:, :1]], 1)
        after = rnn.rollout(segments[:, around:], start.flatten(0, 1))
        memories = torch.cat([before, after], 1)
    else:
        memories = rnn.rollout(segments, start.flatten(0, 1))
    ring_of: Tensor = memories.unflatten(0, (len(tokens), len(where))).flatten(1, 2)  # (B, ring, K, D)
    return ring_of.roll(offset, 1)[:, :length]


def unroll_alone(rnn: RNN, memory: Tensor, tokens: Tensor, steps: int) -> Tensor:
    """Do as `unroll` does, but from one `memory` (B, K, D) at the start; tokens (B, T), the result is (B, T, K, D).

    Every later window starts where the window before it ended, so one rollout is enough.
    """
    length = tokens.shape[1]
    return rnn.rollout(tokens, memory, (int(torch.randint(steps, ())), steps) if steps < length else None)


@without_graph()
def own_memories(rnn: RNN, memory: Tensor, tokens: Tensor, steps: Tensor, horizon: int) -> Tensor:
    """Return the RNN's own m̂_t at the t in `steps` (n,) only, (B, n, K, D).

    The rollouts start from the teacher's memory a random 1 … `horizon` steps before t, or from m_0 if t is smaller than
    that. memory (B, T or more, K, D) is the teacher's, tokens (B, T).
    """
    distance = int(torch.randint(1, horizon + 1, ()))
    begin = (steps - distance).clamp_min(0)
    where = begin[:, None] + torch.arange(distance, device=tokens.device)  # (n, distance)
    start = memory[:, begin].flatten(0, 1)
    own = torch.cat([start[:, None], rnn.rollout(tokens[:, where].flatten(0, 1), start)], 1)
    found: Tensor = own.unflatten(0, (len(tokens), len(steps)))  # (B, n, distance + 1, K, D)
    return found[:, torch.arange(len(steps), device=tokens.device), steps - begin]


@without_graph()
def rollout_from_teacher(rnn: RNN, memory: Tensor, tokens: Tensor, horizon: int) -> Tensor:
    """Return the RNN's own m̂_0 … m̂_{T-1}, each at most `horizon` steps from a teacher's memory, without a graph.

    memory (B, T + 1, K, D) is the teacher's, tokens (B, T); the result is (B, T, K, D), and m̂_0 is m_0.
    """
    return torch.cat([memory[:, :1], unroll(rnn, memory, tokens, horizon)[:, :-1]], 1)

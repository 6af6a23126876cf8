"""DMT's rollout for all steps at once: guess every memory, apply f to all guesses, and repeat until nothing changes.

The first guess is the teacher's memories, which are nearly right at the start of DMT. After j iterations the first j
memories of a window equal those of the loop exactly, so a window of h steps takes at most h iterations. *Jacobi* takes
f's output as the next guess. *Newton* also adds the change of the preceding memory, times the diagonal of f's Jacobian.
This is quasi-DEER (Gonzalez et al. 2024), with the diagonal estimated from one random vector (Hutchinson).

The naive twin is `rollout_from_teacher`, step by step.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from retain.model.modes import without_graph
from retain.model.rnn import RNN
from retain.objectives.segments import rollout_from_teacher

TOLERANCE = 1e-4
"""The iterations end when no number of any memory changes by more than this."""
MOST = 64
"""If this many iterations do not converge, the loop is run."""


def rollout_in_parallel(
    rnn: RNN, memory: Tensor, tokens: Tensor, horizon: int, method: Literal["jacobi", "newton"], most: int = MOST
) -> tuple[Tensor, int, bool]:
    """Compute `rollout_from_teacher` in parallel, up to TOLERANCE.

    Args:
        rnn: The RNN to roll out.
        memory: The teacher's, (B, T + 1, K, D).
        tokens: (B, T).
        horizon: Steps that f runs on its own before it restarts from the teacher's memory.
        method: How the next guess is made.
        most: The maximum number of iterations.

    Returns:
        The RNN's own memories m̂_0 … m̂_{T-1}, (B, T, K, D); the number of iterations; and whether they did not
        converge, so that the memories are the loop's.
    """
    length = tokens.shape[1]
    state = torch.get_rng_state()
    # As in `unroll`, windows begin at a random offset, and the steps before the offset start from m_0.
    offset = int(torch.randint(horizon, ())) if 1 < horizon < length else 0
    steps = torch.arange(length - 1, device=tokens.device)
    set_back = (((steps - offset) % horizon == 0) & (horizon < length))[:, None, None]  # (T - 1, 1, 1)
    labels = memory[:, : length - 1]
    guess = memory[:, 1:length]  # m̂_1 … m̂_{T-1}
    iterations, changed = 0, True
    while changed and iterations < most:
        start = torch.where(set_back, labels, torch.cat([memory[:, :1], guess], 1)[:, :-1])
        new = _apply(rnn, start, tokens[:, :-1]) if method == "jacobi" else _newton(rnn, start, guess, tokens, set_back)
        iterations += 1
        changed = bool(((new - guess).abs() > TOLERANCE).any()) and iterations < min(horizon, length)
        guess = new
    if changed:
        torch.set_rng_state(state)
        return rollout_from_teacher(rnn, memory, tokens, horizon), iterations, True
    return torch.cat([memory[:, :1], guess], 1), iterations, False


@without_graph()
def _apply(rnn: RNN, start: Tensor, tokens: Tensor) -> Tensor:
    return rnn.update(start, tokens)


def _newton(rnn: RNN, start: Tensor, guess: Tensor, tokens: Tensor, set_back: Tensor) -> Tensor:
    """Solve m̂_{t+1} = f(g_t) + d_t (m̂_t − g_t), d the diagonal of the Jacobian at the guess g, for all t at once."""
    with torch.enable_grad():
        read = start.detach().requires_grad_()
        made = rnn.update(read, tokens[:, :-1])
        signs = torch.randint_like(made, 2) * 2 - 1
        (along,) = torch.autograd.grad((made * signs).sum(), read)
    # With a diagonal beyond ±1, errors that f itself corrects would grow along the sequence.
    slope = (signs * along).clamp(-1, 1).masked_fill(set_back, 0)
    slope[:, 0] = 0  # m̂_0 is known
    before = torch.cat([guess[:, :1], guess], 1)[:, :-1]
    total = made.detach() - slope * before
    # Scan m̂_{t+1} = slope_t m̂_t + total_t: compose the maps over 1, 2, 4, … steps, each from two of half its length.
    back = 1
    while back < total.shape[1]:
        earlier = total[:, :-back] * slope[:, back:]
        total = torch.cat([total[:, :back], total[:, back:] + earlier], 1)
        slope = torch.cat([slope[:, :back], slope[:, back:] * slope[:, :-back]], 1)
        back *= 2
    return total

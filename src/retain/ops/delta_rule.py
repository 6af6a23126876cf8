"""The gated delta rule over a sequence, in chunks: matrix products instead of a step for each token.

A state S (C × E, one for each head) is first scaled by a gate a_t in (0, 1), and then written to R times:
S ← (I − β k kᵀ) S + β k vᵀ with a unit key k and a rate β in (0, 2). With β above 1 the eigenvalue 1 − β of the
transition is negative, which parity needs (Grazzi et al. 2024). With R > 1 a token's transition is a product of R such
reflections, so that it can be a rotation or a permutation (DeltaProduct, Siems et al. 2025). Then the token reads Sᵀ q.

Within a chunk the writes are S_i = γ_i S_0 + Σ_j≤i (γ_i / γ_j) k_j u_jᵀ, with γ_i the product of the gates so far. The
u_i solve the triangular system (I + A) U = β V − β γ K S_0 with A_ij = β_i (γ_i / γ_j) k_i·k_j for j < i. This is the
WY representation of the product (Yang et al. 2024, Gated Delta Networks).

The naive twins are `delta_rule` and `delta_states` in tests/naive.py, write by write.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from retain.ops.elementwise import at_least_float32

WRITES = 64
"""A chunk has at most this many writes."""


def count_chunks(length: int, per_token: int) -> int:
    """Return the number of sequential chunks for `length` tokens of `per_token` writes."""
    return -(-length // max(1, WRITES // per_token))


def delta_rule(q: Tensor, k: Tensor, v: Tensor, rate: Tensor, log_gate: Tensor) -> Tensor:
    """Write and read, token by token, from an empty state; in float32 at least, also under autocast.

    Args:
        q: Queries (..., L, C).
        k: Unit keys (..., L, R, C), in the order in which they are written.
        v: Values (..., L, R, E).
        rate: β of each write, (..., L, R).
        log_gate: Logarithm of a token's gate, (..., L).

    Returns:
        The value that each token reads after its writes, (..., L, E).
    """
    length, per_token = k.shape[-3:-1]
    chunks = count_chunks(length, per_token)
    each = -(-length // chunks)
    missing = chunks * each - length  # tokens that write nothing
    with torch.autocast(q.device.type, enabled=False):
        q, k, v, rate, log_gate = (at_least_float32(x) for x in (q, k, v, rate, log_gate))
        q, rate = (F.pad(x, (0, 0, 0, missing)) for x in (q, rate))
        k, v = (F.pad(x, (0, 0, 0, 0, 0, missing)) for x in (k, v))
        q = q.unflatten(-2, (chunks, each))  # (..., n, c, C)
        k, v = (x.unflatten(-3, (chunks, each)).flatten(-3, -2) for x in (k, v))  # (..., n, c R, C or E)
        rate = rate.unflatten(-2, (chunks, each)).flatten(-2)[..., None]  # (..., n, c R, 1)
        total = F.pad(log_gate, (0, missing)).unflatten(-1, (chunks, each)).cumsum(-1)  # (..., n, c)
        later = torch.ones(each, each, dtype=torch.bool, device=q.device).triu(1)
        # From one token to a later one, else 0. The logarithm is masked, because its exponential might overflow.
        decay = (total[..., None] - total[..., None, :]).masked_fill(later, -torch.inf).exp()  # (..., n, c, c)
        to_write = decay.repeat_interleave(per_token, -1)  # (..., n, c, c R)
        between = (k @ k.mT) * to_write.repeat_interleave(per_token, -2) * rate
        since_start = total.exp()[..., None]  # (..., n, c, 1)
        known = rate * torch.cat([v, k * since_start.repeat_interleave(per_token, -2)], -1)
        # The solver reads only the triangle below the diagonal, and takes ones on the diagonal.
        solved = torch.linalg.solve_triangular(between, known, upper=False, unitriangular=True)
        news, of_state = solved.split((v.shape[-1], k.shape[-1]), -1)
        scores, q = (q @ k.mT) * to_write, q * since_start
        kept = k * to_write[..., -1, :, None]  # (..., n, c R, C), decayed to the end of the chunk
        state = k.new_zeros(*k.shape[:-3], k.shape[-1], v.shape[-1])
        read = []
        for i in range(chunks):
            new = news[..., i, :, :] - of_state[..., i, :, :] @ state
            read.append(q[..., i, :, :] @ state + scores[..., i, :, :] @ new)
            state = since_start[..., i, -1:, :] * state + kept[..., i, :, :].mT @ new
        return torch.cat(read, -2)[..., :length, :]


def delta_states(k: Tensor, v: Tensor, rate: Tensor) -> Tensor:
    """Write once per token without a gate, S ← (I − β k kᵀ) S + β k vᵀ, and return every state.

    Args:
        k: Unit keys (..., L, C).
        v: Values (..., L, E).
        rate: β of each write, (..., L).

    Returns:
        The state after each token, (..., L, C, E), in float32 at least.
    """
    length = k.shape[-2]
    with torch.autocast(k.device.type, enabled=False):
        k, v, rate = (at_least_float32(x) for x in (k, v, rate[..., None]))
        state = k.new_zeros(*k.shape[:-2], 1, k.shape[-1], v.shape[-1])
        states = []
        for start in range(0, length, WRITES):
            part = slice(start, start + WRITES)
            keys, betas = k[..., part, :], rate[..., part, :]
            known = betas * torch.cat([v[..., part, :], keys], -1)
            solved = torch.linalg.solve_triangular(betas * (keys @ keys.mT), known, upper=False, unitriangular=True)
            news, of_state = solved.split((v.shape[-1], k.shape[-1]), -1)
            new = news - of_state @ state[..., 0, :, :]
            states.append(state + (keys[..., None] * new[..., None, :]).cumsum(-3))
            state = states[-1][..., -1:, :, :]
        return torch.cat(states, -3)

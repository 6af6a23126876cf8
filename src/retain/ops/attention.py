"""Attention, the one place where it is computed: which way is the fastest for a shape and a device, and the ways."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import cycle
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

PLAIN_ATTENTION_KEYS = 640
"""In bfloat16 on a CPU, up to this many keys, attention that is not causal, or is compiled, is two batched products
with a softmax. They beat the flash kernel beyond that, too (1,025 keys: 0.8 of its time), but hold memory that grows
with the square of the length."""

BLOCK = 256
"""More keys than these, causal, are read by at most so many queries at a time: that takes a little longer than two
products at first (257 keys: 1.06 to 1.2 times, 513: 1.08) and less later (1,025: 0.87), and it holds no square."""

FEW_KEYS_COMPILED = 4
"""A compiler for CPUs joins the weighted sums of so few keys with what stands around them; products stay apart."""

FUSED_BATCH = 2**15
"""Sequences that a GPU's kernel is given at once: they are an axis of CUDA's grid, which ends at 65,535."""

FEW_KEYS, MANY_SEQUENCES = 17, 2**14
"""On an NVIDIA GPU, for so many sequences and heads of so few keys, two batched products take half the time of its
kernels, which are made for blocks of 64 keys (H100); for fewer sequences the number of launches decides."""


def attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention, the one place where it is computed.

    q (..., Q, C), k and v (..., S, C); `mask` (broadcastable to ..., Q, S) is True where a query may look.
    `causal` lets query i see keys 0 … i (Q = S); with a mask, too, those of them where it is True. Returns (..., Q, C).
    """
    if k.shape[-2] == 1 and mask is None:
        return v.expand_as(q)
    if causal and mask is not None:  # not every way takes both
        causal, mask = False, mask & mask.new_ones(q.shape[-2], k.shape[-2]).tril()
    # As measured on a CPU: one query is fastest as sums, compiled a few keys are; float32 is otherwise with SDPA at
    # every shape of SMT, bfloat16 is not: plain or in blocks, it takes a tenth to two thirds (docs/log.md). On a GPU
    # SDPA chooses among its kernels (cuDNN's on an H100, also with a mask). A rule, and no timing at run time: a run
    # must compute the same twice. `python -m benchmarks attention` measures it again.
    if q.device.type == "cpu":
        compiling = torch.compiler.is_compiling()
        if q.shape[-2] == 1 or (compiling and k.shape[-2] <= FEW_KEYS_COMPILED):
            return summed_attention(q, k, v, causal=causal, mask=mask)
        half = q.dtype == torch.bfloat16
        if half and causal and k.shape[-2] > BLOCK and not compiling:
            return blocked_attention(q, k, v)
        plain = half and k.shape[-2] <= PLAIN_ATTENTION_KEYS
    else:
        few = k.shape[-2] <= FEW_KEYS and q.shape[:-2].numel() >= MANY_SEQUENCES
        plain = few and q.is_cuda and torch.version.cuda is not None
    if plain or not q.shape[0]:  # not every kernel takes an empty batch, as there is where nothing is asked
        return plain_attention(q, k, v, causal=causal, mask=mask)
    if q.device.type != "cpu" and q.shape[0] > FUSED_BATCH:
        masks = [mask] if mask is None or mask.dim() < q.dim() else mask.split(FUSED_BATCH)
        parts = zip(*(part.split(FUSED_BATCH) for part in (q, k, v)), cycle(masks), strict=False)
        return torch.cat([attention(*part, causal=causal, mask=of_part) for *part, of_part in parts])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, mask: Tensor | None = None) -> Tensor:
    """`attention` as two batched products with a softmax between them."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return _masked(scores, causal, mask).softmax(-1) @ v


def summed_attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, mask: Tensor | None = None) -> Tensor:
    """`attention` of one query or few keys, as weighted sums: a product of matrices so small costs more to begin."""
    scores = ((q * q.shape[-1] ** -0.5).unsqueeze(-2) * k.unsqueeze(-3)).sum(-1)
    return (_masked(scores, causal, mask).softmax(-1).unsqueeze(-1) * v.unsqueeze(-3)).sum(-2)


def _masked(scores: Tensor, causal: bool, mask: Tensor | None) -> Tensor:
    """Scores (..., Q, S) in place, -inf where a query may not look."""
    # Added, which takes half the time that filling does. A softmax of bfloat16 computes in float32 inside.
    if causal:
        scores.add_(scores.new_full(scores.shape[-2:], -math.inf).triu_(1))
    if mask is not None:
        scores.add_(scores.new_zeros(mask.shape).masked_fill_(~mask, -math.inf))
    return scores


def blocked_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal `attention` of a long sequence, BLOCK queries at a time; q, k, v (..., S, C)."""
    out: Tensor = _BlockedAttention.apply(q, k, v)
    return out


class _BlockedAttention(torch.autograd.Function):
    """Nothing of size S x S is held: the way back computes a block's weights again, as Dao et al. (2022) do."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, out = q * q.shape[-1] ** -0.5, torch.empty_like(q)
        for block in blocks(q.shape[-2]):
            out[..., block, :] = _block_weights(q, k, block) @ v[..., : block.stop, :]
        ctx.save_for_backward(q, k, v)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = ctx.saved_tensors
        # Early keys are read by every block: so many summands want more than half precision.
        wide = torch.promote_types(q.dtype, torch.float32)
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k, dtype=wide), torch.zeros_like(v, dtype=wide)
        for block in blocks(q.shape[-2]):
            seen, own = slice(block.stop), grad[..., block, :]
            weights = _block_weights(q, k, block)
            grad_v[..., seen, :] += weights.transpose(-1, -2) @ own
            of_weights = own @ v[..., seen, :].transpose(-1, -2)
            of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
            grad_q[..., block, :] = of_scores @ k[..., seen, :]
            grad_k[..., seen, :] += of_scores.transpose(-1, -2) @ q[..., block, :]
        return grad_q.mul_(q.shape[-1] ** -0.5), grad_k.to(k.dtype), grad_v.to(v.dtype)


def blocks(length: int) -> Iterator[slice]:
    """The positions 0 … length - 1 in equal parts of at most BLOCK."""
    size = -(-length // -(-length // BLOCK))
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def _block_weights(q: Tensor, k: Tensor, block: slice) -> Tensor:
    """How much the queries of a block read of each key up to its end."""
    scores = q[..., block, :] @ k[..., : block.stop, :].transpose(-1, -2)
    _masked(scores[..., block], causal=True, mask=None)
    return scores.softmax(-1)

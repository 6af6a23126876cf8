"""Attention: the ways to compute it, and which is the fastest for a shape and a device."""

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
"""On a CPU in bfloat16, attention to at most this many keys, if it is not causal or is compiled, is two batched
products with a softmax. The products are faster than the flash kernel for more keys, too (1,025 keys: 0.8 of its time),
but their memory grows with the square of the length."""

BLOCK = 256
"""Causal attention to more keys than this runs in blocks of at most this many queries. This takes a little longer than
two products for fewer keys (257: 1.06 to 1.2 times, 513: 1.08) and less for more (1,025: 0.87). Its memory does not
grow with the square of the length."""

FEW_KEYS_COMPILED = 4
"""Compiled attention on a CPU to at most this many keys is weighted sums: the compiler fuses sums with the operations
around them, but not products."""

FUSED_BATCH = 2**15
"""A GPU's kernel gets at most this many sequences at once: they are an axis of CUDA's grid, whose limit is 65,535."""

FEW_KEYS, MANY_SEQUENCES = 17, 2**14
"""On an NVIDIA GPU, with at most FEW_KEYS keys and at least MANY_SEQUENCES sequences and heads, two batched products
take half the time of its kernels, which are made for blocks of 64 keys (H100). With fewer sequences the number of
launches decides."""


def attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, mask: Tensor | None = None) -> Tensor:
    """Compute scaled dot-product attention in the fastest way; the naive twin of every way is `plain_attention`.

    Args:
        q: Queries (..., Q, C).
        k: Keys (..., S, C).
        v: Values (..., S, C).
        causal: Query i sees only the keys 0 … i (Q = S).
        mask: True where a query may attend; broadcastable to (..., Q, S).

    Returns:
        The output for each query, (..., Q, C).
    """
    if k.shape[-2] == 1 and mask is None:
        return v.expand_as(q)
    if causal and mask is not None:  # not every kernel takes both
        causal, mask = False, mask & mask.new_ones(q.shape[-2], k.shape[-2]).tril()
    # Measured on a CPU (docs/log.md): sums are fastest for one query and, if compiled, for a few keys. Otherwise SDPA
    # is fastest in float32 at every shape of SMT. In bfloat16, plain or blocked attention takes a tenth to two thirds
    # of SDPA's time. On a GPU, SDPA chooses among its kernels (cuDNN's on an H100, also with a mask). This is a rule
    # and not a timing at run time, because runs must be reproducible. `python -m benchmarks attention` measures.
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
    if plain or not q.shape[0]:  # not every kernel takes an empty batch: no target may count
        return plain_attention(q, k, v, causal=causal, mask=mask)
    if q.device.type != "cpu" and q.shape[0] > FUSED_BATCH:
        masks = [mask] if mask is None or mask.dim() < q.dim() else mask.split(FUSED_BATCH)
        parts = zip(*(part.split(FUSED_BATCH) for part in (q, k, v)), cycle(masks), strict=False)
        return torch.cat([attention(*part, causal=causal, mask=of_part) for *part, of_part in parts])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, mask: Tensor | None = None) -> Tensor:
    """Compute `attention` as two batched products with a softmax between them."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return _masked(scores, causal, mask).softmax(-1) @ v


def summed_attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, mask: Tensor | None = None) -> Tensor:
    """Compute `attention` of one query or few keys as weighted sums: starting so small a product costs more."""
    scores = ((q * q.shape[-1] ** -0.5).unsqueeze(-2) * k.unsqueeze(-3)).sum(-1)
    return (_masked(scores, causal, mask).softmax(-1).unsqueeze(-1) * v.unsqueeze(-3)).sum(-2)


def _masked(scores: Tensor, causal: bool, mask: Tensor | None) -> Tensor:
    """Set scores (..., Q, S) to -inf in place where a query may not attend."""
    # Adding takes half the time of filling. A bfloat16 softmax computes in float32 internally.
    if causal:
        scores.add_(scores.new_full(scores.shape[-2:], -math.inf).triu_(1))
    if mask is not None:
        scores.add_(scores.new_zeros(mask.shape).masked_fill_(~mask, -math.inf))
    return scores


def blocked_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute causal `attention` of a long sequence, at most BLOCK queries at a time; q, k, v (..., S, C)."""
    out: Tensor = _BlockedAttention.apply(q, k, v)
    return out


class _BlockedAttention(torch.autograd.Function):
    """Attention without a tensor of size S x S: the backward pass recomputes a block's weights (Dao et al. 2022).

    Let d be the gradient of o = p v, with p = softmax(s) and s = q kᵀ. The gradient of v is pᵀd, and that of p is
    e = d vᵀ. The gradient of s is f = p (e - sum(p e)), that of q is f k, and that of k is fᵀq.
    """

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
        # Every block adds to the gradients of the early keys: such long sums need more than half precision.
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
    """Split the positions 0 … length - 1 into equal parts of at most BLOCK."""
    size = -(-length // -(-length // BLOCK))
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def _block_weights(q: Tensor, k: Tensor, block: slice) -> Tensor:
    """Compute the weights of a block's queries for each key up to the block's end."""
    scores = q[..., block, :] @ k[..., : block.stop, :].transpose(-1, -2)
    _masked(scores[..., block], causal=True, mask=None)
    return scores.softmax(-1)

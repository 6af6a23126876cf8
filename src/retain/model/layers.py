"""Transformer parts: attention, rotary positions, blocks, and the normalisation of memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

PLAIN_ATTENTION_KEYS = 256
"""In bfloat16 on a CPU, up to this many keys, two batched products with a softmax beat the flash kernel."""


def at_least_float32(x: Tensor) -> Tensor:
    """x in float32, where it is narrower: half precision is for matrix products, float64 for exact comparisons."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention, the one place where it is computed.

    q (..., Q, C), k and v (..., S, C); `mask` (broadcastable to ..., Q, S) is True where a query may look.
    `causal` lets query i see keys 0 … i (Q = S). Returns (..., Q, C).
    """
    if k.shape[-2] == 1 and mask is None:
        return v.expand_as(q)
    if q.device.type != "cpu" or q.dtype != torch.bfloat16 or k.shape[-2] > PLAIN_ATTENTION_KEYS:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(future, -math.inf)
    elif mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return at_least_float32(scores).softmax(-1).to(v.dtype) @ v


def rotary(x: Tensor, positions: Tensor) -> Tensor:
    """Rotary position embedding (Su et al. 2021). x (..., S, C), positions (S,) or broadcastable to (..., S)."""
    half = x.shape[-1] // 2
    dtype = torch.promote_types(x.dtype, torch.float32)
    frequency = 10000.0 ** (-torch.arange(half, device=x.device, dtype=dtype) / half)
    angle = positions[..., None].to(dtype) * frequency
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Norm(nn.Module):
    """RMSNorm over the last axis with a learned gain (Zhang & Sennrich 2019)."""

    def __init__(self, width: int):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.gain.shape, self.gain.to(x.dtype), 1e-6)


def rms(x: Tensor) -> Tensor:
    """x divided by its root mean square over the last axis."""
    return F.rms_norm(x, x.shape[-1:], eps=1e-6)


class Block(nn.Module):
    """Pre-norm attention and feed-forward (4 x width), rotary positions on queries and keys."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm_attention = Norm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.project = nn.Linear(width, width, bias=False)
        self.norm_mlp = Norm(width)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)
        # Starting as the identity lets a deep stack of short runs learn from the first step.
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.down.weight)

    def queries_keys_values(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (..., S, W) → three of (..., heads, S, W / heads); queries and keys rotated by `positions` (S,)."""
        qkv = self.qkv(self.norm_attention(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = (part.transpose(-2, -3) for part in qkv.unbind(-3))
        return rotary(q, positions), rotary(k, positions), v

    def mix(self, x: Tensor, heads: Tensor) -> Tensor:
        """The rest of the block: x (..., S, W) and what its heads read (..., heads, S, W / heads)."""
        x = x + self.project(heads.transpose(-2, -3).flatten(-2))
        return x + self.down(self.up(self.norm_mlp(x)).relu().square())

    def forward(self, x: Tensor, positions: Tensor, *, causal: bool = False, mask: Tensor | None = None) -> Tensor:
        q, k, v = self.queries_keys_values(x, positions)
        return self.mix(x, attention(q, k, v, causal=causal, mask=mask))


class Transformer(nn.Module):
    """A stack of blocks and a final norm: (..., S, W) → (..., S, W)."""

    def __init__(self, width: int, heads: int, layers: int):
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = Norm(width)

    def layers(self) -> Iterator[Block]:
        return iter(self.blocks)  # type: ignore[arg-type]

    def forward(self, x: Tensor, *, causal: bool = False, mask: Tensor | None = None) -> Tensor:
        positions = torch.arange(x.shape[-2], device=x.device)
        for block in self.layers():
            x = block(x, positions, causal=causal, mask=mask)
        return self.norm(x)


class MemoryNorm(nn.Module):
    """Normalisation of memory (…, K, D), in float32; the one setting that teacher and RNN share.

    rms: unit root mean square over D, as in the paper, for the teacher's memory and the cell's output alike.
    batch: zero mean, unit variance of each of the K x D dimensions over the batch and time of the teacher's
    memories (Ioffe & Szegedy 2015, no affine; running statistics outside training); the cell's output stays as
    it is. Under `torch.distributed` the statistics are those of all processes.
    """

    mean: Tensor
    variance: Tensor
    seen: Tensor

    def __init__(self, kind: Literal["rms", "batch"], tokens: int, width: int, momentum: float = 0.02):
        super().__init__()
        self.kind, self.momentum = kind, momentum
        if kind == "batch":
            self.register_buffer("mean", torch.zeros(tokens, width))
            self.register_buffer("variance", torch.ones(tokens, width))
            self.register_buffer("seen", torch.zeros(()))

    def forward(self, memory: Tensor) -> Tensor:
        memory = at_least_float32(memory)
        if self.kind == "rms":
            return rms(memory)
        if self.training:
            axes = tuple(range(memory.dim() - 2))
            moments = torch.stack([memory.mean(axes), memory.square().mean(axes)])
            if dist.is_initialized() and dist.get_world_size() > 1:
                moments = _MeanOverProcesses.apply(moments)
            mean, variance = moments[0], (moments[1] - moments[0].square()).clamp_min(0)
            with torch.no_grad():
                # A plain average at first, so that the statistics are usable from the first step on.
                self.seen += 1
                weight = torch.clamp(1 / self.seen, min=self.momentum)
                self.mean.lerp_(mean, weight)
                self.variance.lerp_(variance, weight)
        else:
            mean, variance = self.mean, self.variance
        return (memory - mean) * torch.rsqrt(variance + 1e-5)


class _MeanOverProcesses(torch.autograd.Function):
    """Mean of a tensor over all processes; the gradient is summed over them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x / dist.get_world_size()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad / dist.get_world_size()

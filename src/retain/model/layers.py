"""Transformer parts: rotary positions, blocks, embeddings, and the normalisation of memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from retain.ops.attention import attention
from retain.ops.elementwise import (
    TABLED_POSITIONS,
    TABLES,
    Angles,
    angles,
    at_least_float32,
    product_dtype,
    rms,
    rms_norm,
    rotary,
    squared_relu,
    tabulate,
    take_rows,
)


class Embedding(nn.Embedding):
    """`nn.Embedding`, (...) → (..., width); its gradient stays one call where a compiler for CPUs would write atomic
    additions, which take ten times as long."""

    def __init__(self, count: int, width: int):
        super().__init__(count, width)

    def forward(self, where: Tensor) -> Tensor:
        if torch.compiler.is_compiling() and where.device.type == "cpu":
            return take_rows(self.weight, where)
        return super().forward(where)


def weights_are_constants() -> bool:
    """Whether this may be being compiled for a CPU with weights as constants (`fast_step`).

    Part of a weight must not be taken then: the compiler's own kernels multiply by the weight's beginning instead
    (torch 2.13).
    """
    return torch.compiler.is_compiling() and not torch.is_grad_enabled()


class Norm(nn.Module):
    """RMSNorm over the last axis with a learned gain (Zhang & Sennrich 2019)."""

    def __init__(self, width: int):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.gain)


def ends(keep: slice, length: int) -> tuple[int, int]:
    """Where it begins and ends: what `slice.indices` says, which compilers before torch 2.13 do not follow."""
    first, end = keep.start or 0, length if keep.stop is None else keep.stop
    return first + length * (first < 0), end + length * (end < 0)


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

    def queries_keys_values(self, x: Tensor, turn: Angles) -> tuple[Tensor, Tensor, Tensor]:
        """x (..., S, W) → three of (..., heads, S, W / heads); queries and keys rotated by `turn`."""
        qkv = self.qkv(self.norm_attention(x)).unflatten(-1, (3 * self.heads, -1))  # (..., S, 3 · heads, C)
        qk, v = qkv.split((2 * self.heads, self.heads), -2)
        q, k = rotary(qk, turn).transpose(-2, -3).chunk(2, -3)
        return q, k, v.transpose(-2, -3)

    def mix(self, x: Tensor, heads: Tensor) -> Tensor:
        """The rest of the block: x (..., S, W) and what its heads read (..., heads, S, W / heads)."""
        x = x + self.project(heads.transpose(-2, -3).flatten(-2))
        return x + self.down(squared_relu(self.up(self.norm_mlp(x))))

    def forward(self, x: Tensor, turn: Angles | None, *, causal: bool = False, mask: Tensor | None = None) -> Tensor:
        """x (..., S, W) → the same shape. With no `turn`, S = 1: alone, a token reads its own value and no more."""
        if turn is None:
            normed = self.norm_attention(x)
            if weights_are_constants():
                return self.mix(x, self.qkv(normed).chunk(3, -1)[2].unsqueeze(-3))
            return self.mix(x, F.linear(normed, self.qkv.weight.chunk(3)[2]).unsqueeze(-3))
        q, k, v = self.queries_keys_values(x, turn)
        return self.mix(x, attention(q, k, v, causal=causal, mask=mask))

    def some(self, x: Tensor, turn: Angles, keep: slice, *, causal: bool = False, mask: Tensor | None = None) -> Tensor:
        """`forward` of the positions `keep` alone, whose queries and feed-forward are all that is computed.

        `mask` must be the same for all queries.
        """
        normed = self.norm_attention(x)
        if weights_are_constants():
            q, k, v = self.qkv(normed).unflatten(-1, (3 * self.heads, -1)).chunk(3, -2)
            q = q[..., keep, :, :]
        else:
            of_q, of_kv = self.qkv.weight.split((x.shape[-1], 2 * x.shape[-1]))
            q = F.linear(normed[..., keep, :], of_q).unflatten(-1, (self.heads, -1))
            k, v = F.linear(normed, of_kv).unflatten(-1, (2 * self.heads, -1)).chunk(2, -2)
        q, k = rotary(q, (turn[0][keep], turn[1][keep])), rotary(k, turn)
        first, end = ends(keep, x.shape[-2])
        if causal and (first, end) != (x.shape[-2] - 1, x.shape[-2]):  # the last looks everywhere
            positions = torch.arange(x.shape[-2], device=x.device)
            before = positions <= positions[keep, None]
            mask = before if mask is None else mask & before
        heads = attention(*(part.transpose(-2, -3) for part in (q, k, v)), mask=mask)
        return self.mix(x[..., keep, :], heads)


class Transformer(nn.Module):
    """A stack of blocks and a final norm: (..., S, W) → (..., S, W)."""

    def __init__(self, width: int, heads: int, layers: int, recompute: bool = False):
        super().__init__()
        self.recompute = recompute
        self.head_size = width // heads
        tabulate(self.head_size)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = Norm(width)

    def layers(self) -> Iterator[Block]:
        return iter(self.blocks)  # type: ignore[arg-type]

    def angles(self, positions: Tensor, dtype: torch.dtype) -> Angles:
        """What the heads at these positions (S,) are turned by."""
        return angles(positions, self.head_size, dtype)

    def first_angles(self, x: Tensor) -> Angles:
        """`angles` of the positions 0 … S - 1 of x (..., S, W), from the table where they stand in it."""
        length, tabled = x.shape[-2], None
        if x.device.type == "cpu" and length <= TABLED_POSITIONS and x.dtype != torch.float64:
            tabled = TABLES.get((self.head_size, product_dtype(next(self.layers()).qkv.weight)))
        if tabled is None:
            return self.angles(torch.arange(length, device=x.device), x.dtype)
        return tabled[0][:length], tabled[1][:length]

    def through(self, layer: Callable[..., Any], *args: Any, **settings: Any) -> Any:
        """What the layer makes of them; with `recompute` its activations are computed again when they are needed."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(layer, *args, use_reentrant=False, preserve_rng_state=False, **settings)
        return layer(*args, **settings)

    def forward(
        self, x: Tensor, *, keep: slice | None = None, causal: bool = False, mask: Tensor | None = None
    ) -> Tensor:
        """`keep`: return these positions alone, and compute no more of the last block than they need."""
        turn = None
        if x.shape[-2] > 1 or mask is not None:
            turn = self.first_angles(x)
        *before, last = self.layers()
        for block in before:
            x = self.through(block, x, turn, causal=causal, mask=mask)
        if keep is None or turn is None or x.shape[-2] == 1:
            x = self.through(last, x, turn, causal=causal, mask=mask)
        else:
            x = self.through(last.some, x, turn, keep, causal=causal, mask=mask)
        normed: Tensor = self.norm(x)
        return normed


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

    def __init__(self, kind: Literal["rms", "batch"], tokens: int, width: int, momentum: float = 0.1):
        super().__init__()
        self.kind, self.momentum = kind, momentum
        if kind == "batch":
            self.register_buffer("mean", torch.zeros(tokens, width))
            self.register_buffer("variance", torch.ones(tokens, width))
            self.register_buffer("seen", torch.zeros(()))

    def forward(self, memory: Tensor, counted: Tensor | None = None) -> Tensor:
        """`counted` (…) bool: only these are in the statistics; without it all are."""
        memory = at_least_float32(memory)
        if self.kind == "rms":
            return rms(memory)
        if self.training:
            mean, variance, count = moments(memory, counted)
            if dist.is_initialized() and dist.get_world_size() > 1:
                own = torch.stack([mean, variance, count.expand_as(mean)])
                means, variances, counts = _OfAllProcesses.apply(own).unbind(1)
                count = counts.sum(0)
                share = counts / count.clamp_min(1)
                mean = (share * means).sum(0)
                variance = (share * (variances + (means - mean).square())).sum(0)  # Chan, Golub & LeVeque 1979
            with torch.no_grad():
                # A plain average at first, so that the statistics are usable from the first step on.
                some = (count > 0).all()  # of no memory there is nothing to learn
                self.seen += some
                weight = torch.clamp(1 / self.seen.clamp_min(1), min=self.momentum) * some
                self.mean.lerp_(mean, weight)
                self.variance.lerp_(variance, weight)
        else:
            mean, variance = self.mean, self.variance
        return (memory - mean) * torch.rsqrt(variance + 1e-5)


def moments(memory: Tensor, counted: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance (K, D) of memory (…, K, D), and of how many they are; `counted` (…) as in `MemoryNorm`."""
    axes = tuple(range(memory.dim() - 2))
    # Not the mean square less the squared mean: those cancel where memories lie far from 0.
    if counted is None:
        mean = memory.mean(axes)
        count = memory.new_full((), memory.shape[:-2].numel())
        return mean, (memory - mean).square().mean(axes), count
    left_out, count = ~counted[..., None, None], counted.sum().to(memory.dtype)
    mean = memory.masked_fill(left_out, 0).sum(axes) / count.clamp_min(1)
    return mean, (memory - mean).masked_fill(left_out, 0).square().sum(axes) / count.clamp_min(1), count


def counted_memories(real: Tensor) -> Tensor:
    """Which of m_0 … m_T count, (B, T + 1), where real (B, T) says which tokens are no padding: m_0, and each that a
    real token has made."""
    return F.pad(real, (1, 0), value=True)


class _OfAllProcesses(torch.autograd.Function):
    """A tensor of every process, stacked in the order of ranks; the gradient of each is summed over the processes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        gathered = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, x.contiguous())
        return torch.stack(gathered)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad[dist.get_rank()]

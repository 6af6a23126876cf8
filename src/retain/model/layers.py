"""Transformer parts: embeddings, norms and blocks with rotary positions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from retain.ops.attention import attention
from retain.ops.elementwise import (
    TABLED_POSITIONS,
    TABLES,
    Angles,
    angles,
    product_dtype,
    rms_norm,
    rotary,
    squared_relu,
    tabulate,
    take_rows,
)


class Embedding(nn.Embedding):
    """`nn.Embedding` whose gradient stays one operation when it is compiled.

    On a CPU the compiler would generate atomic additions, which take ten times as long.
    """

    def forward(self, where: Tensor) -> Tensor:
        """Embed tokens (...) as (..., width)."""
        if torch.compiler.is_compiling() and where.device.type == "cpu":
            return take_rows(self.weight, where)
        return super().forward(where)


def are_weights_constants() -> bool:
    """Whether the caller may be compiled for a CPU right now, with weights as constants (`fast_step`).

    The caller must not slice a weight then: the compiler's kernels multiply by the start of the weight instead (torch
    2.13).
    """
    return torch.compiler.is_compiling() and not torch.is_grad_enabled()


class Norm(nn.Module):
    """RMSNorm over the last axis with a learned gain (Zhang & Sennrich 2019)."""

    def __init__(self, width: int):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (..., width)."""
        return rms_norm(x, self.gain)


def start_at_zero(out: nn.Linear, gates: int | None = None) -> None:
    """Initialise a cell's last map to zero, and its gates (the outputs from `gates` on) to keep most of the memory."""
    nn.init.zeros_(out.weight)
    nn.init.zeros_(out.bias)
    if gates is not None:
        nn.init.constant_(out.bias[gates:], -1.0)


def _ends(keep: slice, length: int) -> tuple[int, int]:
    """Return start and stop as `slice.indices` does, which torch.compile cannot trace before torch 2.13."""
    first, end = keep.start or 0, length if keep.stop is None else keep.stop
    return first + length * (first < 0), end + length * (end < 0)


class Block(nn.Module):
    """Pre-norm attention and feed-forward (4 x width), with rotary positions on queries and keys.

    The width W of a token is a multiple of 2 · heads.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm_attention = Norm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.project = nn.Linear(width, width, bias=False)
        self.norm_mlp = Norm(width)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)
        # A deep stack learns from the first step if its blocks start as the identity, which helps short runs.
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.down.weight)

    def queries_keys_values(self, x: Tensor, turn: Angles) -> tuple[Tensor, Tensor, Tensor]:
        """Project x (..., S, W) to queries and keys, rotated by `turn`, and values: (..., heads, S, W / heads) each."""
        qkv = self.qkv(self.norm_attention(x)).unflatten(-1, (3 * self.heads, -1))  # (..., S, 3 · heads, C)
        qk, v = qkv.split((2 * self.heads, self.heads), -2)
        q, k = rotary(qk, turn).transpose(-2, -3).chunk(2, -3)
        return q, k, v.transpose(-2, -3)

    def mix(self, x: Tensor, heads: Tensor) -> Tensor:
        """Run the rest of the block on x (..., S, W) and the outputs of its heads (..., heads, S, W / heads)."""
        x = x + self.project(heads.transpose(-2, -3).flatten(-2))
        mixed: Tensor = x + self.down(squared_relu(self.up(self.norm_mlp(x))))
        return mixed

    def forward(self, x: Tensor, turn: Angles | None, *, causal: bool = False, mask: Tensor | None = None) -> Tensor:
        """Run the block on x (..., S, W). Without `turn`, S is 1: a single token attends to itself alone."""
        if turn is None:
            normed = self.norm_attention(x)
            if are_weights_constants():
                return self.mix(x, self.qkv(normed).chunk(3, -1)[2].unsqueeze(-3))
            return self.mix(x, F.linear(normed, self.qkv.weight.chunk(3)[2]).unsqueeze(-3))
        q, k, v = self.queries_keys_values(x, turn)
        return self.mix(x, attention(q, k, v, causal=causal, mask=mask))

    def some(self, x: Tensor, turn: Angles, keep: slice, *, causal: bool = False, mask: Tensor | None = None) -> Tensor:
        """Compute `forward` (the naive twin) at the positions `keep` alone, without other queries and feed-forwards.

        `mask` must be the same for all queries.
        """
        normed = self.norm_attention(x)
        if are_weights_constants():
            q, k, v = self.qkv(normed).unflatten(-1, (3 * self.heads, -1)).chunk(3, -2)
            q = q[..., keep, :, :]
        else:
            of_q, of_kv = self.qkv.weight.split((x.shape[-1], 2 * x.shape[-1]))
            q = F.linear(normed[..., keep, :], of_q).unflatten(-1, (self.heads, -1))
            k, v = F.linear(normed, of_kv).unflatten(-1, (2 * self.heads, -1)).chunk(2, -2)
        q, k = rotary(q, (turn[0][keep], turn[1][keep])), rotary(k, turn)
        first, end = _ends(keep, x.shape[-2])
        if causal and (first, end) != (x.shape[-2] - 1, x.shape[-2]):  # the last position sees all
            positions = torch.arange(x.shape[-2], device=x.device)
            before = positions <= positions[keep, None]
            mask = before if mask is None else mask & before
        heads = attention(*(part.transpose(-2, -3) for part in (q, k, v)), mask=mask)
        return self.mix(x[..., keep, :], heads)


class Transformer(nn.Module):
    """A stack of blocks and a final norm. With `recompute` the backward pass recomputes the layers' activations."""

    def __init__(
        self,
        width: int,
        heads: int,
        layers: int,
        recompute: bool = False,
        block: Callable[[int, int], Block] = Block,
    ):
        super().__init__()
        self.recompute = recompute
        self.head_size = width // heads
        tabulate(self.head_size)
        self.blocks = nn.ModuleList(block(width, heads) for _ in range(layers))
        self.norm = Norm(width)

    def layers(self) -> Iterator[Block]:
        """Iterate over the blocks."""
        return iter(self.blocks)  # type: ignore[arg-type]

    def angles(self, positions: Tensor, dtype: torch.dtype) -> Angles:
        """Compute the rotary angles of the heads at these positions (S,)."""
        return angles(positions, self.head_size, dtype)

    def first_angles(self, x: Tensor) -> Angles:
        """Return `angles` of the positions 0 … S - 1 of x (..., S, W), from the table if the table has them."""
        length, tabled = x.shape[-2], None
        if x.device.type == "cpu" and length <= TABLED_POSITIONS and x.dtype != torch.float64:
            tabled = TABLES.get((self.head_size, product_dtype(next(self.layers()).qkv.weight)))
        if tabled is None:
            return self.angles(torch.arange(length, device=x.device), x.dtype)
        return tabled[0][:length], tabled[1][:length]

    def through(self, layer: Callable[..., Any], *args: Any, **settings: Any) -> Any:
        """Run a layer. With `recompute` the backward pass recomputes its activations."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(layer, *args, use_reentrant=False, preserve_rng_state=False, **settings)
        return layer(*args, **settings)

    def forward(
        self, x: Tensor, *, keep: slice | None = None, causal: bool = False, mask: Tensor | None = None
    ) -> Tensor:
        """Run the stack.

        Args:
            x: The tokens, (..., S, W).
            keep: The positions to return, all by default. The last block computes only what these positions need.
            causal: Whether position i sees only positions 0 … i.
            mask: True where a position may attend; broadcastable to (..., heads, S, S).

        Returns:
            The tokens at `keep`, (..., S, W).
        """
        turn = self.first_angles(x) if x.shape[-2] > 1 or mask is not None else None
        *before, last = self.layers()
        for block in before:
            x = self.through(block, x, turn, causal=causal, mask=mask)
        if keep is None or turn is None or x.shape[-2] == 1:
            x = self.through(last, x, turn, causal=causal, mask=mask)
        else:
            x = self.through(last.some, x, turn, keep, causal=causal, mask=mask)
        normed: Tensor = self.norm(x)
        return normed

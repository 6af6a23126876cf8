"""Operations on each number, pair or row: rotary positions, squared ReLU, RMSNorm, embeddings.

If `is_by_hand` holds, gradients are hand-written. Each such function ends with its naive twin, which autograd
differentiates. The twin has the same values and gradients, in more passes over memory.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

TABLED_POSITIONS = 1026
"""The angles of this many rotary positions are in a table on a CPU. Without it, compiled code would compute a cosine
for every number that it rotates (a tenth of a compiled step of BPTT), and a step of one token would make a dozen more
small calls."""

EPS = 1e-6
"""Added to a mean square before its root."""


def at_least_float32(x: Tensor) -> Tensor:
    """Widen x to float32 if it is narrower: half precision is for matrix products, float64 for exact comparisons."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def product_dtype(weight: Tensor) -> torch.dtype:
    """Return the dtype that a product with `weight` is computed in: its own, or that of autocast."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def is_by_hand(x: Tensor) -> bool:
    """Whether hand-written gradients are faster: on a CPU, unless a compiler fuses autograd's."""
    return x.device.type == "cpu" and x.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling()


class _Rotary(torch.autograd.Function):
    """A rotation of every pair, in half as many passes as autograd's.

    A rotation's matrix is orthogonal, so the gradient is rotated by its transpose: by the same angles, backwards.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(grad, cos, -sin), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pair (a, b) of dimensions i and i + C / 2 into (a cos - b sin, b cos + a sin)."""
    half = x.shape[-1] // 2
    # Whole rows: products of half a row at a time take three times as long in bfloat16.
    return (x * cos).addcmul_(torch.cat([x[..., half:], x[..., :half]], -1), sin)


Angles = tuple[Tensor, Tensor]
"""The angles of S rotary positions, two tensors (S, 1, C): the cosines twice; the negative sines, then the sines."""


def angles(positions: Tensor, size: int, dtype: torch.dtype) -> Angles:
    """Compute the angles by which `rotary` turns heads of `size` C at positions (S,), in float32 at least."""
    half = size // 2
    dtype = torch.promote_types(dtype, torch.float32)
    frequency = 10000.0 ** (-torch.arange(half, device=positions.device, dtype=dtype) / half)
    angle = positions[:, None, None].to(dtype) * frequency
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)


TABLES: dict[tuple[int, torch.dtype], Angles] = {}
"""Angles of the positions 0 … TABLED_POSITIONS - 1, by the size of the heads and the dtype."""


def tabulate(size: int) -> None:
    """Put the angles of heads of `size` into the table."""
    if (size, torch.float32) in TABLES:
        return
    with torch.inference_mode(False), torch.no_grad():
        cos, sin = angles(torch.arange(TABLED_POSITIONS, device="cpu"), size, torch.float32)
        for dtype in (torch.float32, torch.bfloat16):
            TABLES[size, dtype] = cos.to(dtype), sin.to(dtype)


def rotary(x: Tensor, turn: Angles) -> Tensor:
    """Rotate x (..., S, heads, C) by the angles `turn` of its S positions: rotary embedding (Su et al. 2021)."""
    cos, sin = (part.to(x.dtype) for part in turn)
    if is_by_hand(x):
        rotated: Tensor = _Rotary.apply(x, cos, sin)
        return rotated
    half = x.shape[-1] // 2
    return x * cos + torch.cat([x[..., half:], x[..., :half]], -1) * sin


class _SquaredReLU(torch.autograd.Function):
    """y² with y = relu(x). The derivative is 2 y, which is already 0 if x is negative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.relu()
        ctx.save_for_backward(y)
        return y * y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        y: Tensor = ctx.saved_tensors[0]
        return (grad * y).mul_(2)


def squared_relu(x: Tensor) -> Tensor:
    """Compute relu(x)² (So et al. 2021)."""
    if is_by_hand(x):
        squared: Tensor = _SquaredReLU.apply(x)
        return squared
    # Not `.square()`: a power, which autocast on CUDA computes in float32.
    y = x.relu()
    return y * y


class _RMSNorm(torch.autograd.Function):
    """n g with n = s x, s = 1 / rms(x) and a gain g.

    Let e be the gradient of n g. The gradient of n is g e. As ds / dx = -s² n / C, the gradient of x is
    s (g e - n · mean(n g e)), with the mean over the C numbers.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor) -> Tensor:
        size = x.shape[-1]
        scale: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(size).add_(EPS).rsqrt_()
        normed = x * scale
        ctx.save_for_backward(normed, scale, gain)
        return normed * gain

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        normed, scale, gain = ctx.saved_tensors
        product = grad * normed
        along = (product @ gain).unsqueeze(-1).div_(-normed.shape[-1])
        return torch.addcmul(grad * gain, normed, along).mul_(scale), product.reshape(-1, len(gain)).sum(0)


def rms_norm(x: Tensor, gain: Tensor) -> Tensor:
    """Normalise x (..., C) by its root mean square and scale it by gain (C,), in the dtype of x."""
    gain = gain.to(x.dtype)
    if is_by_hand(x) and x.dtype in (torch.float32, torch.float64):
        normed: Tensor = _RMSNorm.apply(x, gain)
        return normed
    return F.rms_norm(x, gain.shape, gain, EPS)


def rms(x: Tensor) -> Tensor:
    """Divide x by its root mean square over the last axis."""
    return F.rms_norm(x, x.shape[-1:], eps=EPS)


@torch.library.custom_op("retain::add_rows", mutates_args=())
def _add_rows(rows: Tensor, where: Tensor, count: int) -> Tensor:
    """Sum rows (..., C) into a table (count, C) at the indices `where` (...)."""
    table: Tensor = torch.ops.aten.embedding_dense_backward(rows, where, count, -1, False)
    return table


@_add_rows.register_fake
def _(rows: Tensor, where: Tensor, count: int) -> Tensor:
    return rows.new_empty(count, rows.shape[-1])


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, where: Tensor) -> Tensor:
        ctx.save_for_backward(where)
        ctx.count = len(table)
        return F.embedding(where, table)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _add_rows(grad, ctx.saved_tensors[0], ctx.count), None


def take_rows(table: Tensor, where: Tensor) -> Tensor:
    """Take the rows of a table (count, C) at the indices `where` (...), in compiled code.

    The gradient is one call that is opaque to the compiler. The naive twin is `F.embedding`.
    """
    rows: Tensor = _Rows.apply(table, where)
    return rows

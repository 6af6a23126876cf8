"""The gated cell over a sequence, with its gradient written out.

Step by step, autograd runs a dozen small operations for each of f's, and a product for the gradient of each weight at
each token. Here what does not wait for the step before is done for all steps at once: biases and inputs beforehand, the
gradients of the weights afterwards, one product each. Values and gradients are those of `GatedCell.forward`. Where the
gradient is cut every so many steps, it goes back through all the stretches between side by side. On a GPU the chain of
small operations that is left is replayed as one.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from retain.ops.elementwise import EPS
from retain.ops.graphs import Replayed
from retain.ops.stretches import Cut, Stretches


def gated_rollout(
    memory: Tensor, inputs: Tensor, gain: Tensor, from_memory: Tensor, out: Tensor, cut: Cut | None = None
) -> Tensor:
    """Memories after each input, (T, N, S), from memory (N, S).

    inputs (T, N, H + 2 S): projected, all biases added, in the dtype of the products, as are the weights from_memory
    (H + 2 S, S) and out (2 S, H). gain (S,) is that of the norm. Memory keeps its dtype.
    """
    needed = (memory, inputs, gain, from_memory, out)
    if torch.is_grad_enabled() and any(x.requires_grad for x in needed):
        memories: Tensor = _GatedRollout.apply(*needed, cut or (0, len(inputs)))
        return memories
    return replayed_forward(*needed, False)[0]


def _forward(
    memory: Tensor, inputs: Tensor, gain: Tensor, from_memory: Tensor, out: Tensor, keep: bool
) -> tuple[Tensor, ...]:
    """Memories; with `keep` also relus (T, N, H) and both (T, N, 2 S): candidate and gate before its sigmoid."""
    width, size = out.shape[1], memory.shape[-1]
    memories = memory.new_empty(len(inputs), *memory.shape)
    relus, both = (inputs.new_empty(len(inputs) if keep else 1, len(memory), n) for n in (width, 2 * size))
    from_memory, out = from_memory.t(), out.t()
    for t, projected in enumerate(inputs):
        i = t if keep else 0
        normed = F.rms_norm(memory, gain.shape, gain, EPS).to(inputs.dtype)
        hidden, linear = torch.addmm(projected, normed, from_memory).split((width, 2 * size), -1)
        relu = torch.clamp_min(hidden, 0, out=relus[i])
        # Not `.square()`: a power, which autocast on CUDA computes in float32.
        c_z = torch.addmm(linear, relu * relu, out, out=both[i])
        candidate, gate = c_z.to(memory.dtype).chunk(2, -1)
        memory = torch.lerp(memory, candidate, gate.sigmoid(), out=memories[t])
    return (memories, relus, both) if keep else (memories,)


class _GatedRollout(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, memory: Tensor, inputs: Tensor, gain: Tensor, from_memory: Tensor, out: Tensor, cut: Cut
    ) -> Tensor:
        ctx.cut = cut
        memories, relus, both = replayed_forward(memory, inputs, gain, from_memory, out, True)
        ctx.save_for_backward(memory, memories, gain, from_memory, out, relus, both)
        return memories

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        memory, memories, gain, from_memory, out, relus, both = ctx.saved_tensors
        streams = grad.shape[1]
        laid = Stretches(len(grad), streams, ctx.cut, grad.device)
        grad, before = laid.lay_gradient(grad), laid.lay(torch.cat([memory[None], memories[:-1]]))
        kept = grad, before, laid.lay(relus), laid.lay(both)
        of_memory, of_inputs, *of_weights = replayed_backward(*kept, gain, from_memory, out, streams, laid.comes_around)
        return of_memory, laid.back(of_inputs), *of_weights, None


def _backward(
    grad: Tensor,
    before: Tensor,
    relus: Tensor,
    both: Tensor,
    gain: Tensor,
    from_memory: Tensor,
    out: Tensor,
    streams: int,
    comes_around: int | None,
) -> tuple[Tensor, ...]:
    """Gradients of memory, inputs, gain, from_memory and out, from that of the memories, as `Stretches` lays them."""
    size, width = grad.shape[2], relus.shape[-1]
    scale = before.square().mean(-1, keepdim=True).add_(EPS).rsqrt_()
    normed = before * scale
    candidate, gate = both.to(before.dtype).chunk(2, -1)
    z = gate.sigmoid()
    of_gate = (candidate - before).mul_(z).mul_(1 - z)  # what m_{t+1} changes by, per change of the gate
    kept, twice = 1 - z, 2 * relus
    of_inputs = both.new_empty(*both.shape[:2], width + 2 * size)  # gradient of hidden, candidate and gate
    of_scaled = both.new_empty(normed.shape)  # of what the norm and its gain give
    of_memory = None
    after = torch.zeros_like(before[0])  # gradient that comes back from later steps
    for t in range(len(grad) - 1, -1, -1):
        after = after + grad[t]
        here = of_inputs[t]
        torch.mul(after, z[t], out=here[:, width : width + size])
        torch.mul(after, of_gate[t], out=here[:, width + size :])
        torch.mul(here[:, width:] @ out, twice[t], out=here[:, :width])
        of_normed = torch.mm(here, from_memory, out=of_scaled[t]) * gain
        along = (of_normed * normed[t]).mean(-1, keepdim=True)
        after = of_normed.addcmul_(normed[t], along, value=-1).mul_(scale[t]).addcmul_(after, kept[t])
        if t == comes_around:
            of_memory = after[-streams:].clone()
            after[-streams:] = 0
    flat = of_inputs.flatten(0, 1)
    of_from_memory = flat.t() @ (normed * gain).to(flat.dtype).flatten(0, 1)
    of_out = flat[:, width:].t() @ (relus * relus).flatten(0, 1)
    of_memory = after[:streams] if of_memory is None else of_memory
    return of_memory, of_inputs, (of_scaled * normed).sum((0, 1)), of_from_memory, of_out


replayed_forward, replayed_backward = Replayed(_forward, steps=1), Replayed(_backward, steps=0)

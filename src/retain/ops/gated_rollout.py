"""The gated cell over a sequence, with a hand-written gradient.

Step by step, autograd runs a dozen small operations for each step of f, and a product for the gradient of each weight
at each token. Here all work that does not depend on the step before is done for all steps at once: biases and inputs
beforehand, the gradients of the weights afterwards, one product each. If the gradient is cut, it goes back through all
windows in parallel. On a GPU the remaining chain of small operations is replayed as one CUDA graph.

The naive twin, with the same values and gradients, is `GatedCell.forward`, step by step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from retain.ops.elementwise import EPS
from retain.ops.graphs import Replayed
from retain.ops.windows import Cut, roll


def gated_rollout(
    memory: Tensor, inputs: Tensor, gain: Tensor, from_memory: Tensor, out: Tensor, cut: Cut | None = None
) -> Tensor:
    """Roll out a gated cell of memory size S and hidden width H.

    Args:
        memory: The memory before the first step, (N, S).
        inputs: The projected inputs with all biases added, (T, N, H + 2 S), in the dtype of the products.
        gain: The gain of the norm, (S,), in the dtype of the memory.
        from_memory: A weight (H + 2 S, S), in the dtype of the products.
        out: A weight (2 S, H), in the dtype of the products.
        cut: Where the gradient is cut; None never cuts it.

    Returns:
        The memories after each input, (T, N, S), in the dtype of the memory.
    """
    return roll((replayed_forward, replayed_backward), [memory], inputs, [gain, from_memory, out], cut)[0]


def _forward(keep: bool, memory: Tensor, inputs: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    """Return memories; with `keep` also relus (T, N, H) and both (T, N, 2 S), candidate and gate before its sigmoid."""
    gain, from_memory, out = weights
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


def _backward(streams: int, comes_around: int | None, grad: Tensor, *saved: Tensor) -> tuple[Tensor, ...]:
    """Compute the gradients of memory, inputs, gain, from_memory and out from that of the memories (see `Windows`).

    Let d be the gradient of m' = m + z (c - m). The gradient of c is z d, and that of the gate is z (1 - z) (c - m) d.
    The gradient of m is (1 - z) d plus s (e - n · mean(n e)), with e the gradient of the norm n = s m, s = 1 / rms(m).
    """
    before, gain, from_memory, out, relus, both = saved
    size, width = grad.shape[2], relus.shape[-1]
    scale = before.square().mean(-1, keepdim=True).add_(EPS).rsqrt_()
    normed = before * scale
    candidate, gate = both.to(before.dtype).chunk(2, -1)
    z = gate.sigmoid()
    of_gate = (candidate - before).mul_(z).mul_(1 - z)  # derivative of m_{t+1} with respect to the gate
    kept, twice = 1 - z, 2 * relus
    of_inputs = both.new_empty(*both.shape[:2], width + 2 * size)  # gradient of hidden, candidate and gate
    of_scaled = both.new_empty(normed.shape)  # gradient of the normalised and scaled memory
    of_memory = None
    after = torch.zeros_like(before[0])  # gradient from later steps
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


replayed_forward, replayed_backward = Replayed(_forward, steps=2), Replayed(_backward, steps=2)

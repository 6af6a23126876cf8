"""The delta cell over a sequence, with a hand-written gradient like that of `gated_rollout` for the gated cell.

Reading a store and writing to it are products of small matrices, one for each stream. They stay in the memory's
precision, also under autocast.

The naive twin, with the same values and gradients, is `DeltaCell.forward`, step by step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from retain.ops.elementwise import EPS
from retain.ops.graphs import Replayed
from retain.ops.windows import Cut, roll

SMALLEST = 1e-12
"""The least length that an address is divided by to normalise it, as in `F.normalize`."""


def delta_rollout(
    register: Tensor, store: Tensor, inputs: Tensor, *weights: Tensor, cut: Cut | None = None
) -> tuple[Tensor, ...]:
    """Roll out a delta cell with s stores, memory width D = n² and hidden width H.

    Args:
        register: The register before the first step, (N, D).
        store: The stores before the first step, (N, s, n, n).
        inputs: The projected inputs with all biases added, (T, N, M) with M = H + 2 D + 3 s n + s, in the dtype of the
            products.
        *weights: The gain (D,) of the norm, in the dtype of the register; from_memory (M, D), from_store (H + 2 D, s n)
            and out (2 D, H), in the dtype of the products.
        cut: Where the gradient is cut; None never cuts it.

    Returns:
        Registers (T, N, D) and stores (T, N, s, n, n) after each input, in their own dtype.
    """
    return roll((replayed_forward, replayed_backward), [register, store], inputs, weights, cut)


@dataclass
class _Kept:
    """Values of each step that the gradient needs, (T, N, …); without a gradient those of one step, overwritten."""

    relus: Tensor  # (…, H)
    both: Tensor  # (…, 2 D): candidate and gate before its sigmoid
    lengths: Tensor  # (…, s, 2, 1): of the addresses before normalisation
    addresses: Tensor  # (…, s, 2, n): to read from, and to write to
    found: Tensor  # (…, s, 2, n): the stored values at the addresses
    missing: Tensor  # (…, s, n): the new value minus the stored one
    rates: Tensor  # (…, s, 1)


def _room(steps: int, store: Tensor, inputs: Tensor, out: Tensor) -> _Kept:
    (size, width), (streams, stores, side) = out.shape, store.shape[:3]
    return _Kept(
        relus=inputs.new_empty(steps, streams, width),
        both=inputs.new_empty(steps, streams, size),
        lengths=store.new_empty(steps, streams, stores, 2, 1),
        addresses=store.new_empty(steps, streams, stores, 2, side),
        found=store.new_empty(steps, streams, stores, 2, side),
        missing=store.new_empty(steps, streams, stores, side),
        rates=store.new_empty(steps, streams, stores, 1),
    )


def _forward(keep: bool, register: Tensor, store: Tensor, inputs: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    """Return registers and stores; with `keep` also the fields of `_Kept`."""
    gain, from_memory, from_store, out = weights
    (size, width), (stores, side), dtype = out.shape, store.shape[1:3], store.dtype
    places = stores * side
    k = _room(len(inputs) if keep else 1, store, inputs, out)
    registers = register.new_empty(len(inputs), *register.shape)
    held = store.new_empty(len(inputs), *store.shape)
    from_memory, from_store, out = from_memory.t(), from_store.t(), out.t()
    with torch.autocast(register.device.type, enabled=False):
        for t, said in enumerate(inputs):
            i = t if keep else 0
            normed = F.rms_norm(register, gain.shape, gain, EPS).to(inputs.dtype)
            mixed = torch.addmm(said, normed, from_memory)
            gated, asked, value, rate = mixed.split((width + size, 2 * places, places, stores), -1)
            asked = asked.to(dtype).unflatten(-1, (2, stores, side)).transpose(1, 2)
            lengths = torch.linalg.vector_norm(asked, dim=-1, keepdim=True, out=k.lengths[i]).clamp_min_(SMALLEST)
            addresses = torch.div(asked, lengths, out=k.addresses[i])
            read, old = torch.matmul(addresses, store, out=k.found[i]).unbind(2)
            missing = torch.sub(value.to(dtype).unflatten(-1, (stores, side)), old, out=k.missing[i])
            new = missing * torch.sigmoid(rate.to(dtype)[..., None], out=k.rates[i])
            store = torch.addcmul(store, addresses[:, :, 1, :, None], new[:, :, None], out=held[t])
            gated = torch.addmm(gated, read.flatten(1).to(inputs.dtype), from_store)
            hidden, linear = gated.split((width, size), -1)
            relu = torch.clamp_min(hidden, 0, out=k.relus[i])
            both = torch.addmm(linear, relu * relu, out, out=k.both[i])
            candidate, gate = both.to(register.dtype).chunk(2, -1)
            register = torch.lerp(register, candidate, gate.sigmoid(), out=registers[t])
    return (registers, held, *vars(k).values()) if keep else (registers, held)


def _backward(
    streams: int, comes_around: int | None, grad: Tensor, grad_store: Tensor, *saved: Tensor
) -> tuple[Tensor, ...]:
    """Compute the gradients of register, store, inputs and weights from those of registers and stores (see `Windows`).

    Let G be the gradient of S' = S + a_w (β e)ᵀ with e = v - Sᵀa_w, and of_old = -β Gᵀa_w. The gradient of β e is
    Gᵀa_w, that of a_w is G β e + S of_old, and that of S is G + a_w of_oldᵀ. For an address
    a = b / l normalised by its length l, with gradient d, the gradient of b is (d - a aᵀd) / l.
    """
    before, before_store, gain, from_memory, from_store, out, *kept = saved
    (size, width), (stores, side) = out.shape, before_store.shape[2:4]
    places, gated = stores * side, width + size
    k = _Kept(*kept)
    scale = before.square().mean(-1, keepdim=True).add_(EPS).rsqrt_()
    normed = before * scale
    candidate, gate = k.both.to(before.dtype).chunk(2, -1)
    z = gate.sigmoid()
    of_gate = (candidate - before).mul_(z).mul_(1 - z)  # derivative of the register with respect to the gate
    stays, twice = 1 - z, 2 * k.relus
    new, of_rate = (k.rates * k.missing)[..., None], k.missing * (k.rates * (1 - k.rates))
    # The gradient of each part of `mixed`.
    of_inputs = k.both.new_empty(*before.shape[:2], from_memory.shape[0])
    of_gated, of_asked, of_value, of_rates = of_inputs.split((gated, 2 * places, places, stores), -1)
    of_hidden, of_both = of_gated.split((width, size), -1)
    of_candidate, of_z = of_both.chunk(2, -1)
    of_asked = of_asked.unflatten(-1, (2, stores, side)).transpose(2, 3)  # (T, N, s, 2, n)
    of_value = of_value.unflatten(-1, (stores, side))
    of_scaled = k.both.new_empty(normed.shape)  # gradient of the normalised and scaled register
    of_found = torch.empty_like(k.found[0])
    after, after_store = torch.zeros_like(before[0]), torch.zeros_like(before_store[0])
    of_start: list[Tensor] = []
    with torch.autocast(grad.device.type, enabled=False):
        for t in range(len(grad) - 1, -1, -1):
            after, after_store = after + grad[t], after_store + grad_store[t]
            addresses = k.addresses[t]
            of_new = (addresses[:, :, 1:] @ after_store)[:, :, 0]  # (N, s, n)
            of_rates[t] = (of_new * of_rate[t]).sum(-1)
            of_old = torch.mul(of_new, k.rates[t], out=of_found[:, :, 1])
            of_value[t] = of_old
            of_old.neg_()
            torch.mul(after, z[t], out=of_candidate[t])
            torch.mul(after, of_gate[t], out=of_z[t])
            torch.mul(of_both[t] @ out, twice[t], out=of_hidden[t])
            of_found[:, :, 0] = (of_gated[t] @ from_store).view(-1, stores, side)
            of_addresses = of_found @ before_store[t].mT
            of_addresses[:, :, 1] += (after_store @ new[t])[..., 0]
            after_store = after_store + addresses.mT @ of_found
            along = (of_addresses * addresses).sum(-1, keepdim=True)
            torch.div(of_addresses.addcmul_(addresses, along, value=-1), k.lengths[t], out=of_asked[t])
            of_normed = torch.mm(of_inputs[t], from_memory, out=of_scaled[t]) * gain
            along = (of_normed * normed[t]).mean(-1, keepdim=True)
            after = of_normed.addcmul_(normed[t], along, value=-1).mul_(scale[t]).addcmul_(after, stays[t])
            if t == comes_around:
                of_start = [after[-streams:].clone(), after_store[-streams:].clone()]
                after[-streams:], after_store[-streams:] = 0, 0
        flat, flat_gated = of_inputs.flatten(0, 1), of_gated.flatten(0, 1)
        read = k.found[..., 0, :].to(flat.dtype).reshape(len(flat), places)
        of_from_memory = flat.t() @ (normed * gain).to(flat.dtype).flatten(0, 1)
        of_from_store = flat_gated.t() @ read
        of_out = flat_gated[:, width:].t() @ (k.relus * k.relus).flatten(0, 1)
    of_register, of_store = of_start or (after[:streams], after_store[:streams])
    of_gain = (of_scaled * normed).sum((0, 1))
    return of_register, of_store, of_inputs, of_gain, of_from_memory, of_from_store, of_out


replayed_forward, replayed_backward = Replayed(_forward, steps=3), Replayed(_backward, steps=2)

"""A cell with a register and an associative memory that is written by the delta rule.

Gated cells have no separate place for each value that they read. To bind a value to a key takes a product of the two.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retain.config import CellConfig, MemoryConfig
from retain.model.layers import Norm, start_at_zero
from retain.model.shapes import check_streams
from retain.ops.delta_rollout import delta_rollout
from retain.ops.elementwise import product_dtype, squared_relu
from retain.ops.windows import Cut

LAST = 4
"""Inputs in memory token 1. A key and its value are mostly neighbours, and more inputs are learnt more slowly."""


class DeltaCell(nn.Module):
    """A cell with a gated register (memory token 0), the last LAST inputs (token 1) and stores (each other token).

    A store S is an n × n matrix, D = n². One linear map of register and last inputs gives each store a read address, a
    write address, a value v and a rate β. Addresses a have length 1. Reading gives r = Sᵀa. The delta rule makes of S
    the store S + β a (v - Sᵀa)ᵀ: the new value replaces the one at that address (Schlag et al. 2021). The register is
    then updated as in a `GatedCell`, which also reads r. A store holds about n values, as at most n addresses are
    orthogonal. K is at least 3, and D is the square of an even number. Reads width.
    """

    cuts = True

    def __init__(self, memory: MemoryConfig, config: CellConfig):
        super().__init__()
        size, stores, side = memory.width, memory.tokens - 2, math.isqrt(memory.width)
        self.side, self.stores = side, stores
        gated, places = config.width + 2 * size, stores * side
        self.hidden, self.split = (config.width, 2 * size), (gated, 2 * places, places, stores)
        self.norm = Norm(size)
        self.from_input = nn.Linear(size, size // LAST, bias=False)
        self.from_memory = nn.Linear(size, sum(self.split))
        self.from_last = nn.Linear(size, sum(self.split), bias=False)
        self.from_store = nn.Linear(places, gated, bias=False)
        self.out = nn.Linear(config.width, 2 * size)
        start_at_zero(self.out, gates=size)

    def forward(self, memory: Tensor, inputs: Tensor, projected: bool = False) -> Tensor:
        """Return the next memory from memory (N, K, D) and inputs (N, D), or if `projected` (N, D / LAST)."""
        check_streams(memory, inputs)
        x = (inputs if projected else self.from_input(inputs)).to(memory.dtype)
        last = torch.cat([x, memory[:, 1, : -x.shape[-1]]], -1)  # the newest first; the oldest is dropped
        register, store = self.step(memory[:, 0], self.stored(memory), self.from_last(last))
        return torch.cat([register[:, None], last[:, None], store.flatten(-2)], 1)

    def stored(self, memory: Tensor) -> Tensor:
        """Return the stores (N, stores, address, value) of memory (N, K, D)."""
        return torch.unflatten(memory[:, 2:], -1, (self.side, self.side))

    def step(self, register: Tensor, store: Tensor, from_last: Tensor) -> tuple[Tensor, Tensor]:
        """Update register (N, D) and store (N, stores, n, n) by the projected last inputs, from_last (N, …)."""
        mixed, addresses, value, rate = (self.from_memory(self.norm(register)) + from_last).split(self.split, -1)
        # In the memory's own precision, and without matrix products, which autocast rounds: values that are stored for
        # long must not be rounded at each step.
        shape = (self.stores, self.side)
        value = value.to(store.dtype).unflatten(-1, shape)
        addresses = F.normalize(addresses.to(store.dtype).unflatten(-1, (2, *shape)), dim=-1)[..., None]
        read, old = (addresses * store[:, None]).sum(-2).unbind(1)  # each (N, stores, n)
        x, linear = (mixed + self.from_store(read.flatten(-2))).split(self.hidden, -1)
        candidate, gate = (self.out(squared_relu(x)) + linear).to(register.dtype).chunk(2, -1)
        register = torch.lerp(register, candidate, gate.sigmoid())
        new = rate.to(store.dtype).sigmoid()[..., None] * (value - old)
        return register, torch.addcmul(store, addresses[:, 1], new[..., None, :])

    def rollout(self, memory: Tensor, inputs: Tensor, projected: bool = False, cut: Cut | None = None) -> Tensor:
        """Return the memories (B, T, K, D) after each of the inputs (B, T, D or D / LAST), from memory (B, K, D).

        The last inputs do not depend on earlier steps, so one product projects those of all steps.
        """
        check_streams(memory, inputs)
        x = (inputs if projected else self.from_input(inputs)).to(memory.dtype)
        before = memory[:, 1].unflatten(-1, (LAST, -1)).flip(1)[:, 1:]  # the oldest first
        windows = torch.cat([before, x], 1).unfold(1, LAST, 1).flip(-1)  # (B, T, D / LAST, LAST), the newest first
        last = windows.transpose(-1, -2).flatten(-2)  # (B, T, D)
        if cut is not None:
            first, every = cut
            steps = torch.arange(inputs.shape[1], device=memory.device)
            since = torch.where(steps < (first or every), LAST, (steps - first) % every)  # steps since the cut
            beyond = torch.arange(LAST, device=memory.device) > since[:, None]  # (T, LAST): inputs before the cut
            last = torch.where(beyond.repeat_interleave(x.shape[-1], 1), last.detach(), last)
        dtype = product_dtype(self.out.weight)
        bias = self.from_memory.bias + F.pad(
            self.out.bias, (self.hidden[0], len(self.from_memory.bias) - self.split[0])
        )
        said = self.from_last(last).to(dtype).transpose(0, 1) + bias.to(dtype)  # (T, B, …)
        registers, stores = delta_rollout(
            memory[:, 0],
            self.stored(memory),
            said.contiguous(),
            self.norm.gain.to(memory.dtype),
            self.from_memory.weight.to(dtype),
            self.from_store.weight.to(dtype),
            self.out.weight.to(dtype),
            cut=cut,
        )
        held = stores.transpose(0, 1).flatten(-2)  # (B, T, stores, D)
        return torch.cat([registers.transpose(0, 1)[:, :, None], last[:, :, None], held], 2)

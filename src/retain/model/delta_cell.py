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
OLDER = 0.1
"""Factor of each older input's initial weight in an address."""
VALUES = 10.0
"""Factor of the initial weights of values, so that what is read is large beside the register's other inputs."""


@torch.no_grad()
def link(addresses: Tensor) -> None:
    """Change the initial weights of read and write addresses, (2 s n, D), so that a step writes where the last read.

    Inputs older than the newest count little at first.
    """
    read, write = addresses.unflatten(-1, (LAST, -1)).chunk(2)  # each (s n, LAST, D / LAST)
    read.mul_(OLDER ** torch.arange(LAST)[:, None])
    write[:, 1:], write[:, 0] = read[:, :-1], 0


class DeltaCell(nn.Module):
    """A cell with a gated register (memory token 0), the last LAST inputs (token 1) and stores (each other token).

    A store S is an n × n matrix, D = n². A linear map of the last inputs gives each store a read address and a write
    address of length 1. A linear map of register and last inputs gives it a value v and a rate β. Reading at a gives
    r = Sᵀa. The delta rule makes of S the store S + β a (v - Sᵀa)ᵀ: the new value replaces the one at that address
    (Schlag et al. 2021). The register is then updated as in a `GatedCell`, which also reads r. A store holds about n
    values, as at most n addresses are orthogonal. K is at least 3, and D is the square of an even number. Reads width
    and addresses.

    At first a step writes at the address that the step before read from. So a token reads what followed it the last
    time, without which the gradient did not find recall (docs/log.md, "recall").
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
        self.addressed = config.addresses == "memory"
        self.from_memory = nn.Linear(size, sum(self.split) - (0 if self.addressed else 2 * places))
        self.from_last = nn.Linear(size, sum(self.split), bias=False)
        self.from_store = nn.Linear(places, gated, bias=False)
        self.out = nn.Linear(config.width, 2 * size)
        start_at_zero(self.out, gates=size)
        if not self.addressed:
            with torch.no_grad():
                _, addresses, values, _ = self.from_last.weight.split(self.split)
                link(addresses)
                values.mul_(VALUES)

    def with_addresses(self, of_memory: Tensor, dim: int) -> Tensor:
        """Put zeros where `from_memory` has no part of the addresses."""
        if self.addressed:
            return of_memory
        gated, *others = of_memory.split((self.split[0], sum(self.split[2:])), dim)
        shape = list(gated.shape)
        shape[dim] = self.split[1]
        return torch.cat([gated, gated.new_zeros(shape), *others], dim)

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
        of_memory = self.with_addresses(self.from_memory(self.norm(register)), -1)
        mixed, addresses, value, rate = (of_memory + from_last).split(self.split, -1)
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
        bias = self.with_addresses(self.from_memory.bias, 0)
        bias = bias + F.pad(self.out.bias, (self.hidden[0], len(bias) - self.split[0]))
        said = self.from_last(last).to(dtype).transpose(0, 1) + bias.to(dtype)  # (T, B, …)
        registers, stores = delta_rollout(
            memory[:, 0],
            self.stored(memory),
            said.contiguous(),
            self.norm.gain.to(memory.dtype),
            self.with_addresses(self.from_memory.weight.to(dtype), 0),
            self.from_store.weight.to(dtype),
            self.out.weight.to(dtype),
            cut=cut,
        )
        held = stores.transpose(0, 1).flatten(-2)  # (B, T, stores, D)
        return torch.cat([registers.transpose(0, 1)[:, :, None], last[:, :, None], held], 2)

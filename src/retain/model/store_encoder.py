"""An encoder whose memories have the form of the delta cell's, so that one application of f can follow each step."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retain.config import MemoryConfig, Symbols, TeacherConfig
from retain.model.delta_cell import LAST, VALUES, DeltaCell, link
from retain.model.embeddings import embedding
from retain.model.layers import Norm
from retain.model.likelihood import count_scores
from retain.ops.delta_rule import delta_states
from retain.ops.elementwise import at_least_float32, rms, squared_relu


class StoreTrunk(nn.Module):
    """One layer that writes to stores by the delta rule and reads them, and an MLP on what it reads.

    Addresses, values and rates are linear maps of the last LAST tokens, so the stores after all steps can be computed
    in parallel. Like the cell, a step reads before it writes.
    """

    def __init__(self, symbols: Symbols, memory: MemoryConfig, config: TeacherConfig):
        super().__init__()
        size, self.side = memory.width, math.isqrt(memory.width)
        self.stores = memory.tokens - 2
        places = self.stores * self.side
        self.embed: Any = embedding(symbols, size // LAST)
        self.addresses = nn.Linear(size, 2 * places, bias=False)
        self.values = nn.Linear(size, places, bias=False)
        self.rates = nn.Linear(size, self.stores)
        self.up = nn.Linear(size + places, 4 * config.width)
        self.down = nn.Linear(4 * config.width, config.width)
        self.linear = nn.Linear(size + places, config.width)
        self.norm = Norm(config.width)
        self.head = nn.Linear(config.width, count_scores(symbols))
        with torch.no_grad():
            link(self.addresses.weight)
            self.values.weight.mul_(VALUES)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Read tokens (B, T).

        Returns:
            For t = 0 … T: the embeddings of the last tokens side by side, the newest first, (B, T + 1, D); the stores
            (B, T + 1, stores, n, n); and the layer's outputs (B, T + 1, W).
        """
        padded = F.pad(rms(self.embed(tokens)), (0, 0, LAST, 0))  # no tokens before the first
        last = padded.unfold(1, LAST, 1).flip(-1).transpose(-1, -2).flatten(-2)
        shape = (self.stores, self.side)
        addresses = F.normalize(at_least_float32(self.addresses(last)).unflatten(-1, (2, *shape)), dim=-1)
        read_at, write_at = addresses.transpose(1, 3).unbind(2)  # each (B, stores, T + 1, n)
        values = self.values(last).unflatten(-1, shape).transpose(1, 2)
        rates = self.rates(last).sigmoid().transpose(1, 2)
        rates = F.pad(rates[..., 1:], (1, 0))  # the memory before any token is empty
        stores = delta_states(write_at, values, rates)
        before = F.pad(stores[:, :, :-1], (0, 0, 0, 0, 1, 0))
        read = (read_at[..., None] * before).sum(-2).transpose(1, 2).flatten(2)
        x = torch.cat([last, read.to(last.dtype)], -1)
        return last, stores.transpose(1, 2), self.norm(self.linear(x) + self.down(squared_relu(self.up(x))))


class StoreEncoder(nn.Module):
    """An encoder that gives m_t the three parts of the delta cell's memory (see `retain.model.delta_cell.DeltaCell`).

    The register is a linear map of the trunk's output, the last inputs are embeddings of the last tokens, and the
    stores are those that the trunk writes. So each part of m_{t+1} follows from m_t and x_t by one step of that form.
    No normalisation may change it. There is one layer, so `recompute` changes nothing. Reads width.
    """

    def __init__(self, symbols: Symbols, memory: MemoryConfig, config: TeacherConfig, recompute: bool):
        super().__init__()
        self.trunk = StoreTrunk(symbols, memory, config)
        self.to_register = nn.Linear(config.width, memory.width, bias=False)

    def forward(self, tokens: Tensor, steps: Tensor, logits: bool = True) -> tuple[Tensor, Tensor | None]:
        """Encode tokens (B, T) at steps (S,): memories (B, S, K, D) and, with `logits`, trunk logits (B, T + 1, V)."""
        last, stores, states = self.trunk(tokens)
        parts = self.to_register(states)[:, :, None], last[:, :, None], stores.flatten(-2)
        memory = torch.cat([part.to(stores.dtype) for part in parts], 2)
        wanted = memory if len(steps) == memory.shape[1] else memory[:, steps]
        return wanted, self.trunk.head(states) if logits else None

    @torch.no_grad()
    def start(self, cell: DeltaCell, embed: nn.Module) -> None:
        """Give a new cell and its embedding of tokens the trunk's maps, so that f writes to the stores as the trunk.

        The register remains to be learnt.
        """
        trunk, (_, addresses, values, rates) = self.trunk, cell.from_last.weight.split(cell.split)
        addresses.copy_(trunk.addresses.weight)
        values.copy_(trunk.values.weight)
        rates.copy_(trunk.rates.weight)
        of_register = len(values) + len(rates)
        cell.from_memory.weight[-of_register:].zero_()
        cell.from_memory.bias[-of_register:].zero_()
        cell.from_memory.bias[-len(rates) :].copy_(trunk.rates.bias)
        if isinstance(embed, nn.Embedding):
            width = trunk.embed.weight.shape[1]
            nn.init.eye_(cell.from_input.weight)
            embed.weight[:, :width] = rms(trunk.embed.weight)

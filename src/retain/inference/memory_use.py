"""How many bits an fsq memory can hold, and how many of them are used."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from retain.ops.fsq import number_levels


class MemoryUse:
    """Counts of the levels and of the memories that occur, batch by batch."""

    def __init__(self, levels: int):
        self.levels = levels
        self.counts = torch.zeros(0, dtype=torch.long)
        """How often each number of a memory was at each level, (K · D · levels,)."""
        self.codes: list[Tensor] = []

    def add(self, memory: Tensor, which: Tensor) -> None:
        """Add memories (B, T + 1, K, D); `which` (B, T + 1) bool marks those that count."""
        at = number_levels(memory[which].flatten(1).cpu(), self.levels)  # (N, K · D)
        size = at.shape[1]
        if not len(self.counts):
            self.counts = torch.zeros(size * self.levels, dtype=torch.long)
        each = at + torch.arange(size) * self.levels
        self.counts += torch.bincount(each.flatten(), minlength=len(self.counts))
        # A sum of a memory's levels with random weights, modulo 2^64, identifies the memory.
        factors = torch.randint(-(2**62), 2**62, (size,), generator=torch.Generator().manual_seed(0))
        self.codes.append((at * factors).sum(1))

    def results(self) -> dict[str, Any]:
        """Return the capacity and the observed entropy of a memory, in bits.

        `memory_entropy_by_number` adds up the entropies of the K · D numbers, which may be dependent. `memory_entropy`
        is the entropy of whole memories. It cannot exceed log2 of the number of memories seen.
        """
        found = self.counts.view(-1, self.levels)
        _, seen = torch.cat(self.codes).unique(return_counts=True)
        return {
            "memory_bits": len(found) * math.log2(self.levels),
            "memory_entropy_by_number": float(_entropy(found).sum()),
            "memory_entropy": float(_entropy(seen)),
            "memories": int(seen.sum()),
            "different_memories": len(seen),
        }


def _entropy(counts: Tensor) -> Tensor:
    """Return the entropy in bits of counts (..., n)."""
    share = counts.double() / counts.sum(-1, keepdim=True)
    bits: Tensor = torch.special.entr(share).sum(-1) / math.log(2)
    return bits

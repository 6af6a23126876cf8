"""The embedding of a step's input: a row of a table for a token, a linear map for a step of numbers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from retain.config.channels import Channels, Symbols
from retain.model.layers import Embedding


class NumberEmbedding(nn.Module):
    """A linear map of the numbers of a token (..., F), plus a row of a table for each of its codes.

    Args:
        channels: What a token holds.
        width: W, the width of an embedding.
        tables: The number of such maps. A trunk has one for each distance from the newest token.
    """

    def __init__(self, channels: Channels, width: int, tables: int = 1):
        super().__init__()
        self.numbers, self.width, self.codes = channels.numbers, width, channels.codes
        self.linear = nn.Linear(channels.numbers, tables * width) if channels.numbers else None
        self.kinds = nn.ModuleList(nn.Embedding(size, tables * width) for size in channels.codes)

    def forward(self, tokens: Tensor, table: int = 0) -> Tensor:
        """Embed tokens (..., F) as (..., W) by map number `table`."""
        place = slice(table * self.width, (table + 1) * self.width)
        parts = []
        if self.linear is not None:
            numbers = tokens[..., : self.numbers].to(self.linear.weight.dtype)
            parts.append(nn.functional.linear(numbers, self.linear.weight[place], self.linear.bias[place]))
        for number, kind in enumerate(self.kinds):
            codes = tokens[..., self.numbers + number].long().clamp(0, self.codes[number] - 1)
            parts.append(nn.functional.embedding(codes, kind.weight[:, place]))  # type: ignore[index]
        return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]


def embedding(symbols: Symbols, width: int, tables: int = 1) -> nn.Module:
    """Build `tables` embeddings of a step's input in one module; a trunk has one per distance from the newest token."""
    if isinstance(symbols, Channels):
        return NumberEmbedding(symbols, width, tables)
    return Embedding(tables * symbols, width)


def shrink(embed: nn.Module) -> None:
    """Initialise a table of tokens with small values, as is usual for a Transformer."""
    if isinstance(embed, nn.Embedding):
        nn.init.normal_(embed.weight, std=0.02)


def no_tokens(symbols: Symbols, device: torch.device) -> Tensor:
    """Return an empty sequence: (1, 0) int64, or (1, 0, F) of numbers."""
    if isinstance(symbols, Channels):
        return torch.zeros(1, 0, symbols.token, device=device)
    return torch.zeros(1, 0, dtype=torch.long, device=device)

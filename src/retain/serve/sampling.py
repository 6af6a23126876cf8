"""Sampling for a batch of streams, each with its own settings and random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Sampling(NamedTuple):
    """The sampling settings of a stream. `retain.inference.generate.sample` is the slow twin for one stream."""

    temperature: float
    top_p: float
    generator: torch.Generator


def sample_each(logits: Tensor, settings: Sequence[Sampling]) -> list[int]:
    """Draw one token per row of the logits (B, V), each as `sample` draws it on a CPU with the row's settings.

    Rows are independent. Each takes one random number unless its temperature is 0.
    """
    if all(row.temperature == 0 for row in settings):
        return logits.argmax(-1).tolist()
    logits = logits.float()
    temperature = logits.new_tensor([row.temperature for row in settings])[:, None]
    scaled = (logits - logits.amax(-1, keepdim=True)) / temperature.clamp_min(1e-30)
    probability = scaled.softmax(-1)
    if any(row.top_p < 1 for row in settings):
        # No sum of probabilities reaches 2, so a row with top_p 1 keeps all its tokens.
        top_p = logits.new_tensor([row.top_p if row.top_p < 1 else 2 for row in settings])[:, None]
        ordered, order = probability.sort(-1, descending=True)
        beyond = ordered.cumsum(-1) - ordered >= top_p
        probability = torch.zeros_like(probability).scatter(-1, order, ordered.masked_fill(beyond, 0))
    upto = probability.cpu().cumsum(-1, dtype=torch.float64)
    draws = torch.zeros(len(settings), 1, dtype=torch.float64)
    for draw, row in zip(draws, settings, strict=True):
        if row.temperature > 0:
            torch.rand(1, generator=row.generator, out=draw)
    drawn = torch.searchsorted(upto, draws * upto[:, -1:], right=True)[:, 0]
    greedy = torch.tensor([row.temperature == 0 for row in settings])
    return torch.where(greedy, logits.argmax(-1).cpu(), drawn).tolist()

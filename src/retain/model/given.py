"""Given trunks: existing Transformers whose hidden states the teacher maps to memories (`--teacher.from`).

A frozen trunk is no submodule of its teacher, so no optimizer, parameter count or checkpoint includes it. A trained
trunk (teacher.trunk_lr) is a submodule, so that a run keeps its weights.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from retain.config import MemoryConfig
from retain.errors import UserError
from retain.model.encoders import Trunk
from retain.ops.cross_entropy import Guide

Labels = dict[str, Tensor]
"""The results that are kept of a trunk's pass over tokens (B, T): `states` (B, T + 1, W), the likeliest tokens for
y_0 … y_T `top_tokens` (B, T + 1, k), their log-probabilities `top_log_probs` (B, T + 1, k), and the log-probability of
all other tokens together, `log_rest` (B, T + 1)."""
NAMES = ("states", "top_tokens", "top_log_probs", "log_rest")
READ = ("read", "offset")
"""Keys for a trunk that also reads tokens before those of the batch: all that it `read`s, (B, P + T), and the `offset`
(B,) at which the batch's tokens begin."""


@dataclasses.dataclass(frozen=True)
class TopK:
    """A model's predictions as labels keep them: all tokens beyond the top k share the remaining mass evenly.

    `top_tokens` (..., k), their log-probabilities `top_log_probs` (..., k), and that of all other tokens together,
    `log_rest` (...). Indices apply to the leading axes.
    """

    top_tokens: Tensor
    top_log_probs: Tensor
    log_rest: Tensor

    def __getitem__(self, where: Any) -> TopK:
        return TopK(self.top_tokens[where], self.top_log_probs[where], self.log_rest[where])


class GivenTrunk(nn.Module, ABC):
    """A causal trunk, whose position t has read t tokens. It is always in evaluation mode, without dropout."""

    width: int
    """W, the width of a hidden state."""
    depth: int
    """Layers, in the count of sequential steps."""
    vocab_size: int
    identity: dict[str, Any]
    """What identifies this trunk: its source, a checksum or revision, and the layer that is read."""
    trained = False
    """Whether gradients reach the trunk's weights."""

    @abstractmethod
    def read(self, tokens: Tensor, logits: bool, skip: int = 0) -> tuple[Tensor, Tensor | None]:
        """Read tokens (B, T).

        Returns:
            The hidden states, (B, T + 1, W), and with `logits` the logits of y_skip … y_T, (B, T + 1 - skip, V).
        """

    @abstractmethod
    def embeddings(self) -> tuple[Tensor, Tensor]:
        """Return the rows of the embedding and of the output layer for each token of the vocabulary, (V, W) each."""

    def forward(self, tokens: Tensor, logits: bool, given: Labels | None = None) -> tuple[Tensor, Tensor | TopK | None]:
        """Do what `read` does, with `given`: labels of these tokens, or earlier tokens to read as well (READ).

        Labels hold no logits, but the largest probabilities.
        """
        with torch.set_grad_enabled(self.trained and torch.is_grad_enabled()):
            if given is None:
                return self.read(tokens, logits)
            if NAMES[0] in given:
                return given["states"].float(), TopK(*(given[name] for name in NAMES[1:])) if logits else None
            offset = given["offset"]
            skip = int(offset.min())
            states, found = self.read(given["read"], logits, skip)
            at = offset[:, None] + torch.arange(tokens.shape[1] + 1, device=offset.device)
            return _take(states, at), None if found is None else _take(found, at - skip)

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, so that hidden states do not depend on dropout."""
        return super().train(False)

    @torch.enable_grad()
    def freeze_unreached(self, logits: bool) -> None:
        """Freeze the weights that no gradient reaches from the states or, with `logits`, from the logits."""
        weights = [weight for weight in self.parameters() if weight.requires_grad]
        if not weights:
            return
        states, found = self.read(torch.zeros(1, 2, dtype=torch.long, device=weights[0].device), logits)
        total = states.sum() if found is None else states.sum() + found.sum()
        for weight, gradient in zip(weights, torch.autograd.grad(total, weights, allow_unused=True), strict=True):
            weight.requires_grad_(gradient is not None)


class GivenOwnTrunk(GivenTrunk):
    """The trunk of a teacher that retain trained. `layer` counts from 1. None is the last, with its norm."""

    def __init__(self, trunk: Trunk, layer: int | None, identity: dict[str, Any]):
        super().__init__()
        blocks = trunk.transformer.blocks
        if layer is not None and layer > len(blocks):
            raise UserError(f"teacher.layer: {layer} is above the {len(blocks)} layers of {identity['from']}")
        self.trunk, self.layer, self.identity = trunk.eval().requires_grad_(False), layer, identity
        self.width, self.depth, self.vocab_size = trunk.head.in_features, len(blocks), trunk.vocab_size

    def read(self, tokens: Tensor, logits: bool, skip: int = 0) -> tuple[Tensor, Tensor | None]:
        """Read tokens, as described in `GivenTrunk.read`."""
        x, transformer = self.trunk.inputs(tokens), self.trunk.transformer
        turn, states = transformer.first_angles(x), []
        for block in transformer.layers():
            x = block(x, turn, causal=True)
            states.append(x)
        last = transformer.norm(x)
        return last if self.layer is None else states[self.layer - 1], self.trunk.head(
            last[:, skip:]
        ) if logits else None

    def embeddings(self) -> tuple[Tensor, Tensor]:
        """Return the embeddings, as described in `GivenTrunk.embeddings`, from the table of the newest token."""
        return self.trunk.embed.weight[: self.vocab_size], self.trunk.head.weight


class KeptTrunk(GivenTrunk):
    """A trunk that is not loaded. Only its state before any token (W,) and its embeddings were kept."""

    def __init__(self, start: Tensor, vocab_size: int, tables: dict[str, Tensor], identity: dict[str, Any]):
        super().__init__()
        self.width, self.depth, self.vocab_size = len(start), 0, vocab_size
        self.tables, self.identity = tables, identity
        self.register_buffer("start", start)
        self.start: Tensor

    def read(self, tokens: Tensor, logits: bool, skip: int = 0) -> tuple[Tensor, None]:
        """Return the state before any token. Raises UserError for tokens, which have no labels here."""
        if tokens.shape[1]:
            raise UserError("labels: these tokens have none; give teacher.from alone, so that the model reads them")
        return self.start.expand(len(tokens), 1, -1), None

    def embeddings(self) -> tuple[Tensor, Tensor]:
        """Return the embeddings, as described in `GivenTrunk.embeddings`."""
        return self.tables["embeddings"], self.tables["head"]


def stand_in(width: int, vocab_size: int) -> KeptTrunk:
    """Make a trunk without weights, for models that are only counted or checked."""
    return KeptTrunk(torch.zeros(width), vocab_size, {}, {})


class GivenEncoder(nn.Module):
    """The encoder of `--teacher.from`: m_t is a linear map of a given trunk's state after t tokens."""

    def __init__(self, memory: MemoryConfig, width: int):
        super().__init__()
        self.shape = (memory.tokens, memory.width)
        self.to_memory = nn.Linear(width, memory.tokens * memory.width, bias=False)

    def forward(self, states: Tensor, steps: Tensor, logits: bool = False) -> tuple[Tensor, None]:
        """Map states (B, T + 1, W) at steps (S,) to memories before normalisation (B, S, K, D)."""
        wanted = states if len(steps) == states.shape[1] else states[:, steps]
        return self.to_memory(wanted).unflatten(-1, self.shape), None


def _take(values: Tensor, at: Tensor) -> Tensor:
    """Return the values (B, S, …) at positions (B, S) of values (B, L, …)."""
    return values.gather(1, at[..., None].expand(-1, -1, values.shape[-1]))


def compress(logits: Tensor, top_k: int) -> TopK:
    """Keep the `top_k` largest probabilities of logits (..., V)."""
    log_probs = logits.float().log_softmax(-1)
    top, tokens = log_probs.topk(min(top_k, logits.shape[-1]))
    # The sum over the top tokens is rounded, and a rest of 0 would have no logarithm.
    rest = (1 - top.exp().sum(-1)).clamp_min(1e-6).log()
    return TopK(tokens, top, rest)


def expand(kept: TopK, vocab_size: int) -> Tensor:
    """Return logits (..., V) of the predictions that `compress` kept."""
    tokens, others = kept.top_tokens.long(), vocab_size - kept.top_tokens.shape[-1]
    shared = kept.log_rest.float() - math.log(max(others, 1))
    logits = shared[..., None].expand(*shared.shape, vocab_size)
    return logits.scatter(-1, tokens, kept.top_log_probs.float())


def as_guide(kept: TopK, vocab_size: int) -> Guide:
    """Return the predictions (N,) that `compress` kept as probabilities of sum 1."""
    top, rest = (part.float().exp() for part in (kept.top_log_probs, kept.log_rest))
    if (others := vocab_size - top.shape[-1]) == 0:
        rest = torch.zeros_like(rest)
    total = top.sum(-1) + rest
    shared = rest / total / max(others, 1)
    return Guide(kept.top_tokens.long(), top / total[:, None] - shared[:, None], shared)

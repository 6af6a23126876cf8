"""Trunks that are given: Transformers that exist, whose hidden states the teacher maps to memories (`--teacher.from`).

A frozen one stays out of its teacher's module tree: no optimizer, count of parameters or checkpoint has it. One that is
trained (teacher.trunk_lr) is in it, so that a run keeps its weights.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from retain.config import MemoryConfig
from retain.errors import UserError
from retain.model.encoders import Trunk

Labels = dict[str, Tensor]
"""What is kept of a trunk's pass over tokens (B, T): `states` (B, T + 1, W), and of its probabilities of y_0 … y_T the
`top_tokens` (B, T + 1, k), their `top_log_probs` (B, T + 1, k), and `log_rest` (B, T + 1) of all others together."""
NAMES = ("states", "top_tokens", "top_log_probs", "log_rest")
READ = ("read", "offset")
"""Where a trunk reads what lies before the tokens, too: what it `read`s (B, P + T) and the `offset` (B,) of the tokens
in that."""


class GivenTrunk(nn.Module, ABC):
    """Reads tokens causally; position t has read t of them. It is always in evaluation mode, without dropout."""

    width: int
    """W, numbers in a hidden state."""
    depth: int
    """Layers, as sequential steps are counted."""
    vocab_size: int
    identity: dict[str, Any]
    """What tells this trunk from another: where it comes from, a checksum or revision, the layer that is read."""
    trained = False
    """Whether gradients reach its weights."""

    @abstractmethod
    def read(self, tokens: Tensor, logits: bool, skip: int = 0) -> tuple[Tensor, Tensor | None]:
        """Read tokens (B, T).

        Returns:
            The hidden states, (B, T + 1, W), and with `logits` the logits of y_skip … y_T, (B, T + 1 - skip, V).
        """

    @abstractmethod
    def embeddings(self) -> tuple[Tensor, Tensor]:
        """Return the rows of the embedding and of the output layer for each token of the vocabulary, (V, W) each."""

    def forward(self, tokens: Tensor, logits: bool, given: Labels | None = None) -> tuple[Tensor, Tensor | None]:
        """Do as `read` does, with `given` labels of these tokens, or what is to be read before them (READ)."""
        with torch.set_grad_enabled(self.trained and torch.is_grad_enabled()):
            if given is None:
                return self.read(tokens, logits)
            if NAMES[0] in given:
                return given["states"].float(), expand(given, self.vocab_size) if logits else None
            offset = given["offset"]
            skip = int(offset.min())
            states, found = self.read(given["read"], logits, skip)
            at = offset[:, None] + torch.arange(tokens.shape[1] + 1, device=offset.device)
            return _take(states, at), None if found is None else _take(found, at - skip)

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, so that what is read does not hang on dropout."""
        return super().train(False)

    @torch.enable_grad()
    def freeze_unreached(self, logits: bool) -> None:
        """Freeze those weights that no gradient reaches from the states or, with `logits`, from these."""
        weights = [weight for weight in self.parameters() if weight.requires_grad]
        if not weights:
            return
        states, found = self.read(torch.zeros(1, 2, dtype=torch.long, device=weights[0].device), logits)
        total = states.sum() if found is None else states.sum() + found.sum()
        for weight, gradient in zip(weights, torch.autograd.grad(total, weights, allow_unused=True), strict=True):
            weight.requires_grad_(gradient is not None)


class GivenOwnTrunk(GivenTrunk):
    """The trunk of a teacher of ours. `layer` counts from 1; None is the last, with its norm."""

    def __init__(self, trunk: Trunk, layer: int | None, identity: dict[str, Any]):
        super().__init__()
        blocks = trunk.transformer.blocks
        if layer is not None and layer > len(blocks):
            raise UserError(f"teacher.layer: {layer} is above the {len(blocks)} layers of {identity['from']}")
        self.trunk, self.layer, self.identity = trunk.eval().requires_grad_(False), layer, identity
        self.width, self.depth, self.vocab_size = trunk.head.in_features, len(blocks), trunk.vocab_size

    def read(self, tokens: Tensor, logits: bool, skip: int = 0) -> tuple[Tensor, Tensor | None]:
        """Do as `GivenTrunk.read` says."""
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
        """Do as `GivenTrunk.embeddings` says: the table of the newest token."""
        return self.trunk.embed.weight[: self.vocab_size], self.trunk.head.weight


class KeptTrunk(GivenTrunk):
    """A trunk that is not there, only what was kept of it: its state of no tokens (W,), and its embeddings."""

    def __init__(self, start: Tensor, vocab_size: int, tables: dict[str, Tensor], identity: dict[str, Any]):
        super().__init__()
        self.width, self.depth, self.vocab_size = len(start), 0, vocab_size
        self.tables, self.identity = tables, identity
        self.register_buffer("start", start)
        self.start: Tensor

    def read(self, tokens: Tensor, logits: bool, skip: int = 0) -> tuple[Tensor, None]:
        """Read no tokens, as `GivenTrunk.read` says. Raises UserError for tokens, which have no labels here."""
        if tokens.shape[1]:
            raise UserError("labels: these tokens have none; give teacher.from without labels to have the model read")
        return self.start.expand(len(tokens), 1, -1), None

    def embeddings(self) -> tuple[Tensor, Tensor]:
        """Do as `GivenTrunk.embeddings` says."""
        return self.tables["embeddings"], self.tables["head"]


def stand_in(width: int, vocab_size: int) -> KeptTrunk:
    """Make a trunk without weights in the place of another, to build models that are only counted or checked."""
    return KeptTrunk(torch.zeros(width), vocab_size, {}, {})


class GivenEncoder(nn.Module):
    """A linear map of a given trunk's state after t tokens is m_t: the encoder of `--teacher.from`."""

    def __init__(self, memory: MemoryConfig, width: int):
        super().__init__()
        self.shape = (memory.tokens, memory.width)
        self.to_memory = nn.Linear(width, memory.tokens * memory.width, bias=False)

    def forward(self, states: Tensor, steps: Tensor, logits: bool = False) -> tuple[Tensor, None]:
        """Map states (B, T + 1, W) at steps (S,) to memories before normalisation (B, S, K, D)."""
        wanted = states if len(steps) == states.shape[1] else states[:, steps]
        return self.to_memory(wanted).unflatten(-1, self.shape), None


def _take(values: Tensor, at: Tensor) -> Tensor:
    """Take the values (B, L, …) at places (B, S)."""
    return values.gather(1, at[..., None].expand(-1, -1, values.shape[-1]))


def compress(states: Tensor, logits: Tensor, top_k: int) -> Labels:
    """Keep of a trunk's pass what training needs: the states and the `top_k` likeliest tokens, as `Labels`."""
    log_probs = logits.float().log_softmax(-1)
    top, tokens = log_probs.topk(min(top_k, logits.shape[-1]))
    # Of a part of the vocabulary the sum is not exact, and a rest of 0 would have no logarithm.
    rest = (1 - top.exp().sum(-1)).clamp_min(1e-6).log()
    return {"states": states, "top_tokens": tokens, "top_log_probs": top, "log_rest": rest}


def expand(kept: Labels, vocab_size: int) -> Tensor:
    """Make logits (B, T + 1, V) of what `compress` kept: tokens beyond the top share the rest evenly."""
    tokens, others = kept["top_tokens"].long(), vocab_size - kept["top_tokens"].shape[-1]
    shared = kept["log_rest"].float() - math.log(max(others, 1))
    return shared[..., None].repeat(1, 1, vocab_size).scatter_(-1, tokens, kept["top_log_probs"].float())

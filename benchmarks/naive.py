"""The baselines: the same work in plain code that does not save time or memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retain.model.cells import PROJECTING
from retain.model.layers import Transformer
from retain.model.rnn import RNN
from retain.model.teacher import Teacher
from retain.objectives.losses import dynamics_loss, predictive_loss
from retain.ops.graphs import launched


def attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, mask: Tensor | None = None) -> Tensor:
    """Compute attention by PyTorch's SDPA, for every shape."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)


def transformer(
    self: Transformer, x: Tensor, *, keep: slice | None = None, causal: bool = False, mask: Tensor | None = None
) -> Tensor:
    """Compute every position in every block, even if only `keep` is needed, and the angles again in every block."""
    for block in self.layers():
        turn = self.angles(torch.arange(x.shape[-2], device=x.device), x.dtype)
        q, k, v = block.queries_keys_values(x, turn)
        x = block.mix(x, attention(q, k, v, causal=causal, mask=mask))
    normed: Tensor = self.norm(x if keep is None else x[..., keep, :])
    return normed


def inputs(self: RNN, tokens: Tensor) -> Tensor:
    """Embed and project every token separately."""
    embedded: Tensor = self.embed(tokens)
    return self.cell.from_input(embedded) if isinstance(self.cell, PROJECTING) else embedded


@contextmanager
def plainly() -> Iterator[None]:
    """Run the library's modules with SDPA, whole blocks and autograd's gradients, and without CUDA graphs."""
    with (
        launched(),
        patch("retain.model.layers.attention", attention),
        patch("retain.model.encoders.attention", attention),
        patch("retain.ops.elementwise.is_by_hand", lambda x: False),
        patch.object(Transformer, "forward", transformer),
        patch.object(RNN, "inputs", inputs),
    ):
        yield


def plain(side: Callable[[], Any]) -> Callable[[], Any]:
    """Return a function that runs this side `plainly`."""

    def run() -> Any:
        with plainly():
            return side()

    return run


class DetachedLoop(nn.Module):
    """Eq. 6 as in the paper: one step after another, with memory detached between steps."""

    def __init__(self, teacher: Teacher, rnn: RNN):
        super().__init__()
        self.rnn = rnn
        self._teacher = (teacher,)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the loss of a batch."""
        tokens, targets = batch["tokens"], batch["targets"]
        with torch.no_grad():
            labels = self._teacher[0].eval().encode(tokens)
        memory = labels[:, 0]
        predicted, logits = [], [self.rnn.readout(memory)]
        for token in tokens.unbind(1):
            memory = self.rnn.update(memory.detach(), token)
            predicted.append(memory)
            logits.append(self.rnn.readout(memory))
        loss = dynamics_loss(torch.stack(predicted, 1), labels[:, 1:])
        return {"loss": loss + predictive_loss(torch.stack(logits, 1), targets)}


@torch.no_grad()
def generate(rnn: RNN, batch: int, length: int) -> Tensor:
    """Sample tokens (B, length) one after another from m_0."""
    memory = rnn.init_memory(batch)
    logits = rnn.readout(memory)
    tokens: list[Tensor] = []
    for number in range(length):
        if number:
            logits, memory = rnn.step(tokens[-1], memory)
        tokens.append(torch.multinomial(logits.float().softmax(-1), 1)[:, 0])
    return torch.stack(tokens, 1)

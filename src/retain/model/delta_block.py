"""A layer for the state encoder's trunk that writes to a state by the gated delta rule, instead of attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retain.model.layers import Block, Norm
from retain.ops.delta_rule import delta_rule
from retain.ops.elementwise import Angles

GATE = 4.0
"""Gates start at sigmoid(GATE), so that a third of a written value is left after 64 tokens."""
SPREAD = 4.0
"""Factor of the initial weights of rates, which then start spread over (0, 2). The layer distinguishes tokens sooner if
it reflects them differently from the first step on (docs/log.md)."""


class DeltaBlock(Block):
    """A `Block` whose heads each read a recurrent state instead of earlier tokens (`retain.ops.delta_rule`).

    Attention computes results that depend on all tokens in order, such as a parity or a product of permutations, only
    as deep as it has layers. A state carries them along. At each token a head writes to its state `householders` times,
    with rates in (0, 2). The head's output is normalised. There are no positions.
    """

    def __init__(self, width: int, heads: int, householders: int):
        super().__init__(width, heads)
        self.householders = householders
        self.qkv = nn.Linear(width, (1 + 2 * householders) * width, bias=False)
        self.rates = nn.Linear(width, (1 + householders) * heads)
        self.norm_heads = Norm(width // heads)
        with torch.no_grad():
            self.rates.weight.mul_(SPREAD)
            self.rates.bias.zero_()[:heads] = GATE

    def forward(self, x: Tensor, turn: Angles | None, *, causal: bool = True, mask: Tensor | None = None) -> Tensor:
        """Run the block on x (..., S, W). It is always causal, and reads neither `turn` nor `mask`."""
        normed = self.norm_attention(x)
        qkv = self.qkv(normed).unflatten(-1, (self.heads, 1 + 2 * self.householders, -1)).transpose(-3, -4)
        q, k, v = qkv.split((1, self.householders, self.householders), -2)  # (..., heads, S, 1 or R, C)
        gate, rate = self.rates(normed).split((self.heads, self.heads * self.householders), -1)
        rate = 2 * rate.unflatten(-1, (self.heads, -1)).transpose(-2, -3).sigmoid()  # (..., heads, S, R)
        log_gate = F.logsigmoid(gate).transpose(-1, -2)
        read = delta_rule(F.normalize(q[..., 0, :], dim=-1), F.normalize(k, dim=-1), v, rate, log_gate)
        return self.mix(x, self.norm_heads(read).to(x.dtype))

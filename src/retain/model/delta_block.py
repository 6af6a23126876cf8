"""A layer without attention for the state encoder's trunk: it writes to a state by the gated delta rule."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retain.model.layers import Block, Norm
from retain.ops.delta_rule import delta_rule
from retain.ops.elementwise import Angles

GATE = 4.0
"""Gates begin at sigmoid(GATE): over 64 tokens a third of what was written is left."""
SPREAD = 4.0
"""Rates begin so much wider apart than a linear map's, all over (0, 2): tokens that are reflected apart from the first
step on are told apart sooner (docs/log.md)."""


class DeltaBlock(Block):
    """A `Block` whose heads read a state of their own instead of earlier tokens (`retain.ops.delta_rule`).

    Attention looks at what was read; what follows from all of it in turn, as a parity or a product of permutations, it
    computes only as deep as it has layers. A state carries that along. So a head writes `householders` times at each
    token, with rates in (0, 2), and is normalised after it was read. There are no positions.
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
        """Run the block on x (..., S, W); it is causal, and reads neither `turn` nor `mask`."""
        normed = self.norm_attention(x)
        qkv = self.qkv(normed).unflatten(-1, (self.heads, 1 + 2 * self.householders, -1)).transpose(-3, -4)
        q, k, v = qkv.split((1, self.householders, self.householders), -2)  # (..., heads, S, 1 or R, C)
        gate, rate = self.rates(normed).split((self.heads, self.heads * self.householders), -1)
        rate = 2 * rate.unflatten(-1, (self.heads, -1)).transpose(-2, -3).sigmoid()  # (..., heads, S, R)
        log_gate = F.logsigmoid(gate).transpose(-1, -2)
        read = delta_rule(F.normalize(q[..., 0, :], dim=-1), F.normalize(k, dim=-1), v, rate, log_gate)
        return self.mix(x, self.norm_heads(read).to(x.dtype))

"""DAgger Memory Training (Eq. 6): the RNN learns to return from its own memories to the teacher's."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from retain.config import DMTConfig
from retain.model.rnn import RNN
from retain.model.teacher import Teacher
from retain.objectives.losses import distillation_loss, dynamics_loss, predictive_loss


class DMT(nn.Module):
    """loss_dmt = λ_dyn · ‖f(m̂_t, x_t) − m_{t+1}‖² + λ_readout · cross-entropy of the readout on the RNN's own memory.

    m̂ comes from rolling the RNN out without a graph; then every step of the batch is trained in one parallel
    pass. That is the gradient of the detached loop: none flows through time. The rollout starts anew from the
    teacher's memory every `horizon` steps, at first every step, in the end never: then it is the RNN alone, from
    m_0. The teacher is frozen.

    `forward(batch)`: batch["tokens"] (B, T), batch["targets"] (B, T + 1), batch["progress"] (0 … 1, default 0) →
    dict of scalar losses; "loss" is to be minimised.
    """

    def __init__(self, teacher: Teacher, rnn: RNN, config: DMTConfig):
        super().__init__()
        self.rnn, self.config = rnn, config
        # Kept out of the module tree: a frozen teacher has no parameter that an optimizer or DDP should see.
        self._teacher = (teacher,)
        self.train()
        self.requires_grad_(True)
        rnn.m_0.requires_grad_(False)
        rnn.readout.requires_grad_(config.lambda_readout > 0)
        with torch.no_grad():
            rnn.m_0.copy_(teacher.empty_memory())

    def horizon(self, progress: float, length: int) -> int:
        """Steps the RNN runs on its own, doubling over the phase from horizon to horizon_end."""
        start = min(self.config.horizon, length)
        end = length if self.config.horizon_end is None else min(self.config.horizon_end, length)
        if end <= start or self.config.horizon_growth == 0:
            return end
        doublings = math.ceil(math.log2(end / start))
        done = min(1.0, progress / self.config.horizon_growth)
        return min(end, start * 2 ** math.floor(done * doublings + 1e-9))

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        tokens, targets, c = batch["tokens"], batch["targets"], self.config
        teacher = self._teacher[0].eval()
        horizon = self.horizon(float(batch.get("progress", 0.0)), tokens.shape[1])
        with torch.no_grad():
            memory, guide = teacher.encode_with_trunk(tokens)  # (B, T + 1, K, D), (B, T + 1, V)
            own = rollout_from_teacher(self.rnn, memory, tokens, horizon)
        predicted = self.rnn.update(own, tokens)  # (B, T, K, D)
        losses = {"loss_dyn": dynamics_loss(predicted, memory[:, 1:])}
        losses["loss"] = c.lambda_dyn * losses["loss_dyn"]
        if c.lambda_readout:
            read = torch.cat([own[:, :1], predicted if c.predictive else predicted.detach()], 1)
            logits = self.rnn.readout(read)
            losses["loss_readout"] = predictive_loss(logits, targets)
            losses["loss"] = losses["loss"] + c.lambda_readout * losses["loss_readout"]
            if c.lambda_distill:
                if guide is None:
                    guide = teacher.decoder(memory).detach()
                losses["loss_distill"] = distillation_loss(logits, guide, targets)
                losses["loss"] = losses["loss"] + c.lambda_distill * losses["loss_distill"]
        with torch.no_grad():
            spread = memory[:, 1:].var(0, correction=0).mean()
            losses["relative_drift"] = losses["loss_dyn"] / spread
        losses["horizon"] = torch.tensor(float(horizon), device=tokens.device)
        return losses

    def finish(self) -> None:
        """Nothing is left to do: the RNN stands alone."""


@torch.no_grad()
def rollout_from_teacher(rnn: RNN, memory: Tensor, tokens: Tensor, horizon: int) -> Tensor:
    """The RNN's own memories m̂_0 … m̂_{T-1}, each at most `horizon` steps away from a teacher's.

    memory (B, T + 1, K, D) the teacher's, tokens (B, T) → (B, T, K, D). The sequence is cut into segments of
    `horizon` steps, at a random offset; each starts from the teacher's memory, and all run side by side. So the
    sequential depth is `horizon`, and f is applied T times per sequence whatever the horizon. m̂_0 is m_0.
    """
    length = tokens.shape[1]
    if horizon >= length:
        starts = torch.zeros(1, dtype=torch.long, device=tokens.device)
    else:
        offset = int(torch.randint(horizon, ()))
        starts = torch.arange(offset - horizon, length, horizon, device=tokens.device)
    own = memory[:, :-1].clone()
    current = memory[:, starts.clamp_min(0)]
    for j in range(min(horizon, length)):
        where = starts + j
        # The first segment begins before the sequence and the last may end after it: those wait their turn.
        inside = (where >= 0) & (where < length)
        low, high = int((~inside).long().cumprod(0).sum()), int((where < length).sum())
        where = where[low:high]
        current[:, low:high] = rnn.update(current[:, low:high], tokens[:, where])
        kept = where + 1 < length
        own[:, (where + 1)[kept]] = current[:, low:high][:, kept]
    return own

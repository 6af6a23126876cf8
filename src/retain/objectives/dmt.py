"""DAgger Memory Training (Eq. 6): the RNN learns to return from its own memories to the teacher's."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from retain.config import DMTConfig
from retain.model.modes import evaluating, without_graph
from retain.model.rnn import RNN, check_alike
from retain.model.teacher import Teacher
from retain.objectives.losses import answer_losses, dynamics_loss, real_tokens
from retain.objectives.segments import rollout_from_teacher, stretch, unroll, unroll_alone


class DMT(nn.Module):
    """loss_dmt = λ_dyn · ‖f(m̂_t, x_t) − m_{t+1}‖² + λ_readout · cross-entropy of the readout on the RNN's own memory
    (+ λ_distill · the same against the teacher's probabilities).

    m̂ comes from rolling the RNN out without a graph; then every step of the batch is trained in one parallel
    pass. That is the gradient of the detached loop: none flows through time. With `unroll` it flows through so many
    steps, in segments that are trained side by side. The rollout starts anew from the teacher's memory every
    `horizon` steps; that grows until, in the end, it never does: the RNN alone, from m_0. Then the rollout itself can
    be what is trained, and there is no second pass. The teacher is frozen.

    `forward(batch)`: batch["tokens"] (B, T), batch["targets"] (B, T + 1), batch["progress"] (0 … 1; without it 1, the
    longest horizon) → dict of scalar losses; "loss" is to be minimised. batch["real"] is as for `SMT`.
    `trunk_trained`: the teacher's trunk has had loss_trunk, so that loss_distill may take its probabilities; else it
    takes the decoder's.
    """

    def __init__(self, teacher: Teacher, rnn: RNN, config: DMTConfig, trunk_trained: bool = False):
        super().__init__()
        check_alike(teacher, rnn)
        self.rnn, self.config, self.trunk_trained = rnn, config, trunk_trained
        # Kept out of the module tree: a frozen teacher has no parameter that an optimizer or DDP should see.
        self._teacher = (teacher,)
        self.train()
        self.requires_grad_(True)
        rnn.m_0.requires_grad_(False)
        self.trains_readout = config.lambda_readout > 0 or config.lambda_distill > 0
        rnn.readout.requires_grad_(self.trains_readout)
        with torch.no_grad():
            rnn.m_0.copy_(teacher.empty_memory())

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """`.to()` and its like reach the teacher, too."""
        self._teacher[0]._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def horizon(self, progress: float, length: int) -> int:
        """Steps the RNN runs on its own, doubling over the phase from horizon to horizon_end."""
        start = min(self.config.horizon, length)
        end = length if self.config.horizon_end is None else min(self.config.horizon_end, length)
        if end <= start or self.config.horizon_growth == 0:
            return end
        doublings = math.ceil(math.log2(end / start))
        done = min(1.0, progress / self.config.horizon_growth)
        return min(end, start * 2 ** math.floor(done * doublings + 1e-9))

    def alone(self, horizon: int, length: int) -> bool:
        """Whether the rollout can be what is trained: it never starts anew, and its gradient costs no more that way.

        A stretch that is the whole sequence starts from m_0, whatever the horizon.
        """
        steps = stretch(self.config.unroll, length)
        able = steps == length or (horizon == length and steps > 1 and self.rnn.cuts)
        return self.config.label_every == 1 and able

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        tokens, targets, real, c = batch["tokens"], batch["targets"], real_tokens(batch), self.config
        teacher = self._teacher[0]
        horizon = self.horizon(float(batch.get("progress", 1.0)), tokens.shape[1])
        alone = self.alone(horizon, tokens.shape[1])
        wants_trunk = c.lambda_distill > 0 and self.trunk_trained
        own: Tensor | None = None  # where the rollout itself is what is trained
        with without_graph(), evaluating(teacher):
            if c.label_every > 1:
                steps, memory, trunk_logits, own = self.some_steps(tokens, horizon, wants_trunk)
                tokens, targets = tokens[:, steps[1:] - 1], targets[:, steps]
                real = None if real is None else real[:, steps[1:] - 1]
            else:
                # (B, T + 1, K, D), (B, T + 1, V)
                memory, trunk_logits = teacher.encode_with_trunk(tokens, logits=wants_trunk)
                if not alone:
                    own = rollout_from_teacher(self.rnn, memory, tokens, horizon)  # (B, T, K, D)
        at_once = stretch(c.unroll, tokens.shape[1])
        if own is None:
            predicted = unroll_alone(self.rnn, memory[:, 0], tokens, at_once)  # (B, T, K, D)
        else:
            predicted = unroll(self.rnn, own, tokens, at_once)
        losses = {"loss_dyn": dynamics_loss(predicted, memory[:, 1:], real)}
        losses["loss"] = c.lambda_dyn * losses["loss_dyn"]
        if self.trains_readout:
            read = torch.cat([memory[:, :1], predicted if c.predictive else predicted.detach()], 1)
            guide, decoder = (memory, teacher.decoder) if trunk_logits is None else (trunk_logits, None)
            losses |= answer_losses(
                self.rnn.readout, read, targets, guide=guide if c.lambda_distill else None, decoder=decoder
            )
            if c.lambda_distill:
                losses["loss"] = losses["loss"] + c.lambda_distill * losses["loss_distill"]
            losses["loss"] = losses["loss"] + c.lambda_readout * losses["loss_readout"]
        if len(tokens) > 1:
            with torch.no_grad():
                variance = variance_across(memory[:, 1:], real)
                # A batch may hold one sequence several times, as small black and white images do.
                losses["relative_drift"] = losses["loss_dyn"] / variance.clamp_min(1e-8)
        losses["horizon"] = torch.full((), float(tokens.shape[1] if alone else horizon), device=tokens.device)
        return losses

    def some_steps(
        self, tokens: Tensor, horizon: int, wants_trunk: bool
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """One rollout of `horizon` steps from a random place, and every `label_every`-th of its S steps to train.

        Of these alone the teacher is asked, for an encoder that pays for each label. Returns the t (S + 1,) of the
        start and after each, their labels (B, S + 1, K, D) and the trunk's logits (B, S + 1, V); then the RNN's own
        memories before each step (B, S, K, D).
        """
        start = int(torch.randint(tokens.shape[1] - horizon + 1, ()))
        steps = start + torch.arange(0, horizon + 1, min(self.config.label_every, horizon), device=tokens.device)
        memory, trunk_logits = self._teacher[0].encode_with_trunk(tokens, steps, wants_trunk)
        rolled = self.rnn.rollout(tokens[:, start : start + horizon], memory[:, 0])
        own = torch.cat([memory[:, :1], rolled], 1)[:, steps[1:] - 1 - start]
        trunk_logits = None if trunk_logits is None else trunk_logits[:, steps]
        return steps, memory, trunk_logits, own

    def sequential_steps(self, length: int, progress: float = 0.0) -> int:
        """The longest chain of one optimizer step: labels, rollout, f and readout; back through the last two."""
        teacher = self._teacher[0]
        cell = self.rnn.depth * stretch(self.config.unroll, length)
        readout = self.rnn.readout.depth if self.trains_readout else 0
        alone = self.alone(self.horizon(progress, length), length)
        rollout = (length if alone else self.horizon(progress, length)) * self.rnn.depth
        by_decoder = self.config.lambda_distill and not (self.trunk_trained and hasattr(teacher.encoder, "trunk"))
        again = 0 if alone else cell
        forward = teacher.depth + max(rollout + again + readout, teacher.decoder.depth if by_decoder else 0)
        return forward + (cell + readout if self.config.predictive else max(cell, readout))

    def finish(self) -> None:
        """Nothing is left to do: the RNN stands alone."""


def variance_across(memory: Tensor, real: Tensor | None) -> Tensor:
    """Mean variance of memory (B, T, K, D) across the sequences; real (B, T) as in `dynamics_loss`."""
    if real is None:
        return (memory - memory.mean(0)).square().mean()  # much faster than .var(0)
    left_out = ~real[..., None, None]
    mean = memory.masked_fill(left_out, 0).sum(0) / real.sum(0).clamp_min(1)[:, None, None]
    total = (memory - mean).masked_fill(left_out, 0).square().sum()
    return total / (real.sum().clamp_min(1) * memory.shape[-2:].numel())

"""DAgger Memory Training (Eq. 6): the RNN learns to return from its own memories to the teacher's."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from retain.config import DMTLoss
from retain.model.fast import fast
from retain.model.given import Labels, TopK
from retain.model.modes import evaluating, without_graph
from retain.model.rnn import RNN, check_alike
from retain.model.teacher import Teacher
from retain.objectives.losses import (
    answer_losses,
    dynamics_loss,
    kept_labels,
    predictive_loss,
    real_tokens,
    variance_across,
)
from retain.objectives.parallel import rollout_in_parallel
from retain.objectives.segments import rollout_from_teacher, unroll, unroll_alone, window_len
from retain.objectives.smt import futures, spread

DECODES = 8
"""Outputs of f in each sequence that the teacher's decoder reads."""


class DMT(nn.Module):
    """loss_dmt = λ_dyn · ‖f(m̂_t, x_t) − m_{t+1}‖² + λ_readout · readout (+ λ_dec · dec + λ_distill · distill).

    m̂ comes from a rollout of the RNN without a graph. Then one parallel pass trains every step of the batch. This is
    the gradient of the detached loop: no gradient flows through time. If `bptt_window` is above 1, the gradient flows
    through `bptt_window` steps, in windows trained in parallel. Every `horizon` steps the rollout restarts from the
    teacher's memory. The horizon grows to the whole sequence: the RNN then runs from m_0 without the teacher, and the
    rollout itself can be trained, without a second pass. The teacher is frozen.

    Args:
        teacher: Its memories are the labels.
        rnn: The model to train. Its m_0 becomes the teacher's memory before any token.
        loss: The weights of the losses, and the horizon.
        trunk_trained: Whether the teacher's trunk was trained by loss_trunk or came pretrained. If so, loss_distill
            takes the trunk's probabilities, otherwise the decoder's.
        future_len: F of the TeacherConfig, how many tokens the decoder reads after f(m̂_t, x_t); for λ_dec alone.

    Raises:
        UserError: If the teacher and the RNN differ in memory or vocabulary.
    """

    def __init__(self, teacher: Teacher, rnn: RNN, loss: DMTLoss, trunk_trained: bool = False, future_len: int = 0):
        super().__init__()
        check_alike(teacher, rnn)
        self.rnn, self.config, self.trunk_trained, self.future_len = rnn, loss, trunk_trained, future_len
        # Kept out of the module tree: a frozen teacher has no parameter that an optimizer or DDP should see.
        self._teacher = (teacher,)
        self.iterations: int | None = None
        """Sequential applications of f in the last parallel rollout."""
        self.train()
        self.requires_grad_(True)
        rnn.m_0.requires_grad_(False)
        self.trains_readout = loss.lambda_readout > 0 or loss.lambda_distill > 0
        rnn.readout.requires_grad_(self.trains_readout)
        if loss.lambda_dec:
            teacher.decoder.requires_grad_(False)
        with torch.no_grad():
            rnn.m_0.copy_(teacher.empty_memory())

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Apply `fn` to the teacher, too, so that `.to()` moves both."""
        self._teacher[0]._apply(fn, recurse)
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def horizon(self, progress: float, length: int) -> int:
        """Return how many steps the RNN runs on its own: it doubles over the phase from 1 to the full horizon."""
        end = window_len(self.config.horizon, length)
        if end <= 1 or self.config.horizon_growth == 0:
            return end
        doublings = math.ceil(math.log2(end))
        done = min(1.0, progress / self.config.horizon_growth)
        return min(end, 1 << math.floor(done * doublings + 1e-9))

    def is_alone(self, horizon: int, length: int) -> bool:
        """Whether the rollout itself can be trained: it never restarts, and a gradient through it costs no more.

        A window of the whole sequence starts from m_0, whatever the horizon.
        """
        steps = window_len(self.config.bptt_window, length)
        able = steps == length or (horizon == length and steps > 1 and self.rnn.cuts)
        return self.config.label_every == 1 and able

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Compute the losses of a batch.

        Args:
            batch: As for `SMT`, but "progress" defaults to 1, the full horizon.

        Returns:
            Scalar losses by name. "loss" is to be minimised. "relative_drift" is loss_dyn over the variance of the
            teacher's memory. "horizon" is how many steps the RNN ran on its own.
        """
        tokens, targets, real, c = batch["tokens"], batch["targets"], real_tokens(batch), self.config
        teacher = self._teacher[0]
        horizon = self.horizon(float(batch.get("progress", 1.0)), tokens.shape[1])
        alone = self.is_alone(horizon, tokens.shape[1])
        wants_trunk = c.lambda_distill > 0 and self.trunk_trained
        kept = kept_labels(batch)
        own: Tensor | None = None  # None if the rollout itself is trained
        counts: dict[str, Tensor] = {}
        trunk_logits: Tensor | TopK | None
        with without_graph(), evaluating(teacher):
            if c.label_every > 1:
                steps, memory, trunk_logits, own = self.some_steps(tokens, horizon, wants_trunk, kept)
                tokens, targets = tokens[:, steps[1:] - 1], targets[:, steps]
                real = None if real is None else real[:, steps[1:] - 1]
            else:
                # (B, T + 1, K, D), (B, T + 1, V)
                memory, trunk_logits = teacher.encode_with_trunk(tokens, logits=wants_trunk, kept=kept)
                if not alone:
                    own, counts = self.roll_out(memory, tokens, horizon)  # (B, T, K, D)
        at_once = window_len(c.bptt_window, tokens.shape[1])
        if own is None:
            predicted = unroll_alone(self.rnn, memory[:, 0], tokens, at_once)  # (B, T, K, D)
        else:
            predicted = unroll(self.rnn, own, tokens, at_once)
        losses = {"loss_dyn": dynamics_loss(predicted, memory[:, 1:], real)}
        losses["loss"] = c.lambda_dyn * losses["loss_dyn"]
        if c.lambda_dec:
            length = tokens.shape[1]
            chosen = spread(length, DECODES, tokens.device)
            future, asked = futures(tokens, targets, chosen + 1, min(self.future_len, length))
            logits = fast(teacher.decoder)(predicted[:, chosen], future if self.future_len else None)
            wanted = asked if self.future_len else asked[:, :, 0]
            losses["loss_dec"] = predictive_loss(logits, wanted, likelihood=teacher.decoder.likelihood)
            losses["loss"] = losses["loss"] + c.lambda_dec * losses["loss_dec"]
        if self.trains_readout:
            read = torch.cat([memory[:, :1], predicted if c.predictive else predicted.detach()], 1)
            guide = memory if trunk_logits is None else trunk_logits
            losses |= answer_losses(
                self.rnn.readout,
                read,
                targets,
                guide=guide if c.lambda_distill else None,
                decoder=teacher.decoder if trunk_logits is None else None,
                temperature=teacher.temperature,
            )
            if c.lambda_distill:
                losses["loss"] = losses["loss"] + c.lambda_distill * losses["loss_distill"]
            losses["loss"] = losses["loss"] + c.lambda_readout * losses["loss_readout"]
        if len(tokens) > 1:
            with torch.no_grad():
                variance = variance_across(memory[:, 1:], real)
                # The variance is 0 if all sequences are equal, as small black and white images can be.
                losses["relative_drift"] = losses["loss_dyn"] / variance.clamp_min(1e-8)
        losses["horizon"] = torch.full((), float(tokens.shape[1] if alone else horizon), device=tokens.device)
        return losses | counts

    def roll_out(self, memory: Tensor, tokens: Tensor, horizon: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the RNN's own memories, as `rollout_from_teacher` does, and counts of a parallel rollout.

        "rollout_iterations" is the number of its iterations. "rollout_fallback" is 1 if they did not converge, so that
        the loop was run.
        """
        if self.config.rollout == "loop":
            return rollout_from_teacher(self.rnn, memory, tokens, horizon), {}
        own, iterations, fell_back = rollout_in_parallel(self.rnn, memory, tokens, horizon, self.config.rollout)
        self.iterations = iterations + fell_back * horizon
        counts = {"rollout_iterations": float(iterations), "rollout_fallback": float(fell_back)}
        return own, {name: torch.full((), count, device=tokens.device) for name, count in counts.items()}

    def some_steps(
        self, tokens: Tensor, horizon: int, wants_trunk: bool, kept: Labels | None
    ) -> tuple[Tensor, Tensor, Tensor | TopK | None, Tensor]:
        """Roll out `horizon` steps from a random start and choose every `label_every`-th, S steps, for training.

        The teacher computes only the labels of the start and of the chosen steps, as some encoders pay for each label.

        Returns:
            The t (S + 1,) of the start and after each chosen step, their labels (B, S + 1, K, D), the trunk's logits
            (B, S + 1, V) or None, and the RNN's own memories before each chosen step (B, S, K, D).
        """
        start = int(torch.randint(tokens.shape[1] - horizon + 1, ()))
        steps = start + torch.arange(0, horizon + 1, min(self.config.label_every, horizon), device=tokens.device)
        memory, trunk_logits = self._teacher[0].encode_with_trunk(tokens, steps, wants_trunk, kept=kept)
        rolled = self.rnn.rollout(tokens[:, start : start + horizon], memory[:, 0])
        own = torch.cat([memory[:, :1], rolled], 1)[:, steps[1:] - 1 - start]
        trunk_logits = None if trunk_logits is None else trunk_logits[:, steps]
        return steps, memory, trunk_logits, own

    def sequential_steps(self, length: int, progress: float = 0.0) -> int:
        """Return the sequential steps of one optimizer step: labels, rollout, f, readout; back through the last two."""
        teacher = self._teacher[0]
        cell = self.rnn.depth * window_len(self.config.bptt_window, length)
        readout = self.rnn.readout.depth if self.trains_readout else 0
        decoder = teacher.decoder.depth if self.config.lambda_dec else 0
        alone = self.is_alone(self.horizon(progress, length), length)
        steps = length if alone else self.horizon(progress, length)
        if not alone and self.iterations is not None:
            steps = self.iterations
        rollout = steps * self.rnn.depth
        by_decoder = self.config.lambda_distill and not (self.trunk_trained and teacher.has_trunk)
        again = 0 if alone else cell
        after = max(readout, decoder)
        forward = teacher.chain(length) + max(rollout + again + after, teacher.decoder.depth if by_decoder else 0)
        return forward + max(cell + decoder, cell + readout if self.config.predictive else readout)

    def finish(self) -> None:
        """Do nothing: the RNN is complete."""

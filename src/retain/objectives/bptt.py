"""Backpropagation through time, full or truncated: the baseline, and a way to finetune."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from retain.errors import UserError
from retain.model.modes import evaluating, without_graph
from retain.model.rnn import RNN, check_alike
from retain.model.teacher import Teacher
from retain.objectives.losses import answer_losses, kept_labels
from retain.objectives.segments import unroll_alone, window_len


class BPTT(nn.Module):
    """Cross-entropy of the readout along the unrolled RNN (+ λ_distill · distill). m_0 is learnt.

    Args:
        rnn: The model to train.
        bptt_window: The gradient is cut every `bptt_window` steps. The first cut is at a random step, so that no two
            tokens are always separated. None never cuts.
        lambda_distill: The weight of the cross-entropy against the probabilities of the teacher's given trunk.
        teacher: The teacher with that trunk. It is not trained.
        taught: Whether a sequence that is not `fresh` starts from the teacher's memory. Otherwise all start from m_0.

    Raises:
        UserError: If `lambda_distill` or `taught` needs a given trunk and there is none, or if the teacher and the RNN
            differ in memory or vocabulary.
    """

    def __init__(
        self,
        rnn: RNN,
        bptt_window: int | None = None,
        *,
        lambda_distill: float = 0.0,
        teacher: Teacher | None = None,
        taught: bool = False,
    ):
        super().__init__()
        self.rnn, self.bptt_window, self.lambda_distill, self.taught = rnn, bptt_window, lambda_distill, taught
        # Kept out of the module tree, as in DMT.
        self._teacher = (teacher,)
        if teacher is not None:
            check_alike(teacher, rnn)
        if (lambda_distill or taught) and (teacher is None or teacher.given_trunk is None):
            raise UserError(f"lambda_distill: {lambda_distill} needs a teacher with a given trunk")
        self.train()
        self.requires_grad_(True)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Apply `fn` to the teacher, too, so that `.to()` moves both."""
        if self._teacher[0] is not None:
            self._teacher[0]._apply(fn, recurse)
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Compute the losses of a batch.

        Args:
            batch: "tokens" (B, T) and "targets" (B, T + 1). Optional: "fresh" (B,) bool, True for sequences that always
                start from m_0, and labels or inputs of the teacher's trunk (see `kept_labels`).

        Returns:
            "loss", to be minimised, "loss_readout" and, if `lambda_distill` is not 0, "loss_distill".
        """
        tokens, targets = batch["tokens"], batch["targets"]
        memory, guide = self.rnn.init_memory(len(tokens)), None
        if teacher := self._teacher[0]:
            with without_graph(), evaluating(teacher):
                steps = torch.zeros(1, dtype=torch.long, device=tokens.device)
                asks = self.lambda_distill > 0
                labels, guide = teacher.encode_with_trunk(tokens, steps, asks, kept=kept_labels(batch))
            if self.taught and "fresh" in batch:
                memory = torch.where(batch["fresh"][:, None, None], memory, labels[:, 0])
        memories = unroll_alone(self.rnn, memory, tokens, window_len(self.bptt_window, tokens.shape[1]))
        read, temperature = torch.cat([memory[:, None], memories], 1), teacher.temperature if teacher else 1.0
        losses = answer_losses(self.rnn.readout, read, targets, guide=guide, temperature=temperature)
        loss = losses["loss_readout"]
        if guide is not None:
            loss = loss + self.lambda_distill * losses["loss_distill"]
        return {"loss": loss, **losses}

    def sequential_steps(self, length: int, progress: float = 0.0) -> int:
        """Return the sequential steps of one optimizer step.

        The chain is the teacher's trunk, if there is one, all cells, the readout, and back to the gradient's cut.
        """
        cell, readout = self.rnn.depth, self.rnn.readout.depth
        before = self._teacher[0].depth if self._teacher[0] is not None else 0
        return before + (length * cell + readout) + (readout + window_len(self.bptt_window, length) * cell)

    def finish(self) -> None:
        """Do nothing: the RNN is complete."""

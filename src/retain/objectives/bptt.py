"""Backpropagation through time, whole or truncated: the baseline, and a way to finetune."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from retain.model.fast import fast
from retain.model.rnn import RNN
from retain.objectives.losses import predictive_loss, where_asked
from retain.objectives.segments import unroll_alone, window_len


class BPTT(nn.Module):
    """Cross-entropy of the readout along the unrolled RNN. m_0 is learnt.

    Args:
        rnn: what is trained.
        bptt_window: the gradient is cut every so many steps, from a random one on, so that no two tokens are always on
            two sides of a cut. None is nowhere.
    """

    def __init__(self, rnn: RNN, bptt_window: int | None = None):
        super().__init__()
        self.rnn, self.bptt_window = rnn, bptt_window
        self.train()
        self.requires_grad_(True)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses of batch["tokens"] (B, T) and batch["targets"] (B, T + 1): "loss" and "loss_readout", the same."""
        tokens, targets = batch["tokens"], batch["targets"]
        memory = self.rnn.init_memory(len(tokens))
        memories = unroll_alone(self.rnn, memory, tokens, window_len(self.bptt_window, tokens.shape[1]))
        answers, asked = where_asked(targets, torch.cat([memory[:, None], memories], 1))
        loss = predictive_loss(fast(self.rnn.readout)(asked), answers, likelihood=self.rnn.readout.likelihood)
        return {"loss": loss, "loss_readout": loss}

    def sequential_steps(self, length: int, progress: float = 0.0) -> int:
        """The longest chain of one optimizer step: all cells and the readout, and back as far as the gradient goes."""
        cell, readout = self.rnn.depth, self.rnn.readout.depth
        return (length * cell + readout) + (readout + window_len(self.bptt_window, length) * cell)

    def finish(self) -> None:
        """Nothing is left to do: the RNN stands alone."""

"""The RNN of a stream of numbers, with the running level and scale: it reads rows and returns distributions."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from retain.errors import UserError
from retain.model.rnn import RNN
from retain.ops import scale


class SeriesRNN(nn.Module):
    """A network that reads rows of numbers at constant memory and constant cost per step, and predicts the next values.

    A row (B, C + Q) has the values of a step and the covariates of the next step, which `channels` names. A missing
    number is NaN. The first row of a stream has no values, only the first step's covariates.

    Memory is a plain float32 tensor (B, K + R, D): save it, copy it, batch it, restore it. Its last R rows are the
    stream's level and scale. Each float64 is kept as two float32.

    Args:
        rnn: An RNN built for channels.

    Raises:
        UserError: The RNN reads tokens.
    """

    def __init__(self, rnn: RNN):
        super().__init__()
        if rnn.channels is None or rnn.readout.likelihood is None:
            raise UserError("run: its RNN reads tokens, not numbers; use retain.load")
        self.rnn, self.channels, self.likelihood = rnn, rnn.channels, rnn.readout.likelihood
        numbers = 2 * scale.STATE * self.channels.values
        self.rows = math.ceil(numbers / rnn.m_0.shape[1])

    def init_memory(self, batch: int) -> Tensor:
        """Return the memory before any row, (B, K + R, D)."""
        memory = self.rnn.init_memory(batch)
        return self._join(memory, scale.begin(self.channels, batch, memory.device))

    def _join(self, memory: Tensor, state: Tensor) -> Tensor:
        high = state.flatten(1).float()
        kept = torch.cat([high, (state.flatten(1) - high.double()).float()], 1)
        kept = nn.functional.pad(kept, (0, self.rows * memory.shape[2] - kept.shape[1]))
        return torch.cat([memory.float(), kept.unflatten(1, (self.rows, -1))], 1)

    def _split(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        shape = (self.rnn.m_0.shape[0] + self.rows, self.rnn.m_0.shape[1])
        if memory.dim() != 3 or memory.shape[1:] != shape:
            raise UserError(f"memory: {tuple(memory.shape)} is the wrong shape; give (B, {shape[0]}, {shape[1]})")
        count = scale.STATE * self.channels.values
        high, low = memory[:, -self.rows :].flatten(1)[:, : 2 * count].double().split(count, 1)
        return memory[:, : -self.rows], (high + low).unflatten(1, (scale.STATE, -1))

    def predict(self, memory: Tensor) -> Any:
        """Return the distribution of the next values (B, C), in their own units.

        As in `torch.distributions`, it has `log_prob`, `sample` and `mean`.
        """
        own, state = self._split(memory)
        return self.likelihood.distribution(self.rnn.readout(own).float(), *scale.measures(self.channels, state))

    def surprise(self, values: Tensor, memory: Tensor) -> Tensor:
        """Return the nats (B,) of the next values (B, C). Missing values add nothing."""
        own, state = self._split(memory)
        targets = scale.target(values, *scale.measures(self.channels, state))
        return self.likelihood.of_steps(self.rnn.readout(own).float(), targets)

    def step(self, x: Tensor, memory: Tensor) -> tuple[Any, Tensor]:
        """Read one row.

        Args:
            x: (B, C + Q).
            memory: (B, K + R, D).

        Returns:
            The distribution of the next values (B, C), and the new memory.
        """
        memory = self.read(x[:, None], memory)
        return self.predict(memory), memory

    def read(self, x: Tensor, memory: Tensor) -> Tensor:
        """Read rows (B, T, C + Q) one after another, and return the memory after the last."""
        if x.dim() == 3 and x.shape[1:] == (0, self.channels.row):
            return memory
        return self._roll(x, memory)[3]

    def forward(self, x: Tensor, memory: Tensor | None = None) -> tuple[Any, Tensor]:
        """Read rows (B, T, C + Q), starting from `memory` or, without it, as a new stream.

        Returns:
            The distribution of the values (B, T, C) after each row, and the last memory.
        """
        memories, levels, scales, last = self._roll(x, self.init_memory(len(x)) if memory is None else memory)
        return self.likelihood.distribution(self.rnn.readout(memories).float(), levels, scales), last

    def surprises(self, x: Tensor, following: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Return the nats (B, T) of the values `following` (B, T, C) each row (B, T, C + Q), and the last memory."""
        memories, levels, scales, last = self._roll(x, memory)
        targets = scale.target(following, levels, scales)
        return self.likelihood.of_steps(self.rnn.readout(memories).float(), targets), last

    def _roll(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Read rows (B, T, C + Q): the RNN's memories, levels and scales (B, T, C) after each, and the last memory."""
        if x.dim() != 3 or x.shape[2] != self.channels.row or not x.shape[1]:
            raise UserError(f"x: {tuple(x.shape)} is the wrong shape; give (B, T, {self.channels.row})")
        own, state = self._split(memory)
        tokens, levels, scales, state = scale.read_rows(self.channels, x, state)
        memories = self.rnn.rollout(tokens, own)
        return memories, levels, scales, self._join(memories[:, -1], state)

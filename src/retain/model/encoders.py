"""Memory encoders E: from tokens to the memory after each step (the paper, Sec. 3; docs/method.md).

All are built as Encoder(symbols, memory_config, teacher_config, recompute) and called with:

Args:
    tokens: (B, T), or (B, T, F) of numbers.
    steps: The steps t to encode, (S,), in ascending order.
    logits: Whether to return the trunk's logits.

Returns:
    The memories before normalisation, (B, S, K, D), and the trunk's logits of y_0 … y_T, (B, T + 1, V), or None
    without a trunk or without `logits`.

The memory of step t depends on tokens[:, :t] alone. The naive twins in tests/naive.py (`state_label`,
`register_label`, `window_label`, `store_label`) make a pass over tokens[:, :t] for every t.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from retain.config import MemoryConfig, Symbols, TeacherConfig
from retain.model.delta_block import DeltaBlock
from retain.model.embeddings import NumberEmbedding, embedding, shrink
from retain.model.layers import Block, Norm, Transformer
from retain.model.likelihood import count_scores
from retain.model.store_encoder import StoreEncoder
from retain.ops.attention import attention

LOCAL = 4
"""Newest tokens whose embeddings a trunk position sums, so that no layer is spent on fetching them."""

GROUP = 16
"""Steps whose registers attend together. Each step also gets the others' keys, masked, so GROUP should be small."""

WINDOW_NUMBERS = 2**26
"""The most numbers in the windows that a pass without gradients reads at once. All steps of a validation would fill a
GPU."""


class Trunk(nn.Module):
    """A causal Transformer, or a stack of `DeltaBlock`, over [start, x_0 … x_{T-1}]; position t has read t tokens.

    The input at t is the sum of the last LOCAL tokens' embeddings (`config.local` in a delta trunk), from a table each.
    """

    def __init__(self, symbols: Symbols, config: TeacherConfig, recompute: bool):
        super().__init__()
        self.vocab_size, self.local = count_scores(symbols), config.local if config.trunk == "delta" else LOCAL
        self.embed: Any = embedding(symbols, config.width, tables=self.local)
        self.start = nn.Parameter(torch.randn(config.width) * 0.02)
        block = partial(DeltaBlock, householders=config.householders) if config.trunk == "delta" else Block
        self.transformer = Transformer(config.width, config.heads, config.layers, recompute, block)
        self.head = nn.Linear(config.width, self.vocab_size)
        shrink(self.embed)

    def inputs(self, tokens: Tensor) -> Tensor:
        """Embed tokens (B, T) as (B, T + 1, W)."""
        x = self.embed(tokens)
        for back in range(1, min(self.local, tokens.shape[1])):
            if isinstance(self.embed, NumberEmbedding):
                older = self.embed(tokens[:, :-back], back)
            else:
                older = self.embed(tokens[:, :-back] + back * self.vocab_size)
            x = x + nn.functional.pad(older, (0, 0, back, 0))
        return torch.cat([self.start.expand(tokens.shape[0], 1, -1), x], 1)


class StateEncoder(nn.Module):
    """An encoder whose m_t is a linear map of the trunk's state after t tokens. One pass gives every m_t."""

    def __init__(self, symbols: Symbols, memory: MemoryConfig, config: TeacherConfig, recompute: bool):
        super().__init__()
        self.shape = (memory.tokens, memory.width)
        self.trunk = Trunk(symbols, config, recompute)
        self.to_memory = nn.Linear(config.width, memory.tokens * memory.width, bias=False)

    def forward(self, tokens: Tensor, steps: Tensor, logits: bool = True) -> tuple[Tensor, Tensor | None]:
        """Encode tokens (B, T) at steps (S,): memories (B, S, K, D) and, with `logits`, trunk logits (B, T + 1, V)."""
        states = self.trunk.transformer(self.trunk.inputs(tokens), causal=True)
        wanted = states if len(steps) == states.shape[1] else states[:, steps]
        return self.to_memory(wanted).unflatten(-1, self.shape), self.trunk.head(states) if logits else None


class RegisterEncoder(nn.Module):
    """An encoder with K registers per step, which attend to the trunk's layers up to that step and to each other.

    The registers go through the trunk's own blocks and share its weights. Work grows as T·S·K + S·K². The backward pass
    needs a copy of the trunk's keys and values for each GROUP of steps.
    """

    def __init__(self, symbols: Symbols, memory: MemoryConfig, config: TeacherConfig, recompute: bool):
        super().__init__()
        self.trunk = Trunk(symbols, config, recompute)
        self.registers = nn.Parameter(torch.randn(memory.tokens, config.width) * 0.02)
        self.norm = Norm(config.width)
        self.to_memory = nn.Linear(config.width, memory.width, bias=False)

    def forward(self, tokens: Tensor, steps: Tensor, logits: bool = True) -> tuple[Tensor, Tensor | None]:
        """Encode tokens (B, T) at steps (S,): memories (B, S, K, D) and, with `logits`, trunk logits (B, T + 1, V)."""
        x = self.trunk.inputs(tokens)  # (B, T + 1, W)
        transformer, per_step = self.trunk.transformer, len(self.registers)
        # A register's position is one past the last token that the register reads.
        own = (steps + 1).repeat_interleave(per_step)
        turn, turn_own = transformer.first_angles(x), transformer.angles(own, x.dtype)
        registers = self.registers.repeat(len(steps), 1).expand(x.shape[0], -1, -1)  # (B, S·K, W)
        groups = _grouped(steps, per_step, x.shape[1])
        *_, last = transformer.layers()

        def layer(block: Block, x: Tensor, registers: Tensor) -> tuple[Tensor, Tensor]:
            q, k, v = block.queries_keys_values(x, turn)
            q_own, k_own, v_own = block.queries_keys_values(registers, turn_own)
            read = [
                attention(
                    q_own[:, :, group],
                    torch.cat([k[:, :, :end], k_own[:, :, group]], 2),
                    torch.cat([v[:, :, :end], v_own[:, :, group]], 2),
                    mask=mask,
                )
                for group, end, mask in groups
            ]
            registers = block.mix(registers, torch.cat(read, 2))
            if logits or block is not last:
                x = block.mix(x, attention(q, k, v, causal=True))
            return x, registers

        for block in transformer.layers():
            x, registers = transformer.through(layer, block, x, registers)
        memory = self.to_memory(self.norm(registers)).unflatten(1, (len(steps), per_step))
        return memory, self.trunk.head(transformer.norm(x)) if logits else None


def _grouped(steps: Tensor, per_step: int, length: int) -> list[tuple[slice, int, Tensor]]:
    """Group the registers of GROUP steps: their slice, the number of trunk keys that they may see, and the mask.

    A mask (G·K, keys + G·K) is True where a register may attend: to the trunk up to its step, and to registers of its
    step. One call of `attention` for each group avoids the scores of all registers against all tokens.
    """
    found = []
    for first, part in zip(range(0, len(steps), GROUP), steps.split(GROUP), strict=True):
        end = length if _must_not_look(steps) else int(part.max()) + 1
        of_step = torch.arange(len(part), device=steps.device).repeat_interleave(per_step)
        trunk = torch.arange(end, device=steps.device) <= part.repeat_interleave(per_step)[:, None]
        mask = torch.cat([trunk, of_step == of_step[:, None]], 1)
        found.append((slice(first * per_step, (first + len(part)) * per_step), end, mask))
    return found


def _must_not_look(steps: Tensor) -> bool:
    """Whether reading values of `steps` would wait for the device, or cause a compilation for each value."""
    return steps.device.type != "cpu" or torch.compiler.is_compiling()


class WindowEncoder(nn.Module):
    """The paper's encoder: a bidirectional Transformer over the last C tokens and K registers, one pass per step.

    It has no trunk.
    """

    def __init__(self, symbols: Symbols, memory: MemoryConfig, config: TeacherConfig, recompute: bool):
        super().__init__()
        self.context_len = config.context_len
        self.embed = embedding(symbols, config.width)
        self.registers = nn.Parameter(torch.randn(memory.tokens, config.width) * 0.02)
        self.transformer = Transformer(config.width, config.heads, config.layers, recompute)
        self.to_memory = nn.Linear(config.width, memory.width, bias=False)
        shrink(self.embed)

    def forward(self, tokens: Tensor, steps: Tensor, logits: bool = True) -> tuple[Tensor, None]:
        """Encode tokens (B, T) at steps (S,): memories (B, S, K, D), and None for the trunk's logits."""
        batch, per_step = tokens.shape[0], len(self.registers)
        if not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            reach = self._window(tokens.shape[1])
            at_once = max(1, WINDOW_NUMBERS // (batch * (reach + per_step) * self.registers.shape[1]))
            if at_once < len(steps):
                parts = [self(tokens, part, logits)[0] for part in steps.split(at_once)]
                return torch.cat(parts, 1), None
        width = self._window(tokens.shape[1] if _must_not_look(steps) else int(steps.max()))
        # A window ends at its step. It is padded on the left, and nothing may attend to the padding.
        where = steps[:, None] - width + torch.arange(width, device=tokens.device)  # (S, C)
        windows = self.embed(tokens[:, where.clamp_min(0)])  # (B, S, C, W)
        registers = self.registers.expand(batch, len(steps), -1, -1)
        real = torch.cat([where >= 0, where.new_ones(len(steps), per_step, dtype=torch.bool)], 1)
        mask = real[:, None, None].expand(batch, -1, -1, -1, -1).flatten(0, 1)  # (B·S, 1, 1, C + K)
        x = torch.cat([windows, registers], 2).flatten(0, 1)
        x = self.transformer(x, keep=slice(width, None), mask=mask)
        return self.to_memory(x).unflatten(0, (batch, -1)), None

    def _window(self, length: int) -> int:
        """Return the length of the longest window over `length` tokens."""
        return length if self.context_len is None else min(length, self.context_len)


ENCODERS: dict[str, type[nn.Module]] = {
    "state": StateEncoder,
    "register": RegisterEncoder,
    "window": WindowEncoder,
    "store": StoreEncoder,
}

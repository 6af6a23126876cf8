"""Checks of the shapes of tokens and memory: there is one memory for each stream."""

from __future__ import annotations

import torch
from torch import Tensor

from retain.config import Channels
from retain.errors import UserError


def check_streams(memory: Tensor, inputs: Tensor) -> None:
    """Raise UserError unless memory (N, …) and inputs (N, …) have the same N, because PyTorch would broadcast N = 1."""
    if len(memory) != len(inputs):
        raise UserError(_differ(len(memory), len(inputs)))


def check_axes(name: str, tokens: Tensor, axes: str, channels: Channels | None = None) -> None:
    """Raise UserError unless tokens have the axes that `axes` names, such as "B, T", and for numbers a last axis F."""
    numbers = () if channels is None else (channels.token,)
    count = axes.count(",") + 1
    if tokens.dim() != count + len(numbers) or tokens.shape[count:] != numbers:
        wanted = ", ".join([axes, *map(str, numbers)])
        raise UserError(f"{name}: {tuple(tokens.shape)} is the wrong shape; give ({wanted})")


def check_memory_of(memory: Tensor, streams: torch.Size, each: torch.Size) -> None:
    """Raise UserError unless memory has one tensor (K, D), of shape `each`, for each of the streams (...)."""
    if memory.shape == (*streams, *each):
        return
    if memory.dim() < 3 or memory.shape[-2:] != each:
        raise UserError(f"memory: {tuple(memory.shape)} is the wrong shape; give (B, {each[0]}, {each[1]})")
    of_memory, of_tokens = (x[0] if len(x) == 1 else tuple(x) for x in (memory.shape[:-2], streams))
    raise UserError(_differ(of_memory, of_tokens))


def _differ(of_memory: object, of_tokens: object) -> str:
    return f"memory: {of_memory} streams, but tokens of {of_tokens}; give one memory for each stream"

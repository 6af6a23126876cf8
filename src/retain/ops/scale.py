"""The running level and scale of a stream of numbers, and the tokens and targets made with them.

Level and scale depend on earlier values only. Before the first value they are medians of the training data. The state
of a stream is three numbers for each value, in float64: the count of values read, the level and the spread. The n-th
value has the weight max(1 / n, 1 / steps).

level: values are measured from the running mean in units of the running mean absolute deviation from it.
mean: values are measured from 0 in units of the running mean absolute value, as counts are.
fixed: values are measured by one constant level and scale, those of the channels.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from retain.config.channels import Channels

STATE = 3
"""How many numbers the state has for each value."""
SETTLED = 8
"""After this many values, a value more than OUTLIER scales from the level counts as OUTLIER scales away."""
OUTLIER = 10.0
SMALLEST = 1e-4
"""A scale is at least this share of the level plus the scale of a stream that moves little."""
LARGEST = 1e30
"""A value of a larger magnitude counts as missing."""


def begin(channels: Channels, batch: int, device: torch.device | None = None) -> Tensor:
    """Return the state of streams that have not begun, (B, 3, C) float64."""
    state = torch.zeros(batch, STATE, channels.values, dtype=torch.float64, device=device)
    state[:, 1], state[:, 2] = _constant(channels.level, state), _constant(channels.spread, state)
    return state


def _constant(values: tuple[float, ...], like: Tensor) -> Tensor:
    return _kept(values, like.device)


@functools.lru_cache(maxsize=64)  # a stream uses the same few at every step
def _kept(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=device)


def measures(channels: Channels, state: Tensor) -> tuple[Tensor, Tensor]:
    """Return the level and the scale (B, C) by which the next values are measured."""
    if channels.scale == "fixed":
        return _constant(channels.level, state).expand_as(state[:, 1]), _constant(channels.spread, state).expand_as(
            state[:, 2]
        )
    least = SMALLEST * (state[:, 1].abs() + _constant(channels.least, state))
    return state[:, 1], torch.maximum(state[:, 2], least)


def update(channels: Channels, state: Tensor, values: Tensor) -> Tensor:
    """Return the state after values (B, C), NaN where a value is missing."""
    values = _clean(values)
    seen, (level, scale) = ~values.isnan(), measures(channels, state)
    count = state[:, 0] + 1
    if channels.scale == "fixed":
        return torch.stack([count.where(seen, state[:, 0]), state[:, 1], state[:, 2]], 1)
    weight = (1 / count).clamp_min(1 / channels.steps)
    if channels.scale == "mean":
        level = torch.zeros_like(level)
    # After one value, only its magnitude tells its scale.
    at_first = torch.maximum(values.abs() * _constant(channels.ratio, state), _constant(channels.least, state))
    apart = values - level
    near = torch.where(count > SETTLED, torch.maximum(-OUTLIER * scale, torch.minimum(apart, OUTLIER * scale)), apart)
    new_level = torch.where(count == 1, values, level + weight * near)
    new_spread = torch.where(count == 1, at_first, state[:, 2] + weight * (near.abs() - state[:, 2]))
    if channels.scale == "mean":
        new_level = level
    new = torch.stack([count, new_level, new_spread], 1)
    return new.where(seen[:, None], state)


def _clean(values: Tensor) -> Tensor:
    """Return values in float64, NaN where they are too large to measure."""
    values = values.double()
    return values.masked_fill(~(values.abs() <= LARGEST), torch.nan)


def read(channels: Channels, state: Tensor, row: Tensor) -> Tensor:
    """Make the token (B, F) float32 of a row (B, C + Q), measured by the state after the row's values."""
    values, covariates = _clean(row[:, : channels.values]), row[:, channels.values :].double()
    numbers, codes = covariates.split((len(channels.covariates), len(channels.categories)), 1)
    parts = []
    if not channels.classes:
        level, scale = measures(channels, state)
        usual = _constant(channels.spread, state)
        parts += [((values - level) / scale).asinh().nan_to_num(0.0), values.isnan().double()]
        parts += [(level / scale).asinh() / 4, (scale / usual).log() / 8, state[:, 0].log1p() / 4]
    if channels.covariates:
        usual = (numbers - _constant(channels.shift, state)) / _constant(channels.stretch, state)
        parts += [usual.asinh().nan_to_num(0.0), numbers.isnan().double()]
    parts.append(codes.nan_to_num(0.0))
    if channels.classes:
        parts.append((values + 1).nan_to_num(0.0))
    return torch.cat(parts, 1).float()


def read_rows(channels: Channels, rows: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Make the tokens of consecutive rows of a stream.

    Args:
        channels: What a row holds.
        rows: (B, T, C + Q); NaN where a number is missing.
        state: The state before the first row, (B, 3, C).

    Returns:
        Tokens (B, T, F) float32; the level and the scale (B, T, C) by which the values after each row are measured; and
        the state after the last row.
    """
    states = [state]
    for values in rows[..., : channels.values].unbind(1):
        states.append(update(channels, states[-1], values))
    # Only the states wait for each other.
    flat = torch.stack(states[1:], 1).flatten(0, 1)
    tokens = read(channels, flat, rows.flatten(0, 1))
    levels, scales = measures(channels, flat)
    tokens, levels, scales = (part.unflatten(0, rows.shape[:2]) for part in (tokens, levels, scales))
    return tokens, levels, scales, states[-1]


def target(values: Tensor, level: Tensor, scale: Tensor) -> Tensor:
    """Make targets (..., 2 · C) float32 of values (..., C): measured, NaN if missing, and then their scales."""
    return torch.cat([(_clean(values) - level) / scale, scale], -1).float()

"""Completion of images by the RNN, which sees their upper half, and image files of the results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retain.config import ImageDataConfig, RunConfig
from retain.data.batches import evenly_spaced
from retain.data.images import events_vocabulary, from_events, read_image, to_events
from retain.errors import UserError
from retain.inference.generate import generate
from retain.model.rnn import RNN

HIDDEN = -1
"""The level of an unknown pixel."""


def true_images(config: RunConfig, count: int | None, files: list[str]) -> Tensor:
    """Read the images to complete, (B, H·W) levels: `count` evenly spaced ones of the test split, or `files`.

    Raises UserError for files that are not images, or if the run's data does not define how files become pixels.
    """
    if files:
        if not isinstance(config.data, ImageDataConfig):
            raise UserError(f"images: {config.data.name} does not read image files; use --complete N")
        return torch.from_numpy(np.stack([read_image(f, config.data) for f in files]).reshape(len(files), -1)).long()
    from retain.data import load_data

    data = load_data(config.data)
    if isinstance(config.data, ImageDataConfig) and config.data.events:
        if not config.data.reset or config.data.stream:
            raise UserError("complete: events carried over or streamed are not whole images; give --images FILE")
        index = evenly_spaced(data.documents("test"), count or 1)  # type: ignore[attr-defined]
        drawn = [from_events(data.document("test", int(i)), config.data) for i in index]  # type: ignore[attr-defined]
        return torch.from_numpy(np.stack(drawn).reshape(len(drawn), -1)).long()
    return torch.cat([batch["targets"] for batch in data.windows("test", 256, count)])


def complete(
    rnn: RNN, truth: Tensor, shape: tuple[int, int], config: RunConfig, **sampling: Any
) -> tuple[Tensor, Tensor]:
    """Complete the lower half of images: truth (B, H·W) → given (B, H·W) with HIDDEN below, completed (B, H·W).

    `sampling` goes to `generate`.
    """
    known = shape[0] // 2 * shape[1]
    given = truth.clone()
    given[:, known:] = HIDDEN
    if not isinstance(config.data, ImageDataConfig) or not config.data.events:
        rest = generate(rnn, truth[:, :known], truth.shape[1] - known, **sampling)
        return given, torch.cat([truth[:, :known], torch.stack([token.cpu() for token in rest], 1)], 1)
    # Events differ in number, so each image is read and continued by itself, until its end symbol.
    done, end = [], events_vocabulary(config.data) - 1
    for row in truth:
        upper = torch.where(torch.arange(len(row)) < known, row, 0).numpy().astype(np.uint8)
        events = to_events(upper.reshape(shape), config.data)[:-1]
        for token in generate(rnn, torch.from_numpy(events)[None], 2 * len(row), **sampling):
            if int(token[0]) == end:
                break
            events = np.append(events, int(token[0]))
        drawn = from_events(events, config.data).ravel()
        done.append(torch.where(torch.arange(len(row)) < known, row, torch.from_numpy(drawn).long()))
    return given, torch.stack(done)


def save_image_grid(tokens: Tensor, shape: tuple[int, int], levels: int, path: str | Path, columns: int = 8) -> None:
    """Write images as one grayscale PNG grid: tokens (B, H·W) of `levels` levels, brightest last.

    A negative token is an unknown pixel, drawn in the colour of the gaps. Raises UserError if the file cannot be
    written.
    """
    from PIL import Image

    height, width = shape
    zoom, gap = max(1, 48 // max(height, width)), 4
    images = tokens.cpu().numpy().reshape(-1, height, width)
    images = np.where(images < 0, 64, images * 255 // max(levels - 1, 1)).astype(np.uint8)
    images = images.repeat(zoom, 1).repeat(zoom, 2)
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    cells = np.pad(images, ((0, rows * columns - len(images)), (0, gap), (0, gap)), constant_values=64)
    grid = np.concatenate([np.concatenate(cells[i : i + columns], 1) for i in range(0, len(cells), columns)])
    grid = np.pad(grid, ((gap, 0), (gap, 0)), constant_values=64)
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(grid).save(path)
    except OSError as error:
        raise UserError(f"out: {path} cannot be written, {error.strerror or error}; name another --out") from error

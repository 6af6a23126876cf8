"""Images as one picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from retain.errors import UserError


def save_image_grid(tokens: Tensor, shape: tuple[int, int], levels: int, path: str | Path, columns: int = 8) -> None:
    """Write images as one grayscale PNG grid: tokens (B, H·W) of `levels` levels, brightest last.

    A negative token is a pixel that is not known; it has the colour of the gaps. Raises UserError where the file cannot
    be written.
    """
    from PIL import Image

    height, width = shape
    zoom, gap = max(1, 48 // max(height, width)), 4
    images = tokens.cpu().numpy().reshape(-1, height, width)
    images = np.where(images < 0, 64, images * 255 // max(levels - 1, 1)).astype(np.uint8)
    images = images.repeat(zoom, 1).repeat(zoom, 2)
    rows = -(-len(images) // columns)
    columns = min(columns, len(images))
    cell_height, cell_width = height * zoom + gap, width * zoom + gap
    grid = np.full((rows * cell_height + gap, columns * cell_width + gap), 64, np.uint8)
    for i, image in enumerate(images):
        top, left = gap + i // columns * cell_height, gap + i % columns * cell_width
        grid[top : top + height * zoom, left : left + width * zoom] = image
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(grid).save(path)
    except OSError as error:
        raise UserError(f"out: {path} cannot be written, {error.strerror or error}; name another --out") from error

"""Images of any size as pixels in raster order, or as events: the pixels that are not black."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from retain.config import DataConfig
from retain.errors import UserError

Pixels = npt.NDArray[np.uint8]


def levels_of(config: DataConfig) -> int:
    """Gray levels of the pixels that `pixels_of` gives."""
    return 2 if config.threshold is not None else config.levels


def pixels_of(image: Image.Image, config: DataConfig) -> Pixels:
    """An image as (N, N) levels, 0 darkest: made gray, brought to N x N with its proportions kept, inverted where
    asked for, then thresholded or quantised. What is transparent, and the border, is the background: white for
    what is to be inverted, else black. What is to be inverted is dark lines on paper: made smaller, the darkest of
    what a pixel covers counts, since a mean would leave nothing of a thin line.
    """
    background = 255 if config.invert else 0
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*[background] * 3, 255)), image)
    image = image.convert("L")
    size = (config.image_size, config.image_size)
    if config.invert:
        image = darkest(image, ImageOps.contain(image, size).size)
    if image.size != size:
        image = ImageOps.pad(image, size, method=Image.Resampling.BILINEAR, color=background)
    pixels = np.asarray(image)
    if config.invert:
        pixels = 255 - pixels
    if config.threshold is not None:
        return (pixels >= config.threshold).astype(np.uint8)
    return (pixels.astype(np.int64) * config.levels // 256).astype(np.uint8)


def darkest(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A gray image brought down to (width, height), each pixel the darkest of those it covers; never made larger."""
    pixels = np.asarray(image)
    for axis, length in ((1, size[0]), (0, size[1])):
        if length < pixels.shape[axis]:
            pixels = np.minimum.reduceat(pixels, np.arange(length) * pixels.shape[axis] // length, axis=axis)
    return Image.fromarray(pixels)


def read_image(path: str | Path, config: DataConfig) -> Pixels:
    """The (N, N) levels of an image file. Raises UserError for what is none."""
    try:
        with Image.open(path) as image:
            return pixels_of(image, config)
    except FileNotFoundError:
        raise UserError(f"images: {str(path)!r} does not exist; check its name") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"images: {str(path)!r} is not an image that can be read ({error}); leave it out") from None


def stored_image(row: Any, path: str) -> Image.Image:
    """The image of a row as `datasets` stores it: its bytes, or the path of its file."""
    try:
        if row.get("bytes"):
            file: Any = io.BytesIO(row["bytes"])
        elif "://" in row["path"]:  # of a stream: on the hub, or in an archive
            from datasets.utils.file_utils import xopen

            with xopen(row["path"], "rb") as opened:
                file = io.BytesIO(opened.read())
        else:
            file = row["path"]
        image = Image.open(file)
        image.load()
        return image
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(
            f"data.path: {row.get('path')!r} of {path!r} is not an image that can be read ({error}); take it out"
        ) from None


def events_vocabulary(config: DataConfig) -> int:
    """Positions, then the values above 0 where there are several, then the end symbol."""
    levels = levels_of(config)
    return config.image_size**2 + (levels - 1 if levels > 2 else 0) + 1


def to_events(pixels: Pixels, config: DataConfig) -> npt.NDArray[np.int64]:
    """Levels (N, N) → tokens: of every pixel above 0, in raster order, its position p, then (unless all are 1) its
    value v as N² + v - 1; at last the end symbol."""
    flat = pixels.ravel()
    positions = np.flatnonzero(flat)
    tokens = positions
    if levels_of(config) > 2:
        tokens = np.stack([positions, config.image_size**2 + flat[positions].astype(np.int64) - 1], 1).ravel()
    return np.append(tokens, events_vocabulary(config) - 1)


def from_events(tokens: npt.NDArray[np.int64], config: DataConfig) -> Pixels:
    """The (N, N) levels that events describe; of a pixel named twice the last value counts, a value without a
    position is passed over, and so is all after the end symbol."""
    area, end = config.image_size**2, events_vocabulary(config) - 1
    flat = np.zeros(area, np.uint8)
    position = None
    for token in tokens:
        if token == end:
            break
        if token < area:
            position = token
            flat[position] = max(flat[position], 1)
        elif position is not None:
            flat[position] = token - area + 1
    return flat.reshape(config.image_size, config.image_size)

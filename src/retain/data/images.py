"""Images of any size as pixels in raster order, or as events: the pixels that are not black."""

from __future__ import annotations

import io
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from retain.config import ImageDataConfig
from retain.errors import UserError

Pixels = npt.NDArray[np.uint8]
TAGS = ExifTags.Base


def to_pixels(image: Image.Image, config: ImageDataConfig) -> Pixels:
    """Turn an image into (N, N) levels, 0 darkest.

    The image is made gray, brought to N x N with its proportions kept, inverted where asked for, and cut into levels
    by the thresholds. What is transparent, and the border, is the background: white for what is to be inverted, else
    black.
    An image to be inverted shows dark lines on paper: where it is made smaller, the darkest of what a pixel covers
    counts, since a mean would leave nothing of a thin line.

    Raises UserError for an image that cannot be made gray; see `to_gray`.
    """
    background = 255 if config.invert else 0
    image = to_gray(image, background)
    size = (config.image_size, config.image_size)
    if config.invert:
        image = shrink_by_darkest(image, ImageOps.contain(image, size).size)
    if image.size != size:
        image = ImageOps.pad(image, size, method=Image.Resampling.BILINEAR, color=background)
    pixels = np.asarray(image)
    if config.invert:
        pixels = 255 - pixels
    return np.digitize(pixels, config.thresholds).astype(np.uint8) if config.thresholds else pixels


def to_gray(image: Image.Image, background: int) -> Image.Image:
    """Turn an image into 8 bits of gray (mode L), upright as its EXIF says, on a gray `background` where transparent.

    Of an animation or of several pages the frame that the image is at counts: the first of a file. Integers of more
    than 8 bits are scaled by the range that their file states: 16 bits, or the 12 bits of a TIFF that has so many or
    whose MaxSampleValue is 4095. (A PNG of fewer bits is meant to fill its 16; a file that does not looks dark.) Floats
    are scaled from 0 … 1. Raises UserError, which names the image's mode, for floats beyond that, for integers of an
    unknown range, and for what Pillow does not convert.
    """
    image.load()  # which turns a TIFF upright, and takes its orientation away
    transpose = UPRIGHT.get(read_orientation(image))
    if image.mode == "F" or image.mode.startswith("I"):
        gray = Image.fromarray(scale_to_8_bits(image, background))
    else:
        try:
            if image.mode in ("LAB", "La"):  # which become no other mode
                image = image.convert("RGB" if image.mode == "LAB" else "LA")
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, (*[background] * 3, 255)), image)
            gray = image.convert("L")
        except (ValueError, ImportError) as error:  # the latter for LAB without LittleCMS
            raise make_refusal(image, f"cannot be made gray ({error})") from None
    return gray if transpose is None else gray.transpose(transpose)


UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image of each EXIF orientation upright."""


def read_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation; 1 (upright) where there is none, or where EXIF is damaged.

    `ImageOps.exif_transpose` writes EXIF anew, too, and raises where any entry of it is damaged.
    """
    try:
        return int(image.getexif().get(TAGS.Orientation, 1))
    except Exception:  # Pillow checks little of what it reads
        return 1


def scale_to_8_bits(image: Image.Image, background: int) -> Pixels:
    """Scale the pixels of an image of integers beyond 8 bits, or of floats, to 0 … 255."""
    values: npt.NDArray[Any] = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    if tags.get(TAGS.PhotometricInterpretation) == 0:
        raise make_refusal(image, "has 0 for white, which is read in 8 bits only")
    if image.mode == "F":
        if not (values.min() >= 0 and values.max() <= 1):  # nor is NaN
            raise make_refusal(image, "has values outside 0 … 1")
        return np.asarray(np.rint(values * 255), np.uint8)
    if image.format not in (("PNG", "PPM") if image.mode == "I" else (None, "PNG", "PPM", "TIFF", "JPEG2000")):
        raise make_refusal(image, "has integers of a range that nothing states")
    (bits,), (largest,) = tags.get(TAGS.BitsPerSample, (16,)), tags.get(TAGS.MaxSampleValue, (0,))
    # Some write the largest value that there is instead of the range.
    if largest not in (1023, 4095, 16383) or values.max() > largest:
        largest = 2**bits - 1
    gray: Pixels = ((values.astype(np.int64) * 255 + largest // 2) // largest).astype(np.uint8)
    if (transparent := image.info.get("transparency")) is not None:
        gray[values == transparent] = background
    return gray


def make_refusal(image: Image.Image, why: str) -> UserError:
    """Make the error for an image that is whole, but has no gray that could be told."""
    name = getattr(image, "filename", "") or "one"
    return UserError(f"image: {name}, of mode {image.mode}, {why}; save it as 8-bit gray or colour")


def shrink_by_darkest(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Bring a gray image down to (width, height), each pixel the darkest of those it covers; never make it larger."""
    pixels = np.asarray(image)
    for axis, length in ((1, size[0]), (0, size[1])):
        if length < pixels.shape[axis]:
            pixels = np.minimum.reduceat(pixels, np.arange(length) * pixels.shape[axis] // length, axis=axis)
    return Image.fromarray(pixels)


def read_image(path: str | Path, config: ImageDataConfig) -> Pixels:
    """Read the (N, N) levels of an image file. Raises UserError for what is none."""
    try:
        with open(path, "rb") as file:
            image = open_image(file, str(path))
    except FileNotFoundError:
        raise UserError(f"images: {str(path)!r} does not exist; check its name") from None
    except OSError as error:
        raise UserError(f"images: {str(path)!r} is not an image that can be read ({error}); leave it out") from None
    return to_pixels(image, config)


def stored_image(row: Any, path: str) -> Image.Image:
    """Open the image of a row as `datasets` stores it: its bytes, or the path of its file."""
    try:
        content = row.get("bytes")
        if not content and "://" in row["path"]:  # of a stream: on the hub, or in an archive
            from datasets.utils.file_utils import xopen

            with xopen(row["path"], "rb") as opened:
                content = opened.read()
        elif not content:
            content = Path(row["path"]).read_bytes()
        return open_image(io.BytesIO(content), row.get("path") or "")
    except OSError as error:
        raise UserError(
            f"data.path: {row.get('path')!r} of {path!r} is not an image that can be read ({error}); take it out"
        ) from None


def open_image(file: IO[bytes], name: str) -> Image.Image:
    """Load the image in a file, or its first frame. Raises OSError for what is none, or is damaged."""
    try:
        image = Image.open(file)
        raw = image.tile[0][3] if image.format == "PNG" and image.tile else None
        image.load()
    except UnidentifiedImageError:
        raise OSError("its format is not known") from None
    except (OSError, MemoryError):
        raise
    except Exception as error:  # of a damaged file, or of one too large (Image.MAX_IMAGE_PIXELS), it may be any
        raise OSError(f"{type(error).__name__}: {error}") from error
    # Pillow scales the gray of 2 and 4 bits, and the colours of 16, to 8, but not the one that is transparent.
    transparent = image.info.get("transparency")
    if raw in ("L;2", "L;4") and transparent is not None:
        image.info["transparency"] = transparent * (85 if raw == "L;2" else 17)
    elif raw == "RGB;16B" and transparent is not None:
        image.info["transparency"] = tuple(value >> 8 for value in transparent)
    image.filename = name
    return image


def events_vocabulary(config: ImageDataConfig) -> int:
    """Count the tokens of events: positions, then the values above 0 where there are several, then the end symbol."""
    return config.image_size**2 + (config.levels - 1 if config.levels > 2 else 0) + 1


def to_events(pixels: Pixels, config: ImageDataConfig) -> npt.NDArray[np.int64]:
    """Turn levels (N, N) into events.

    Of every pixel above 0, in raster order, they are its position p, then (unless all are 1) its value v as
    N² + v - 1; at last comes the end symbol.
    """
    flat = pixels.ravel()
    positions = np.flatnonzero(flat)
    tokens = positions
    if config.levels > 2:
        tokens = np.stack([positions, config.image_size**2 + flat[positions].astype(np.int64) - 1], 1).ravel()
    return np.append(tokens, events_vocabulary(config) - 1)


def from_events(tokens: npt.NDArray[np.int64], config: ImageDataConfig) -> Pixels:
    """Turn events into the (N, N) levels that they describe.

    Of a pixel named twice the last value counts, a value without a position is passed over, and so is all after the
    end symbol.
    """
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

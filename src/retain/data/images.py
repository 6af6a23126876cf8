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

    The image is converted to gray, resized to N x N with its proportions kept, inverted if `config.invert`, and cut
    into levels by the thresholds. Transparent parts and the border become background: white before an inversion, else
    black. An image to be inverted shows dark lines on paper. If it shrinks, each pixel takes the darkest value that it
    covers, because a mean would erase thin lines.

    Raises UserError for an image that cannot be converted to gray; see `to_gray`.
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
    """Turn an image into 8-bit gray (mode L), upright as its EXIF says, with `background` behind transparent parts.

    Of an animation or of several pages, the current frame is read: the first one of a file. Integers of more than 8
    bits are scaled by the range that their file states: 16 bits, or fewer in a TIFF that states fewer, such as 12 bits
    or a MaxSampleValue of 4095. A PNG of fewer bits should fill its 16; if it does not, it looks dark. Floats are
    scaled from 0 … 1. Raises UserError naming the image's mode for floats outside 0 … 1, for integers of an unknown
    range, and for modes that Pillow cannot convert.
    """
    image.load()  # this also turns a TIFF upright and removes its orientation
    transpose = UPRIGHT.get(read_orientation(image))
    if image.mode == "F" or image.mode.startswith("I"):
        gray = Image.fromarray(scale_to_8_bits(image, background))
    else:
        try:
            if image.mode in ("LAB", "La"):  # these convert to no other mode
                image = image.convert("RGB" if image.mode == "LAB" else "LA")
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, (*[background] * 3, 255)), image)
            gray = image.convert("L")
        except (ValueError, ImportError) as error:  # ImportError: LAB without LittleCMS
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
"""The operation that turns an image of each EXIF orientation upright."""


def read_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, or 1 (upright) if there is none or EXIF is damaged.

    `ImageOps.exif_transpose` would also rewrite EXIF, and raise if any entry of it is damaged.
    """
    try:
        return int(image.getexif().get(TAGS.Orientation, 1))
    except Exception:  # Pillow checks little of what it reads
        return 1


def scale_to_8_bits(image: Image.Image, background: int) -> Pixels:
    """Scale pixels that are floats or integers of more than 8 bits to 0 … 255."""
    values: npt.NDArray[Any] = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    if tags.get(TAGS.PhotometricInterpretation) == 0:
        raise make_refusal(image, "has 0 for white, which is supported in 8 bits only")
    if image.mode == "F":
        if not (values.min() >= 0 and values.max() <= 1):  # refuses NaN, too
            raise make_refusal(image, "has values outside 0 … 1")
        return np.asarray(np.rint(values * 255), np.uint8)
    if image.format not in (("PNG", "PPM") if image.mode == "I" else (None, "PNG", "PPM", "TIFF", "JPEG2000")):
        raise make_refusal(image, "has integers whose range its file does not state")
    (bits,), (largest,) = tags.get(TAGS.BitsPerSample, (16,)), tags.get(TAGS.MaxSampleValue, (0,))
    # Some programs write the image's largest value instead of the range.
    if largest not in (1023, 4095, 16383) or values.max() > largest:
        largest = 2**bits - 1
    gray: Pixels = ((values.astype(np.int64) * 255 + largest // 2) // largest).astype(np.uint8)
    if (transparent := image.info.get("transparency")) is not None:
        gray[values == transparent] = background
    return gray


def make_refusal(image: Image.Image, why: str) -> UserError:
    """Make the error for an undamaged image that cannot be converted to gray."""
    name = getattr(image, "filename", "") or "one without a file name"
    return UserError(f"image: {name}, of mode {image.mode}, {why}; save it as 8-bit gray or colour")


def shrink_by_darkest(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Shrink a gray image to (width, height), each pixel the darkest of those it covers. Never enlarge it."""
    pixels = np.asarray(image)
    for axis, length in ((1, size[0]), (0, size[1])):
        if length < pixels.shape[axis]:
            pixels = np.minimum.reduceat(pixels, np.arange(length) * pixels.shape[axis] // length, axis=axis)
    return Image.fromarray(pixels)


def read_image(path: str | Path, config: ImageDataConfig) -> Pixels:
    """Read the (N, N) levels of an image file. Raises UserError if the file is not an image."""
    try:
        with open(path, "rb") as file:
            image = open_image(file, str(path))
    except FileNotFoundError:
        raise UserError(f"images: {str(path)!r} does not exist; check its name") from None
    except OSError as error:
        raise UserError(f"images: {str(path)!r} is not an image that can be read ({error}); leave it out") from None
    return to_pixels(image, config)


def stored_image(row: Any, path: str) -> Image.Image:
    """Open the image of a row in the form that `datasets` stores: its bytes, or the path of its file."""
    try:
        content = row.get("bytes")
        if not content and "://" in row["path"]:  # streamed: on the hub, or in an archive
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
    """Load the image in a file, or its first frame. Raises OSError if the file is damaged or not an image."""
    try:
        image = Image.open(file)
        raw = image.tile[0][3] if image.format == "PNG" and image.tile else None
        image.load()
    except UnidentifiedImageError:
        raise OSError("its format is not known") from None
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a damaged file, or one above Image.MAX_IMAGE_PIXELS, may raise any
        raise OSError(f"{type(error).__name__}: {error}") from error
    # Pillow scales gray of 2 and 4 bits and colours of 16 bits to 8, but not the value that is transparent.
    transparent = image.info.get("transparency")
    if raw in ("L;2", "L;4") and transparent is not None:
        image.info["transparency"] = transparent * (85 if raw == "L;2" else 17)
    elif raw == "RGB;16B" and transparent is not None:
        image.info["transparency"] = tuple(value >> 8 for value in transparent)
    image.filename = name
    return image


def events_vocabulary(config: ImageDataConfig) -> int:
    """Count the tokens of events: positions, then the values above 0 if there are several, then the end symbol."""
    return config.image_size**2 + (config.levels - 1 if config.levels > 2 else 0) + 1


def to_events(pixels: Pixels, config: ImageDataConfig) -> npt.NDArray[np.int64]:
    """Turn levels (N, N) into events.

    Each pixel above 0, in raster order, becomes its position p and, if there are more than two levels, its value v as
    N² + v - 1. The end symbol comes last.
    """
    flat = pixels.ravel()
    positions = np.flatnonzero(flat)
    tokens = positions
    if config.levels > 2:
        tokens = np.stack([positions, config.image_size**2 + flat[positions].astype(np.int64) - 1], 1).ravel()
    return np.append(tokens, events_vocabulary(config) - 1)


def from_events(tokens: npt.NDArray[np.int64], config: ImageDataConfig) -> Pixels:
    """Turn events into the (N, N) levels that they describe.

    If a pixel is named twice, its last value counts. A value without a position is skipped, and so is everything after
    the end symbol.
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

"""Images of any size as pixels: what becomes of lines, gray and colour."""

import dataclasses
import io
import struct
import sys
import zlib

import numpy as np
import PIL
import pytest
import torch
from PIL import Image, ImageDraw

from conftest import tiny
from naive import randomise
from retain.config import data_config
from retain.config.presets import PRESETS
from retain.data.images import events_vocabulary, read_image, shrink_by_darkest, stored_image, to_gray, to_pixels
from retain.errors import UserError
from retain.inference.complete import HIDDEN, complete
from retain.inference.generate import generate
from retain.runs.run import build


@pytest.mark.parametrize("size", [(16, 16), (40, 30), (256, 256), (900, 1400)])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "1"])
def test_a_thin_line_of_a_sketch_stays_whatever_the_size(size, mode):
    """An X of lines one pixel wide: each of its rows has ink at both lines, and little elsewhere."""
    paper, ink = {"L": (255, 0), "RGB": ((255,) * 3, (0,) * 3), "RGBA": ((0,) * 4, (0, 0, 0, 255)), "1": (1, 0)}[mode]
    image = Image.new(mode, size, paper)
    draw = ImageDraw.Draw(image)
    draw.line((0, 0, size[0] - 1, size[1] - 1), fill=ink)
    draw.line((size[0] - 1, 0, 0, size[1] - 1), fill=ink)
    pixels = to_pixels(image, PRESETS["sketchy"]().data)
    assert pixels.shape == (16, 16) and set(np.unique(pixels)) == {0, 1}
    drawn = pixels[:, pixels.any(0)][pixels.any(1)]
    assert min(drawn.shape) >= 10  # with its proportions kept, in the middle of the square
    assert drawn.any(1).all() and drawn.any(0).all()
    assert drawn[0, 0] == drawn[0, -1] == drawn[-1, 0] == drawn[-1, -1] == 1
    assert 0.1 < drawn.mean() < 0.4


def test_the_darkest_of_what_a_pixel_covers():
    values = np.random.default_rng(0).integers(0, 256, (7, 10), dtype=np.uint8)
    found = np.asarray(shrink_by_darkest(Image.fromarray(values), (4, 3)))
    columns, rows = [0, 2, 5, 7, 10], [0, 2, 4, 7]
    for i in range(3):
        for j in range(4):
            assert found[i, j] == values[rows[i] : rows[i + 1], columns[j] : columns[j + 1]].min()
    assert np.array_equal(np.asarray(shrink_by_darkest(Image.fromarray(values), (10, 7))), values)
    assert shrink_by_darkest(Image.fromarray(values), (20, 3)).size == (10, 3)  # never larger


def test_light_on_dark_is_averaged():
    image = Image.fromarray(np.array([[0, 200], [0, 0]], np.uint8).repeat(8, 0).repeat(8, 1))
    config = data_config(name="images", path="x", image_size=1, seq_len=1)
    assert to_pixels(image, config)[0, 0] == pytest.approx(50, abs=1)


@pytest.mark.parametrize("events", [False, True])
def test_what_is_completed_follows_from_the_upper_half_alone(events):
    data = data_config(name="images", path="x", image_size=4, thresholds=(128,), events=events, reset=events)
    rnn = randomise(build(tiny(data=data), events_vocabulary(data) if events else 2)[0])
    truth = torch.randint(2, (3, 16), generator=torch.Generator().manual_seed(0))
    other = torch.cat([truth[:, :8], 1 - truth[:, 8:]], 1)
    (given, drawn), (_, again) = (complete(rnn, x, (4, 4), tiny(data=data), seed=3) for x in (truth, other))
    assert torch.equal(drawn, again), "what is to be completed must not be seen"
    assert torch.equal(drawn[:, :8], truth[:, :8]) and torch.equal(given[:, :8], truth[:, :8])
    assert (given[:, 8:] == HIDDEN).all() and drawn[:, 8:].any()
    if not events:
        assert torch.equal(drawn[:, 8:], torch.stack(list(generate(rnn, truth[:, :8], 8, seed=3)), 1))


def exact(size=2, **settings):
    """A config that keeps every gray as it is."""
    return data_config(name="images", path="x", image_size=size, **settings)


def of_bytes(content):
    return stored_image({"bytes": content, "path": None}, "x")


def saved(image, form, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def png(depth, colour, row, width, transparent=None):
    """A PNG of one row, of any depth (Pillow writes few): colour 0 is gray, 2 RGB, 4 gray with alpha, 6 RGBA."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, colour, 0, 0, 0))
    head += chunk(b"tRNS", transparent) if transparent else b""
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")


def tiff(bits, content, *, form=1, black=0, order="<", **tags):
    """A TIFF of a row of two gray pixels. `form`: 1 is unsigned, 2 signed, 3 float."""
    entries = {256: 2, 257: 1, 258: bits, 259: 1, 262: 1 - black, 273: 0, 277: 1, 278: 1, 279: len(content), 339: form}
    entries |= {int(tag[1:]): value for tag, value in tags.items()}
    entries[273] = 8 + 2 + 12 * len(entries) + 4
    out = (b"II" if order == "<" else b"MM") + struct.pack(order + "HIH", 42, 8, len(entries))
    for tag, value in sorted(entries.items()):
        out += struct.pack(order + "HHIHH", tag, 3, 1, value, 0)
    return out + struct.pack(order + "I", 0) + content


RED = 76
"""The gray of pure red, 0.299 of 255."""
MODES = {
    # mode: a colour of it, its gray on black, its gray on white
    "1": (1, 255, 255),
    "L": (100, 100, 100),
    "P": (3, RED, RED),
    "RGB": ((255, 0, 0), RED, RED),
    "RGBX": ((255, 0, 0, 9), RED, RED),
    "RGBA": ((255, 0, 0, 128), 38, 165),  # on white (255, 127, 127)
    "RGBa": ((128, 0, 0, 128), 38, 165),
    "LA": ((100, 128), 50, 177),
    "La": ((50, 128), 50, 177),
    "PA": ((3, 128), 38, 165),
    "CMYK": ((0, 255, 255, 0), RED, RED),
    "YCbCr": ((100, 200, 60), 100, 100),
    "LAB": ((128, 128, 128), 119, 119),  # L* = 50 %
    "HSV": ((0, 255, 255), RED, RED),
    "I;16": (25700, 100, 100),
    "I;16B": (25700, 100, 100),
    "I;16L": (25700, 100, 100),
    "I;16N": (25700, 100, 100),
    "F": (0.4, 102, 102),
    "I": (25700, None, None),  # of an unknown range
}


@pytest.mark.parametrize("mode", Image.MODES)
def test_every_mode_of_pillow_is_read_as_the_gray_it_shows(mode):
    colour, on_black, on_white = MODES[mode]
    image = Image.new(mode, (2, 2))
    if mode in ("P", "PA"):
        image.putpalette([0] * 9 + [255, 0, 0])
    for place in ((0, 0), (0, 1), (1, 0), (1, 1)):
        image.putpixel(place, colour)
    if on_black is None:
        with pytest.raises(
            UserError, match=f"^image: one without a file name, of mode {mode}, .* not state; save it as 8-bit gray"
        ):
            to_pixels(image, exact())
        return
    assert np.abs(to_pixels(image, exact()).astype(int) - on_black).max() <= 1
    assert np.abs(to_pixels(image, exact(invert=True)).astype(int) - (255 - on_white)).max() <= 1


def test_a_mode_that_cannot_be_converted_is_named(monkeypatch, tmp_path):
    Image.new("LAB", (2, 2)).save(tmp_path / "a.tif")
    monkeypatch.delattr(PIL, "ImageCms", raising=False)
    monkeypatch.setitem(sys.modules, "PIL.ImageCms", None)
    with pytest.raises(UserError, match=r"image: .*a\.tif, of mode LAB, cannot be made gray .*; save it as 8-bit gray"):
        read_image(tmp_path / "a.tif", exact())


DEEP = [
    # what, file, grays of its two pixels
    ("PNG of 1 bit", png(1, 0, b"\x40", 2), [0, 255]),
    ("PNG of 2 bits", png(2, 0, b"\x70", 2), [85, 255]),
    ("PNG of 4 bits", png(4, 0, b"\x5f", 2), [85, 255]),
    ("PNG of 16 bits", png(16, 0, struct.pack(">2H", 25700, 65535), 2), [100, 255]),
    ("PNG of 16 bits, dark", png(16, 0, struct.pack(">2H", 128, 129), 2), [0, 1]),
    ("PNG of 16 bits, in colour", png(16, 2, struct.pack(">6H", 65535, 0, 0, *[25700] * 3), 2), [RED, 100]),
    ("PNG of 16 bits with alpha", png(16, 4, struct.pack(">4H", 65535, 0, 25700, 65535), 2), [0, 100]),
    (
        "PNG of 16 bits, in colour with alpha",
        png(16, 6, struct.pack(">8H", *[65535] * 3, 0, *[25700] * 3, 65535), 2),
        [0, 100],
    ),
    ("TIFF of 12 bits", tiff(12, bytes([0x64, 0x5F, 0xFF])), [100, 255]),
    ("TIFF of 16 bits", tiff(16, struct.pack("<2H", 25700, 65535)), [100, 255]),
    ("TIFF of 16 bits, big-endian", tiff(16, struct.pack(">2H", 25700, 65535), order=">"), [100, 255]),
    ("TIFF of 12 bits in 16", tiff(16, struct.pack("<2H", 1606, 4095), t281=4095), [100, 255]),
    ("TIFF of 10 bits in 16", tiff(16, struct.pack(">2H", 401, 1023), t281=1023, order=">"), [100, 255]),
    ("TIFF of 16 bits, and its largest value", tiff(16, struct.pack("<2H", 25700, 257), t281=25700), [100, 1]),
    ("TIFF of 16 bits that says 12", tiff(16, struct.pack("<2H", 25700, 257), t281=4095), [100, 1]),
    ("TIFF of floats", tiff(32, struct.pack("<2f", 0.4, 1.0), form=3), [102, 255]),
    ("PFM", b"Pf\n2 1\n-1.0\n" + struct.pack("<2f", 0.4, 1.0), [102, 255]),
    ("JPEG 2000", saved(Image.fromarray(np.array([[25700, 65535]], np.uint16)), "JPEG2000"), [100, 255]),
    ("PBM, plain", b"P1\n2 1\n1 0\n", [0, 255]),
    ("PBM", b"P4\n2 1\n\x80", [0, 255]),
]
for largest in (15, 100, 255, 1023, 4095, 65535):
    one, form = round(0.4 * largest), "B" if largest < 256 else ">H"
    grays = [round(one * 255 / largest), 255]
    gray, head = struct.pack(form, one), b"\n2 1\n%d\n" % largest
    DEEP += [
        (f"PGM up to {largest}", b"P5" + head + gray + struct.pack(form, largest), grays),
        (f"PGM up to {largest}, plain", b"P2" + head + b"%d %d" % (one, largest), grays),
        (f"PPM up to {largest}", b"P6" + head + gray * 3 + struct.pack(form, largest) * 3, grays),
        (f"PPM up to {largest}, plain", b"P3" + head + b"%d " % one * 3 + b"%d " % largest * 3, grays),
    ]


@pytest.mark.parametrize(("content", "grays"), [row[1:] for row in DEEP], ids=[row[0] for row in DEEP])
def test_every_depth_is_scaled_by_its_range(content, grays, tmp_path):
    (tmp_path / "image.any").write_bytes(content)
    assert np.abs(np.asarray(to_gray(of_bytes(content), 0)).astype(int) - [grays]).max() <= 1
    with Image.open(tmp_path / "image.any") as image:  # one that is not loaded yet
        assert np.array_equal(to_pixels(image, exact()), read_image(tmp_path / "image.any", exact()))
    assert np.array_equal(to_pixels(of_bytes(content), exact()), read_image(tmp_path / "image.any", exact()))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (tiff(16, bytes(4), black=1), "mode I;16, has 0 for white"),
        (tiff(32, bytes(8), form=3, black=1), "mode F, has 0 for white"),
        (tiff(16, bytes(4), form=2), "mode I, has integers whose range its file does not state"),
        (tiff(32, bytes(8)), "mode I, has integers whose range its file does not state"),
        (tiff(32, struct.pack("<2f", 0.5, 1.5), form=3), "mode F, has values outside 0 … 1"),
        (tiff(32, struct.pack("<2f", -0.5, 1), form=3), "mode F, has values outside 0 … 1"),
        (tiff(32, struct.pack("<2f", float("nan"), 1), form=3), "mode F, has values outside 0 … 1"),
        (tiff(32, struct.pack("<2f", float("inf"), 1), form=3), "mode F, has values outside 0 … 1"),
    ],
)
def test_a_range_that_nothing_states_is_refused(content, words, tmp_path):
    (tmp_path / "image.tif").write_bytes(content)
    with pytest.raises(UserError, match=rf"^image: .*image\.tif, of {words}.*; save it as 8-bit gray or colour$"):
        read_image(tmp_path / "image.tif", exact())


TRANSPARENT = [
    png(1, 0, b"\x80", 2, b"\0\1"),
    png(2, 0, b"\xc0", 2, b"\0\3"),
    png(4, 0, b"\x50", 2, b"\0\5"),
    png(8, 0, b"\x05\x00", 2, b"\0\5"),
    png(16, 0, b"\x12\x34\x00\x00", 2, b"\x12\x34"),
    png(8, 2, b"\1\2\3\0\0\0", 2, b"\0\1\0\2\0\3"),
    png(16, 2, b"\x12\x34\x56\x78\x9a\xbc" + bytes(6), 2, b"\x12\x34\x56\x78\x9a\xbc"),
]


@pytest.mark.parametrize("content", TRANSPARENT)
def test_the_one_colour_that_is_transparent_is_background(content):
    """The second pixel is black."""
    for background in (0, 200, 255):
        assert np.asarray(to_gray(of_bytes(content), background)).tolist() == [[background, 0]]


@pytest.mark.parametrize("alphas", [2, b"\xff\xff\x00", b"\xff\xff\x80"], ids=str)
def test_a_palette_with_transparent_colours(alphas):
    image = Image.new("P", (3, 1))
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    image.putdata([0, 1, 2])
    for form in ("PNG", "GIF"):
        if form == "GIF" and alphas != 2:
            continue
        green = {2: 255, b"\xff\xff\x00": 255, b"\xff\xff\x80": 202}[alphas]
        found = np.asarray(to_gray(of_bytes(saved(image, form, transparency=alphas)), 255)).astype(int)
        assert np.abs(found - [0, RED, green]).max() <= 1


ORIENTED = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).T,
    8: np.rot90,
}


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP", "PNG of 16 bits"])
@pytest.mark.parametrize("orientation", ORIENTED)
def test_an_image_is_turned_as_its_exif_says(orientation, form, tmp_path):
    values = np.array([[0, 80], [160, 240]], np.uint8).repeat(8, 0).repeat(8, 1)
    image = Image.fromarray(values.astype(np.uint16) * 257 if "16" in form else values)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "photo", form.split()[0], exif=exif)
    for config in (exact(16), exact(16, invert=True)):
        wanted = ORIENTED[orientation](values).astype(int)
        found = read_image(tmp_path / "photo", config)
        assert np.abs(found - (255 - wanted if config.invert else wanted)).max() < 20  # of a lossy format
        assert np.array_equal(found, to_pixels(of_bytes((tmp_path / "photo").read_bytes()), config))
        with Image.open(tmp_path / "photo") as image:  # one that is not loaded yet
            assert np.array_equal(found, to_pixels(image, config))


def test_damaged_exif_stops_no_image():
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x011A] = 6, "a picture", 72.0
    exif[0x8769] = {0x9003: "2020:01:01 00:00:00", 0x829A: (1, 50)}
    values = np.array([[0, 80], [160, 240]], np.uint8)
    turned = [ORIENTED[o](values).tolist() for o in ORIENTED]
    random, whole = np.random.default_rng(0), np.frombuffer(exif.tobytes(), np.uint8)
    for _ in range(500):
        damaged = whole.copy()
        damaged[random.integers(0, len(whole), 4)] = random.integers(0, 256, 4)
        content = saved(Image.fromarray(values), "PNG", exif=damaged.tobytes())
        assert to_pixels(of_bytes(content), exact()).tolist() in turned


@pytest.mark.parametrize("form", ["GIF", "WEBP", "TIFF", "PNG"])
def test_of_several_frames_the_first_is_read(form, tmp_path):
    frames = [Image.new("L", (4, 4), colour) for colour in (200, 0, 100)]
    options = {"lossless": True} if form == "WEBP" else {}
    frames[0].save(tmp_path / "frames", form, save_all=True, append_images=frames[1:], **options)
    with Image.open(tmp_path / "frames") as image:
        assert image.n_frames == 3
    assert (read_image(tmp_path / "frames", exact(4)) == 200).all()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "JPEG2000", "TGA", "DDS", "AVIF"])
def test_a_damaged_image_is_refused_or_read(form):
    """Whatever Pillow raises."""
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 256, (12, 10, 3), np.uint8))
    try:
        content = np.frombuffer(saved(image.convert("P") if form == "GIF" else image, form), np.uint8)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow has no {form}")
    refused = 0
    for i in range(150):
        damaged = content[: random.integers(1, len(content))] if i % 3 == 0 else content.copy()
        if i % 3:
            damaged[random.integers(0, min(300, len(damaged)), 3)] = random.integers(0, 256, 3)
        try:
            assert to_pixels(of_bytes(damaged.tobytes()), exact()).shape == (2, 2)
        except UserError as error:
            assert str(error).count("\n") == 0
            refused += 1
    assert refused >= 20


def test_an_image_that_would_fill_the_memory_is_refused(monkeypatch, tmp_path):
    Image.new("L", (100, 100)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(
        UserError, match=r"^images: .*large\.png' is not an image that can be read \(Decomp.*; leave it"
    ):
        read_image(tmp_path / "large.png", exact())


def test_images_are_read_whole_and_events_at_any_length():
    config = data_config(name="images", path="x", image_size=14)
    assert config.seq_len == 195 and dataclasses.replace(config, image_size=28).seq_len == 783
    assert config.at_length(195) == config
    with pytest.raises(UserError, match="data.seq_len: 64 does not fit images of 196 pixels; set it to 195"):
        config.at_length(64)
    events = dataclasses.replace(config, events=True, seq_len=64)
    assert events.seq_len == 64 and events.at_length(9).seq_len == 9

"""Images of any size as pixels: what becomes of lines, gray and colour."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from conftest import tiny
from naive import randomise
from retain.complete import HIDDEN, complete
from retain.config import DataConfig
from retain.data.images import darkest, events_vocabulary, pixels_of
from retain.generate import generate
from retain.presets import PRESETS
from retain.run import build


@pytest.mark.parametrize("size", [(16, 16), (40, 30), (256, 256), (900, 1400)])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "1"])
def test_a_thin_line_of_a_sketch_stays_whatever_the_size(size, mode):
    """An X of lines one pixel wide: each of its rows has ink at both lines, and little elsewhere."""
    paper, ink = {"L": (255, 0), "RGB": ((255,) * 3, (0,) * 3), "RGBA": ((0,) * 4, (0, 0, 0, 255)), "1": (1, 0)}[mode]
    image = Image.new(mode, size, paper)
    draw = ImageDraw.Draw(image)
    draw.line((0, 0, size[0] - 1, size[1] - 1), fill=ink)
    draw.line((size[0] - 1, 0, 0, size[1] - 1), fill=ink)
    pixels = pixels_of(image, PRESETS["sketchy"]().data)
    assert pixels.shape == (16, 16) and set(np.unique(pixels)) == {0, 1}
    drawn = pixels[:, pixels.any(0)][pixels.any(1)]
    assert min(drawn.shape) >= 10  # with its proportions kept, in the middle of the square
    assert drawn.any(1).all() and drawn.any(0).all()
    assert drawn[0, 0] == drawn[0, -1] == drawn[-1, 0] == drawn[-1, -1] == 1
    assert 0.1 < drawn.mean() < 0.4


def test_the_darkest_of_what_a_pixel_covers():
    values = np.random.default_rng(0).integers(0, 256, (7, 10), dtype=np.uint8)
    found = np.asarray(darkest(Image.fromarray(values), (4, 3)))
    columns, rows = [0, 2, 5, 7, 10], [0, 2, 4, 7]
    for i in range(3):
        for j in range(4):
            assert found[i, j] == values[rows[i] : rows[i + 1], columns[j] : columns[j + 1]].min()
    assert np.array_equal(np.asarray(darkest(Image.fromarray(values), (10, 7))), values)
    assert darkest(Image.fromarray(values), (20, 3)).size == (10, 3)  # never larger


def test_light_on_dark_is_averaged():
    image = Image.fromarray(np.array([[0, 200], [0, 0]], np.uint8).repeat(8, 0).repeat(8, 1))
    config = DataConfig(name="images", path="x", image_size=1, seq_len=1)
    assert pixels_of(image, config)[0, 0] == pytest.approx(50, abs=1)


@pytest.mark.parametrize("events", [False, True])
def test_what_is_completed_follows_from_the_upper_half_alone(events):
    data = DataConfig(name="images", path="x", image_size=4, seq_len=15, threshold=128, events=events, reset=events)
    rnn = randomise(build(tiny(data=data), events_vocabulary(data) if events else 2)[0])
    truth = torch.randint(2, (3, 16), generator=torch.Generator().manual_seed(0))
    other = torch.cat([truth[:, :8], 1 - truth[:, 8:]], 1)
    (given, drawn), (_, again) = (complete(rnn, x, (4, 4), tiny(data=data), seed=3) for x in (truth, other))
    assert torch.equal(drawn, again), "what is to be completed must not be seen"
    assert torch.equal(drawn[:, :8], truth[:, :8]) and torch.equal(given[:, :8], truth[:, :8])
    assert (given[:, 8:] == HIDDEN).all() and drawn[:, 8:].any()
    if not events:
        assert torch.equal(drawn[:, 8:], torch.stack(list(generate(rnn, truth[:, :8], 8, seed=3)), 1))

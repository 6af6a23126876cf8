"""The colours of methods: any two can be told apart by readers of every kind of colour vision, on white and on dark."""

import itertools

import numpy as np
import pytest

from retain.experiments.compare import METHODS as COMPARED
from retain.plots import METHODS, PALETTE, pick_colours

# Machado, Oliveira and Fernandes 2009, severity 1: linear RGB as it is seen.
SEEN = {
    "all colours": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TO_XYZ = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
APART = 19
"""Distance in CIE L*a*b*. About 2 is the least that is noticed between large areas; thin lines need more."""


def linear(colour):
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(light):
    xyz = np.array(TO_XYZ) @ light / [0.95047, 1, 1.08883]
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def distance(one, other, seen):
    places = [lab(np.clip(np.array(seen) @ linear(colour), 0, 1)) for colour in (one, other)]
    return np.linalg.norm(places[0] - places[1])


@pytest.mark.parametrize("vision", SEEN)
def test_any_two_methods_can_be_told_apart(vision):
    near = {
        (a, b): distance(METHODS[a], METHODS[b], SEEN[vision])
        for a, b in itertools.combinations(METHODS, 2)
        if distance(METHODS[a], METHODS[b], SEEN[vision]) < APART
    }
    assert near == {}


def test_the_measure_finds_what_colour_blind_readers_confuse():
    red, green = "#d1495b", "#2a9d5c"  # chosen by eye
    assert distance(red, green, SEEN["all colours"]) > 70
    assert distance(red, green, SEEN["deuteranopia"]) < APART


@pytest.mark.parametrize("ground", ["#ffffff", "#12161b"])
def test_every_line_is_seen_on_its_ground(ground):
    def luminance(colour):
        return TO_XYZ[1] @ linear(colour) + 0.05

    for colour in METHODS.values():
        low, high = sorted((luminance(colour), luminance(ground)))
        assert high / low > 2, colour


def test_every_method_has_a_colour_and_keeps_it():
    assert set(METHODS) == set(COMPARED) and sorted(PALETTE) == sorted(METHODS.values())
    assert pick_colours(["bptt", "one-step"]) == [METHODS["bptt"], METHODS["one-step"]]
    twice = pick_colours(["bptt", "bptt", None])
    assert twice[0] == METHODS["bptt"] and len(set(twice)) == 3
    assert len(pick_colours([None] * 20)) == 20

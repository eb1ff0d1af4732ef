"""The colours read on light and dark, and are told apart by the colour-blind."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from ipyvram.recording import CATEGORIES
from ipyvram.render import palette

#: Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
BLINDNESS = {
    "none": np.eye(3),
    "protanopia": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
    "deuteranopia": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]),
    "tritanopia": np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]),
}  # fmt: skip
XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
ALL_APART, NEIGHBOURS_APART = 14.0, 24.0  # CIE76; about 2.3 can just be noticed


def linear(colour: str) -> np.ndarray:
    rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    t = (XYZ @ np.clip(rgb, 0, 1)) / (XYZ @ np.ones(3))
    f = np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def apart(a: str, b: str) -> float:
    """The least distance of two colours over all kinds of sight."""
    one, two = linear(palette.COLOURS[a]), linear(palette.COLOURS[b])
    return min(float(np.linalg.norm(lab(m @ one) - lab(m @ two))) for m in BLINDNESS.values())


def contrast(a: str, b: str) -> float:
    low, high = sorted(float((XYZ @ linear(c))[1]) for c in (a, b))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("background", ["#ffffff", "#111111", "#1f1f1f"])
@pytest.mark.parametrize("part", [*CATEGORIES, "cache", "context", "other_processes"])
def test_graphics_have_contrast_on_light_and_dark(part, background):
    assert contrast(palette.ALL_COLOURS[part], background) >= 3


def test_what_is_taken_of_the_card_has_greys_of_its_own():
    taken = ("cache", "context", "other_processes")
    assert all(contrast(palette.CARD_COLOURS[a], palette.CARD_COLOURS[b]) > 1.3 for a, b in itertools.pairwise(taken))


@pytest.mark.parametrize(("a", "b"), list(itertools.combinations(CATEGORIES, 2)))
def test_any_two_are_told_apart_by_everybody(a, b):
    assert apart(a, b) >= ALL_APART


@pytest.mark.parametrize("order", [CATEGORIES, palette.STACK])
def test_neighbours_are_told_apart_easily(order):
    assert min(apart(a, b) for a, b in itertools.pairwise(order)) >= NEIGHBOURS_APART


def test_every_category_has_a_colour_a_letter_and_a_place_in_the_stack():
    assert tuple(palette.COLOURS) == palette.CATEGORIES == CATEGORIES
    assert sorted(palette.STACK) == sorted(CATEGORIES)
    assert sorted(palette.LETTERS) == sorted(CATEGORIES)
    assert len(set(palette.LETTERS.values())) == len(CATEGORIES)

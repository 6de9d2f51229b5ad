"""Boxes of a given area, inside the picture, round what is active."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spile.augmentation.boxes import Box, box_at, box_round, drawn_cell, mass_in, peak, pixel_of
from spile.augmentation.geometry import Axis, Frame, Grid


@given(st.floats(-20, 250), st.floats(-20, 250), st.floats(0, 1), st.integers(8, 230), st.integers(8, 230))
def test_a_box_lies_in_the_picture_and_inside_keeps_its_area(
    row: float, column: float, share: float, height: int, width: int
) -> None:
    size = (height, width)
    box = box_at((row, column), share, size, inside=True)
    assert 0 <= box.top < box.bottom <= height
    assert 0 <= box.left < box.right <= width
    assert box.area / (height * width) == pytest.approx(share, abs=1.01 / min(size) + 0.02)
    cut = box_at((row, column), share, size, inside=False)
    assert cut.area <= box.area
    assert 0 <= cut.top <= cut.bottom <= height


def test_a_box_round_a_region_has_a_margin_and_stays_inside() -> None:
    inside = np.zeros((20, 30), bool)
    inside[5:10, 20:30] = True
    assert box_round(inside, 0) == Box(5, 20, 10, 30)
    assert box_round(inside, 0.2) == Box(4, 18, 11, 30)
    assert box_round(np.zeros((4, 5), bool), 0.1) == Box(0, 0, 4, 5)


def test_the_peak_of_equal_cells_is_in_their_middle() -> None:
    assert peak(np.zeros((5, 5)), np.ones((5, 5))) == (2, 2)
    values = np.zeros((5, 5))
    values[4, 1] = 1
    assert peak(values, np.ones((5, 5))) == (4, 1)
    seen = np.ones((5, 5))
    seen[4] = 0
    assert peak(values, seen) != (4, 1)


def test_cells_are_drawn_with_the_chance_of_their_activation() -> None:
    values = np.zeros((3, 3))
    values[0, 0], values[2, 2] = 3, 1
    rng = np.random.default_rng(0)
    drawn = [drawn_cell(values, np.ones((3, 3)), rng) for _ in range(400)]
    assert set(drawn) == {(0, 0), (2, 2)}
    assert 0.68 < drawn.count((0, 0)) / 400 < 0.82
    assert len({drawn_cell(np.zeros((3, 3)), np.ones((3, 3)), rng) for _ in range(100)}) == 9


def test_the_pixel_of_a_cell_follows_the_frame() -> None:
    grid = Grid(Axis(7, 32.0, 0.0), Axis(7, 32.0, 0.0))
    assert pixel_of((3, 1), grid, Frame.whole((224, 224))) == (96, 32)
    half = Frame(source=(224, 224), top=64, left=0, height=64, width=64, size=(32, 32), flipped=True)
    row, column = pixel_of((3, 1), grid, half)
    assert row == pytest.approx((96 - 64 - 0.5) / 2)
    assert column == pytest.approx(31 - (32 - 0.5) / 2)
    assert pixel_of((0, 6), grid, half) == (0, 0)


def test_mass_in_a_box() -> None:
    pixels = np.zeros((4, 4))
    pixels[1, 1], pixels[3, 3] = 3, 1
    assert mass_in(Box(0, 0, 2, 2), pixels) == 0.75
    assert mass_in(Box(0, 0, 2, 2), np.zeros((4, 4))) == 0.25

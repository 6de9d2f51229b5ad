"""Where cells lie, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from spile.augmentation.geometry import (
    Axis,
    Frame,
    Grid,
    areas,
    latest,
    linear_weights,
    mean_grid,
    merged,
    nearest_weights,
    placed,
    same_padding,
)


def test_a_convolution_moves_centres_by_half_its_kernel_less_the_padding() -> None:
    pixels = Axis.of_pixels(224)
    stem = pixels.window(112, kernel=7, stride=2, before=3)
    assert (stem.stride, stem.first) == (2, 0)
    pool = stem.window(56, kernel=3, stride=2, before=1)
    assert (pool.stride, pool.first) == (4, 0)
    assert pixels.window(14, kernel=16, stride=16, before=0).first == 7.5
    assert pixels.window(222, kernel=3, stride=1, before=0).first == 1
    assert pixels.window(220, kernel=3, stride=1, before=0, dilation=2).first == 2


def test_same_padding_depends_on_the_size() -> None:
    assert same_padding(224, kernel=3, stride=2) == (0, 112)
    assert same_padding(225, kernel=3, stride=2) == (1, 113)
    assert same_padding(7, kernel=3, stride=1) == (1, 7)
    assert same_padding(8, kernel=3, stride=1, dilation=2) == (2, 8)


def test_padding_slicing_resizing_and_transposed_convolutions() -> None:
    axis = Axis(10, 4.0, 1.0)
    assert axis.padded(14, before=2) == Axis(14, 4.0, -7.0)
    assert axis.padded(8, before=-1).first == 5
    up = axis.resized(20)
    assert (up.stride, up.first) == (2, 0)  # the ends of the cells stay: 1 - 2 = 0 - 1
    assert axis.resized(19, align_corners=True) == Axis(19, 2.0, 1.0)
    spread = axis.spread(20, kernel=2, stride=2, before=0)
    assert (spread.stride, spread.first) == (2, 0)


def test_a_flip_and_a_crop_are_undone() -> None:
    frame = Frame(source=(100, 200), top=10, left=20, height=50, width=80, size=(25, 40), flipped=True)
    rows, columns = frame.positions()
    assert rows[0] == pytest.approx(10 + 1 - 0.5)
    assert columns[0] == pytest.approx(20 + 80 - 1 - 0.5)
    assert columns[-1] == pytest.approx(20 + 1 - 0.5)
    grid = Grid.of_pixels(25, 40).in_source(frame)
    np.testing.assert_allclose(grid.columns.centres, columns)
    np.testing.assert_allclose(grid.rows.centres, rows)


def test_a_map_made_on_one_crop_lies_right_in_another() -> None:
    """The cached-map mistake: reused by index, the map of one crop is taken for another's."""
    ramp = np.add.outer(np.arange(100.0), 2 * np.arange(200.0))
    made = Frame(source=(100, 200), top=0, left=0, height=100, width=200, size=(50, 100), flipped=True)
    grid = Grid.of_pixels(50, 100).in_source(made)
    seen = placed(ramp, Grid.of_pixels(100, 200), made)
    wanted = Frame(source=(100, 200), top=20, left=30, height=40, width=60, size=(40, 60))
    expected = placed(ramp, Grid.of_pixels(100, 200), wanted)
    np.testing.assert_allclose(placed(seen, grid, wanted), expected, atol=1e-3)
    wrong = placed(seen, Grid.of_pixels(50, 100), Frame.whole((50, 100), (40, 60)))
    assert np.abs(wrong - expected).max() > 50


def test_interpolation_is_exact_at_centres_and_level_beyond_them() -> None:
    axis = Axis(3, 10.0, 4.0)
    weights = linear_weights(axis, np.array([-5.0, 4.0, 9.0, 24.0, 99.0]))
    np.testing.assert_allclose(weights, [[1, 0, 0], [1, 0, 0], [0.5, 0.5, 0], [0, 0, 1], [0, 0, 1]])
    np.testing.assert_array_equal(
        nearest_weights(axis, np.array([8.0, 10.0, 99.0])), [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    )
    flipped = Axis(3, -10.0, 24.0)
    np.testing.assert_allclose(linear_weights(flipped, np.array([4.0])), [[0, 0, 1]])


def test_areas_are_shares_of_the_pixels_and_sum_to_one() -> None:
    grid = Grid(Axis(7, 32.0, 0.0), Axis(7, 32.0, 0.0))
    share = areas(grid, Frame.whole((224, 224)))
    assert share.sum() == pytest.approx(1)
    assert share[0, 0] < share[3, 3] < share[6, 6]  # the first cell's centre is the image's corner
    crop = Frame(source=(224, 224), top=0, left=0, height=64, width=64, size=(64, 64))
    assert areas(grid, crop)[4:].sum() == 0


def test_merged_and_regrouped_cells() -> None:
    patches = Grid(Axis(56, 4.0, 1.5), Axis(56, 4.0, 1.5))
    coarse = merged(patches, (14, 14))
    assert coarse is not None
    assert coarse.rows == Axis(14, 16.0, 7.5)
    assert merged(patches, (13, 13)) is None
    assert latest([patches], (56, 56)) == patches
    assert latest([patches], None, 56 * 56) == patches
    assert latest([patches], None, 14 * 14) == coarse
    assert latest([patches], (9, 9)) is None


def test_branches_that_disagree_meet_in_the_middle() -> None:
    a, b = (Grid(Axis(7, 2.0, first), Axis(7, 2.0, first)) for first in (0.0, 1.0))
    assert mean_grid([a, b]).rows.first == 0.5
    assert mean_grid([a, a]) is a


def test_how_much_of_a_picture_a_frame_covers() -> None:
    half = Frame(source=(10, 10), top=0, left=0, height=10, width=5, size=(10, 5))
    assert half.covers(Frame.whole((10, 10))) == 0.5
    assert Frame.whole((10, 10)).covers(half) == 1

"""Where cells lie, measured by mirroring."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from spile.augmentation.centring import measured, noise
from spile.augmentation.geometry import Axis, Grid
from spile.errors import AugmentationError

SIZE = (96, 128)
GRID = Grid(Axis(12, 8.0, 7.0), Axis(16, 8.0, 7.0))


def looking_at(down: int, across: int) -> Any:
    """A network whose cell i sees 5 x 5 pixels round ``first + 8 i``."""

    def response(pictures: Any) -> Any:
        light = np.abs(pictures.astype(float) - 127).sum(3)
        padded = np.pad(light, ((0, 0), (2, 2), (2, 2)))
        blurred = sum(padded[:, y : y + SIZE[0], x : x + SIZE[1]] for y in range(5) for x in range(5))
        return blurred[:, down::8, across::8]

    return response


@pytest.mark.parametrize(("down", "across"), [(7, 7), (3, 4), (0, 5)])
def test_cells_are_where_the_network_looks(down: int, across: int) -> None:
    found = measured(GRID, looking_at(down, across), SIZE, 3)
    assert found.shape == GRID.shape
    assert (found.rows.stride, found.columns.stride) == (8, 8)
    assert found.rows.first == pytest.approx(down, abs=0.5)
    assert found.columns.first == pytest.approx(across, abs=0.5)


def test_small_maps_and_layers_that_know_left_from_right_cannot_be_measured() -> None:
    with pytest.raises(AugmentationError, match="10 x 10 cells, and this one has 7 x 16"):
        measured(Grid(Axis(7, 8.0, 7.0), GRID.columns), looking_at(0, 0), SIZE, 3)

    def ramp(pictures: Any) -> Any:
        return np.broadcast_to(np.arange(16.0), (len(pictures), 12, 16)) + pictures[:, ::8, ::8, 0] * 1e-3

    with pytest.raises(AugmentationError, match="answers mirrored pictures in another way"):
        measured(GRID, ramp, SIZE, 3)


def test_the_pictures_are_the_same_each_time_and_even() -> None:
    found = noise(SIZE, 3)
    assert found.dtype == np.uint8 and found.shape[1:] == (*SIZE, 3)
    np.testing.assert_array_equal(found, noise(SIZE, 3))
    assert abs(found.mean() - 127) < 3

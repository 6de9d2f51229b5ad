"""Normalised maps, maps that are broken, and placebos."""

from __future__ import annotations

import numpy as np
import pytest

from spile.augmentation.geometry import Axis, Frame, Grid
from spile.augmentation.maps import checked_which, chosen_maps, maps_of, normalised
from spile.augmentation.randomness import Draw
from spile.errors import AugmentationError

GRID = Grid(Axis(7, 32.0, 0.0), Axis(7, 32.0, 0.0))
IDS = [f"sample {i}" for i in range(4)]


def some(count: int = 4):
    return maps_of(np.random.default_rng(0).random((count, 7, 7)) * 50, GRID, (224, 224))


def test_each_map_runs_from_zero_to_one_by_itself() -> None:
    maps = maps_of(
        np.stack([np.arange(49.0).reshape(7, 7), np.arange(49.0).reshape(7, 7) * 1e9]), GRID, (8, 8)
    )
    np.testing.assert_array_equal(maps.values.min((1, 2)), [0, 0])
    np.testing.assert_array_equal(maps.values.max((1, 2)), [1, 1])
    np.testing.assert_allclose(maps.values[0], maps.values[1], atol=2e-3)


def test_a_flat_map_is_zero() -> None:
    assert not normalised(np.full((2, 3, 3), 7.0)).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_warned_of_and_counts_as_least(bad: float) -> None:
    raw = np.arange(9.0).reshape(1, 3, 3)
    raw[0, 1, 1] = bad
    with pytest.warns(UserWarning, match="not finite for 1 of 1 images"):
        values = maps_of(raw, Grid(Axis(3, 1.0, 0.0), Axis(3, 1.0, 0.0)), (3, 3)).values
    assert np.isfinite(values).all()
    assert values[0, 1, 1] == 0
    with pytest.warns(UserWarning, match="not finite"):
        assert not normalised(np.full((1, 3, 3), np.nan)).any()


def test_last_digits_do_not_matter() -> None:
    raw = np.random.default_rng(0).random((4, 7, 7))
    values = [maps_of(raw * (1 + noise), GRID, (224, 224)).values for noise in (0.0, 1e-7)]
    assert (values[0] == values[1]).mean() > 0.99


def test_placebos_are_no_maps_of_their_samples_but_like_them() -> None:
    maps, draw = some(), Draw(0, 0)
    assert chosen_maps(maps, "guided", IDS, draw) is maps
    permuted = chosen_maps(maps, "permuted", IDS, draw).values
    assert all((permuted[i] != maps.values[i]).any() for i in range(4))
    assert {row.tobytes() for row in permuted} == {row.tobytes() for row in maps.values}
    random = chosen_maps(maps, "random", IDS, draw).values
    assert random.shape == maps.values.shape
    assert len({row.tobytes() for row in random}) == 4
    again = chosen_maps(maps, "random", IDS[::-1], draw).values
    np.testing.assert_array_equal(again[::-1], random)
    centre = chosen_maps(maps, "centre", IDS, draw)
    assert np.unravel_index(centre.values[0].argmax(), (7, 7)) in {(3, 3), (4, 4)}
    pixels = centre.on_pixels()[0]
    assert pixels[112, 112] > 0.9 > 0.2 > pixels[0, 0]


def test_the_middle_of_a_crop_is_that_of_the_crop() -> None:
    crop = Frame(source=(224, 224), top=0, left=0, height=112, width=112, size=(112, 112))
    maps = type(some())(some(1).values, (GRID,), (crop,))
    bump = chosen_maps(maps, "centre", ["a"], Draw(0, 0)).values[0]
    assert np.unravel_index(bump.argmax(), (7, 7)) == (2, 2)


def test_another_word_is_refused() -> None:
    with pytest.raises(AugmentationError, match="maps='shuffled': write one of 'guided', 'permuted'"):
        checked_which("shuffled")

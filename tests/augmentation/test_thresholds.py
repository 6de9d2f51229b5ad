"""Regions by rank: their area is within bounds on every map there can be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spile.augmentation import Absolute, Mass, Otsu, Quantile
from spile.augmentation.thresholds import Threshold, levels
from spile.errors import AugmentationError

CELLS = np.full((14, 14), 1 / 196)
THRESHOLDS = [Quantile(0.85), Absolute(0.5), Mass(0.5), Otsu(), Quantile(0.01), Absolute(0.999), Mass(0.99)]


def found(values: np.ndarray, threshold: Threshold, areas: np.ndarray = CELLS) -> np.ndarray:
    return levels(values, areas, threshold, np.random.default_rng(0).random(values.shape))


def share(values: np.ndarray, threshold: Threshold, areas: np.ndarray = CELLS) -> float:
    return float(areas[found(values, threshold, areas) == threshold.splits].sum())


def one_hot() -> np.ndarray:
    values = np.zeros((14, 14))
    values[3, 5] = 1
    return values


def rectified() -> np.ndarray:
    return np.maximum(np.random.default_rng(1).standard_normal((14, 14)), 0.5) - 0.5  # two thirds are 0


MAPS = {
    "flat": np.zeros((14, 14)),
    "full": np.ones((14, 14)),
    "one cell": one_hot(),
    "rectified": rectified(),
    "two values": (np.arange(196).reshape(14, 14) % 2).astype(float),
    "ramp": np.linspace(0, 1, 196).reshape(14, 14),
}


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("threshold", THRESHOLDS, ids=repr)
def test_the_area_is_within_bounds_on_degenerate_maps(name: str, threshold: Threshold) -> None:
    assert 0.05 - 1e-9 <= share(MAPS[name], threshold) <= 0.6 + 1e-9


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(3, 16), st.integers(3, 16), st.integers(1, 5))
def test_the_area_is_within_bounds_up_to_one_cell(seed: int, h: int, w: int, kinds: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, kinds, (h, w)) / kinds
    areas = np.outer(rng.dirichlet(np.ones(h) * 3), rng.dirichlet(np.ones(w) * 3))
    for threshold in THRESHOLDS:
        got = share(values, threshold, areas)
        assert 0.05 - areas.max() - 1e-9 <= got <= 0.6 + areas.max() + 1e-9


def test_a_quantile_is_a_share_of_the_area_and_not_of_the_cells() -> None:
    areas = np.outer(np.r_[np.full(7, 0.1), np.full(7, 0.3 / 7)], np.full(14, 1 / 14))
    values = np.tile(np.linspace(0, 1, 14)[:, None], 14)  # active where cells are small
    assert share(values, Quantile(0.7), areas) == pytest.approx(0.3, abs=0.02)


def test_ties_are_not_taken_from_the_corner() -> None:
    active = found(np.zeros((14, 14)), Quantile(0.7)) == 1
    assert active[:4].mean() < 0.6
    assert active[-4:].mean() > 0.05


def test_ties_lie_beside_what_is_active() -> None:
    active = found(one_hot(), Quantile(0.95)) == 1
    assert active[3, 5]
    assert active[2:5, 4:7].sum() == 9


def test_the_active_cells_are_the_most_active() -> None:
    values = MAPS["ramp"]
    for threshold in THRESHOLDS:
        active = found(values, threshold) == 1
        assert values[active].min() > values[~active].max()


def test_absolute_is_exact_where_bounds_allow() -> None:
    values = np.random.default_rng(0).random((14, 14))
    active = found(values, Absolute(0.6)) == 1
    np.testing.assert_array_equal(active, values > 0.6)


def test_mass_is_the_smallest_region_that_holds_it() -> None:
    values = np.random.default_rng(0).random((14, 14)) ** 3
    active = found(values, Mass(0.5)) == 1
    assert values[active].sum() / values.sum() == pytest.approx(0.5, abs=0.02)


def test_otsu_parts_two_heaps() -> None:
    rng = np.random.default_rng(0)
    values = np.where(np.arange(196).reshape(14, 14) < 50, 0.9, 0.1) + rng.normal(0, 0.03, (14, 14))
    active = found(values, Otsu()) == 1
    assert active.sum() == 50
    assert active.ravel()[:50].all()


def test_several_splits_make_nested_bands() -> None:
    values = np.random.default_rng(0).random((14, 14))
    bands = found(values, Quantile(0.5, 0.85))
    assert [round(float((bands == k).mean()), 2) for k in (0, 1, 2)] == [0.5, 0.35, 0.15]
    assert values[bands == 2].min() > values[bands == 1].max() > values[bands == 0].max()
    assert {0, 1, 2} == set(np.unique(found(np.zeros((14, 14)), Absolute(0.3, 0.6))))


def test_cells_outside_the_picture_do_not_count() -> None:
    values = np.random.default_rng(0).random((14, 14))
    areas = np.zeros((14, 14))
    areas[:7, :7] = 1 / 49
    values[8:, 8:] = 5
    bands = found(values, Quantile(0.8), areas)
    assert areas[bands == 1].sum() == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize(
    "make", [lambda: Quantile(), lambda: Quantile(0.8, 0.5), lambda: Absolute(1.5), lambda: Mass(0.0)]
)
def test_numbers_that_split_nothing_are_refused(make) -> None:
    with pytest.raises(AugmentationError, match="write one or several numbers between 0 and 1"):
        make()


def test_bounds_that_bound_nothing_are_refused() -> None:
    with pytest.raises(AugmentationError, match=r"bounds=\(0.6, 0.2\): write the least"):
        Otsu(bounds=(0.6, 0.2))
    with pytest.raises(AugmentationError, match="bounds"):
        Quantile(0.5, bounds=(0.0, 0.5))


def test_thresholds_are_values() -> None:
    assert Quantile(0.5) == Quantile(0.5) != Quantile(0.6)
    assert Quantile(0.5) != Absolute(0.5)
    assert hash(Quantile(0.5)) == hash(Quantile(0.5))
    with pytest.raises(AttributeError):
        Quantile(0.5).at = (0.7,)  # type: ignore[misc]

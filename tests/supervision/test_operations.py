"""Sizes and costs of the operations of heads."""

from __future__ import annotations

import pytest

from spile.pool import Pool
from spile.resolution import Point
from spile.supervision.operations import (
    Activation,
    Conv,
    Dense,
    Features,
    GroupNorm,
    LayerNorm,
    Pooling,
    macs,
    parameters,
)


def point(layout: str | None, shape: tuple[int, ...]) -> Point:
    return Point(
        name="x",
        path="x",
        side="out",
        call=0,
        only_call=True,
        item=None,
        pool=Pool("none"),
        layout=layout,
        shape=shape,
        type="Conv2d",
        order=0,
        macs=0,
        params=0,
    )


@pytest.mark.parametrize(
    ("layout", "shape", "expected"),
    [
        ("BCYX", (8, 5, 6), Features(kind="map", channels=8, size=(5, 6))),
        ("BYXC", (5, 6, 8), Features(kind="map", channels=8, size=(5, 6))),
        ("BTC", (17, 8), Features(kind="tokens", channels=8, size=(17,), prefix_tokens=1)),
        ("TBC", (17, 8), Features(kind="tokens", channels=8, size=(17,), prefix_tokens=1)),
        ("BC", (8,), Features(kind="vector", channels=8)),
    ],
)
def test_features_of_a_point(layout: str, shape: tuple[int, ...], expected: Features) -> None:
    assert Features.of(point(layout, shape), prefix_tokens=expected.prefix_tokens) == expected


@pytest.mark.parametrize(
    ("layout", "shape"), [("BCZYX", (1, 2, 3, 4)), ("CYX", (1, 2, 3)), (None, (1,)), ("B??", (2, 3))]
)
def test_what_heads_cannot_read(layout: str | None, shape: tuple[int, ...]) -> None:
    assert Features.of(point(layout, shape)) is None


def test_numbers() -> None:
    assert Features(kind="map", channels=64, size=(112, 112)).numbers == 802_816
    assert Features(kind="vector", channels=7).numbers == 7


def test_parameters() -> None:
    assert Conv(8, 16, kernel=3).params == 8 * 16 * 9
    assert Conv(8, 8, kernel=3, groups=8).params == 72
    assert Conv(8, 5, bias=True).params == 45
    assert GroupNorm(8, 2).params == LayerNorm(8).params == 16
    assert Dense(8, 5).params == 45
    assert parameters((Conv(8, 16), Activation(), Pooling("avg"), Dense(16, 5))) == 128 + 85


def test_macs_follow_the_size_of_the_map() -> None:
    features = Features(kind="map", channels=8, size=(7, 5))
    assert macs((Conv(8, 4),), features) == 8 * 4 * 35
    assert macs((Conv(8, 8, kernel=3, stride=2, groups=8), Conv(8, 4)), features) == (72 + 32) * 4 * 3
    assert macs((Pooling("avg"), Dense(8, 5)), features) == 40

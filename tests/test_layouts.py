"""Naming axes and counting prefix tokens, on shapes alone."""

from __future__ import annotations

import pytest

from spile.layouts import Channels, batch_axis, layout, prefix_tokens

MAP = Channels(first=True, count=8, ndim=4)
LINEAR = Channels(first=False, count=8, ndim=3)


@pytest.mark.parametrize(
    ("two", "three", "expected"),
    [
        ((2, 5), (3, 5), 0),
        ((5, 2, 8), (5, 3, 8), 1),
        ((2, 2), (3, 3), None),  # samples against samples
        ((5, 8), (5, 8), None),
        ((8, 5), (12, 5), None),  # windows, several a sample
        ((2, 5), (3, 5, 1), None),
        ((), (), None),
        ((2, 5), None, 0),
        ((4, 5), None, None),
    ],
)
def test_the_batch_axis_grows_with_the_samples(
    two: tuple[int, ...], three: tuple[int, ...] | None, expected: int | None
) -> None:
    assert batch_axis(two, three) == expected


@pytest.mark.parametrize(
    ("shape", "batch", "larger", "expected"),
    [
        ((2, 8, 4, 4), 0, (2, 8, 6, 5), "BCYX"),
        ((2, 4, 4, 8), 0, (2, 6, 5, 8), "BYXC"),
        ((2, 8, 4, 4, 4), 0, (2, 8, 6, 5, 7), "BCZYX"),
        ((2, 17, 8), 0, (2, 31, 8), "BTC"),
        ((2, 8, 17), 0, (2, 8, 31), "BCT"),
        ((17, 2, 8), 1, (31, 2, 8), "TBC"),
        ((2, 3, 17, 17), 0, (2, 3, 31, 31), "BCYX"),
        ((2, 3, 17, 4), 0, (2, 3, 31, 4), "B???"),  # heads
        ((2, 8), 0, (2, 8), "BC"),
        ((2,), 0, (2,), "B"),
    ],
)
def test_what_grows_with_the_input_is_space(
    shape: tuple[int, ...], batch: int, larger: tuple[int, ...], expected: str
) -> None:
    assert layout(shape, batch, larger=larger, channels=None, image=None) == expected


@pytest.mark.parametrize(
    ("shape", "channels", "image", "expected"),
    [
        ((2, 8, 4, 4), MAP, (32, 32), "BCYX"),
        ((2, 16, 8), MAP, (32, 32), "BTC"),  # a map flattened to tokens
        ((2, 8, 16), MAP, (32, 32), "BCT"),
        ((2, 8, 8), MAP, (32, 32), "BTC"),  # the sizes tell nothing
        ((2, 16, 8), LINEAR, (32, 32), "BTC"),
        ((2, 8, 4, 4), LINEAR, (32, 32), "BCYX"),  # tokens folded back to a map
        ((2, 4, 4, 8), LINEAR, (32, 32), "BYXC"),
        ((2, 3, 17, 8), LINEAR, (32, 32), "B???"),  # no picture is 3 to 17
        ((2, 4, 4, 9), LINEAR, (32, 32), "B???"),
        ((2, 8, 2, 4), Channels(first=True, count=8, ndim=4), (32, 32), "BCYX"),  # strides may differ
        ((2, 4, 4, 8), Channels(first=False, count=8, ndim=4), (32, 32), "BYXC"),
        ((2, 4, 2, 8), Channels(first=False, count=8, ndim=4), (64, 32), "BYXC"),
        ((2, 16, 8), Channels(first=True, count=16, ndim=3), None, "BCT"),
        ((2, 16, 8), None, None, "BTC"),
        ((2, 8, 4, 4), None, None, "BCYX"),
        ((2, 3, 3, 3, 3, 3), None, None, "B?????"),
    ],
)
def test_otherwise_the_layers_before_tell(
    shape: tuple[int, ...], channels: Channels | None, image: tuple[int, ...] | None, expected: str
) -> None:
    assert layout(shape, 0, larger=None, channels=channels, image=image) == expected


@pytest.mark.parametrize(
    ("tokens", "larger", "grid", "said", "expected"),
    [
        (197, 289, None, None, 1),  # 14 x 14 and 18 x 16 patches of 16 pixels
        (196, 288, 196, 1, 0),
        (201, 293, None, None, 5),
        (50, 73, 196, None, 1),  # a later, coarser stage
        (17, 17, 16, 1, 1),  # does not grow
        (197, None, 196, 1, 1),
        (196, None, 196, 1, 0),
        (197, None, None, None, None),
    ],
)
def test_prefix_tokens_do_not_grow(
    tokens: int, larger: int | None, grid: int | None, said: int | None, expected: int | None
) -> None:
    found = prefix_tokens(
        tokens, larger, image=(224, 224), larger_image=(288, 256), grid=grid, said=said
    )  # fmt: skip
    assert found == expected

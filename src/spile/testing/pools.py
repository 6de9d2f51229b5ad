"""What the conformance suite asks of pools."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest

import spile
from spile.errors import PoolError
from spile.pool import PoolLike
from spile.testing.networks import Array, Networks


class PoolTests(Networks):
    """Pools are what NumPy makes of the whole tensor."""

    def test_layouts_and_shapes(self) -> None:
        """Points tell the axes, and the shape of one sample."""
        for case, name, layout in (
            (self.normalised(), "conv", self.map_layout),
            (self.normalised(), "head", "BC"),
            (self.tokens(), "mix", "BTC"),
        ):
            x = self.batch(case, 2)
            with spile.tap(case.model, name, pool=None, example=x) as tap:
                (point,) = tap.points
            assert point.layout == layout
            assert point.shape == self.wanted(case, x)[name].shape[1:]

    @pytest.mark.parametrize(
        "pool", ["auto", "avg", "max", "gem", "gem:2", "grid:1", "grid:3", "flatten", None]
    )
    def test_pools_of_maps(self, pool: str | None) -> None:
        """As NumPy on the whole tensor; flattened ones have channels first, whatever the layout."""
        case = self.normalised()
        x = self.batch(case, 3)
        whole = self.wanted(case, x)["act"]
        maps = np.transpose(whole, [self.map_layout.index(axis) for axis in "BCYX"])
        with spile.tap(case.model, "act", pool=pool, example=x) as tap:
            self.same(tap(x)["act"], whole if pool is None else pooled_map(maps, pool))

    @pytest.mark.parametrize("pool", ["auto", "mean", "last", "flatten", None])
    def test_pools_of_tokens(self, pool: str | None) -> None:
        """As NumPy on the whole tensor."""
        case = self.tokens()
        x = self.batch(case, 3)
        whole = self.wanted(case, x)["mix"]
        expected = {"last": whole[:, -1], "flatten": whole.reshape(3, -1), None: whole}.get(
            pool, whole.mean(1)
        )
        with spile.tap(case.model, "mix", pool=pool, example=x) as tap:
            self.same(tap(x)["mix"], expected)

    def test_a_pool_that_does_not_fit(self) -> None:
        """Is refused before any batch."""
        with pytest.raises(PoolError, match="pool 'cls' is for tokens"):
            spile.tap(self.normalised().model, "act", pool="cls", example=self.batch(self.normalised(), 2))
        with pytest.raises(PoolError, match="pool 'avg' is for maps"):
            spile.tap(self.tokens().model, "mix", pool="avg", example=self.batch(self.tokens(), 2))

    def test_pools_of_ones_own(self) -> None:
        """A function gets the layer's own axes, samples first; a dict gives a pool for each address."""
        case = self.normalised()
        x = self.batch(case, 3)
        expected = self.wanted(case, x)
        pools: dict[str, PoolLike] = {"conv": lambda value: value[:, 0], "act": "max"}
        with spile.tap(case.model, ["conv", "act", "head"], pool=pools, example=x) as tap:
            found = tap(x)
        self.same(found["conv"], expected["conv"][:, 0])
        self.same(
            found["act"], expected["act"].max(axis=(self.map_layout.index("Y"), self.map_layout.index("X")))
        )
        self.same(found["head"], expected["head"])


def pooled_map(maps: Array, pool: str) -> Array:
    """What a pool should make of maps (samples, channels, height, width)."""
    kind, _, size = pool.partition(":")
    match kind:
        case "max":
            return cast(Array, maps.max(axis=(2, 3)))
        case "gem":
            power = float(size or 3)
            return cast(Array, (np.maximum(maps, 1e-6) ** power).mean(axis=(2, 3)) ** (1 / power))
        case "grid":
            rows, columns = (_cells(length, int(size)) for length in maps.shape[2:])
            cells = [[maps[:, :, y, x].mean(axis=(2, 3)) for x in columns] for y in rows]
            return np.moveaxis(np.array(cells), (2, 3), (0, 1)).reshape(len(maps), -1)
        case "flatten":
            return maps.reshape(len(maps), -1)
        case _:
            return cast(Array, maps.mean(axis=(2, 3)))


def _cells(length: int, count: int) -> list[slice]:
    """Cells that cover the length, overlapping where it does not divide."""
    return [slice(i * length // count, -(-(i + 1) * length // count)) for i in range(count)]

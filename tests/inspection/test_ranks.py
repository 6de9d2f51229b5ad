"""Effective rank: known values, streaming, and offsets that are no direction."""

from __future__ import annotations

import numpy as np
import pytest

from spile.errors import StoreError
from spile.inspection import effective_rank, rank_of


@pytest.mark.parametrize(
    ("singular_values", "rank"),
    [([3, 3, 3, 3], 4), ([5, 0, 0], 1), ([0, 0], 0), ([2, 1, 1], np.exp(1.5 * np.log(2))), ([], 0)],
)
def test_known_values(singular_values, rank):
    assert rank_of(np.array(singular_values, float)) == pytest.approx(rank)


@pytest.mark.parametrize("stream_width", [4096, 1])
def test_a_store_gives_that_of_its_centred_matrix(make_store, rng, monkeypatch, stream_width):
    monkeypatch.setattr("spile.inspection.ranks.STREAM_WIDTH", stream_width)
    monkeypatch.setattr("spile.inspection.ranks._BLOCK_ROWS", 7)
    x = (rng.standard_normal((50, 3)) @ rng.standard_normal((3, 8)) + 100).astype(np.float32)
    (found,) = effective_rank(make_store({"a": x}))
    exact = x.astype(np.float64)
    assert found.rank == pytest.approx(rank_of(np.linalg.svd(exact - exact.mean(axis=0))[1]), rel=1e-4)
    assert 2 < found.rank < 3.1
    assert (found.point, found.dims, found.rows) == ("a", 8, 50)


def test_wide_points_are_drawn_from(make_store, rng, monkeypatch):
    monkeypatch.setattr("spile.inspection.ranks.STREAM_WIDTH", 4)
    monkeypatch.setattr("spile.inspection.ranks.MOST_ROWS", 20)
    (found,) = effective_rank(make_store({"a": rng.standard_normal((50, 3, 3))}))
    assert (found.rows, found.dims) == (20, 9)
    assert 7 < found.rank <= 9


def test_a_constant_point_has_rank_0_and_one_row_has_none(make_store):
    assert effective_rank(make_store({"a": np.full((9, 4), 0.1)}))[0].rank == 0
    with pytest.raises(StoreError, match="not 1"):
        effective_rank(make_store({"a": np.ones((1, 4))}))

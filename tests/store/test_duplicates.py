"""Near-duplicates: the pairs of a brute-force search, from bounded blocks, and the groups they make."""

from __future__ import annotations

import numpy as np
import pytest

from spile.data.source import Record
from spile.errors import StoreError
from spile.store import ColumnSpec, create
from spile.store.duplicates import Held, crossing, deepest, linked, near_pairs


def brute_force(x, radius):
    x = x.reshape(len(x), -1).astype(np.float64)
    x = x - x.mean(axis=0)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    distances = 1 - x @ x.T
    pairs = np.argwhere(np.triu(distances <= radius, 1))
    return {(int(a), int(b)): distances[a, b] for a, b in pairs}


@pytest.fixture
def x():
    """300 rows, of which 20 are near-copies of others and 5 exact ones, with the large offset of a ReLU."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 40))
    x[:20] = x[100:120] + 0.02 * rng.standard_normal((20, 40))
    x[20:25] = x[120:125]
    return x + 30


@pytest.mark.parametrize("radius", [1e-5, 0.01, 0.6])
def test_the_pairs_are_those_of_brute_force(x, radius, monkeypatch):
    monkeypatch.setattr("spile.store.duplicates._BLOCK_ROWS", 32)
    monkeypatch.setattr("spile.store.duplicates._CHECKED_BYTES", 16 * 40 * 10)
    found = near_pairs(Held(x), radius=radius)
    right = brute_force(x, radius)
    assert {tuple(pair) for pair in found.rows.tolist()} == set(right)
    np.testing.assert_allclose(found.distances, sorted(right.values()), atol=1e-12)
    assert found.complete and len(found.rows) >= 5


def test_the_projection_alone_would_not_do(x, monkeypatch):
    """The check in full is what makes pairs true: with one axis nearly all are near."""
    monkeypatch.setattr("spile.store.duplicates._AXES", 1)
    found = near_pairs(Held(x), radius=0.01)
    assert {tuple(pair) for pair in found.rows.tolist()} == set(brute_force(x, 0.01))
    monkeypatch.setattr(
        "spile.store.duplicates._distances", lambda rows, mean, pairs: np.zeros((2, len(pairs)))
    )
    assert len(near_pairs(Held(x), radius=0.01).rows) > 1000


def test_rounding_loses_no_pair():
    """Distances at which float32 says nothing: the radius lies between equal rows and the next ones."""
    x = np.random.default_rng(0).standard_normal((200, 40))
    x[100:] = x[:100] + 1e-5 * np.random.default_rng(1).standard_normal((100, 40))
    right = brute_force(x, 1e-9)
    assert len(right) == 100
    assert {tuple(pair) for pair in near_pairs(Held(x), radius=1e-9).rows.tolist()} == set(right)


def test_planted_copies_are_found_without_a_radius_and_nothing_else(x):
    found = near_pairs(Held(x))
    assert {tuple(pair) for pair in found.rows.tolist()} == {(i, 100 + i) for i in range(25)}
    assert found.radius == pytest.approx(0.13 * found.typical)
    assert (np.diff(found.distances) >= 0).all()


def test_rows_far_out_in_one_direction_are_no_copies_of_each_other():
    """As in untrained networks: what differs from row to row is mostly one number. Planted copies are."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 20)) + 15 * rng.standard_t(3, (400, 1)) * rng.standard_normal(20)
    x[:5] = x[100:105] + 0.02 * rng.standard_normal((5, 20))
    found = near_pairs(Held(x))
    assert {tuple(pair) for pair in found.rows.tolist()} == {(i, 100 + i) for i in range(5)}
    assert len(near_pairs(Held(x), radius=found.radius).rows) > 50


def test_ordinary_rows_have_none_whatever_their_number():
    rng = np.random.default_rng(0)
    for n in (2, 3, 10, 2000):
        assert len(near_pairs(Held(rng.standard_normal((n, 32)))).rows) == 0


def test_more_than_half_are_copies():
    rng = np.random.default_rng(0)
    x = np.repeat(rng.standard_normal((20, 30)), 3, axis=0) + 1e-6 * rng.standard_normal((60, 30))
    found = near_pairs(Held(x))
    assert len(found.rows) == 60 and found.typical == pytest.approx(0, abs=1e-12)


def test_rows_of_zeros_and_a_point_that_does_not_vary():
    x = np.random.default_rng(0).standard_normal((30, 20))
    x[[3, 7]] = 0
    assert near_pairs(Held(x)).rows.tolist() == [[3, 7]]
    assert len(near_pairs(Held(np.ones((4, 20)))).rows) == 6
    assert len(near_pairs(Held(x[:1])).rows) == 0


def test_the_search_ends(x, monkeypatch):
    monkeypatch.setattr("spile.store.duplicates._MOST_PAIRS", 100)
    found = near_pairs(Held(x), radius=2)
    assert not found.complete and len(found.rows) >= 100


def test_crossing_and_linked():
    pairs = np.array([[0, 1], [1, 2], [4, 5]])
    parts = np.array(["a", "a", "b", "b", "b", "b"])
    assert crossing(pairs, parts).tolist() == [1, 2]
    assert linked(7, pairs).tolist() == [0, 0, 0, 1, 2, 2, 3]
    assert linked(7, pairs, ["x", None, None, "y", "y", None, "x"]).tolist() == [0, 0, 0, 1, 1, 1, 0]
    assert linked(3, np.empty((0, 2), int)).tolist() == [0, 1, 2]


@pytest.mark.parametrize("path", [None, "x.lance"])
def test_a_store_tells_its_copies_and_groups(x, tmp_path, path):
    columns = [
        ColumnSpec(name="raw", shape=(40,), dtype="float32", info={"baseline": "raw", "order": 9}),
        ColumnSpec(name="deep", shape=(4, 10), dtype="float16", info={"order": 5}),
        ColumnSpec(name="shallow", shape=(40,), dtype="float32", info={"order": 1}),
        ColumnSpec(name="head", shape=(3,), dtype="float32", info={"order": 8}),
    ]
    from spile.store import Manifest

    writer = create(None if path is None else tmp_path / path, columns, Manifest(fingerprinted={}))
    records = [
        Record(f"s{i}", None, "train" if i < 110 else "test", "one" if i in (5, 299) else None)
        for i in range(300)
    ]
    noise = np.random.default_rng(1).standard_normal((300, 40))
    values = {"raw": noise, "deep": x.reshape(300, 4, 10), "shallow": noise, "head": noise[:, :3]}
    writer.append(records, range(300), values, [], stop=300)
    store = writer.finish()
    found = store.near_duplicates()
    assert found.point == "deep"
    assert {tuple(pair) for pair in found.pairs.rows.tolist()} == {(i, 100 + i) for i in range(25)}
    assert found.ids[0].tolist() == [f"s{row}" for row in found.pairs.rows[0]]
    assert found.between(store.splits) == {("test", "train"): 15, ("train", "train"): 10}
    assert found.leaked(store.splits).tolist() == [*range(10, 25), *range(110, 125)]
    assert found.groups[0] == found.groups[100] and found.groups[5] == found.groups[105] == found.groups[299]
    assert len(set(found.groups)) == 300 - 25 - 1
    assert len(store.near_duplicates("raw")) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "y"}, "no point 'y'"),
        ({"max_distance": 0}, r"max_distance is 0. Allowed: above 0"),
        ({"max_distance": 2, "name": "x"}, r"More than [\d,]+ pairs.*max_distance=0.2"),
    ],
)
def test_what_cannot_be_told_is_said(simple, x, options, message, monkeypatch):
    monkeypatch.setattr("spile.store.duplicates._MOST_PAIRS", 100)
    with pytest.raises(StoreError, match=message):
        simple(x.astype(np.float32), path=None).near_duplicates(**options)


def test_narrow_points_and_sequences_tell_nothing(simple, store):
    with pytest.raises(StoreError, match="None of the points 'x' holds 16 numbers"):
        simple(np.ones((4, 3), np.float32), path=None).near_duplicates()
    with pytest.raises(StoreError, match="varying length"):
        store.near_duplicates("tokens")
    with pytest.raises(StoreError, match="holds 16 numbers"):
        deepest(store.points)

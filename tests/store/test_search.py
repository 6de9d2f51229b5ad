import numpy as np
import pytest

from spile.errors import StoreError


def brute_force(x, q, metric):
    x, q = x.reshape(len(x), -1).astype(np.float64), q.astype(np.float64)
    if metric == "l2":
        return np.sqrt(((x - q) ** 2).sum(axis=1))
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(q)
    return 1 - (x @ q) / np.where(norms == 0, 1, norms)


@pytest.fixture
def x():
    values = np.random.default_rng(0).standard_normal((700, 4, 8)).astype(np.float16)
    values[13] = 0
    values[400] = values[7]
    return values


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("path", [None, "x.lance"])
def test_neighbors_are_exact(simple, x, metric, path, monkeypatch):
    monkeypatch.setattr("spile.store.search._SCAN_BYTES", 100 * 8 * 32)  # seven blocks
    store = simple(x, path=path)
    queries = np.concatenate([x[[7, 13]].reshape(2, -1), np.random.default_rng(1).standard_normal((3, 32))])
    found = store.neighbors("x", queries, k=5, metric=metric)
    assert found.ids.shape == found.rows.shape == found.distances.shape == (5, 5)
    for q, rows, distances, ids in zip(queries, found.rows, found.distances, found.ids, strict=True):
        right = brute_force(x, q, metric)
        assert np.allclose(distances, np.sort(right)[:5], atol=1e-12)
        assert np.allclose(right[rows], distances, atol=1e-12)
        assert ids.tolist() == [f"s{r}" for r in rows]
    assert found.rows[0][:2].tolist() == [7, 400]
    assert np.allclose(found.distances[0][:2], 0, atol=1e-12)


def test_a_query_is_a_sample_or_a_row_of_numbers(simple, x):
    store = simple(x, path=None)
    for query in (x[5], x[5].reshape(-1), x[5:6], x[5].reshape(1, -1), x[5].reshape(-1).tolist()):
        found = store.neighbors("x", query, k=1)
        assert found.rows.tolist() == [[5]]
    assert store.neighbors("x", x[:2], k=1000).rows.shape == (2, 700)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"query": np.ones(31)}, r"shape \(31,\)\. Allowed: \(4, 8\), or \(queries, 32\)"),
        ({"query": np.full(32, np.nan)}, "not finite"),
        ({"k": 0}, "k is 0"),
        ({"metric": "dot"}, "'dot'. Allowed: 'cosine', 'l2'"),
    ],
)
def test_what_cannot_be_searched_is_said(simple, x, options, message):
    with pytest.raises(StoreError, match=message):
        simple(x, path=None).neighbors("x", **{"query": np.ones(32), **options})


def test_sequences_of_varying_length_have_no_neighbors(store):
    with pytest.raises(StoreError, match=r"varying length.*Pool it"):
        store.neighbors("tokens", np.ones(5))


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_an_index_gives_nearly_the_same_with_exact_distances(simple, x, metric, monkeypatch):
    store = simple(x)
    queries = np.random.default_rng(1).standard_normal((20, 32))
    exact = store.neighbors("x", queries, k=5, metric=metric)
    store.index("x", metric=metric)
    monkeypatch.setattr("spile.store.search._pairwise", None)  # a scan of the column would fail
    indexed = store.neighbors("x", queries, k=5, metric=metric)
    recall = np.mean([len(set(a) & set(b)) / 5 for a, b in zip(exact.rows, indexed.rows, strict=True)])
    assert recall > 0.9
    for q, rows, distances in zip(queries, indexed.rows, indexed.distances, strict=True):
        assert np.allclose(brute_force(x, q, metric)[rows], distances, atol=1e-12)
    with pytest.raises(TypeError):
        store.neighbors("x", queries, metric="l2" if metric == "cosine" else "cosine")


def test_a_store_in_memory_has_no_index(simple, x):
    with pytest.raises(StoreError, match="in memory has no index"):
        simple(x, path=None).index("x")


def test_a_point_with_dots_can_be_indexed(tools, tmp_path):
    store = tools.extract(tmp_path / "a.lance")
    store.index("layer4.0.conv2@in", kind="IVF_FLAT", num_partitions=1)
    query = store["layer4.0.conv2@in"][3]
    assert store.neighbors("layer4.0.conv2@in", query, k=2).rows[0][0] == 3

"""CKA: known values, brute force, and no bias from batches or from the order of a store."""

from __future__ import annotations

import json
from itertools import permutations

import numpy as np
import pytest

import spile
from spile.errors import StoreError
from spile.inspection import minibatch_cka, similarity, unbiased_hsic


def rotation(d, rng):
    return np.linalg.qr(rng.standard_normal((d, d)))[0]


def hsic_by_hand(a, b):
    """Song et al. 2012: the mean over all quadruples of different rows."""
    terms = [a[i, j] * (b[i, j] + b[q, r] - 2 * b[i, q]) for i, j, q, r in permutations(range(len(a)), 4)]
    return np.mean(terms)


def test_the_estimator_is_the_mean_over_all_quadruples(rng):
    x, y = rng.standard_normal((7, 3)), rng.standard_normal((7, 2)) + 5
    grams = np.stack([x @ x.T, y @ y.T])
    right = [[hsic_by_hand(a, b) for b in grams] for a in grams]
    np.testing.assert_allclose(unbiased_hsic(grams), right, rtol=1e-9, atol=1e-12)


def test_a_rotation_a_shift_and_a_scale_change_nothing(rng):
    x = rng.standard_normal((90, 6)) * [1, 2, 3, 4, 5, 6]
    values, _ = minibatch_cka([[x, 7 * x @ rotation(6, rng) + 1000]])
    np.testing.assert_allclose(values, 1, atol=1e-9)


def test_unrelated_features_are_about_zero_however_wide(rng):
    # The usual, biased estimator gives 0.9 here.
    x, y = rng.standard_normal((40, 400)), rng.standard_normal((40, 400))
    values, _ = minibatch_cka([[x, y]])
    assert abs(values[0, 1]) < 0.15


def test_small_batches_agree_with_all_rows_at_once(rng):
    shared = rng.standard_normal((4096, 4))
    x = np.concatenate([shared, rng.standard_normal((4096, 60))], axis=1)
    y = np.concatenate([2 * shared, rng.standard_normal((4096, 60))], axis=1)
    (whole, _), (parts, stderr) = (
        minibatch_cka([(x[i : i + size], y[i : i + size]) for i in range(0, 4096, size)])
        for size in (4096, 16)
    )
    assert 0.1 < whole[0, 1] < 0.5
    assert abs(whole[0, 1] - parts[0, 1]) < 4 * stderr[0, 1] < 0.1
    np.testing.assert_allclose(np.diagonal(parts), 1)


def test_numerator_and_denominator_are_averaged_apart(rng):
    batches = [(rng.standard_normal((9, 3)), rng.standard_normal((9, 2)) * scale) for scale in (1, 9)]
    grams = [np.stack([(x - x.mean(axis=0)) @ (x - x.mean(axis=0)).T for x in batch]) for batch in batches]
    (xx, xy), (_, yy) = np.mean([unbiased_hsic(each) for each in grams], axis=0)
    assert minibatch_cka(batches)[0][0, 1] == pytest.approx(xy / np.sqrt(xx * yy))


def test_a_store_sorted_by_class_is_compared_across_classes(make_store, rng):
    # Within a class the two points are unrelated; the classes alone are common to them.
    centres = 10 * rng.standard_normal((8, 5))
    y = np.repeat(np.arange(8), 64)
    x = {name: centres[y] + rng.standard_normal((512, 5)) for name in ("a", "b")}
    found = similarity(make_store(x, labels=y.tolist()), batch_rows=64)
    assert found.batches == 8
    assert found.values[0, 1] > 0.9
    in_order, _ = minibatch_cka([(x["a"][i : i + 64], x["b"][i : i + 64]) for i in range(0, 512, 64)])
    assert abs(in_order[0, 1]) < 0.3  # what a pass in the order of the store would say


def test_two_stores_are_matched_by_id(make_store, rng):
    x = rng.standard_normal((60, 5))
    order = rng.permutation(60)[:50]
    other = make_store({"z": x[order] @ rotation(5, rng)}, ids=[f"s{i}" for i in order])
    found = spile.similarity(make_store({"a": x, "b": rng.standard_normal((60, 5))}), other)
    assert (found.rows, found.columns, found.samples, found.within) == (("a", "b"), ("z",), 50, False)
    assert found.values[0, 0] == pytest.approx(1, abs=1e-6)
    assert abs(found.values[1, 0]) < 0.3


def test_a_point_that_does_not_vary_has_no_similarity(make_store, rng):
    constant = np.full((40, 3), 0.1)
    found = similarity(make_store({"a": rng.standard_normal((40, 3)), "b": constant}))
    assert np.isnan(found.values[:, 1]).all() and found.values[0, 0] == pytest.approx(1)
    assert "–" in str(found)
    assert json.dumps(found.to_json())
    for n in range(4, 60):  # the mean of equal numbers is often not that number
        rounded, _ = minibatch_cka([(rng.standard_normal((n, 2)), np.full((n, 3), 0.1))])
        assert np.isnan(rounded[:, 1]).all()


def test_memory_is_bounded_by_batches(make_store, rng, monkeypatch):
    taken = []
    monkeypatch.setattr(
        "spile.inspection.alignment.flat",
        lambda column, rows: taken.append(len(rows)) or rng.standard_normal((len(rows), 3)),
    )
    similarity(make_store({"a": rng.standard_normal((999, 3))}), batch_rows=100, max_rows=500)
    assert taken == [100] * 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points": ["aa"]}, r"no point 'aa'. Nearest: a"),
        ({"batch_rows": 3}, "batch_rows=3"),
    ],
)
def test_what_cannot_be_compared_is_said(make_store, rng, options, message):
    with pytest.raises(StoreError, match=message):
        similarity(make_store({"a": rng.standard_normal((9, 3))}), **options)


def test_too_few_common_samples(make_store, rng):
    store, other = (
        make_store({"a": rng.standard_normal((9, 3))}, ids=[f"{k}{i}" for i in range(9)]) for k in "xy"
    )
    with pytest.raises(StoreError, match=r"0 samples in common.*'x0' and 'y0'"):
        similarity(store, other)
    with pytest.raises(StoreError, match="4 samples or more, not 3"):
        similarity(make_store({"a": rng.standard_normal((3, 3))}))

"""Drift: the energy distance by brute force, honest p-values, and stores that cannot be compared."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from spile.errors import FingerprintMismatch, StoreError
from spile.inspection import drift, energy_test
from spile.inspection.drifting import joint_p_value


def by_hand(x, y):
    """Szekely and Rizzo 2013, on features of unit variance."""
    both = np.concatenate([x, y])
    x, y = x / both.std(axis=0), y / both.std(axis=0)

    def mean_distance(a, b):
        return np.mean([[np.linalg.norm(p - q) for q in b] for p in a])

    between = mean_distance(x, y)
    return (2 * between - mean_distance(x, x) - mean_distance(y, y)) / (2 * between)


def test_the_coefficient_is_that_of_the_definition(rng):
    x, y = rng.standard_normal((9, 3)), 2 * rng.standard_normal((13, 3)) + 1
    assert energy_test(x, y, permutations=9).coefficient == pytest.approx(by_hand(x, y))


def test_ends_of_the_scale(rng):
    x = rng.standard_normal((20, 2))
    assert energy_test(x, x, permutations=19).coefficient == pytest.approx(0, abs=1e-12)
    zeros, ones = np.zeros((5, 2)), np.ones((5, 2))
    test = energy_test(zeros, ones, permutations=99)
    assert test.coefficient == pytest.approx(1)
    assert test.p_value < 0.05


def test_p_values_are_even_without_drift_and_small_with_it(rng):
    p = [
        energy_test(rng.standard_normal((20, 3)), rng.standard_normal((25, 3)), permutations=39).p_value
        for _ in range(200)
    ]
    assert np.mean(np.array(p) <= 0.1) == pytest.approx(0.1, abs=0.07)
    assert np.mean(p) == pytest.approx(0.5, abs=0.08)
    test = energy_test(rng.standard_normal((40, 3)), rng.standard_normal((40, 3)) + 1, permutations=99)
    assert test.p_value == 0.01 and test.coefficient > 3 * test.expected


def test_groups_change_sides_together(rng):
    # Ten groups a side, each with a place of its own: 200 rows that are 20 independent observations.
    p = {"rows": [], "groups": []}
    units = np.repeat(np.arange(20), 10)
    for _ in range(60):
        x = np.repeat(rng.standard_normal((20, 2)), 10, axis=0) + 0.1 * rng.standard_normal((200, 2))
        for name, given in (("rows", None), ("groups", units)):
            p[name].append(energy_test(x[:100], x[100:], units=given, permutations=39).p_value)
    assert np.mean(np.array(p["groups"]) <= 0.1) < 0.25
    assert np.mean(np.array(p["rows"]) <= 0.1) > 0.5, "as if rows were independent, all of these have drifted"


def test_stores_point_by_point(make_store, rng):
    x, y = rng.standard_normal((60, 4)), rng.standard_normal((50, 4))
    before = make_store({"same": x, "moved": x, "gone": x})
    later = make_store({"same": y, "moved": y + np.array([3, 0, 0, 0]), "new": y})
    found = drift(later, before, permutations=99)
    assert [row.point for row in found.table] == ["same", "moved"]
    same, moved = found.table
    assert same.p_value > 0.05 and moved.p_value == 0.01
    assert found.p_value == 0.01, "of both together"
    assert found.strongest is moved
    assert (found.before, len(found.rows)) == (60, 50)
    most = later["moved"].numpy()[found.rows[moved.strangeness.argmax()], 0]
    assert most > 3
    assert json.dumps(found.to_json())


def test_many_points_are_not_many_chances(rng):
    # 30 unrelated points: one of them is small by chance, all together are not; 30 equal ones are one.
    shuffled = rng.standard_normal((200, 30, 200))
    joint = [joint_p_value(each) for each in shuffled]
    assert np.mean(np.array(joint) <= 0.1) == pytest.approx(0.1, abs=0.07)
    alone = [min((row >= row[0]).mean() for row in each) for each in shuffled]
    assert np.mean(np.array(alone) <= 0.1) > 0.8
    once = rng.standard_normal((1, 200))
    assert joint_p_value(np.repeat(once, 30, axis=0)) == (once >= once[0, 0]).mean()


def test_drawn_rows_bound_the_work(make_store, rng):
    x = rng.standard_normal((80, 4))
    found = drift(make_store({"a": x}), make_store({"a": x}), max_rows=30, permutations=19)
    assert (found.before, len(found.rows), len(set(found.rows))) == (30, 30, 30)


def test_groups_of_the_store_are_honoured(make_store, rng):
    x = np.repeat(rng.standard_normal((2, 4)), 20, axis=0) + 0.01 * rng.standard_normal((40, 4))
    one_group = make_store({"a": x}, groups=["a"] * 40)
    with pytest.raises(StoreError, match="groups of samples, or more"):
        drift(one_group, make_store({"a": x}))


@pytest.mark.parametrize("field", ["weights", "preprocessing"])
def test_other_models_and_settings_are_refused(make_store, manifest, rng, field):
    x = rng.standard_normal((20, 4))
    other = replace(manifest, fingerprinted={**manifest.fingerprinted, field: "other"})
    with pytest.raises(FingerprintMismatch, match=field):
        drift(make_store({"a": x}), make_store({"a": x}, manifest=other))


def test_nothing_in_common(make_store, rng):
    x = rng.standard_normal((20, 4))
    with pytest.raises(StoreError, match="no point in common: a and b"):
        drift(make_store({"a": x}), make_store({"b": x}))

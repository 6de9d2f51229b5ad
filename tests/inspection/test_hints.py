"""LogME and H-score: the evidence by brute force, and the order of an easy and a hopeless layer."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import multivariate_normal
from sklearn.covariance import ledoit_wolf

from spile.errors import ProbeError
from spile.inspection import h_score, hints, logme


@pytest.mark.parametrize("shape", [(40, 3), (12, 30)])
def test_logme_is_the_largest_evidence(rng, shape):
    x = rng.standard_normal(shape)
    y = x[:, 0] + rng.standard_normal(len(x))

    def loss(logs):
        alpha, beta = np.exp(logs)
        covariance = np.eye(len(x)) / beta + x @ x.T / alpha
        return -multivariate_normal(np.zeros(len(x)), covariance).logpdf(y) / len(x)

    best = minimize(loss, [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-9})
    assert logme(x, y) == pytest.approx(-best.fun, abs=1e-3)


def test_classes_are_averaged(rng):
    x, y = rng.standard_normal((30, 3)), np.arange(30) % 3
    each = [logme(x, (y == code).astype(float)) for code in range(3)]
    assert logme(x, y, np.array(["a", "b", "c"])) == pytest.approx(np.mean(each))
    member = (y[:, None] == np.arange(3)).astype(int)
    assert logme(x, member) == pytest.approx(np.mean(each))


def test_h_score_is_the_trace_ratio_where_rows_are_many(rng):
    y = np.arange(20_000) % 2
    x = rng.standard_normal((20_000, 3)) + 2 * np.outer(y, [1, 0, 0])
    # Between the classes the variance is 1, in all it is 2, in one direction.
    assert h_score(x, y) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("shape", [(60, 5), (20, 50)])
def test_h_score_is_the_trace_with_the_shrunk_covariance(rng, shape):
    x, y = rng.standard_normal(shape) * np.arange(1, shape[1] + 1), np.arange(shape[0]) % 3
    covariance, shrinkage = ledoit_wolf(x)
    centred = x - x.mean(axis=0)
    means = np.stack([centred[y == code].mean(axis=0) for code in y])
    between = means.T @ means / len(x)
    right = (1 - shrinkage) * np.trace(np.linalg.inv(covariance) @ between)
    assert h_score(x, y) == pytest.approx(right)


def test_h_score_does_not_saturate_where_features_are_many(rng):
    y = np.arange(40) % 4
    assert h_score(rng.standard_normal((40, 400)), y) < 1  # without shrinkage 3, one less than the classes


def test_a_store_ranks_an_easy_layer_above_noise(make_store, rng):
    y = np.arange(60) % 3
    easy = rng.standard_normal((60, 8)) + 4 * np.eye(8)[y]
    splits = ["train"] * 45 + ["test"] * 15
    store = make_store(
        {"noise": rng.standard_normal((60, 8)), "easy": easy}, labels=y.tolist(), splits=splits
    )
    noise, good = hints(store)
    assert (noise.point, good.point, good.rows) == ("noise", "easy", 45)
    assert good.logme > noise.logme and good.h_score > noise.h_score


def test_numbers_have_no_h_score_and_a_constant_layer_no_trouble(make_store, rng):
    (found,) = hints(make_store({"a": np.zeros((20, 3))}, labels=rng.standard_normal(20).tolist()))
    assert found.h_score is None and np.isfinite(found.logme)
    assert h_score(np.ones((20, 3)), np.arange(20) % 2) == 0
    with pytest.raises(ProbeError, match="no row of this store has a label"):
        hints(make_store({"a": np.zeros((20, 3))}))

"""Class moments that are estimated batch by batch are those of all samples at once."""

from __future__ import annotations

import numpy as np
import pytest

from spile.augmentation.moments import ClassMoments
from spile.errors import AugmentationError

RNG = np.random.default_rng(0)
FEATURES = RNG.normal(3, [1, 2, 5], (60, 3)) @ RNG.normal(size=(3, 3))
LABELS = RNG.integers(0, 3, 60)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_batches_add_up_to_the_whole(covariance: str) -> None:
    made = ClassMoments(4, 3, covariance)
    for start in range(0, 60, 7):
        made.update(FEATURES[start : start + 7], LABELS[start : start + 7])
    for label in range(3):
        rows = FEATURES[label == LABELS]
        expected = np.cov(rows.T, bias=True)
        assert made.counts[label] == len(rows)
        np.testing.assert_allclose(made.means[label], rows.mean(0))
        np.testing.assert_allclose(
            made.covariances[label], expected.diagonal() if covariance == "diagonal" else expected
        )
    assert not made.counts[3]
    assert not made.covariances[3].any()  # a class that was not seen has no noise


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_draws_have_the_covariance_of_their_class(covariance: str) -> None:
    made = ClassMoments(3, 3, covariance)
    made.update(FEATURES, LABELS)
    labels = np.repeat([0, 2], 4000)
    drawn = made.drawn(labels, list(range(8000)), 0.5)
    for label in (0, 2):
        found, wanted = np.cov(drawn[labels == label].T), made.covariances[label]
        wanted = np.diag(wanted) if covariance == "diagonal" else wanted
        np.testing.assert_allclose(found, 0.5 * wanted, atol=0.06 * np.abs(wanted).max())
    np.testing.assert_array_equal(
        made.drawn(labels[:2], [5, 5], 0.5)[0], made.drawn(labels[1:3], [5, 1], 0.5)[0]
    )
    assert not made.drawn(labels[:2], [1, 2], 0.0).any()


def test_other_channels_are_refused() -> None:
    made = ClassMoments(2, 3, "diagonal")
    with pytest.raises(AugmentationError, match="have 4 channels, and those before had 3"):
        made.update(np.ones((2, 4)), np.array([0, 1]))

"""Class numbers and weights, as weights."""

from __future__ import annotations

import numpy as np
import pytest

from spile.augmentation.labels import class_numbers, class_weights
from spile.errors import AugmentationError


def test_a_column_of_class_numbers_is_one_a_sample() -> None:
    column = np.array([[1], [5], [9], [3]])
    assert class_numbers(column).tolist() == [1, 5, 9, 3]
    np.testing.assert_array_equal(class_weights(column, 10, missing=""), np.eye(10)[[1, 5, 9, 3]])
    weights = np.full((4, 1), 0.5)
    assert class_numbers(weights) is weights


def test_weights_stay_as_they_are() -> None:
    weights = np.array([[0.7, 0.3], [0.0, 1.0]])
    for classes in (2, None):
        np.testing.assert_array_equal(class_weights(weights, classes, missing=""), weights)
    np.testing.assert_array_equal(class_weights(np.ones((3, 1), int), 1, missing=""), np.ones((3, 1)))
    assert class_weights(np.zeros(0, int), 3, missing="").shape == (0, 3)


@pytest.mark.parametrize(
    ("labels", "classes", "words"),
    [
        (np.zeros((4, 3)), 5, r"labels are \[4, 3\] of float64: pass \(samples,\) class numbers, or .* 5\)"),
        (np.zeros((4, 1)), 5, r"labels are \[4, 1\]"),
        (np.zeros((4, 8, 8), int), None, r"labels are \[4, 8, 8\] of int64: .* \(samples, classes\) weights"),
        (np.array([0, -1]), 4, r"labels lie in -1\.\.0, and classes=4 allows 0\.\.3"),
        (np.array([[4]]), 4, r"labels lie in 4\.\.4"),
        (np.array([0.0, np.nan]), 4, "labels lie in nan"),
        (np.array([[1]]), None, "write classes="),
    ],
)
def test_labels_that_do_not_fit(labels: np.ndarray, classes: int | None, words: str) -> None:
    with pytest.raises(AugmentationError, match=words):
        class_weights(labels, classes, missing="write classes=10")

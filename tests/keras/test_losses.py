"""Losses of targets on Keras, against NumPy."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import ops
from scipy.special import log_softmax, softmax

from spile.errors import SupervisionError
from spile.keras import losses
from spile.supervision.targets import Task

pytestmark = pytest.mark.essential

LOGITS = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
LABELS = np.array([0, -1, 2, 1, -1])


def number(value: Any) -> float:
    return float(ops.convert_to_numpy(value))


def label_loss(logits: Any, labels: Any, task: Task, **options: Any) -> float:
    logits = ops.convert_to_tensor(logits)
    given = losses.as_labels(labels, logits, task)
    return number(losses.label_loss(logits, *given, task, **{"smoothing": 0.0, "weights": None} | options))


def test_rows_without_a_label_count_nothing() -> None:
    rows = LABELS >= 0
    expected = -log_softmax(LOGITS, -1)[rows, LABELS[rows]]
    assert label_loss(LOGITS, LABELS, "classification") == pytest.approx(expected.mean(), rel=1e-5)
    assert label_loss(LOGITS, LABELS[:, None], "classification") == pytest.approx(expected.mean(), rel=1e-5)
    assert label_loss(LOGITS, np.full(5, -1), "classification") == 0
    weights = np.arange(5.0)
    weighted = (expected * weights[rows]).mean()
    assert label_loss(LOGITS, LABELS, "classification", weights=weights) == pytest.approx(weighted, rel=1e-5)


@pytest.mark.parametrize("size", [(4, 6), (2, 3)])
@pytest.mark.parametrize("samples", [1, 3])
def test_weights_of_pixels_are_resized_with_the_labels(samples: int, size: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(samples, *size, 3)).astype("float32")
    labels = random.integers(-1, 3, (samples, 4, 6))
    weights = random.random((samples, 4, 6))
    rows = ((np.arange(size[0]) + 0.5) * 4 / size[0]).astype(int)
    columns = ((np.arange(size[1]) + 0.5) * 6 / size[1]).astype(int)
    small, w = labels[:, rows][:, :, columns], weights[:, rows][:, :, columns]
    each = -np.take_along_axis(log_softmax(logits, -1), np.maximum(small, 0)[..., None], -1)[..., 0]
    expected = (each * w)[small >= 0].mean()
    for given in (weights, weights[..., None]):
        found = label_loss(logits, labels, "segmentation", weights=given)
        assert found == pytest.approx(expected, rel=1e-5)
    by_sample = random.random(samples)
    expected = (each * by_sample[:, None, None])[small >= 0].mean()
    for given in (by_sample, by_sample[:, None]):
        found = label_loss(logits, labels, "segmentation", weights=given)
        assert found == pytest.approx(expected, rel=1e-5)


def test_weights_of_single_outputs() -> None:
    labels, weights = np.array([[0, 1, -1]] * 5), np.random.default_rng(0).random((5, 3))
    each = (np.logaddexp(0, LOGITS) - np.maximum(labels, 0) * LOGITS) * weights
    assert label_loss(LOGITS, labels, "multilabel", weights=weights) == pytest.approx(
        each[:, :2].mean(), rel=1e-4
    )


def test_weights_that_do_not_fit() -> None:
    with pytest.raises(
        SupervisionError, match=r"shape \[1, 4\], the losses \[1\]: give one weight a sample, \[1\]$"
    ):
        label_loss(LOGITS[:1], LABELS[:1], "classification", weights=np.ones((1, 4)))
    with pytest.raises(SupervisionError, match=r"shape \[3\], the losses \[5\]"):
        label_loss(LOGITS, LABELS, "classification", weights=np.ones(3))
    maps = np.zeros((1, 2, 2, 3), "float32"), np.zeros((1, 2, 2), "int32")
    with pytest.raises(SupervisionError, match=r"\[1, 4\].*, \[1\], or one a loss, \[1, 2, 2\]"):
        label_loss(*maps, "segmentation", weights=np.ones((1, 4)))


def test_soft_labels_and_smoothing() -> None:
    one_hot = np.eye(3)[[0, 1, 2, 1, 0]]
    smooth = 0.9 * one_hot + 0.1 / 3
    expected = -(smooth * log_softmax(LOGITS, -1)).sum(-1).mean()
    assert label_loss(LOGITS, smooth, "classification") == pytest.approx(expected, rel=1e-5)
    assert label_loss(LOGITS, one_hot.argmax(-1), "classification", smoothing=0.1) == pytest.approx(
        expected, rel=1e-5
    )


def test_a_missing_label_of_several_counts_nothing() -> None:
    labels = np.array([[0, 1, -1]] * 5)
    each = np.logaddexp(0, LOGITS) - np.maximum(labels, 0) * LOGITS
    assert label_loss(LOGITS, labels, "multilabel") == pytest.approx(each[:, :2].mean(), rel=1e-4)


@pytest.mark.parametrize("size", [(2, 2), (3, 5), (8, 8), (16, 4)])
def test_maps_of_labels_are_resized_by_nearest(size: tuple[int, int]) -> None:
    """No class appears that was not there, as it would between classes 0 and 9."""
    labels = np.zeros((1, 8, 8), "int32")
    labels[0, :4] = 9
    labels[0, :, 6:] = -1
    found = ops.convert_to_numpy(losses.nearest(ops.convert_to_tensor(labels), size, size))
    assert found.shape == (1, *size)
    assert set(np.unique(found)) <= {0, 9, -1}
    rows = ((np.arange(size[0]) + 0.5) * 8 / size[0]).astype(int)
    columns = ((np.arange(size[1]) + 0.5) * 8 / size[1]).astype(int)
    np.testing.assert_array_equal(found[0], labels[0][np.ix_(rows, columns)])


def test_distillation_is_the_cross_entropy_at_a_temperature() -> None:
    teacher = LOGITS[::-1]
    expected = -(softmax(teacher / 3, -1) * log_softmax(LOGITS / 3, -1)).sum(-1).mean() * 9
    found = losses.distillation(ops.convert_to_tensor(LOGITS), ops.convert_to_tensor(teacher.copy()), 3.0)
    assert number(found) == pytest.approx(expected, rel=1e-5)


def test_attention_compares_where_not_how_much() -> None:
    random = np.random.default_rng(1)
    one, other = random.normal(size=(2, 4, 6, 8)).astype("float32")
    maps = [(x**2).mean(-1) for x in (one, other)]
    maps = [m / np.linalg.norm(m, axis=-1, keepdims=True) for m in maps]
    expected = ((maps[0] - maps[1]) ** 2).sum(-1).mean()
    a, b = ops.convert_to_tensor(one), ops.convert_to_tensor(other)
    assert number(losses.attention(a, b)) == pytest.approx(expected, rel=1e-4)
    assert number(losses.attention(a, 7 * a)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("scale", [1e3, 1e4])
def test_half_precision_features_do_not_overflow(scale: float) -> None:
    """Their squares are over the largest number of float16, 65504."""
    random = np.random.default_rng(1)
    one, other = (ops.cast(scale * x, "float16") for x in random.normal(size=(2, 4, 6, 8)).astype("float32"))
    for loss in (losses.attention(one, other), losses.hint(one, other)):
        assert keras.backend.standardize_dtype(loss.dtype) == "float32"
        assert np.isfinite(number(loss)) and number(loss) > 0


def test_logits_of_probabilities() -> None:
    probabilities = softmax(LOGITS, -1)
    found = ops.convert_to_numpy(losses.logits_of(ops.convert_to_tensor(probabilities), "softmax"))
    np.testing.assert_allclose(found - found[:, :1], LOGITS - LOGITS[:, :1], atol=1e-5)
    chances = 1 / (1 + np.exp(-LOGITS))
    found = ops.convert_to_numpy(losses.logits_of(ops.convert_to_tensor(chances), "sigmoid"))
    np.testing.assert_allclose(found, LOGITS, atol=1e-5)
    zero = losses.logits_of(ops.convert_to_tensor(np.array([[0.0, 1.0]], "float32")), "softmax")
    assert np.isfinite(ops.convert_to_numpy(zero)).all()


def test_labels_that_do_not_fit() -> None:
    with pytest.raises(SupervisionError, match="needs one number an output"):
        label_loss(LOGITS, np.zeros(5), "regression")
    with pytest.raises(SupervisionError, match=r"give class numbers \[5\], -1 where there is none"):
        label_loss(LOGITS, np.zeros((5, 2)), "classification")

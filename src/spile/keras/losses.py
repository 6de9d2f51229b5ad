"""Losses of the targets, in float32: pure functions of logits, labels and features.

Classes are the last axis. Rows labelled -1 count nothing.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from spile.errors import SupervisionError
from spile.keras.pooling import averaged
from spile.supervision.targets import Task

TINY = 1e-30
"""What keeps a logarithm and a square root finite."""


def float32(value: Any) -> Any:
    """As float32."""
    return ops.cast(value, "float32")


def gated(value: Any, opened: Any) -> Any:
    """The same value; back through it flows exactly nothing where it is not `opened`, ``None`` being open.

    A weight of 0 alone would not do: 0 times an infinite gradient is no number.
    """
    return value if opened is None else ops.where(opened, value, ops.stop_gradient(value))


def mean(values: Any, weights: Any) -> Any:
    """Of the values with a weight above 0, each times it; 0 where there are none. Shapes (...) alike."""
    counted = float32(weights > 0)
    return ops.sum(ops.where(weights > 0, values * weights, 0.0)) / ops.maximum(ops.sum(counted), 1.0)


def share(part: Any, whole: Any) -> Any:
    """`part` of `whole`; NaN, not known, where that is 0."""
    return ops.where(whole > 0, part / ops.where(whole > 0, whole, 1.0), float("nan"))


def logits_of(output: Any, gives: str) -> Any:
    """float32 logits of a main output that may hold probabilities instead."""
    output = float32(output)
    if gives == "logits":
        return output
    logs = ops.log(ops.maximum(output, TINY))
    return logs if gives == "softmax" else logs - ops.log(ops.maximum(1.0 - output, TINY))


def as_labels(labels: Any, logits: Any, task: Task) -> tuple[Any, Any]:
    """Labels as the logits need them, and a weight for each that is 1, or 0 where there is none.

    Classes (samples, or samples, height, width; one-hot rows and soft labels too) become probabilities and
    one weight a sample or cell, other labels keep their shape and have a weight each.
    """
    labels = ops.convert_to_tensor(labels)
    classes, rank = logits.shape[-1], len(logits.shape)
    if task in ("classification", "segmentation"):
        if len(labels.shape) == rank and labels.shape[-1] == classes and classes > 1:
            return float32(labels), ops.ones_like(float32(labels[..., 0]))
        if len(labels.shape) == rank and labels.shape[-1] == 1:
            labels = labels[..., 0]
        if len(labels.shape) != rank - 1:
            raise SupervisionError(
                f"labels of shape {list(labels.shape)} for logits of shape {list(logits.shape)}: give class "
                f"numbers {list(logits.shape[:-1])}, -1 where there is none, or probabilities"
            )
        if task == "segmentation":
            labels = nearest(labels, logits.shape[1:3], ops.shape(logits)[1:3])
        known = labels >= 0
        safe = ops.cast(ops.where(known, labels, 0), "int32")
        return ops.one_hot(safe, classes, dtype="float32"), float32(known)
    labels = float32(labels)
    if len(labels.shape) == rank - 1 and classes == 1:
        labels = labels[..., None]
    if len(labels.shape) != rank or labels.shape[-1] != classes:
        raise SupervisionError(
            f"labels of shape {list(labels.shape)} for outputs of shape {list(logits.shape)}: {task} needs "
            "one number an output"
        )
    known = float32(labels >= 0) if task == "multilabel" else ops.ones_like(labels)
    return labels, known


def nearest(labels: Any, static: Any, size: Any) -> Any:
    """A map of labels (samples, height, width) at another size: every cell takes the label at its centre."""
    for axis, (fixed, length) in enumerate(zip(static, size, strict=True), start=1):
        if fixed is not None and labels.shape[axis] == fixed:
            continue
        from_length, to_length = float32(ops.shape(labels)[axis]), float32(length)
        centres = (ops.arange(length, dtype="float32") + 0.5) * from_length / to_length
        labels = ops.take(labels, ops.cast(ops.floor(centres), "int32"), axis=axis)
    return labels


def label_loss(logits: Any, labels: Any, known: Any, task: Task, *, smoothing: float, weights: Any) -> Any:
    """Cross-entropy, binary cross-entropy or squared error; mean over what is labelled.

    `labels`, `known` as `as_labels` gives them; `weights` multiply the losses, or are ``None``: one a sample,
    or one a loss, of which a map may have another size. Raises `SupervisionError`.
    """
    if task in ("classification", "segmentation"):
        each = keras.losses.categorical_crossentropy(
            labels, logits, from_logits=True, label_smoothing=smoothing
        )
    elif task == "multilabel":
        each = ops.binary_crossentropy(ops.maximum(labels, 0.0), logits, from_logits=True)
    else:
        each = ops.square(logits - labels)
    if weights is not None:
        each = each * _weights_of(weights, each)
    return mean(each, known)


def _weights_of(weights: Any, each: Any) -> Any:
    """Sample weights that broadcast with the losses `each` (samples, ...)."""
    weights = float32(weights)
    wanted, given = tuple(each.shape), tuple(weights.shape)
    if given[1:] == (1,) * len(given[1:]) and _fits(given[:1], wanted):
        return ops.reshape(weights, (-1, *(1,) * (len(wanted) - 1)))
    if len(given) == len(wanted) + 1 and given[-1] == 1:
        weights, given = weights[..., 0], given[:-1]
    if len(given) == len(wanted) == 3 and _fits(given[:1], wanted):
        return nearest(weights, wanted[1:], ops.shape(each)[1:])
    if len(given) == len(wanted) and _fits(given, wanted):
        return weights
    raise SupervisionError(
        f"sample_weight has the shape {list(given)}, the losses {list(wanted)}: give one weight a sample, "
        f"{list(wanted[:1])}" + (f", or one a loss, {list(wanted)}" if len(wanted) > 1 else "")
    )


def _fits(given: tuple[int | None, ...], wanted: tuple[int | None, ...]) -> bool:
    """Whether sizes are alike, as far as they are known."""
    return all(n == m for n, m in zip(given, wanted, strict=False) if n is not None and m is not None)


def hits(logits: Any, labels: Any, task: Task) -> Any:
    """1 where a prediction is right, shaped like the weights of `as_labels`; ``None`` for a regression."""
    if task == "regression":
        return None
    if task == "multilabel":
        return float32((logits > 0) == (labels > 0.5))
    return float32(ops.argmax(logits, axis=-1) == ops.argmax(labels, axis=-1))


def towards(logits: Any, probabilities: Any) -> Any:
    """Cross-entropy of every row with probabilities, which get no gradient."""
    return keras.losses.categorical_crossentropy(ops.stop_gradient(probabilities), logits, from_logits=True)


def distillation(student: Any, teacher: Any, temperature: float) -> Any:
    """Cross-entropy with the teacher's tempered probabilities, times the squared temperature (Hinton et al.
    2015, section 2); the teacher gets no gradient."""
    wanted = ops.softmax(teacher / temperature, axis=-1)
    return ops.mean(towards(student / temperature, wanted)) * temperature**2


def hint(student: Any, teacher: Any) -> Any:
    """Mean squared error (Romero et al. 2015, equation 3); the teacher gets no gradient."""
    return ops.mean(ops.square(float32(student) - float32(ops.stop_gradient(teacher))))


def attention(student: Any, teacher: Any) -> Any:
    """Squared distance of normalised attention (Zagoruyko & Komodakis 2017, equation 2), mean over samples.

    Both (samples, cells, channels), with the same cells.
    """
    difference = _looks(student) - _looks(ops.stop_gradient(teacher))
    return ops.mean(ops.sum(ops.square(difference), axis=-1))


def _looks(features: Any) -> Any:
    """Mean squared activation of every cell, of length 1; computed without overflow of large features."""
    features = float32(features)
    largest = ops.stop_gradient(ops.amax(ops.abs(features), axis=(1, 2), keepdims=True))
    energy = ops.mean(ops.square(features / ops.maximum(largest, TINY)), axis=-1)
    return energy / ops.sqrt(ops.maximum(ops.sum(ops.square(energy), axis=-1, keepdims=True), TINY))


def one_size(student: Any, teacher: Any) -> tuple[Any, Any]:
    """Channels-last maps at the smaller of both sizes, by average pooling."""
    for axis in (1, 2):
        ours, theirs = student.shape[axis], teacher.shape[axis]
        if ours != theirs and ours > theirs:
            student = averaged(student, axis, theirs)
        elif ours != theirs:
            teacher = averaged(teacher, axis, ours)
    return student, teacher

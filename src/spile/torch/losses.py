"""Losses of the targets: pure functions of logits, in float32 whatever the precision of the pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from spile.errors import SupervisionError
from spile.supervision.targets import Task

NO_LABEL = -1


def labelled(logits: Tensor, labels: Tensor, *, task: Task, smoothing: float = 0.0) -> Tensor:
    """Mean loss over what has a label; 0, with a gradient of 0, where nothing has.

    `labels` are class numbers (samples,) or rows of probabilities (samples, classes) for ``classification``,
    0 or 1 (samples, outputs) for ``multilabel``, numbers for ``regression``, maps of class numbers (samples,
    height, width) of any size for ``segmentation``. -1 is no label; in regression NaN is.
    """
    logits = logits.float()
    if task == "multilabel":
        _same_shape(logits, labels, task)
        known = labels != NO_LABEL
        losses = functional.binary_cross_entropy_with_logits(
            logits, labels.clamp(min=0).to(logits.dtype), reduction="none"
        )
    elif task == "regression":
        wanted = labels.float().reshape(len(labels), -1)
        _same_shape(logits, wanted, task)
        known = ~wanted.isnan()
        losses = functional.mse_loss(logits, wanted.nan_to_num(), reduction="none")
    elif task == "classification" and labels.is_floating_point():
        _same_shape(logits, labels, task)
        return functional.cross_entropy(logits, labels.float(), label_smoothing=smoothing)
    else:
        wanted = class_numbers(logits, labels, task=task)
        known = wanted != NO_LABEL
        losses = functional.cross_entropy(
            logits, wanted, ignore_index=NO_LABEL, reduction="none", label_smoothing=smoothing
        )
    return torch.where(known, losses, 0).sum() / known.sum().clamp(min=1)


def class_numbers(logits: Tensor, labels: Tensor, *, task: Task) -> Tensor:
    """The class numbers that `logits` are compared with; maps of labels at the size of the logits."""
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise SupervisionError(
            f"task={task!r} needs class numbers, and the labels are {labels.dtype}: use integers"
        )
    labels = labels.long()
    if task != "segmentation":
        if labels.ndim != 1:
            raise SupervisionError(
                f"labels of the shape {list(labels.shape)} are not one class number a sample"
            )
        return labels
    if labels.ndim != 3:
        raise SupervisionError(
            f"labels of the shape {list(labels.shape)} are no maps: (samples, height, width)"
        )
    return resized_labels(labels, (logits.shape[-2], logits.shape[-1]))


def check_classes(labels: Tensor, classes: int) -> None:
    """Raise `SupervisionError` for numbers that are no class; on the CPU alone, as a GPU would be waited for.

    `labels` are as they are given to `labelled`, for ``classification`` or ``segmentation``.
    """
    wrong_type = labels.is_floating_point() or labels.dtype == torch.bool
    if wrong_type or labels.device.type != "cpu" or not labels.numel():
        return
    low, high = (int(bound) for bound in torch.aminmax(labels.long()))
    if low < NO_LABEL or high >= classes:
        wrong = low if low < NO_LABEL else high
        raise SupervisionError(
            f"a label is {wrong}, and the {classes} classes are 0 to {classes - 1}; {NO_LABEL} is no label. "
            f"If {wrong} is to mean none, type: labels[labels == {wrong}] = {NO_LABEL}"
            + (f"; if it is a class, num_classes={high + 1}" if wrong > 0 else "")
        )


def resized_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps of class numbers at another size: of every cell, the label at its centre. No new number arises."""
    rows, columns = (
        ((torch.arange(to, device=labels.device) * 2 + 1) * source // (2 * to))
        for to, source in zip(size, labels.shape[-2:], strict=True)
    )
    return labels if tuple(labels.shape[-2:]) == size else labels[..., rows[:, None], columns]


def accuracy(logits: Tensor, labels: Tensor, *, task: Task) -> Tensor | None:
    """Share of right answers among what has a label, NaN where nothing has; none in regression."""
    if task == "regression":
        return None
    if task == "multilabel":
        known, right = labels != NO_LABEL, (logits > 0) == (labels > 0.5)
    elif labels.is_floating_point():
        known = torch.ones(len(labels), dtype=torch.bool, device=labels.device)
        right = logits.argmax(1) == labels.argmax(1)
    else:
        wanted = class_numbers(logits, labels, task=task)
        known, right = wanted != NO_LABEL, logits.argmax(1) == wanted
    return (known & right).sum() / known.sum()


def distillation(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Cross-entropy with the teacher's softened predictions, times the temperature squared."""
    soft = functional.softmax(teacher.float() / temperature, dim=1)
    return functional.cross_entropy(logits.float() / temperature, soft) * temperature**2


def towards(logits: Tensor, probabilities: Tensor, rows: Tensor) -> Tensor:
    """Mean cross-entropy with soft labels over the `rows` that are true."""
    losses = functional.cross_entropy(logits.float(), probabilities.float(), reduction="none")
    return torch.where(rows, losses, 0).sum() / rows.sum().clamp(min=1)


def pseudo_labelled(logits: Tensor, classes: Tensor, confident: Tensor, unlabelled: Tensor) -> Tensor:
    """Cross-entropy over confident unlabelled rows, divided by all unlabelled ones."""
    losses = functional.cross_entropy(logits.float(), classes, reduction="none")
    return torch.where(confident & unlabelled, losses, 0).sum() / unlabelled.sum().clamp(min=1)


def hint(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of features, brought to the smaller of both sizes."""
    student, teacher = _one_size(student.float(), teacher.float())
    return functional.mse_loss(student, teacher)


def attention(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance of the normalised maps of mean squared activation, mean over the samples."""
    student, teacher = _one_size(student.float(), teacher.float())
    ours, theirs = (
        functional.normalize(x.square().mean(1 if x.ndim == 4 else 2).flatten(1), dim=1)
        for x in (student, teacher)
    )
    return (ours - theirs).square().sum(1).mean()


def _one_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    if student.ndim != 4:
        return student, teacher
    size: Any = tuple(map(min, student.shape[2:], teacher.shape[2:]))
    student, teacher = (
        x if tuple(x.shape[2:]) == size else functional.adaptive_avg_pool2d(x, size)
        for x in (student, teacher)
    )
    return student, teacher


def _same_shape(logits: Tensor, labels: Tensor, task: Task) -> None:
    if logits.shape != labels.shape:
        raise SupervisionError(
            f"the labels have the shape {list(labels.shape)}, and task={task!r} needs that of the outputs, "
            f"{list(logits.shape)}"
        )

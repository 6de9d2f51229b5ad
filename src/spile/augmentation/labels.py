"""Labels of a batch as weights of all classes, (n, classes). Pure."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from spile.errors import AugmentationError

Array = npt.NDArray[Any]


def class_numbers(labels: Array) -> Array:
    """Whole numbers (n, 1), one column of class numbers as many data sets have them, as (n,); others as they
    are."""
    column = labels.ndim == 2 and labels.shape[1] == 1 and np.issubdtype(labels.dtype, np.integer)
    return labels[:, 0] if column else labels


def class_weights(labels: Array, classes: int | None, *, missing: str) -> Array:
    """(n, classes) weights, float64, of class numbers (n,) or (n, 1), or of weights.

    Raises `AugmentationError` where they do not fit `classes`; with `missing` where that is not known.
    """
    found = labels if classes == 1 else class_numbers(labels)
    if found.ndim == 2 and classes in (None, found.shape[1]):
        return found.astype(np.float64)
    if found.ndim != 1:
        raise AugmentationError(
            f"labels are {list(labels.shape)} of {labels.dtype}: pass (samples,) class numbers, or "
            f"(samples, {'classes' if classes is None else classes}) weights"
        )
    if classes is None:
        raise AugmentationError(missing)
    if len(found) and not (found.min() >= 0 and found.max() < classes):
        raise AugmentationError(
            f"labels lie in {found.min()}..{found.max()}, and classes={classes} allows 0..{classes - 1}"
        )
    hot: Array = np.eye(classes)[found.astype(int)]
    return hot

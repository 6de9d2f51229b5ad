"""From the channels of an activation to one number a cell. Pure where the numbers of a cell are few.

``mean``, ``max`` and ``l2`` run in the framework, on its device; what is here runs on the host in float64, so
that both frameworks give the same map.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from spile.errors import AugmentationError, nearest

Array = npt.NDArray[Any]

Reduce = Literal["mean", "max", "l2", "pca", "gradcam", "rollout"]
"""``l2``: length of the channel vector. ``pca``: strength along the first principal axis. ``gradcam``:
channels weighted by the gradient of a class score. ``rollout``: attention of a transformer, all blocks."""

REDUCTIONS: tuple[Reduce, ...] = ("mean", "max", "l2", "pca", "gradcam", "rollout")


def checked_reduce(reduce: str) -> Reduce:
    """`reduce` itself. Raises `AugmentationError` for a word that is none."""
    if reduce not in REDUCTIONS:
        near = nearest(reduce, REDUCTIONS, n=1)[0]
        raise AugmentationError(
            f"unknown reduction {reduce!r}: did you mean {near!r}? Allowed: {', '.join(REDUCTIONS)}"
        )
    return reduce


def principal(cells: Array) -> Array:
    """(samples, n) strengths along the first principal axis of each sample's cells (samples, n, channels).

    The sign of an axis means nothing, so it is the one under which strength and the cells' energy go together
    (positive covariance with their squared length).
    """
    cells = np.asarray(cells, np.float64)
    centred = cells - cells.mean(axis=1, keepdims=True)
    # Of the two Gram matrices the one of the cells is small, and its eigenvectors are the strengths.
    _, vectors = np.linalg.eigh(centred @ centred.transpose(0, 2, 1))
    strength = vectors[:, :, -1]
    spread = np.linalg.norm(np.einsum("snc,sn->sc", centred, strength), axis=1, keepdims=True)
    energy = np.square(cells).sum(axis=2)
    energy -= energy.mean(axis=1, keepdims=True)
    together = (strength * energy).sum(axis=1, keepdims=True)
    result: Array = strength * spread * np.where(together < 0, -1.0, 1.0)
    return result


def class_activation(values: Array, gradients: Array) -> Array:
    """(samples, n) Grad-CAM of cells (samples, n, channels) and the gradients of a score by them.

    Selvaraju et al. 2017, equations 1 and 2: channels weighted by their mean gradient, negatives cut.
    """
    weights = np.asarray(gradients, np.float64).mean(axis=1, keepdims=True)
    result: Array = np.maximum((np.asarray(values, np.float64) * weights).sum(axis=2), 0.0)
    return result


def rollout(attentions: list[Array], prefix_tokens: int) -> Array:
    """(samples, patches) attention of the first token to the patches, through all blocks.

    `attentions` are (samples, heads, tokens, tokens), the first block first. Heads are averaged, half of each
    block's token passes by the attention (Abnar & Zuidema 2020, section 4). Without prefix tokens it is the
    mean over all tokens.
    """
    total: Array | None = None
    for attention in attentions:
        mean = np.asarray(attention, np.float64).mean(axis=1)
        mixed = 0.5 * mean + 0.5 * np.eye(mean.shape[-1])
        mixed /= mixed.sum(axis=-1, keepdims=True)
        total = mixed if total is None else mixed @ total
    assert total is not None
    rows = total[:, 0] if prefix_tokens else total.mean(axis=1)
    result: Array = rows[:, prefix_tokens:]
    return result

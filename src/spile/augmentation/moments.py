"""Mean and covariance of the features of every class, estimated online while a model is trained. Pure."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from spile.errors import AugmentationError

Array = npt.NDArray[Any]

Covariance = Literal["diagonal", "full"]
"""``diagonal`` keeps classes x channels numbers, ``full`` classes x channels x channels."""


class ClassMoments:
    """Of all samples seen so far, each batch weighted by its size (Wang et al. 2019, supplement, section A).

    They depend on the order of training, so a run that is resumed needs them back: `counts`, `means` and
    `covariances` are arrays to save and to put back.
    """

    def __init__(self, classes: int, channels: int, covariance: Covariance) -> None:
        shape = (classes, channels) if covariance == "diagonal" else (classes, channels, channels)
        self.counts: Array = np.zeros(classes)
        self.means: Array = np.zeros((classes, channels))
        self.covariances: Array = np.zeros(shape)

    @property
    def diagonal(self) -> bool:
        """Whether variances alone are kept."""
        return self.covariances.ndim == 2

    def update(self, features: Array, labels: Array) -> None:
        """Take in a batch: features (n, channels), class numbers (n,)."""
        features = np.asarray(features, np.float64)
        if features.shape[1] != self.means.shape[1]:
            raise AugmentationError(
                f"the features have {features.shape[1]} channels, and those before had {self.means.shape[1]}"
            )
        for label in np.unique(labels):
            rows = features[labels == label]
            before, count = self.counts[label], len(rows)
            mean = rows.mean(0)
            spread = self._product(rows - mean) / count
            shift = self._product((mean - self.means[label])[None])
            total = before + count
            self.covariances[label] *= before / total
            self.covariances[label] += (count * spread + before * count / total * shift) / total
            self.means[label] += count / total * (mean - self.means[label])
            self.counts[label] = total

    def _product(self, rows: Array) -> Array:
        """Sum over the rows of the outer product with itself, or of its diagonal."""
        result: Array = np.square(rows).sum(0) if self.diagonal else rows.T @ rows
        return result

    def drawn(self, labels: Array, keys: list[int], factor: float) -> Array:
        """(n, channels): a draw for each sample from N(0, factor x covariance of its class)."""
        channels = self.means.shape[1]
        normal = np.stack(
            [np.random.Generator(np.random.Philox(key)).standard_normal(channels) for key in keys]
        )
        if self.diagonal:
            scaled: Array = normal * np.sqrt(factor * self.covariances[labels])
            return scaled
        roots = {label: _root(self.covariances[label]) for label in np.unique(labels).tolist()}
        turned = np.stack([roots[int(k)] @ row for k, row in zip(labels, normal, strict=True)])
        drawn: Array = np.sqrt(factor) * turned
        return drawn


def _root(covariance: Array) -> Array:
    """The symmetric square root, of which there is one: eigenvectors have no sign of their own."""
    values, vectors = np.linalg.eigh(covariance)
    root: Array = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    return root

"""A fitted downstream model as plain arrays: what can be written into a network."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Float = npt.NDArray[np.float64]
Link = Literal["softmax", "logistic", "normalised", "shares", "none"]


@dataclass(frozen=True, eq=False)
class Linear:
    """``z @ coef + intercept``."""

    coef: Float
    """(d, p)"""
    intercept: Float
    """(p,)"""

    @property
    def size(self) -> int:
        """How many numbers it holds, intercepts apart."""
        return self.coef.size

    def __call__(self, z: Float) -> Float:
        """(n, p)"""
        return np.asarray(z @ self.coef + self.intercept)


@dataclass(frozen=True, eq=False)
class Kernel:
    """``exp(-gamma * |z - row|²) @ coef + intercept``: a support vector machine with an RBF kernel."""

    rows: Float
    """(m, d) support vectors"""
    gamma: float
    coef: Float
    """(m, p)"""
    intercept: Float
    """(p,)"""

    @property
    def size(self) -> int:
        """How many numbers it holds, intercepts apart."""
        return self.rows.size + self.coef.size

    def __call__(self, z: Float) -> Float:
        """(n, p)"""
        from scipy.spatial.distance import cdist

        return np.asarray(
            np.exp(-self.gamma * cdist(z, self.rows, "sqeuclidean")) @ self.coef + self.intercept
        )


@dataclass(frozen=True, eq=False)
class Nearest:
    """The mean of the `values` of the `k` nearest rows, or the mean weighted by one over the distance."""

    rows: Float
    """(m, d)"""
    values: Float
    """(m, p)"""
    k: int
    by_distance: bool

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return self.rows.size + self.values.size

    def __call__(self, z: Float) -> Float:
        """(n, p)"""
        from scipy.spatial.distance import cdist

        away = cdist(z, self.rows)
        near = np.argsort(away, axis=1, kind="stable")[:, : self.k]
        distance = np.take_along_axis(away, near, axis=1)
        weights = np.ones_like(distance)
        if self.by_distance:
            same = distance == 0  # rows that are the sample itself outweigh all others
            weights = np.where(same.any(axis=1, keepdims=True), same, 1 / np.where(same, 1.0, distance))
        weights /= weights.sum(axis=1, keepdims=True)
        return np.asarray(np.einsum("nk,nkp->np", weights, self.values[near]))


@dataclass(frozen=True, eq=False)
class PlainHead:
    """``link(model((features - mean) / scale) * slope + offset)``, for features (n, d) of several points."""

    mean: Float
    """(d,)"""
    scale: Float
    """(d,)"""
    model: Linear | Kernel | Nearest
    link: Link
    """``logistic`` for each column by itself, ``normalised`` the same divided by the row's sum; ``shares``
    are probabilities already; ``none`` leaves decision values, or numbers."""
    labels: tuple[Any, ...] | None
    """Behind the columns; ``None`` for numbers. The label of a row is its largest column."""
    unit_rows: bool
    """The rows of each point are divided by their length first, see `spile.probing.features`."""
    several: bool = False
    """Any number of labels holds for a row: those whose column is above `threshold`."""
    pairs: bool = False
    """The model has a column for each pair of classes, see `one_against_rest`."""
    slope: Float | None = None
    """(c,) of Platt's sigmoid, with its offset; ``None`` where there is none."""
    offset: Float | None = None

    @property
    def threshold(self) -> float:
        """Between the scores of labels that hold and those that do not."""
        return 0.0 if self.link == "none" else 0.5

    @property
    def signs(self) -> Float:
        """(pairs, c): 1 where a class is the first of a pair, -1 where it is the second."""
        count = len(self.labels or ())
        signs = np.zeros((count * (count - 1) // 2, count))
        for pair, (first, second) in enumerate(combinations(range(count), 2)):
            signs[pair, first], signs[pair, second] = 1.0, -1.0
        return signs

    def __call__(self, features: Array) -> Float:
        """(n, c) scores, in float64; the reference for what is written into a network."""
        values = self.model((np.asarray(features, np.float64) - self.mean) / self.scale)
        if self.pairs:
            values = one_against_rest(values, self.signs)
        if self.slope is not None and self.offset is not None:
            values = values * self.slope + self.offset
        if self.link in ("none", "shares"):
            return values
        if self.link == "softmax":
            values = np.exp(values - values.max(axis=1, keepdims=True))
            return np.asarray(values / values.sum(axis=1, keepdims=True))
        values = 0.5 * (1.0 + np.tanh(0.5 * values))
        return np.asarray(values / values.sum(axis=1, keepdims=True) if self.link == "normalised" else values)

    def answers(self, scores: Array) -> Array:
        """(n,) labels of scores (n, c), (n, c) 0 and 1 where a row has several, or (n,) numbers."""
        if self.labels is None:
            return scores[:, 0]
        if self.several:
            return np.asarray(scores > self.threshold).astype(np.intp)
        found: Array = np.asarray(self.labels)[scores.argmax(axis=1)]
        return found


def one_against_rest(pairs: Float, signs: Float) -> Float:
    """Decision values of pairs of classes as one a class: votes, and by how much, which is less than a vote.

    What scikit-learn's SVC does (``decision_function_shape="ovr"``), so that its scores are the same.
    """
    votes = (pairs >= 0) @ signs + (signs < 0).sum(axis=0)
    sums = pairs @ signs
    return np.asarray(votes + sums / (3 * (np.abs(sums) + 1)))

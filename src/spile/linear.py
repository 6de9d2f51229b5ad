"""A fitted downstream model that is linear, as plain arrays: what can be written into a network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]
Link = Literal["softmax", "logistic", "normalised", "none"]


@dataclass(frozen=True, eq=False)
class LinearHead:
    """``link(((features - mean) / scale) @ coef + intercept)``, for features (n, d) of several points."""

    mean: Float
    """(d,)"""
    scale: Float
    """(d,)"""
    coef: Float
    """(d, c): one column a class, also of two; one for numbers."""
    intercept: Float
    """(c,)"""
    link: Link
    """``logistic`` for each column by itself, ``normalised`` the same divided by the row's sum; ``none``
    leaves decision values, or numbers."""
    labels: tuple[Any, ...] | None
    """Behind the columns; ``None`` for numbers. The label of a row is its largest column."""
    unit_rows: bool
    """The rows of each point are divided by their length first, see `spile.probing.features`."""

    def __call__(self, features: npt.NDArray[Any]) -> Float:
        """(n, c) scores, in float64; the reference for what is written into a network."""
        values = ((np.asarray(features, np.float64) - self.mean) / self.scale) @ self.coef + self.intercept
        if self.link == "none":
            return np.asarray(values)
        if self.link == "softmax":
            values = np.exp(values - values.max(axis=1, keepdims=True))
            return np.asarray(values / values.sum(axis=1, keepdims=True))
        values = 0.5 * (1.0 + np.tanh(0.5 * values))
        return np.asarray(values / values.sum(axis=1, keepdims=True) if self.link == "normalised" else values)

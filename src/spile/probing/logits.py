"""The head of a network that ends with one logit a class: nothing is left to fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Logits:
    """Reads the network's own scores."""

    classes: Array
    """(c,) labels, in the order of the logits."""

    def decision_function(self, X: Array) -> Array:
        """The logits (n, c) themselves."""
        return np.asarray(X, np.float64)

    def predict(self, X: Array) -> Array:
        """(n,) labels."""
        labels: Array = self.classes[np.asarray(X).argmax(axis=1)]
        return labels

    def predict_proba(self, X: Array) -> Array:
        """(n, c) softmax."""
        return np.asarray(softmax(self.decision_function(X), axis=1))

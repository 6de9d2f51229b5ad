"""What a saved scikit-learn model may hold without being told: what spile's own heads are made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

TREES = "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor"
TRUSTED = ("sklearn.calibration._CalibratedClassifier", "sklearn.calibration._SigmoidCalibration", TREES)
"""Beside what skops trusts. All hold data and fitted estimators; trees are looked at by `sound_trees` too."""


def sound_trees(model: Any) -> bool:
    """Whether all trees of gradient boosting in `model` stay within their nodes and their features.

    scikit-learn follows the indices of a tree without looking at their bounds, so that a forged file could
    have it read other memory, or never end; skops does not trust trees for that. Trees that split by category
    follow further indices, and count as unsound.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    boosted = (HistGradientBoostingClassifier, HistGradientBoostingRegressor)
    return all(_is_sound(part) for part in _parts(model, set()) if isinstance(part, boosted))


def _is_sound(boosting: Any) -> bool:
    held = vars(boosting)
    rounds = held.get("_predictors", ())
    if not len(rounds):
        return True
    if held.get("_preprocessor") is not None or not isinstance(held.get("n_features_in_"), int):
        return False  # scikit-learn would not compare the width of its input with `n_features_in_`
    return all(_is_sound_tree(tree.nodes, boosting.n_features_in_) for trees in rounds for tree in trees)


def _is_sound_tree(nodes: Any, features: int) -> bool:
    if nodes.ndim != 1 or not len(nodes):
        return False
    at = np.flatnonzero(nodes["is_leaf"] == 0)
    inner = nodes[at]
    children = np.stack([inner["left"], inner["right"]]).astype(np.int64)
    return bool(
        (children > at).all()
        and (children < len(nodes)).all()
        and (inner["feature_idx"] >= 0).all()
        and (inner["feature_idx"] < features).all()
        and not nodes["is_categorical"].any()
    )


def _parts(value: Any, seen: set[int]) -> Iterator[Any]:
    """The object and all that it holds."""
    if id(value) in seen:
        return
    seen.add(id(value))
    yield value
    held: Iterable[Any] = ()
    if isinstance(value, dict):
        held = (*value.keys(), *value.values())
    elif isinstance(value, list | tuple | set | frozenset):
        held = value
    elif isinstance(value, np.ndarray) and value.dtype == object:
        held = value.ravel().tolist()
    for part in (*held, *getattr(value, "__dict__", {}).values()):
        yield from _parts(part, seen)

"""What each head does to the gradients of the layers below it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from spile.address import literal
from spile.keras.names import children_of, names_of

Array = np.ndarray[Any, Any]


def by_layer(
    base: keras.Model, heads: Sequence[str], gradients: Sequence[Sequence[Array | None]]
) -> dict[str, dict[str, float]]:
    """By layer with weights of its own, in forward order: norm, shares and cosine.

    `gradients` are those of what main and every head add to the total, by the trainable variables of the
    base. ``gradient_norm`` is that of their sum, ``share/main`` and ``share/<head>`` are the norm of each
    one's part over the sum of those norms, ``cosine`` is that between the main gradient and the sum of all
    heads'; NaN where one of them is 0.
    """
    variables = base.trainable_variables
    places = {id(variable): place for place, variable in enumerate(variables)}
    found = {}
    for layer, names in names_of(base).items():
        inner = {id(w) for _, child in children_of(layer) for w in child.trainable_variables}
        own = [places[id(w)] for w in layer.trainable_variables if id(w) not in inner and id(w) in places]
        if own:
            joined = [_joined([each[i] for i in own], [variables[i] for i in own]) for each in gradients]
            found[literal(names[0])] = _of_layer(dict(zip(heads, joined, strict=True)))
    return found


def _joined(gradients: list[Array | None], variables: list[keras.Variable]) -> Array:
    """The gradients of one layer as one vector; zeros where there are none."""
    pairs = zip(gradients, variables, strict=True)
    flat = [np.zeros(v.shape) if g is None else np.asarray(g, "float64") for g, v in pairs]
    return np.concatenate([each.ravel() for each in flat])


def _of_layer(gradients: dict[str, Array]) -> dict[str, float]:
    norms = {head: float(np.linalg.norm(gradient)) for head, gradient in gradients.items()}
    whole = sum(norms.values())
    main, *others = gradients.values()
    heads = np.sum(others, axis=0) if others else np.zeros_like(main)
    below = float(np.linalg.norm(main) * np.linalg.norm(heads))
    return {
        "gradient_norm": float(np.linalg.norm(main + heads)),
        **{f"share/{head}": norm / whole if whole else float("nan") for head, norm in norms.items()},
        "cosine": float(main @ heads) / below if below else float("nan"),
    }

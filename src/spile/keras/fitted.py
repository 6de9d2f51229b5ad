"""A fitted downstream model as layers of Keras' own, for `spile.keras.whole`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from spile.plain import Array, Kernel, Linear, Nearest, PlainHead

_SPARE = 8
"""So many more neighbours are looked at closely, since the quick distances that find them lose digits."""


def fitted(head: PlainHead, parts: Sequence[Any]) -> Any:
    """From the points' features, (n, d) each and symbolic, to scores (n, c); what `PlainHead` computes."""
    if head.unit_rows:
        parts = [layers.UnitNormalization()(part) for part in parts]
    joined = parts[0] if len(parts) == 1 else layers.Concatenate()(parts)
    values = _modelled(head.model, layers.Normalization(mean=head.mean, variance=head.scale**2)(joined))
    if head.pairs:
        votes = _dense(ops.where(values >= 0, 1.0, 0.0), head.signs, (head.signs < 0).sum(axis=0))
        sums = _dense(values, head.signs)
        values = votes + sums / (3 * (ops.abs(sums) + 1))
    if head.slope is not None and head.offset is not None:
        values = layers.Rescaling(head.slope.tolist(), head.offset.tolist())(values)
    if head.link == "softmax":
        return layers.Softmax(name="scores")(values)
    if head.link in ("logistic", "normalised"):
        values = layers.Activation("sigmoid")(values)
    if head.link == "normalised":
        values = layers.UnitNormalization(name="shares")(ops.sqrt(values)) ** 2
    return layers.Identity(name="scores")(values)


def _modelled(model: Linear | Kernel | Nearest, z: Any) -> Any:
    if isinstance(model, Linear):
        return _dense(z, model.coef, model.intercept)
    return _kernel(model, z) if isinstance(model, Kernel) else _nearest(model, z)


def _kernel(model: Kernel, z: Any) -> Any:
    lengths = -model.gamma * (model.rows**2).sum(axis=1)
    across = _dense(z, 2 * model.gamma * model.rows.T, lengths)
    near = across - model.gamma * ops.sum(ops.square(z), axis=1, keepdims=True)
    return _dense(ops.exp(near), model.coef, model.intercept)


def _nearest(model: Nearest, z: Any) -> Any:
    quick = _dense(z, 2 * model.rows.T, -(model.rows**2).sum(axis=1))
    _, near = ops.top_k(quick, min(model.k + _SPARE, len(model.rows)))
    gaps = ops.square(_looked_up(model.rows, near) - ops.expand_dims(z, 1))
    closeness, order = ops.top_k(-ops.sum(gaps, axis=2), model.k)
    values = _looked_up(model.values, ops.take_along_axis(near, order, axis=1))
    if not model.by_distance:
        return ops.mean(values, axis=1)
    same = ops.equal(closeness, 0.0)
    weights = ops.where(
        ops.any(same, axis=1, keepdims=True),
        ops.where(same, 1.0, 0.0),
        ops.rsqrt(ops.where(same, 1.0, -closeness)),
    )
    total = ops.sum(weights, axis=1, keepdims=True)
    return ops.sum(ops.expand_dims(weights, 2) * values, axis=1) / total


def _dense(x: Any, weights: Array, bias: Array | None = None) -> Any:
    layer = layers.Dense(weights.shape[1], use_bias=bias is not None)
    found = layer(x)
    layer.set_weights([weights] if bias is None else [weights, bias])
    return found


def _looked_up(rows: Array, at: Any) -> Any:
    """The rows (m, d) at the positions (n, k): (n, k, d)."""
    layer = layers.Embedding(len(rows), rows.shape[1])
    found = layer(at)
    layer.set_weights([np.asarray(rows, keras.config.floatx())])
    return found

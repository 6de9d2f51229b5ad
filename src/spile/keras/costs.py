"""Multiply-accumulates of the kinds of layers that do nearly all of a network's work."""

from __future__ import annotations

from math import prod
from typing import Any

import keras

from spile.observation import Item

_Sizes = tuple[int, ...]


def macs_of(layer: keras.Layer, inputs: tuple[Item, ...], outputs: tuple[Item, ...]) -> int:
    """Multiply-accumulates of one run, a sample, of what the layer does itself.

    Convolutions, dense, einsum-dense, recurrent layers and the products of multi-head attention are counted;
    everything else, element-wise work and a user's own operations, counts nothing.
    """
    if not inputs or not outputs:
        return 0
    x, y = inputs[0].shape[1:], outputs[0].shape[1:]
    match layer:
        case keras.layers.ConvLSTM1D() | keras.layers.ConvLSTM2D() | keras.layers.ConvLSTM3D():
            cells = _cells(layer, y[1:] if layer.return_sequences else y)
            return int(x[0]) * cells * _matrices(layer.cell)
        case keras.layers.RNN():
            return int(x[0]) * _matrices(layer.cell)
        case keras.layers.MultiHeadAttention():
            width = layer.key_dim + (layer.value_dim or layer.key_dim)
            return int(prod(x[:-1]) * _keys(inputs) * layer.num_heads * width)
        case keras.layers.GroupQueryAttention():
            return int(prod(x[:-1]) * _keys(inputs) * layer.num_query_heads * 2 * layer.head_dim)
        case keras.layers.EinsumDense():
            return _einsum(layer, inputs[0].shape)
        case keras.layers.Dense():
            return prod(x[:-1]) * _size(layer.kernel)
        case keras.layers.SeparableConv1D() | keras.layers.SeparableConv2D():
            cells = _cells(layer, y)
            return cells * (_size(layer.depthwise_kernel) + _size(layer.pointwise_kernel))
        case keras.layers.Conv1DTranspose() | keras.layers.Conv2DTranspose() | keras.layers.Conv3DTranspose():
            return _cells(layer, x) * _size(layer.kernel)
        case (
            keras.layers.Conv1D()
            | keras.layers.Conv2D()
            | keras.layers.Conv3D()
            | keras.layers.DepthwiseConv1D()
            | keras.layers.DepthwiseConv2D()
        ):
            return _cells(layer, y) * _size(layer.kernel)
    return 0


def _keys(inputs: tuple[Item, ...]) -> int:
    """Positions that attention looks at: those of its values, the second argument."""
    values = next((item for item in inputs if item.key in ("1", "value")), inputs[0])
    return prod(values.shape[1:-1])


def _cells(layer: Any, shape: _Sizes) -> int:
    """Positions of a map."""
    return prod(shape[1:] if layer.data_format == "channels_first" else shape[:-1])


def _matrices(cell: Any) -> int:
    return sum(_size(w) for w in cell.weights if len(w.shape) > 1 and "bias" not in w.name)


def _size(weight: Any) -> int:
    return prod(int(n) for n in weight.shape)


def _einsum(layer: Any, shape: _Sizes) -> int:
    """The product of all index sizes of the equation, the samples' apart."""
    left = layer.equation.replace(" ", "").partition("->")[0]
    first, kernel = (letters.replace("...", "") for letters in left.split(","))
    own = shape[len(shape) - len(first) :] if "..." in left.split(",")[0] else shape
    sizes = dict(zip(first, own, strict=True)) | dict(zip(kernel, layer.kernel.shape, strict=True))
    extra = prod(shape[1 : len(shape) - len(first)]) if "..." in left.split(",")[0] else 1
    samples = first[0] if "..." not in left.split(",")[0] else ""
    return int(extra * prod(int(n) for letter, n in sizes.items() if letter != samples))

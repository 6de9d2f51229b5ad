"""Where PyTorch's own kinds of layers put the channels of their outputs."""

from __future__ import annotations

from typing import Any

from torch import nn

from spile.layouts import Channels
from spile.observation import Call

_FIRST = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)
_LAST = (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.RNNBase, nn.MultiheadAttention)
_COUNTS = ("out_channels", "num_features", "num_channels", "out_features", "embedding_dim", "embed_dim")


def channels_of(module: nn.Module, call: Call) -> Channels | None:
    """Where this layer puts the channels of its output; ``None`` for kinds that do not fix them."""
    if not isinstance(module, _FIRST + _LAST) or not call.outputs:
        return None
    shape, first = call.outputs[0].shape, isinstance(module, _FIRST)
    count = _count(module)
    if len(shape) == 4 and ("2d" in type(module).__name__ or shape[1] == count != shape[3]):
        first = True  # a LayerNorm2d, by whatever name, moves the channels there and back
    return Channels(first, count, len(shape))


def _count(module: nn.Module) -> int | None:
    for name in _COUNTS:
        count = getattr(module, name, None)
        if isinstance(count, int):
            return count
    normalized: Any = getattr(module, "normalized_shape", None)
    return int(normalized[-1]) if normalized else None

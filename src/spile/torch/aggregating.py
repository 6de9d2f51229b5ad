"""Jacobian aggregators of TorchJD in place of a weighted sum. The only place that imports TorchJD."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from spile.errors import MissingDependency


def backward(losses: Sequence[Tensor], aggregator: Any, parameters: Sequence[nn.Parameter]) -> None:
    """Add to every gradient the aggregate of what each of the `losses` asks for.

    The Jacobian has one row a loss, so it takes as much memory as so many copies of the gradients.
    """
    try:
        from torchjd import autojac
    except ImportError:
        raise MissingDependency("torchjd", extra="torchjd", purpose="The weighting Aggregated") from None
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    autojac.backward(list(losses), inputs=trained)
    autojac.jac_to_grad(trained, aggregator)

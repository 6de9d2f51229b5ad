"""Telling optimiser steps from calls of the loss: a step changes parameters, which count their changes."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import nn

from spile.supervision.settings import Loss

if TYPE_CHECKING:
    from spile.torch.supervision import Supervised

ADVICE = (
    "Make the optimiser after spile.supervise and from its result, e.g. "
    "torch.optim.AdamW(supervised.parameters())"
)


class Steps:
    """Counts no step twice, however many calls of the loss one step accumulates."""

    def __init__(self, supervised: Supervised) -> None:
        self._base = supervised.base
        self._heads = supervised.heads
        self._seen: tuple[int, int] | None = None
        """Versions of the base and the heads at the last call of the loss."""
        self._expected = False
        """Whether that call gave the heads a gradient."""
        self._warned = False

    def taken(self) -> bool:
        """Whether the base has moved since the last call. Warns, once, where the heads have not."""
        now = self._versions()
        if self._seen is None or now[0] == self._seen[0]:
            return False
        if self._expected and now[1] == self._seen[1] and not self._warned:
            self._warned = True
            warnings.warn(
                "an optimiser step moved the model, but none of its heads: they are not in the optimiser. "
                f"{ADVICE}",
                stacklevel=3,
            )
        return True

    def seen(self, loss: Loss) -> None:
        """The loss was called in training."""
        trainable = any(p.requires_grad for p in self._heads.parameters())
        weighted = any(float(w) > 0 for name, w in loss.stats.items() if name.endswith("/weight"))
        self._seen, self._expected = self._versions(), trainable and weighted

    def forget(self) -> None:
        """The next change is no optimiser step."""
        self._seen = None

    def _versions(self) -> tuple[int, int]:
        return _version(self._base.parameters()), _version(self._heads.parameters())


def _version(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter._version for parameter in parameters)

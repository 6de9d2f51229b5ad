"""Keras on PyTorch."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import keras
import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

from spile.keras.runtime import Body, Scalars

compiles = False
fixed_batch = False


def trace(body: Body, variables: Sequence[keras.Variable], inputs: Any) -> None:
    """Run `body` once on fake tensors of exactly the shapes of `inputs`."""
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, torch.no_grad(), _quietly():
        body(None, tree_map_only(torch.Tensor, fake.from_tensor, inputs))


def scope() -> object:
    """The level of `torch.func`'s transforms, such as `vmap`; loops are Python's own."""
    return torch._C._functorch.maybe_current_level()


def gradients(body: Scalars, variables: Sequence[keras.Variable]) -> list[list[np.ndarray[Any, Any] | None]]:
    """One forward pass, and one backward pass a scalar."""
    tensors = [variable.value for variable in variables]
    found = []
    with torch.enable_grad():
        for scalar in body(None):
            nothing = not (isinstance(scalar, torch.Tensor) and scalar.requires_grad)
            each: Sequence[torch.Tensor | None] = [None] * len(tensors)
            if not nothing:
                each = torch.autograd.grad(scalar, tensors, retain_graph=True, allow_unused=True)
            found.append([None if g is None else g.detach().float().cpu().numpy() for g in each])
    return found


def without_gradients() -> AbstractContextManager[Any]:
    """Nothing is kept for gradients."""
    return torch.no_grad()


def versions() -> dict[str, str]:
    """PyTorch's version, and the device."""
    return {"torch": torch.__version__, "device": "cuda" if torch.cuda.is_available() else "cpu"}


@contextmanager
def _quietly() -> Iterator[None]:
    """Torch logs what fake tensors cannot do, although the caller deals with it."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)

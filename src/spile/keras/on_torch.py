"""Keras on PyTorch."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import keras
import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functionalize
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_map_only

from spile.choosing import EngineUnfit
from spile.keras.runtime import Body, Compiled, Scalars

least_batches = 4
fixed_batch = True
openvino_helps = False

_GRAPHS = 8
"""Of one pass, for as many shapes; batches of further shapes run layer by layer."""

_VIEWS = (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default)
"""Refuse what lies in another order in memory, where `reshape` copies it."""

_OF_MEMORY = (
    torch.ops.aten.as_strided.default,
    torch.ops.aten._reshape_alias.default,
    torch.ops.aten.view.dtype,
    torch.ops.aten.view_as_complex.default,
)
"""Their value depends on how their input lies in memory, or they refuse another order: copies stay."""

_graphing = threading.Lock()


def trace(body: Body, variables: Sequence[keras.Variable], inputs: Any) -> None:
    """Run `body` once on fake tensors of exactly the shapes of `inputs`."""
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, torch.no_grad(), _quietly():
        body(None, tree_map_only(torch.Tensor, fake.from_tensor, inputs))


def scope() -> object:
    """The level of `torch.func`'s transforms, such as `vmap`; loops are Python's own."""
    return torch._C._functorch.maybe_current_level()


def compiled(body: Body, variables: Sequence[keras.Variable]) -> Compiled:
    """The pass as a graph of PyTorch's own operations, without Keras in between; variables are arguments.

    It needs no compiler and gives the bits that the layers give.
    """
    graphs: dict[str, Callable[[Any, Any], dict[str, Any]]] = {}

    def run(inputs: Any) -> dict[str, np.ndarray[Any, Any]]:
        tensors = keras.tree.map_structure(keras.ops.convert_to_tensor, inputs)
        state = [variable.value for variable in variables]
        key = str(keras.tree.map_structure(lambda t: (tuple(t.shape), str(t.dtype)), tensors))
        with torch.no_grad():
            with _graphing:
                if key not in graphs and len(graphs) < _GRAPHS:
                    graphs[key] = _graph(body, state, tensors)
            found = graphs.get(key, body)(state, tensors)
        given = {t.untyped_storage().data_ptr() for t in (*state, *keras.tree.flatten(tensors))}
        return {name: _array(value, given) for name, value in found.items()}

    return run


def openvino(body: Body, inputs: Any) -> Compiled:
    """It would take longer: Keras' convolutions turn every value over on the way in and out."""
    raise EngineUnfit("for Keras on PyTorch the backend's own operations are faster")


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


def tell(function: Callable[..., None], *values: Any) -> None:
    """Hand values to the host."""
    function(*(value.detach().cpu().numpy() for value in values))


def settle() -> None:
    """All is told already."""


def versions() -> dict[str, str]:
    """PyTorch's version, and the device."""
    return {"torch": torch.__version__, "device": "cuda" if torch.cuda.is_available() else "cpu"}


def _graph(body: Body, state: list[Any], inputs: Any) -> GraphModule:
    """The operations for inputs of these shapes, without the copies that only change how a value lies.

    Keras copies in front of every convolution, which takes a third of the time; PyTorch's convolutions take
    a value as it lies.
    """
    with _quietly():
        traced = make_fx(functionalize(body), tracing_mode="fake", _allow_non_fake_inputs=True)(state, inputs)
    nodes = list(traced.graph.nodes)
    called = [node for node in nodes if node.op == "call_function"]
    if any(getattr(node.target, "_schema", None) and node.target._schema.is_mutable for node in called):
        return traced  # something is written in place: a copy may be what keeps it from another value
    if any(node.target in _OF_MEMORY for node in called):
        return traced
    for node in called:
        if node.target is torch.ops.aten.clone.default:
            node.replace_all_uses_with(node.args[0])
            traced.graph.erase_node(node)
        elif node.target in _VIEWS:
            node.target = torch.ops.aten.reshape.default
    traced.recompile()
    return traced


def _array(value: torch.Tensor, given: Container[int]) -> np.ndarray[Any, Any]:
    """In memory of its own, which is not that of what was `given`."""
    value = value.detach()
    if value.dtype in (torch.float16, torch.bfloat16):
        value = value.float()
    array: np.ndarray[Any, Any] = value.cpu().numpy()
    return array.copy() if value.untyped_storage().data_ptr() in given else array


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

"""A tap's pass as one graph that ends at the deepest point: what the accelerating engines compile."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from spile.choosing import EngineUnfit, reason_of
from spile.errors import ModelError
from spile.preprocessing import ImagePreprocessing
from spile.torch.exporting import Flows, exporting
from spile.torch.inputs import model_inputs, normalised
from spile.torch.taps import Tap
from spile.torch.trees import Inputs, called_with, device_of, floating_of, unwrap

_TRACED_ROWS = 2
"""A program that was traced with one sample would take one only."""


@dataclass(frozen=True)
class Leaves:
    """The tensors of a batch in a fixed order, and how a batch is put together from them.

    uint8 images stay as they are, (samples, height, width, channels): the graph normalises them.
    """

    tensors: tuple[Tensor, ...]
    constants: tuple[Any, ...]
    """What of the arguments is no tensor, with ``None`` where a tensor goes."""
    spec: Any
    images: bool

    @classmethod
    def of(cls, tap: Tap, inputs: Any, preprocessing: ImagePreprocessing | None) -> Leaves:
        """Those of one batch as `spile.data.Batch.inputs`."""
        images = isinstance(inputs, np.ndarray) and inputs.dtype == np.uint8 and inputs.ndim == 4
        if images and preprocessing is not None:
            given = Inputs((torch.from_numpy(np.require(inputs, requirements=("C", "W"))),), {})
        else:
            images = False
            model = unwrap(tap.model)
            ready = model_inputs(
                inputs,
                preprocessing=preprocessing,
                device=device_of(model),
                floating=floating_of(model),
            )
            ready = tap.taken(ready)
            args, kwargs = ((), ready) if isinstance(ready, dict) else ((ready,), {})
            given = called_with(model, args, kwargs)
        flat, spec = pytree.tree_flatten((given.args, given.kwargs))
        tensors = tuple(leaf for leaf in flat if isinstance(leaf, Tensor))
        constants = tuple(None if isinstance(leaf, Tensor) else leaf for leaf in flat)
        return cls(tensors, constants, spec, images)

    @property
    def rows(self) -> int:
        """Samples in the batch."""
        return len(self.tensors[0])

    def require_like(self, first: Leaves) -> None:
        """Raise `ModelError` where a batch is built in another way than the one that was traced."""
        same = (self.spec, self.constants, self.images) == (first.spec, first.constants, first.images)
        if not same or [t.dtype for t in self.tensors] != [t.dtype for t in first.tensors]:
            raise ModelError(
                "this batch is built in another way than the first one, for which the model was compiled: "
                "write engine='eager'"
            )


@dataclass(frozen=True)
class Traced:
    """The program, what its results are called, and the batch it was traced with."""

    program: ExportedProgram
    names: tuple[str, ...]
    first: Leaves


class _Flat(nn.Module):
    """The tap from a batch's tensors to a tuple; floats come as float32."""

    def __init__(self, tap: Tap, first: Leaves, preprocessing: ImagePreprocessing | None) -> None:
        super().__init__()
        self.flows = Flows(tap)
        self._first, self._preprocessing = first, preprocessing

    def forward(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        if self._first.images:
            assert self._preprocessing is not None
            found = self.flows(normalised(tensors[0], self._preprocessing))
        else:
            left = iter(tensors)
            leaves = [next(left) if leaf is None else leaf for leaf in self._first.constants]
            args, kwargs = pytree.tree_unflatten(leaves, self._first.spec)
            found = self.flows(*args, **kwargs)
        return tuple(_as_float32(value) for value in found)


def trace(tap: Tap, inputs: Any, preprocessing: ImagePreprocessing | None) -> Traced:
    """The pass as a graph that any number of samples can go through. Raises `EngineUnfit`.

    The tap has run before, so its points are known.
    """
    if tap.mode != "eval":
        raise EngineUnfit("a tap with mode='as_is' may run in training mode, which only eager does")
    if tap.value_dependent:
        raise EngineUnfit("which layers run may depend on the values of the inputs")
    first = Leaves.of(tap, inputs, preprocessing)
    if not first.tensors or any(t.ndim == 0 or len(t) != first.rows for t in first.tensors):
        raise EngineUnfit("the inputs are not all tensors with the samples first")
    if first.constants.count(None) != len(first.tensors):
        raise EngineUnfit("an argument of the model is None")
    device = device_of(tap.model)
    example = [_two_rows(tensor).to(device) for tensor in first.tensors]
    shapes = ShapesCollection()  # type: ignore[no-untyped-call]
    for tensor in example:
        lengths = () if first.images or tensor.is_floating_point() else range(1, tensor.ndim)
        shapes[tensor] = {0: Dim.DYNAMIC, **dict.fromkeys(lengths, Dim.AUTO)}
    try:
        with torch.no_grad(), exporting(tap.model), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PyTorch, about its own exporter
            program = torch.export.export(
                _Flat(tap, first, preprocessing), (example,), dynamic_shapes=shapes, strict=False
            )
    except Exception as error:  # tracing runs the model's own code: anything may come out
        raise EngineUnfit(f"it cannot be traced: {reason_of(error)}") from error
    _require_no_state(program)
    return Traced(_truncated(program), tuple(point.name for point in tap.points), first)


def _as_float32(value: Tensor) -> Tensor:
    """Without an operation where it is that already: one after the last layer would keep all layers alive."""
    return value.float() if value.is_floating_point() and value.dtype != torch.float32 else value


def _two_rows(tensor: Tensor) -> Tensor:
    """A small batch of its own memory: shapes are kept by tensor."""
    rows = tensor[:_TRACED_ROWS]
    return torch.cat([rows, rows])[:_TRACED_ROWS].contiguous()


def _require_no_state(program: ExportedProgram) -> None:
    """Raise `EngineUnfit` where the pass writes into the model: one batch would change the next."""
    kinds = (InputKind.BUFFER, InputKind.PARAMETER)
    state = {spec.arg.name for spec in program.graph_signature.input_specs if spec.kind in kinds}
    for node in program.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if node.op != "call_function" or schema is None or not schema.is_mutable:
            continue
        for argument, value in zip(schema.arguments, node.args, strict=False):
            if argument.is_write and getattr(value, "name", None) in state:
                raise EngineUnfit(f"the pass changes the model's own {value.name}")


def _truncated(program: ExportedProgram) -> ExportedProgram:
    """The same program without what comes after the last result.

    Nothing that runs later can reach a result, as pools copy; what a compiler sees as dead is left to it.
    """
    graph = program.graph
    output = graph.output_node()
    results = set(output.all_input_nodes)
    for node in reversed(list(graph.nodes)):
        if node in results or node.op == "placeholder":
            break
        if node is not output:
            graph.erase_node(node)
    program.graph_module.recompile()
    return program

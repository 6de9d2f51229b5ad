"""That a supervised model, stripped, is the model it was: measured against a twin that never had heads."""

from __future__ import annotations

import copy
import hashlib
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from spile.errors import SupervisionError
from spile.loading import first_line
from spile.supervision.settings import Certificate
from spile.torch.observing import observe
from spile.torch.quiet import quiet_pass, unchanged
from spile.torch.trees import Inputs, inputs_of, tensors

if TYPE_CHECKING:
    from spile.torch.supervision import Supervised


class Twin:
    """A copy of a model as it was before, that shares its tensors and so costs no memory."""

    def __init__(self, model: nn.Module) -> None:
        shared = {id(t): t for t in (*model.parameters(), *model.buffers())}
        self.original = model
        self.keys = tuple(model.state_dict())
        self.why = ""
        self._model: nn.Module | None = None
        try:
            self._model = copy.deepcopy(model, shared)
        except Exception as error:  # locks, open files, tensors with a history: whatever cannot be copied
            self.why = first_line(error)

    def of(self, base: nn.Module) -> nn.Module:
        """The twin with the tensors that `base` has now. Raises `SupervisionError` where there is none."""
        if self._model is None:
            raise SupervisionError(f"the model cannot be copied, so there is no twin of it: {self.why}")
        modules = dict(base.named_modules(remove_duplicate=False))
        for name, module in self._model.named_modules(remove_duplicate=False):
            if name in modules:
                module._parameters.update(modules[name]._parameters)
                module._buffers.update(modules[name]._buffers)
        return self._model


def certify(supervised: Supervised, inputs: Any) -> Certificate:
    """Compare what `strip` gives with the twin; `supervised` keeps its heads."""
    base, record = supervised.base, supervised.twin
    twin = record.of(base)
    batch = inputs_of(base, inputs)
    with supervised.without_hooks():
        hooks = [_hooks(model) for model in (base, twin)]
        difference = _difference(_output(base, batch), _output(twin, batch))
        macs = [observe(model, batch).root.macs for model in (base, twin)]
        same_graph, note = _compare_graphs(base, twin, batch)
    keys = tuple(base.state_dict())
    return Certificate(
        same_object=base is record.original and hooks[0] == hooks[1],
        same_keys=keys == record.keys,
        same_outputs=difference is None,
        same_macs=macs[0] == macs[1],
        same_graph=same_graph,
        notes=(
            f"{len(keys)} keys, {hooks[0]} hooks, {macs[0]:,} MACs a sample; "
            f"twin: {len(record.keys)}, {hooks[1]}, {macs[1]:,}",
            *([f"outputs differ: {difference}"] if difference else []),
            note,
        ),
    )


def _hooks(model: nn.Module) -> int:
    return sum(
        len(hooks)
        for module in model.modules()
        for hooks in (
            module._forward_hooks,
            module._forward_pre_hooks,
            module._backward_hooks,
            module._backward_pre_hooks,
        )
    )


def _output(model: nn.Module, inputs: Inputs) -> list[tuple[str, Tensor]]:
    """In evaluation, from one random state."""
    with torch.no_grad(), unchanged(model), quiet_pass(model, evaluate=True):
        torch.manual_seed(0)
        return list(tensors(model(*inputs.args, **inputs.kwargs)))


def _difference(found: list[tuple[str, Tensor]], expected: list[tuple[str, Tensor]]) -> str | None:
    """Where two outputs are not the same bits; ``None`` where they are."""
    if [key for key, _ in found] != [key for key, _ in expected]:
        return "other items"
    for (key, ours), (_, theirs) in zip(found, expected, strict=True):
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype or _bytes(ours) != _bytes(theirs):
            return f"item {key!r}" if key else "the output"
    return None


def _bytes(t: Tensor) -> bytes:
    return t.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _compare_graphs(base: nn.Module, twin: nn.Module, inputs: Inputs) -> tuple[bool | None, str]:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        return None, "ONNX is not installed, so the graphs were not compared: pip install 'spile[onnx]'"
    try:
        expected = _graph(twin, inputs)
    except Exception as error:  # tracing runs the model's own code: anything may come out
        return None, f"the model cannot be exported to ONNX, with heads or without: {first_line(error)}"
    try:
        found = _graph(base, inputs)
    except Exception as error:
        return False, f"the twin can be exported to ONNX, the model cannot: {first_line(error)}"
    digest = hashlib.sha256(repr(found).encode()).hexdigest()[:12]
    return found == expected, f"{len(found)} ONNX nodes and weights, {digest} (twin: {len(expected)})"


def _graph(model: nn.Module, inputs: Inputs) -> list[Any]:
    """Nodes with their attributes and connections, and the names and shapes of the weights."""
    with torch.no_grad(), unchanged(model), _evaluating(model), _silent():
        program = torch.onnx.export(
            model, inputs.args, kwargs=inputs.kwargs, dynamo=True, optimize=False, verbose=False
        )
    assert program is not None
    graph = program.model_proto.graph
    nodes: list[Any] = [
        (
            *(node.domain, node.op_type, *node.input, *node.output),
            *(attribute.SerializeToString(deterministic=True) for attribute in node.attribute),
        )
        for node in graph.node
    ]
    weights = [(weight.name, weight.data_type, *weight.dims) for weight in graph.initializer]
    return nodes + weights


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _silent() -> Iterator[None]:
    """The exporter warns and prints about itself."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield

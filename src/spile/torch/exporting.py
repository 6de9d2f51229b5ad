"""A tap as an exported program (`.pt2`) that needs neither the model's Python nor what lies past the tap."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.export.graph_signature import InputKind

from spile.errors import ModelError
from spile.interfaces import Exported
from spile.loading import first_line
from spile.torch.taps import Tap
from spile.torch.trees import inputs_of, tensors, transform, unwrap

FILE = "network.pt2"


def export_tap(tap: Tap, example: Any, folder: Path, *, dry: bool = False) -> Exported:
    """Save a program that maps a batch, of any number of samples, to the tuple of the tap's pooled tensors.

    `example` is a batch as the model takes it. Operations past the deepest point and weights that nothing
    reads are not in the file. Raises `ModelError` where PyTorch cannot trace the model, or only for one
    number of samples; tracing alone tells, so with `dry` nothing is done.
    """
    if dry:
        return Exported(FILE, (), ())
    _save(traced(tap, Flows(tap), example), folder / FILE)
    count = len(tap.points)
    # The file holds the pools too.
    return Exported(FILE, tuple(f"@out:{i}" for i in range(count)), ("none",) * count)


def export_model(model: nn.Module, example: Any, folder: Path) -> str:
    """Save a program of the whole model, whose layers keep their names; returns the file's name.

    `example` is a batch as the model takes it. Raises `ModelError` as `export_tap`.
    """
    _save(_traced(model, model, example), folder / FILE)
    return FILE


def _save(program: ExportedProgram, path: Path) -> None:
    try:
        torch.export.save(program, path)
    except (OSError, RuntimeError) as error:  # PyTorch's file writer raises the latter
        raise ModelError(f"the model cannot be saved to {path}: {first_line(error)}") from error


def traced(tap: Tap, module: nn.Module, example: Any) -> ExportedProgram:
    """A program of `module`, which runs `tap`, for any number of samples, without what nothing reads.

    `example` is a batch as the model takes it. Raises `ModelError` where PyTorch cannot trace the model, or
    only for one number of samples.
    """
    return _traced(tap.model, module, example)


def _traced(model: nn.Module, module: nn.Module, example: Any) -> ExportedProgram:
    inputs = inputs_of(unwrap(model), _two_or_more(example))
    shapes = ShapesCollection()  # type: ignore[no-untyped-call]
    for _, tensor in tensors(inputs):
        # The number of samples must stay free; whether the length of texts may vary, PyTorch finds out.
        fixed = tensor.is_floating_point() or tensor.dtype == torch.uint8  # pixels
        lengths = () if fixed else range(1, tensor.ndim)
        shapes[tensor] = {0: Dim.DYNAMIC, **dict.fromkeys(lengths, Dim.AUTO)}
    try:
        with torch.no_grad(), exporting(model), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PyTorch, about its own exporter
            program = torch.export.export(
                module, inputs.args, inputs.kwargs, dynamic_shapes=shapes, strict=False
            )
            # Without in-place operations dead code is recognised as such.
            return _pruned(program.run_decompositions({}))
    except Exception as error:  # tracing runs the model's own code: anything may come out
        raise ModelError(
            f"{type(model).__name__} cannot be exported by torch {torch.__version__} "
            f"({first_line(error)}): pass a reference such as 'timm:resnet50' or 'hf:./FOLDER' in place of "
            "the model object"
        ) from error


class Flows(nn.Module):
    """The tap with a plain tuple for its output.

    The model is its submodule and the tap is not: `torch.export` may copy modules, and a copy of a tap that
    is thrown away would take the hooks off the model.
    """

    def __init__(self, tap: Tap) -> None:
        super().__init__()
        self.model = tap.model
        self._tap = (tap,)

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        """What is kept, in the order of the points."""
        return tuple(self._tap[0](*args, **kwargs).values())


def _two_or_more(example: Any) -> Any:
    """The batch, doubled where it is a single sample: a program traced with one would take one only."""
    return transform(example, lambda t: torch.cat([t, t]) if len(t) == 1 else t)


@contextmanager
def exporting(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode; afterwards every attribute of every module is the very object it was.

    `torch.export` takes the hooks off a module that the model holds under two names, and makes other
    attributes anew.
    """
    before = [(module, dict(vars(module))) for module in model.modules()]
    inside = [{name: dict(of) for name, of in known.items() if isinstance(of, dict)} for _, known in before]
    for module, _ in before:
        module.training = False
    try:
        yield
    finally:
        for (module, known), contents in zip(before, inside, strict=True):
            for name in vars(module).keys() - known.keys():
                del vars(module)[name]
            vars(module).update(known)
            for name, entries in contents.items():
                known[name].clear()
                known[name].update(entries)


def _pruned(program: ExportedProgram) -> ExportedProgram:
    """The same program without operations and weights that nothing reads."""
    graph = program.graph
    graph.eliminate_dead_code()
    inputs = {node.name: node for node in graph.find_nodes(op="placeholder")}
    unused = [
        spec
        for spec in program.graph_signature.input_specs
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
        and not inputs[spec.arg.name].users
    ]
    for spec in unused:
        graph.erase_node(inputs[spec.arg.name])
        program.graph_signature.input_specs.remove(spec)
    _drop(program.state_dict, program)
    _drop(program.constants, program)
    program.graph_module.recompile()
    return program


def _drop(values: MutableMapping[str, Any], program: ExportedProgram) -> None:
    used = {spec.target for spec in program.graph_signature.input_specs}
    for name in [name for name in values if name not in used]:
        del values[name]

"""Auxiliary heads as modules: the operations of `spile.supervision.heads`, or the user's own module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from spile import pool as pools
from spile.errors import SupervisionError
from spile.resolution import Point
from spile.supervision.heads import HeadSpec, check_size
from spile.supervision.operations import (
    Activation,
    Conv,
    Dense,
    Features,
    GroupNorm,
    LayerNorm,
    Operation,
    Pooling,
)
from spile.supervision.targets import Task
from spile.torch.pooling import pooled
from spile.torch.quiet import quiet_pass, unchanged

CANONICAL = {"map": "BCYX", "tokens": "BTC", "vector": "BC"}
"""The axes that heads read, whatever the order inside the model."""


class Pool(nn.Module):
    """A pool of `spile.pool` on canonical axes, in the dtype of its input."""

    def __init__(self, pool: pools.Pool, layout: str, prefix_tokens: int) -> None:
        super().__init__()
        self.pool = pool
        self.layout = layout
        self.prefix_tokens = prefix_tokens

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """From features to a vector a sample; `mask` (samples, tokens) is 1 where a token is real."""
        kept = pooled(x, self.pool, self.layout, prefix_tokens=self.prefix_tokens, mask=mask)
        return kept.to(x.dtype)

    def extra_repr(self) -> str:
        """The pool's name."""
        return str(self.pool)


class Recipe(NamedTuple):
    """What a head is built from."""

    operations: tuple[Operation, ...]
    features: Features
    text: bool
    """The model reads token ids, so that the first token is its class token."""


class Head(nn.Module):
    """A trunk, whose result are the head's own features, and an output layer."""

    def __init__(self, trunk: nn.Sequential, output: nn.Module, recipe: Recipe | None = None) -> None:
        super().__init__()
        self.trunk = trunk
        self.output = output
        self.recipe = recipe
        """``None`` for the user's own module."""

    def features(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """What the output layer reads."""
        for operation in self.trunk:
            x = operation(x, mask) if isinstance(operation, Pool) else operation(x)
        return x

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits of canonical features."""
        logits: Tensor = self.output(self.features(x, mask))
        return logits


class Heads(nn.Module):
    """Modules by address. Addresses hold dots, which names of modules must not: there they are slashes."""

    def __init__(self, heads: dict[str, nn.Module]) -> None:
        super().__init__()
        self._names: dict[str, str] = {}
        for address, head in heads.items():
            name = address.replace(".", "/")
            while hasattr(self, name):
                name += "_"
            self._names[address] = name
            self.add_module(name, head)

    def __getitem__(self, address: str) -> nn.Module:
        return self._modules[self._names[address]]  # type: ignore[return-value]

    def __contains__(self, address: object) -> bool:
        return address in self._names

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Any:
        return iter(self._names)

    def keys(self) -> Any:
        """Addresses."""
        return self._names.keys()

    def values(self) -> Any:
        """Modules."""
        return [self[address] for address in self]

    def items(self) -> Any:
        """Addresses and modules."""
        return [(address, self[address]) for address in self]


def build(
    head: HeadSpec | nn.Module | Callable[[int], nn.Module],
    point: Point,
    *,
    features: Features,
    final: Features,
    outputs: int,
    task: Task,
    base_params: int,
    allowed: bool,
    text: bool,
) -> Head:
    """The head at `point`. Its weights are drawn without moving the random state.

    Raises `SupervisionError` for one that is too large, or that does not give what the task needs.
    """
    with torch.random.fork_rng(devices=[]):
        if isinstance(head, HeadSpec):
            operations = head.operations(features, outputs=outputs, final=final, base_params=base_params)
            check_size(
                sum(operation.params for operation in operations),
                place=point.name,
                head=head,
                base_params=base_params,
                allowed=allowed,
            )
            made = assemble(Recipe(operations, features, text), point)
        else:
            made = Head(nn.Sequential(), _own(head, features, point))
            size = sum(p.numel() for p in made.parameters())
            check_size(size, place=point.name, head=type(head), base_params=base_params, allowed=allowed)
    _check_output(made, head, point, features, outputs, task)
    return made


def assemble(recipe: Recipe, point: Point) -> Head:
    """The modules of a head."""
    made = [_module(operation, recipe.features, point, recipe.text) for operation in recipe.operations]
    *trunk, output = made
    return Head(nn.Sequential(*trunk), output, recipe)


def canonical(x: Tensor, point: Point) -> Tensor:
    """Samples, channels, space; tokens before channels. `x` has its samples first."""
    assert point.layout is not None
    layout = "B" + point.layout.replace("B", "")
    wanted = "BTC" if "T" in layout else "BCYX" if "Y" in layout else "BC"
    return x if layout == wanted else x.permute([layout.index(axis) for axis in wanted])


def _own(head: Any, features: Features, point: Point) -> nn.Module:
    made = head if isinstance(head, nn.Module) else head(features.channels) if callable(head) else None
    if not isinstance(made, nn.Module):
        raise SupervisionError(
            f"the head of {point.name!r} is {head!r}: write a name such as 'linear', a spec, a "
            "torch.nn.Module, or a function from the number of channels to one"
        )
    return made


def _module(operation: Operation, features: Features, point: Point, text: bool) -> nn.Module:
    match operation:
        case Conv():
            return nn.Conv2d(
                operation.inputs,
                operation.outputs,
                operation.kernel,
                stride=operation.stride,
                padding=operation.kernel // 2,
                groups=operation.groups,
                bias=operation.bias,
            )
        case GroupNorm():
            return nn.GroupNorm(operation.groups, operation.channels)
        case LayerNorm():
            return nn.LayerNorm(operation.channels)
        case Activation():
            return nn.GELU() if operation.name == "gelu" else nn.ReLU(inplace=True)
        case Pooling():
            layout = CANONICAL[features.kind]
            settled = pools.settle(
                pools.parse(operation.name),
                layout,
                place=point.name,
                prefix_tokens=features.prefix_tokens,
                text=text,
            )
            return Pool(settled, layout, features.prefix_tokens)
        case Dense():
            return nn.Linear(operation.inputs, operation.outputs)


def _check_output(made: Head, head: Any, point: Point, features: Features, outputs: int, task: Task) -> None:
    """Run it on two samples of zeros, leaving no trace."""
    sizes = {"map": (features.channels, *features.size), "tokens": (*features.size, features.channels)}
    shape = sizes.get(features.kind, (features.channels,))
    parameter = next(made.parameters(), torch.empty(0))
    zeros = torch.zeros(2, *shape, device=parameter.device, dtype=parameter.dtype)
    with unchanged(made), quiet_pass(made, evaluate=True), torch.no_grad():
        try:
            found = made(zeros)
        except Exception as error:
            raise SupervisionError(
                f"the head {_called(head)!r} does not take the features at {point.name!r}, "
                f"{list(zeros.shape)}: {type(error).__name__}: {error}"
            ) from error
    given = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
    maps = task == "segmentation"
    wanted = [2, outputs, *((features.size if features.kind == "map" else (1, 1)) if maps else ())]
    right = isinstance(found, Tensor) and found.ndim == len(wanted) and list(found.shape[:2]) == wanted[:2]
    if not right:
        remedy = "use head='dense' on a map" if maps else "use 'bottleneck', 'linear' or 'mlp'"
        raise SupervisionError(
            f"the head {_called(head)!r} at {point.name!r} gives {given} for two samples, and task={task!r} "
            f"with num_classes={outputs} needs {'(2, classes, height, width)' if maps else wanted}: {remedy}"
        )


def _called(head: Any) -> str:
    return str(head) if isinstance(head, HeadSpec) else type(head).__name__

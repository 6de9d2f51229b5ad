"""Early exits: a sample leaves at the first head that is sure, the rest of the batch goes on without it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self, get_args

import numpy as np
import torch
from torch import Tensor, nn

from spile.errors import SupervisionError
from spile.pool import Pool
from spile.resolution import Point
from spile.supervision.exits import ROUNDS, ExitComparison, ExitPolicy, ExitRow
from spile.supervision.operations import Features, Operation
from spile.supervision.settings import MainOutput
from spile.torch.heads import Head, Heads, Recipe, assemble, canonical
from spile.torch.quiet import quiet_pass
from spile.torch.references import logits_of
from spile.torch.trees import called_with, names_of, pick, transform
from spile.torch.weights import load_weights, save_weights

_FORMAT = 1
Decision = Callable[[int, Tensor, Tensor], Tensor]
"""From the number of an exit, its logits and the rows that got there: which leave, (rows,) of bool."""


class ExitOutput(NamedTuple):
    """What an early-exit model gives."""

    logits: Tensor
    """(samples, classes), tempered: their softmax is the confidence that was compared."""
    exits: Tensor
    """(samples,): the number of the head that each sample left at; the model's own output is the last."""


class _Done(BaseException):
    """Every sample has left. Not an `Exception`, so that a model's own error handling lets it through."""

    def __init__(self, of: _Pass) -> None:
        self.of = of


class _Pass:
    """One batch on its way."""

    def __init__(self, decide: Decision) -> None:
        self.decide = decide
        self.thread = threading.get_ident()
        self.rows: Tensor | None = None
        """Of the batch, those still on their way; known at the first exit."""
        self.calls: dict[int, int] = {}
        self.logits: list[Tensor] = []
        self.left: list[Tensor] = []
        self.exits: list[Tensor] = []

    def leave(self, logits: Tensor, rows: Tensor, exit: int) -> None:
        self.logits.append(logits.float())
        self.left.append(rows)
        self.exits.append(torch.full_like(rows, exit))

    def output(self) -> ExitOutput:
        order = torch.cat(self.left).argsort()
        return ExitOutput(torch.cat(self.logits)[order], torch.cat(self.exits)[order])


class EarlyExits(nn.Module):
    """The model with its heads as exits; called like the model, in evaluation and without gradients.

    Model and heads are shared with the supervised model, not copied. At an exit the samples that are sure
    leave, and the layers behind it see a smaller batch.
    """

    def __init__(
        self,
        base: nn.Module,
        heads: Mapping[str, Head],
        points: Sequence[Point],
        policy: ExitPolicy,
        *,
        main: MainOutput = None,
        costs: Sequence[float] = (),
        static_costs: Sequence[float] = (),
    ) -> None:
        super().__init__()
        inner = [point.name for point in points if point.side != "out"]
        if inner:
            raise SupervisionError(
                f"samples leave behind a layer, and {inner[0]!r} is the input of one: put the head at the "
                "output of the layer before"
            )
        self.base = base
        self.heads = Heads(dict(heads))
        self.points = tuple(points)
        self.policy = policy
        self.costs = tuple(costs)
        """MACs a sample to leave at each exit, the heads before it included."""
        self.static_costs = tuple(static_costs)
        """The same of the model that ends at each exit, without the heads before it."""
        self.report: ExitComparison | None = None
        """What the exits did on samples that neither temperatures nor thresholds have seen."""
        self._main = main

    def forward(self, *args: Any, **kwargs: Any) -> ExitOutput:
        """One batch: logits and where each sample left."""
        return self.run(args, kwargs, self.policy)

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any], policy: ExitPolicy) -> ExitOutput:
        """The same with another policy. Exits with an infinite threshold are passed by at no cost."""

        def decide(exit: int, logits: Tensor, rows: Tensor) -> Tensor:
            tempered = (logits.float() / policy.temperatures[exit]).softmax(1)
            return tempered.amax(1) >= policy.thresholds[exit]

        wanted = [threshold < float("inf") for threshold in policy.thresholds]
        return self._tempered(self.decided(args, kwargs, decide, wanted), policy)

    def decided(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], decide: Decision, wanted: Sequence[bool]
    ) -> ExitOutput:
        """The pass with any decision at the exits that are `wanted`; logits as the heads give them."""
        inputs = called_with(self.base, args, kwargs)
        current = _Pass(decide)
        with self._watched(current, wanted), torch.no_grad(), quiet_pass(self, evaluate=True):
            try:
                main = logits_of(self.base(*inputs.args, **inputs.kwargs), self._main)
            except _Done as signal:
                if signal.of is not current:
                    raise
                return current.output()
        rows = torch.arange(len(main), device=main.device) if current.rows is None else current.rows
        if len(main) != len(rows):
            raise SupervisionError(
                f"{len(rows)} samples were left and the model gives {len(main)}: it holds on to more "
                "than what the exits see"
            )
        current.leave(main, rows, len(self.points))
        return current.output()

    def measure(
        self,
        inputs: Any,
        labels: Any,
        *,
        static: Mapping[str, nn.Module] | None = None,
        rounds: int = ROUNDS,
    ) -> ExitComparison:
        """Accuracy, MACs and latency on samples of your own, which calibration must not have seen.

        Beside the early exits stand the full model, the model that ends at each head, and the `static` ones:
        smaller models that you trained on their own, by name. Latencies are of single samples, all ways one
        after the other in each of `rounds` rounds.
        """
        from spile.torch.calibrating import measure_exits

        return measure_exits(self, inputs, np.asarray(labels), static=static or {}, rounds=rounds)

    def save(self, folder: str | Path) -> None:
        """Write ``exits.json`` and ``weights.safetensors``; `load` needs the model's Python besides."""
        if callable(self._main):
            raise SupervisionError(
                "main= is a function, which is not saved: name a key, attribute or position"
            )
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(self, folder / "weights.safetensors")
        heads = {point.name: _saved(self.heads[point.name]) for point in self.points}
        content = {
            "format": _FORMAT,
            "main": self._main,
            "costs": self.costs,
            "static_costs": self.static_costs,
            "report": None if self.report is None else asdict(self.report),
            "temperatures": self.policy.temperatures,
            "thresholds": [None if t == float("inf") else t for t in self.policy.thresholds],
            "points": [{**asdict(point), "pool": None} for point in self.points],
            "heads": heads,
        }
        (folder / "exits.json").write_text(json.dumps(content, indent=1))

    @classmethod
    def load(
        cls, folder: str | Path, *, model: nn.Module, heads: Mapping[str, nn.Module] | None = None
    ) -> Self:
        """What `save` wrote, on a `model` of the same architecture, whose weights are replaced.

        Heads of your own are not in the file: give them by address. Raises `SupervisionError`, `ModelError`.
        """
        folder = Path(folder)
        try:
            content = json.loads((folder / "exits.json").read_text())
        except (OSError, ValueError) as error:
            raise SupervisionError(f"{folder} holds no saved exits: {error}") from error
        if content.get("format") != _FORMAT:
            raise SupervisionError(
                f"{folder} has the format {content.get('format')!r}, and this version reads {_FORMAT}"
            )
        points = [_point(saved) for saved in content["points"]]
        own = heads or {}
        saved: Mapping[str, Any] = content["heads"]
        made = {point.name: _restored(saved[point.name], point, own.get(point.name)) for point in points}
        thresholds = (float("inf") if t is None else float(t) for t in content["thresholds"])
        policy = ExitPolicy(temperatures=tuple(content["temperatures"]), thresholds=tuple(thresholds))
        costs = {"costs": content["costs"], "static_costs": content["static_costs"]}
        exits = cls(model, made, points, policy, main=content["main"], **costs)
        exits.report = _report(content["report"])
        parameter = next(model.parameters(), None)
        if parameter is not None:
            exits.heads.to(device=parameter.device)
        load_weights(exits, folder / "weights.safetensors")
        return exits

    def _tempered(self, found: ExitOutput, policy: ExitPolicy) -> ExitOutput:
        temperatures = torch.tensor(policy.temperatures, device=found.logits.device)
        return found._replace(logits=found.logits / temperatures[found.exits][:, None])

    @contextmanager
    def _watched(self, current: _Pass, wanted: Sequence[bool]) -> Iterator[None]:
        """Hooks for one pass, so that the model is untouched in between."""
        modules = {names[0]: module for module, names in names_of(self.base).items()}
        handles = [
            modules[point.path].register_forward_hook(partial(self._exit, current, number))
            for number, point in enumerate(self.points)
            if wanted[number]
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _exit(self, current: _Pass, number: int, _: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """What flows on behind an exit; ``None`` where that is unchanged."""
        if threading.get_ident() != current.thread:
            return None
        point = self.points[number]
        call = current.calls[number] = current.calls.get(number, -1) + 1
        if call != point.call:
            return None
        x = output if point.item is None else pick(output, point.item)
        axis = (point.layout or "B").index("B")
        if current.rows is None:
            current.rows = torch.arange(x.shape[axis], device=x.device)
        logits: Tensor = self.heads[point.name](canonical(x.movedim(axis, 0), point))
        leaves = current.decide(number, logits, current.rows)
        stays = (~leaves).nonzero().flatten()
        count = len(current.rows)
        if len(stays) == count:
            return None
        current.leave(logits[leaves], current.rows[leaves], number)
        if not len(stays):
            raise _Done(current)
        current.rows = current.rows[stays]

        def kept(t: Tensor) -> Tensor:
            return t.index_select(axis, stays) if t.ndim > axis and t.shape[axis] == count else t

        return transform(output, kept)


def _report(saved: Mapping[str, Any] | None) -> ExitComparison | None:
    if saved is None:
        return None
    rows = tuple(ExitRow(**row) for row in saved["rows"])
    return ExitComparison(rows=rows, shares=tuple(saved["shares"]), samples=saved["samples"])


def _saved(head: Any) -> dict[str, Any] | None:
    """A head as operations; ``None`` for the user's own module."""
    recipe: Recipe | None = head.recipe
    if recipe is None:
        return None
    operations = [[type(operation).__name__, asdict(operation)] for operation in recipe.operations]
    return {"operations": operations, "features": asdict(recipe.features), "text": recipe.text}


def _restored(saved: Mapping[str, Any] | None, point: Point, own: nn.Module | None) -> Head:
    if saved is None:
        if own is None:
            raise SupervisionError(
                f"the head at {point.name!r} is a module of your own: EarlyExits.load(..., "
                f"heads={{{point.name!r}: module}})"
            )
        return own if isinstance(own, Head) else Head(nn.Sequential(), own)
    kinds = {kind.__name__: kind for kind in get_args(Operation)}
    operations = tuple(kinds[name](**fields) for name, fields in saved["operations"])
    features = Features(**{**saved["features"], "size": tuple(saved["features"]["size"])})
    return assemble(Recipe(operations, features, saved["text"]), point)


def _point(saved: Mapping[str, Any]) -> Point:
    return Point(**{**saved, "pool": Pool("none"), "shape": tuple(saved["shape"])})

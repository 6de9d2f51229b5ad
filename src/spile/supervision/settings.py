"""What was asked of `spile.supervise`, and what a supervised model gives: what both frameworks share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from spile.resolution import AddressesLike
from spile.supervision.heads import HeadLike
from spile.supervision.targets import Targets, Task
from spile.supervision.weights import Weighting

MainOutput = str | int | Callable[[Any], Any] | None
"""Which of the model's outputs holds its logits: a key, an attribute, a position, or a function of the
output."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Settings:
    """What was asked for. The framework resolves it on the model."""

    example: Any
    outputs: int
    addresses: AddressesLike
    heads: HeadLike | Mapping[str, HeadLike]
    targets: Targets | None
    weighting: Weighting
    task: Task
    main: MainOutput
    gradient: float
    """What the auxiliary gradients into the base are multiplied with: 1 in full, 0 stopped."""
    allow_large: Sequence[str]


class SupervisedOutput(NamedTuple):
    """What one pass gives."""

    main: Any
    """The logits of the model's own output."""
    aux: dict[str, Any]
    """The logits of every head, by address, the shallowest first. Empty in evaluation of a stripped pass."""
    extra: dict[str, Any]
    """What targets need besides: features, teachers' outputs. For `loss` alone."""


class Loss(NamedTuple):
    """What `loss` gives; scalars of the framework."""

    total: Any
    """With gradient: main + weighted heads."""
    terms: dict[str, Any]
    """Unweighted, by head and target: ``main/labels``, ``layer2/self_distill``."""
    stats: dict[str, Any]
    """Without gradient: ``layer2/loss`` (of all its targets), ``layer2/accuracy``, ``layer2/weight``;
    ``layer2/coverage`` and ``layer2/precision`` of pseudo-labels."""

    def scalars(self) -> dict[str, float]:
        """Total, terms and stats as plain numbers, for any logger."""
        named = {"loss": self.total, **self.terms, **self.stats}
        return {name: float(_without_gradient(value)) for name, value in named.items()}


def _without_gradient(value: Any) -> Any:
    return value.detach() if hasattr(value, "detach") else value


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """That stripping leaves the model as it was. Printed, it shows every check and its evidence."""

    same_object: bool
    same_keys: bool
    same_outputs: bool
    """Bit for bit, in evaluation, on the given batch, against a twin that was never supervised."""
    same_macs: bool
    same_graph: bool | None
    """The exported graph (ONNX of a PyTorch model, the layer graph of a Keras model); ``None``: not
    exportable."""
    notes: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether every check that could be made holds."""
        checks = (self.same_object, self.same_keys, self.same_outputs, self.same_macs)
        return all(checks) and self.same_graph is not False

    def __str__(self) -> str:
        def mark(value: bool | None) -> str:
            return {True: "yes", False: "NO", None: "not checked"}[value]

        lines = [
            f"same object        {mark(self.same_object)}",
            f"same keys          {mark(self.same_keys)}",
            f"bit-equal outputs  {mark(self.same_outputs)}",
            f"same MACs          {mark(self.same_macs)}",
            f"same graph         {mark(self.same_graph)}",
            *self.notes,
        ]
        return "\n".join(lines)

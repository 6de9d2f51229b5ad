"""What training a model takes, as both frameworks are handed it, and what they give back. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from spile.preprocessing import ImagePreprocessing

OptimizerName = Literal["adamw", "adam", "sgd"]
RateName = Literal["cosine", "constant"]
MixedPrecision = Literal["float32", "bfloat16", "float16"]


class LabelledBatch(NamedTuple):
    """What is learnt from, or measured on, at once."""

    inputs: Any
    """As `spile.data.Batch.inputs`."""
    labels: Any
    """(n,) class numbers, -1 where a row has none, int64; or (n, classes) weights, float32."""
    rows: Any
    """(n,) numbers of the training rows, from 0; int64."""


@dataclass(frozen=True, kw_only=True)
class Optimizing:
    """How weights are changed."""

    name: OptimizerName = "adamw"
    rate: float = 1e-3
    decay: float = 0.0
    """Weight decay: decoupled for adamw, L2 for the others."""
    schedule: RateName = "constant"
    warmup: float = 0.0
    """Share of training in which the rate rises from 0."""
    accumulate: int = 1
    """Batches a step."""

    def factor(self, progress: float) -> float:
        """What the rate is multiplied with when the share `progress` of training is done."""
        import math

        if progress < self.warmup:
            return progress / self.warmup
        if self.schedule == "constant":
            return 1.0
        done = (progress - self.warmup) / max(1e-12, 1.0 - self.warmup)
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """One run of training."""

    model: Any
    """Whose output is logits, one a class."""
    supervised: Any
    """The same model with heads, `spile.interfaces.Supervised`, or ``None``."""
    main: Any
    """Which of the model's outputs holds its logits, see `spile.supervise`."""
    images: ImagePreprocessing | None
    read: Callable[[int], Iterable[LabelledBatch]]
    """Training batches of an epoch, from 0: the same ones each time an epoch is asked for."""
    batches: int
    """An epoch; batches beyond the last whole step are not used."""
    epochs: int
    measured: Mapping[str, Callable[[], Iterable[LabelledBatch]]]
    """``validation`` and ``test``, where there are such rows."""
    optimizing: Optimizing
    precision: MixedPrecision
    seed: int
    folder: Path
    """Where checkpoints and logs go."""
    resume: bool
    patience: int | None
    """Epochs without a lower ``validation/loss`` after which training ends, with the best epoch's weights."""
    probe: LabelledBatch | None
    """What gradients are looked at on after every epoch; ``None`` for not at all."""
    progress: bool
    loggers: Sequence[Any]

    @property
    def steps(self) -> int:
        """Of the optimiser, in all epochs."""
        return self.epochs * (self.batches // self.optimizing.accumulate)


Epoch = dict[str, float]
"""What is known after one: ``epoch``, ``seconds`` of training so far, ``rate``, ``train/loss``,
``train/accuracy``, ``train/layer2/loss`` and other numbers of the heads, ``test/loss``, ``test/accuracy``,
``test/layer2/accuracy``, ``gradient/conv1/gradient_norm``, ``gradient/conv1/cosine``. NaN is not known: no
row tells."""


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What came of it. The model is changed in place."""

    epochs: tuple[Epoch, ...]
    best: int
    """Position in `epochs` of the one whose weights the model has."""
    stopped_early: bool = False

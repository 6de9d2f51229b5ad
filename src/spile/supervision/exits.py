"""Early exits: when is a shallow head sure enough? Pure functions on logits; the frameworks run the models.

All logits are arrays (exits, samples, classes), the final output last; costs are MACs a sample to reach each
exit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from spile.errors import SupervisionError

Array = npt.NDArray[np.floating]
Labels = npt.NDArray[np.integer]

ROUNDS = 50
"""Samples that every way is timed on."""
EARLY, WHOLE = "early exits", "full model"
_LOG_TEMPERATURES = (-4.0, 4.0)
_QUANTILES = np.linspace(0.0, 1.0, 41)


@dataclass(frozen=True, kw_only=True)
class ExitPolicy:
    """When a sample leaves: at the first exit whose tempered confidence reaches its threshold.

    The last exit takes whatever is left, so its threshold is 0.
    """

    temperatures: tuple[float, ...]
    thresholds: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class ExitReport:
    """What a policy does on a set of samples."""

    accuracy: float
    macs: float
    """Mean a sample."""
    shares: tuple[float, ...]
    """Of the samples that leave at each exit."""


@dataclass(frozen=True, kw_only=True)
class ExitRow:
    """One way to label samples that calibration has not seen."""

    name: str
    accuracy: float
    macs: float
    """Mean a sample."""
    p50: float
    p95: float
    """Milliseconds for one sample at a time."""


@dataclass(frozen=True, kw_only=True)
class ExitComparison:
    """The early-exit model beside the full model, the model that ends at each head, and smaller models."""

    rows: tuple[ExitRow, ...]
    shares: tuple[float, ...]
    """Of the samples that leave at each exit."""
    samples: int

    def __getitem__(self, name: str) -> ExitRow:
        return next(row for row in self.rows if row.name == name)

    def __str__(self) -> str:
        width = max(len(row.name) for row in self.rows)
        lines = [f"{'':{width}}  accuracy      MACs   p50 ms   p95 ms"]
        lines += [
            f"{r.name:{width}}  {r.accuracy:8.4f}  {r.macs:8.3g}  {r.p50:7.2f}  {r.p95:7.2f}"
            for r in self.rows
        ]
        left = ", ".join(f"{share:.0%}" for share in self.shares)
        return "\n".join([*lines, f"left at each exit: {left} of {self.samples} samples"])


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to label samples, before it is timed."""

    accuracy: float
    macs: float
    run: Callable[[int], object]
    """Label the sample of this number, and wait for it."""


def compared(
    ways: Mapping[str, Way], *, shares: tuple[float, ...], samples: int, rounds: int
) -> ExitComparison:
    """Time the ways on one sample after the other, in turns: a busy machine slows all alike."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(-1, rounds):  # the first one warms up
        for name, way in ways.items():
            start = time.perf_counter()
            way.run(max(turn, 0) % samples)
            if turn >= 0:
                times[name].append(1e3 * (time.perf_counter() - start))
    rows = []
    for name, way in ways.items():
        p50, p95 = np.quantile(times[name], [0.5, 0.95])
        rows.append(ExitRow(name=name, accuracy=way.accuracy, macs=way.macs, p50=float(p50), p95=float(p95)))
    return ExitComparison(rows=tuple(rows), shares=shares, samples=samples)


def fit_temperature(logits: Array, labels: Labels) -> float:
    """The temperature with the smallest negative log-likelihood (Guo et al. 2017, section 4.2).

    `logits` is (samples, classes).
    """
    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        return float(-log_softmax(logits / np.exp(log_temperature), axis=-1)[rows, labels].mean())

    found = minimize_scalar(loss, bounds=_LOG_TEMPERATURES, method="bounded")
    return float(np.exp(found.x))


def confidences(logits: Array, temperatures: tuple[float, ...]) -> Array:
    """The largest tempered probability, (exits, samples)."""
    scaled = logits / np.asarray(temperatures)[:, None, None]
    return np.asarray(softmax(scaled, axis=-1).max(axis=-1))


def taken(confidence: Array, thresholds: tuple[float, ...]) -> Labels:
    """The exit that each sample leaves at, (samples,)."""
    sure = confidence >= np.asarray(thresholds)[:, None]
    sure[-1] = True
    return np.asarray(sure.argmax(axis=0))


def measure(logits: Array, labels: Labels, costs: tuple[float, ...], policy: ExitPolicy) -> ExitReport:
    """What `policy` does on these samples."""
    exits = taken(confidences(logits, policy.temperatures), policy.thresholds)
    right = logits.argmax(axis=-1)[exits, np.arange(len(labels))] == labels
    shares = np.bincount(exits, minlength=len(logits)) / len(labels)
    return ExitReport(
        accuracy=float(right.mean()),
        macs=float(np.asarray(costs)[exits].mean()),
        shares=tuple(float(share) for share in shares),
    )


def fit_policy(
    logits: Array,
    labels: Labels,
    costs: tuple[float, ...],
    *,
    temperatures: tuple[float, ...],
    accuracy: float | None = None,
    budget: float | None = None,
) -> ExitPolicy:
    """Thresholds for a wanted accuracy at the least cost, or for a budget of MACs at the best accuracy.

    Greedy: from no sample leaving early, the threshold is lowered, one step at one exit at a time, that saves
    most for each right answer lost, while `accuracy` (default: that of the last exit on these samples) is
    kept; with `budget`, until the mean cost is within it. Raises `SupervisionError` where that cannot be
    reached.
    """
    if accuracy is not None and budget is not None:
        raise SupervisionError("give accuracy= or budget=, not both")
    confidence = confidences(logits, temperatures)
    steps = [np.quantile(c, _QUANTILES[::-1]) for c in confidence[:-1]]
    position = [-1] * len(steps)

    def policy(at: list[int]) -> ExitPolicy:
        lowered = [steps[e][i] if i >= 0 else np.inf for e, i in enumerate(at)]
        return ExitPolicy(temperatures=temperatures, thresholds=(*map(float, lowered), 0.0))

    now = measure(logits, labels, costs, policy(position))
    wanted = now.accuracy if accuracy is None else accuracy
    if budget is None and now.accuracy < wanted:
        raise SupervisionError(
            f"accuracy={wanted:.4g} is above the {now.accuracy:.4g} of the whole network on these "
            "samples: ask for less"
        )
    while budget is None or now.macs > budget:
        options = []
        for exit in range(len(steps)):
            for ahead in range(position[exit] + 1, len(_QUANTILES)):
                there = [*position[:exit], ahead, *position[exit + 1 :]]
                found = measure(logits, labels, costs, policy(there))
                if found.macs < now.macs and (budget is not None or found.accuracy >= wanted):
                    lost = max(0.0, now.accuracy - found.accuracy)
                    options.append(((now.macs - found.macs) / (lost + 0.5 / len(labels)), there, found))
                    break
        if not options:
            break
        _, position, now = max(options, key=lambda option: option[0])
    if budget is not None and now.macs > budget:
        raise SupervisionError(
            f"budget={budget:.4g} MACs cannot be met: leaving at the first exit already takes "
            f"{costs[0]:.4g}. "
            "Put a head on a shallower layer"
        )
    return policy(position)

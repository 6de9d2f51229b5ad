"""From a supervised model to an early-exit model: temperatures, thresholds, and what they bring."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from spile.errors import SupervisionError
from spile.supervision.exits import ExitPolicy, ExitReport, fit_policy, fit_temperature, measure
from spile.supervision.operations import Features
from spile.torch.exits import EarlyExits
from spile.torch.heads import Head
from spile.torch.modes import Meter
from spile.torch.quiet import quiet_pass, unchanged
from spile.torch.trees import transform

if TYPE_CHECKING:
    from spile.torch.supervision import Supervised

_BATCH = 64
_TIMED = 100
_CHECKED = 16
_FEWEST = 8
_NEVER = float("inf")
Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class ExitRow:
    """One model on samples that calibration has not seen."""

    name: str
    accuracy: float
    macs: float
    """Mean a sample."""
    p50: float
    p95: float
    """Milliseconds for one sample at a time."""


@dataclass(frozen=True, kw_only=True)
class ExitComparison:
    """The early-exit model beside the full model, and beside the static model that ends at each head."""

    rows: tuple[ExitRow, ...]
    shares: tuple[float, ...]
    """Of the samples that leave at each exit."""
    samples: int

    def __str__(self) -> str:
        width = max(len(row.name) for row in self.rows)
        lines = [f"{'':{width}}  accuracy      MACs   p50 ms   p95 ms"]
        lines += [
            f"{r.name:{width}}  {r.accuracy:8.4f}  {r.macs:8.3g}  {r.p50:7.2f}  {r.p95:7.2f}"
            for r in self.rows
        ]
        left = ", ".join(f"{share:.0%}" for share in self.shares)
        return "\n".join([*lines, f"left at each exit: {left} of {self.samples} samples"])


def make_exits(
    supervised: Supervised, data: Any, *, accuracy: float | None, budget: float | None, holdout: float
) -> EarlyExits:
    """Temperatures, thresholds and the report each get samples of their own, split with a fixed seed.

    `holdout` is the share for the report; the rest is halved. Raises `SupervisionError` where the model holds
    on to more than what its exits see (a skip connection around one), for too little data, and for goals that
    cannot be reached.
    """
    inputs, labels = _labelled(data, supervised)
    fitting, choosing, reporting = _split(len(labels), holdout)
    heads: dict[str, Head] = dict(supervised.heads.items())
    head_macs = [_macs_of(heads[point.name], supervised.features[point.name]) for point in supervised.points]
    costs = _costs(supervised, head_macs, [True] * len(heads))
    exits = EarlyExits(
        supervised.base,
        heads,
        supervised.points,
        ExitPolicy(temperatures=(1.0,) * len(costs), thresholds=(*(_NEVER,) * len(heads), 0.0)),
        main=supervised.settings.main,
        costs=costs,
    )
    _check(exits, inputs, supervised)
    logits = _logits(supervised, inputs)
    temperatures = tuple(fit_temperature(each[fitting], labels[fitting]) for each in logits)
    policy = fit_policy(
        logits[:, choosing],
        labels[choosing],
        costs,
        temperatures=temperatures,
        accuracy=accuracy,
        budget=budget,
    )
    used = [threshold < _NEVER for threshold in policy.thresholds[:-1]]
    exits.policy, exits.costs = policy, _costs(supervised, head_macs, used)
    found = measure(logits[:, reporting], labels[reporting], exits.costs, policy)
    alone = [point.macs + macs for point, macs in zip(supervised.points, head_macs, strict=True)]
    static = [*alone, supervised.macs]
    exits.report = _compared(exits, inputs, labels, logits, reporting, static, found)
    return exits


def _labelled(data: Any, supervised: Supervised) -> tuple[Any, Array]:
    if supervised.settings.task != "classification":
        raise SupervisionError(
            f"exits compare class probabilities, which task={supervised.settings.task!r} has not"
        )
    try:
        inputs, labels = data
        labels = np.asarray(labels)
    except (TypeError, ValueError):
        raise SupervisionError(
            f"data is a {type(data).__name__}: pass (inputs, labels), one class number a sample"
        ) from None
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or (labels < 0).any():
        raise SupervisionError(
            f"labels of the shape {list(labels.shape)} and type {labels.dtype}: exits are calibrated on one "
            "class number a sample, 0 or more"
        )
    if len(labels) < 3 * _FEWEST:
        raise SupervisionError(f"{len(labels)} samples are too few to calibrate on: give {3 * _FEWEST}")
    return transform(inputs, lambda t: t), labels


def _split(samples: int, holdout: float) -> tuple[Array, Array, Array]:
    report = round(samples * holdout)
    if report < _FEWEST or samples - report < 2 * _FEWEST:
        raise SupervisionError(
            f"holdout={holdout!r} of {samples} samples leaves too few for one of temperatures, "
            "thresholds and report"
        )
    order = np.random.default_rng(0).permutation(samples)
    half = (samples - report) // 2
    return order[:half], order[half : samples - report], order[samples - report :]


def _rows(inputs: Any, rows: Array | slice) -> tuple[tuple[Any, ...], dict[str, Any]]:
    chosen = transform(inputs, lambda t: t[rows if isinstance(rows, slice) else torch.from_numpy(rows)])
    if isinstance(chosen, Mapping):
        return (), dict(chosen)
    return (chosen if isinstance(chosen, tuple) else (chosen,)), {}


def _logits(supervised: Supervised, inputs: Any) -> Array:
    """(exits, samples, classes), the model's own output last."""
    found: list[Tensor] = []
    count = _count(inputs)
    for start in range(0, count, _BATCH):
        args, kwargs = _rows(inputs, slice(start, start + _BATCH))
        with torch.no_grad(), quiet_pass(supervised, evaluate=True):
            out = supervised(*args, **kwargs)
        found.append(torch.stack([*out.aux.values(), out.main]).float().cpu())
    return torch.cat(found, dim=1).double().numpy()


def _count(inputs: Any) -> int:
    counts: list[int] = []
    transform(inputs, lambda t: counts.append(len(t)))
    return counts[0]


def _check(exits: EarlyExits, inputs: Any, supervised: Supervised) -> None:
    """Send every second sample out at each exit: the others must come to the same result without them."""
    args, kwargs = _rows(inputs, slice(0, min(_CHECKED, _count(inputs))))
    with torch.no_grad(), quiet_pass(supervised, evaluate=True):
        expected = supervised(*args, **kwargs).main.float()
    for number, point in enumerate(exits.points):
        wanted = [number == other for other in range(len(exits.points))]
        why = "other samples change its results"
        try:
            found = exits.decided(args, kwargs, lambda _, logits, rows: rows % 2 == 0, wanted).logits
            same = torch.allclose(
                found[1::2], expected[1::2], rtol=1e-3, atol=1e-3 * float(expected.abs().max())
            )
        except SupervisionError:
            raise
        except Exception as error:  # of whatever layer finds tensors of two batch sizes
            same, why = False, f"{type(error).__name__}: {error}"
        if not same:
            raise SupervisionError(
                f"samples cannot leave at {point.name!r}, as something of the whole batch flows past it "
                f"({why}): put the head at the end of a block"
            )


def _costs(supervised: Supervised, head_macs: Sequence[int], used: Sequence[bool]) -> tuple[float, ...]:
    """MACs a sample to leave at each exit, those of the `used` heads on the way included."""
    spent = np.cumsum([macs * use for macs, use in zip(head_macs, used, strict=True)])
    reached = [point.macs for point in supervised.points]
    return (*(float(r + s) for r, s in zip(reached, spent, strict=True)), float(supervised.macs + spent[-1]))


def _macs_of(head: Head, features: Features) -> int:
    sizes = {"map": (features.channels, *features.size), "tokens": (*features.size, features.channels)}
    shape = sizes.get(features.kind, (features.channels,))
    parameter = next(head.parameters())
    meter = Meter()
    with meter, unchanged(head), quiet_pass(head, evaluate=True), torch.no_grad():
        head(torch.zeros(2, *shape, device=parameter.device, dtype=parameter.dtype))
    return meter.macs


def _compared(
    exits: EarlyExits,
    inputs: Any,
    labels: Array,
    logits: Array,
    rows: Array,
    static: Sequence[float],
    found: ExitReport,
) -> ExitComparison:
    names = [*(f"ends at {point.name}" for point in exits.points), "full model"]
    policies = {name: _always(exits.policy, number) for number, name in enumerate(names)}
    times = _timed(exits, inputs, rows[:_TIMED], {"early exits": exits.policy} | policies)
    table = [_row("early exits", found.accuracy, found.macs, times)]
    for name, each, macs in zip(names, logits, static, strict=True):
        right = each[rows].argmax(1) == labels[rows]
        table.append(_row(name, float(right.mean()), macs, times))
    return ExitComparison(rows=tuple(table), shares=found.shares, samples=len(rows))


def _row(name: str, accuracy: float, macs: float, times: Mapping[str, list[float]]) -> ExitRow:
    p50, p95 = np.quantile(times[name], [0.5, 0.95])
    return ExitRow(name=name, accuracy=accuracy, macs=macs, p50=float(p50), p95=float(p95))


def _always(policy: ExitPolicy, exit: int) -> ExitPolicy:
    """Every sample leaves there."""
    thresholds = tuple(0.0 if number == exit else _NEVER for number in range(len(policy.thresholds)))
    return replace(policy, thresholds=thresholds)


def _timed(
    exits: EarlyExits, inputs: Any, rows: Array, policies: Mapping[str, ExitPolicy]
) -> dict[str, list[float]]:
    """Milliseconds of each model on each sample alone, in turns, so that a busy machine slows all alike."""
    times: dict[str, list[float]] = {name: [] for name in policies}
    for number, row in enumerate(rows[[0, *range(len(rows))]]):  # the first one warms up
        args, kwargs = _rows(inputs, np.array([row]))
        for name, policy in policies.items():
            start = time.perf_counter()
            exits.run(args, kwargs, policy).exits.tolist()  # waits for the device
            if number:
                times[name].append(1e3 * (time.perf_counter() - start))
    return times

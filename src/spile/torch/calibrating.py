"""From a supervised model to an early-exit model: temperatures, thresholds, and what they bring."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from spile.errors import SupervisionError
from spile.supervision.exits import (
    EARLY,
    ROUNDS,
    WHOLE,
    ExitComparison,
    ExitPolicy,
    Way,
    compared,
    fit_policy,
    fit_temperature,
    measure,
)
from spile.supervision.operations import Features
from spile.torch.exits import EarlyExits
from spile.torch.heads import Head
from spile.torch.modes import Meter
from spile.torch.observing import observe
from spile.torch.quiet import quiet_pass, unchanged
from spile.torch.references import logits_of
from spile.torch.trees import transform

if TYPE_CHECKING:
    from spile.torch.supervision import Supervised

_BATCH = 64
_CHECKED = 16
_FEWEST = 8
_NEVER = float("inf")
Array = np.ndarray[Any, Any]


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
    head_macs = [macs_of(heads[point.name], supervised.features[point.name]) for point in supervised.points]
    costs = _costs(supervised, head_macs, [True] * len(heads))
    exits = EarlyExits(
        supervised.base,
        heads,
        supervised.points,
        ExitPolicy(temperatures=(1.0,) * len(costs), thresholds=(*(_NEVER,) * len(heads), 0.0)),
        main=supervised.settings.main,
        costs=costs,
        static_costs=[
            *(point.macs + macs for point, macs in zip(supervised.points, head_macs, strict=True)),
            supervised.macs,
        ],
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
    exits.report = measure_exits(
        exits,
        transform(inputs, lambda t: t[torch.from_numpy(reporting)]),
        labels[reporting],
        static={},
        rounds=min(ROUNDS, len(reporting)),
        logits=logits[:, reporting],
    )
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
    lengths: set[int] = set()
    transform(inputs, lambda t: lengths.add(len(t)))
    if lengths != {len(labels)}:
        given = " and ".join(map(str, sorted(lengths)))
        raise SupervisionError(f"inputs of {given} samples and {len(labels)} labels: give one label a sample")
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


def _rows(inputs: Any, rows: slice) -> tuple[tuple[Any, ...], dict[str, Any]]:
    chosen = transform(inputs, lambda t: t[rows])
    if isinstance(chosen, Mapping):
        return (), dict(chosen)
    return (chosen if isinstance(chosen, tuple) else (chosen,)), {}


def _logits(supervised: Supervised, inputs: Any) -> Array:
    """(exits, samples, classes), the model's own output last."""
    found: list[Tensor] = []
    for args, kwargs in _batches(inputs):
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


def macs_of(head: Head, features: Features) -> int:
    """Multiply-accumulates of a head for one sample."""
    sizes = {"map": (features.channels, *features.size), "tokens": (*features.size, features.channels)}
    shape = sizes.get(features.kind, (features.channels,))
    parameter = next(head.parameters())
    meter = Meter()
    with meter, unchanged(head), quiet_pass(head, evaluate=True), torch.no_grad():
        head(torch.zeros(2, *shape, device=parameter.device, dtype=parameter.dtype))
    return meter.macs


def measure_exits(
    exits: EarlyExits,
    inputs: Any,
    labels: Array,
    *,
    static: Mapping[str, nn.Module],
    rounds: int,
    logits: Array | None = None,
) -> ExitComparison:
    """The exits beside the whole model, the model that ends at each head, and the `static` ones.

    `logits` are those of every exit, where they are known.
    """
    logits = _logits_of_exits(exits, inputs) if logits is None else logits
    found = measure(logits, labels, exits.costs, exits.policy)

    def way(run: Callable[..., Any], accuracy: float, macs: float) -> Way:
        def one(number: int) -> None:
            args, kwargs = _rows(inputs, slice(number, number + 1))
            run(args, kwargs).tolist()  # waits for the device

        return Way(accuracy=accuracy, macs=macs, run=one)

    def taking(policy: ExitPolicy) -> Callable[..., Tensor]:
        return lambda args, kwargs: exits.run(args, kwargs, policy).exits

    ways = {EARLY: way(taking(exits.policy), found.accuracy, found.macs)}
    names = [*(f"ends at {point.name}" for point in exits.points), WHOLE]
    for number, (name, macs) in enumerate(zip(names, exits.static_costs, strict=True)):
        right = float((logits[number].argmax(1) == labels).mean())
        ways[name] = way(taking(_always(exits.policy, number)), right, macs)
    for name, model in static.items():
        ways[name] = way(partial(_static, model), *_measured(model, inputs, labels))
    return compared(ways, shares=found.shares, samples=len(labels), rounds=rounds)


def _logits_of_exits(exits: EarlyExits, inputs: Any) -> Array:
    """(exits, samples, classes), where no sample leaves early."""
    found: list[Array] = []
    for args, kwargs in _batches(inputs):
        seen: list[Tensor] = []

        def stay(_: int, logits: Tensor, rows: Tensor, seen: list[Tensor] = seen) -> Tensor:
            seen.append(logits.float())
            return torch.zeros_like(rows, dtype=torch.bool)

        last = exits.decided(args, kwargs, stay, [True] * len(exits.points)).logits
        found.append(torch.stack([*seen, last]).cpu().double().numpy())
    return np.concatenate(found, axis=1)


def _static(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The classes that a model of its own gives."""
    with torch.no_grad(), quiet_pass(model, evaluate=True):
        return logits_of(model(*args, **kwargs), None).argmax(1)


def _measured(model: nn.Module, inputs: Any, labels: Array) -> tuple[float, float]:
    """Accuracy, and multiply-accumulates a sample."""
    found = torch.cat([_static(model, args, kwargs) for args, kwargs in _batches(inputs)])
    few = transform(inputs, lambda t: t[:2])
    return float((found.cpu().numpy() == labels).mean()), float(observe(model, few).root.macs)


def _always(policy: ExitPolicy, exit: int) -> ExitPolicy:
    """Every sample leaves there."""
    thresholds = tuple(0.0 if number == exit else _NEVER for number in range(len(policy.thresholds)))
    return replace(policy, thresholds=thresholds)


def _batches(inputs: Any) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    for start in range(0, _count(inputs), _BATCH):
        yield _rows(inputs, slice(start, start + _BATCH))

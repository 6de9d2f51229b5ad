"""The terms of the loss of a supervised model: every target of every head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spile.errors import SupervisionError
from spile.observation import Observation
from spile.resolution import Point, resolve
from spile.structure import last_features
from spile.supervision.operations import Features
from spile.supervision.settings import Loss, Settings, SupervisedOutput
from spile.supervision.targets import (
    MAIN,
    Labels,
    PseudoLabels,
    SelfDistill,
    SmoothedLabels,
    Target,
    Teacher,
    term_names,
)
from spile.supervision.weights import Aggregated, Uncertainty
from spile.torch import losses
from spile.torch.gradients import tied
from spile.torch.heads import Head, Heads, canonical
from spile.torch.processes import several
from spile.torch.references import Given, Reference
from spile.torch.trees import tensors

FINAL = "spile: final features"
"""The tap's name for what the model's own classifier reads."""
Named = tuple[str, Target]
Pair = tuple[Tensor, Tensor]


class Terms(nn.Module):
    """The targets of the main output and of every head, with the state that some of them have."""

    def __init__(
        self,
        targets: Mapping[str, tuple[Target, ...]],
        model: nn.Module,
        *,
        settings: Settings,
        example: Any,
    ) -> None:
        super().__init__()
        self.targets: dict[str, tuple[Named, ...]] = {
            head: tuple(zip(term_names(listed), listed, strict=True)) for head, listed in targets.items()
        }
        self.settings = settings
        distinct = dict.fromkeys(t for listed in targets.values() for t in listed if _has_reference(t))
        self.references = nn.ModuleList(
            Reference(t, model, classes=settings.outputs, main=settings.main, example=example)
            for t in distinct
        )
        self.adapters = Heads({})
        self._final: Point | None = None

    @property
    def reads_final(self) -> bool:
        """Whether a target needs what the model's own classifier reads."""
        return any(isinstance(t, SelfDistill) and t.hint > 0 for _, _, t in self._all())

    def connect(self, points: Sequence[Point], heads: Heads, observation: Observation) -> None:
        """Make the projections of features that are compared with features of another width."""
        if self.reads_final:
            (self._final,), _ = resolve({FINAL: last_features(observation)}, None, observation)
        adapters: dict[str, nn.Module] = {}
        by_name = {point.name: point for point in points}
        with torch.random.fork_rng(devices=[]):
            for head, name, target in self._all():
                if isinstance(target, Teacher) and target.kind != "logits":
                    made = self._for_teacher(head, target, by_name)
                elif isinstance(target, SelfDistill) and target.hint:
                    made = _for_final(heads[head], by_name[head], self._final)  # type: ignore[arg-type]
                else:
                    continue
                if made is not None:
                    adapters[f"{head} {name}"] = made
        self.adapters = Heads(adapters)
        for parameter in heads.parameters():
            self.adapters.to(device=parameter.device, dtype=parameter.dtype)

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any], device: torch.device) -> dict[str, Any]:
        """What teachers make of the inputs."""
        found = {
            f"reference_{i}": reference.run(args, kwargs, device)  # type: ignore[operator]
            for i, reference in enumerate(self.references)
        }
        return {name: value for name, value in found.items() if value is not None}

    def pairs(
        self, head: str, read: Tensor, own: Tensor, final: Tensor | None, extra: Mapping[str, Any]
    ) -> dict[str, Pair]:
        """The features of a head beside those they are to be like, by ``head term``."""
        found: dict[str, Pair] = {}
        for name, target in self.targets[head]:
            key = f"{head} {name}"
            adapter: Any = self.adapters[key] if key in self.adapters else _as_it_is  # noqa: SIM401
            if isinstance(target, Teacher) and target.kind != "logits":
                i = self._index(target)
                place = _place(target, head)
                theirs = canonical(extra[f"reference_{i}"][place], self._reference(i).points()[place])
                found[key] = adapter(read), theirs
            elif isinstance(target, SelfDistill) and target.hint:
                assert final is not None and self._final is not None
                found[key] = adapter(_vector(own)), _vector(canonical(final, self._final)).detach()
        return found

    def loss(self, output: SupervisedOutput, given: Given, *, progress: float) -> Loss:
        """All terms, and their weighted sum."""
        terms, stats = self._evaluated(output, given)
        by_head = {head: self._sum(head, terms) for head in self.targets}
        stats |= {f"{head}/loss": loss.detach() for head, loss in by_head.items()}
        parts, weights = self._weighted(by_head, output, progress)
        stats |= {f"{head}/weight": weight for head, weight in weights.items()}
        total = torch.stack(list(parts.values())).sum()
        if isinstance(self.settings.weighting, Aggregated):
            return Loss(total.detach(), terms, stats)
        if several():
            total = tied(total, [t for _, t in tensors((output.aux, output.extra)) if t.requires_grad])
        return Loss(total, terms, stats)

    def parts(self, output: SupervisedOutput, given: Given, *, progress: float) -> dict[str, Tensor]:
        """What the main output and every head add to the total; heads with weight 0 are not in it."""
        terms, _ = self._evaluated(output, given)
        by_head = {head: self._sum(head, terms) for head in self.targets}
        return self._weighted(by_head, output, progress)[0]

    def by_head(self, loss: Loss) -> list[Tensor]:
        """The loss of the main output and of every head, unweighted."""
        return [self._sum(head, loss.terms) for head in self.targets]

    def follow(self, base: nn.Module) -> None:
        """An optimiser step was taken."""
        for reference in self.references:
            reference.follow(base)  # type: ignore[operator]

    def _evaluated(self, output: SupervisedOutput, given: Given) -> tuple[dict[str, Tensor], dict[str, Any]]:
        references = [
            reference.of(output.main, output.extra.get(f"reference_{i}"), given)  # type: ignore[operator]
            for i, reference in enumerate(self.references)
        ]
        terms: dict[str, Tensor] = {}
        stats: dict[str, Any] = {}
        for head, name, target in self._all():
            logits = output.main if head == MAIN else output.aux[head]
            reference = references[self._index(target)] if _has_reference(target) else None
            terms |= self._terms(head, name, target, logits, output, given, reference)
            if isinstance(target, PseudoLabels):
                stats |= _pseudo_stats(head, reference, given.labels)
            right = losses.accuracy(logits.detach(), given.labels, task=self.settings.task)
            if right is not None:
                stats[f"{head}/accuracy"] = right
        return terms, stats

    def _terms(
        self,
        head: str,
        name: str,
        target: Target,
        logits: Tensor,
        output: SupervisedOutput,
        given: Given,
        reference: Any,
    ) -> dict[str, Tensor]:
        key = f"{head}/{name}"
        match target:
            case Labels():
                task = self.settings.task
                found = losses.labelled(logits, given.labels, task=task, smoothing=target.smoothing)
            case PseudoLabels():
                found = losses.pseudo_labelled(
                    logits, reference.classes, reference.confident, given.labels == losses.NO_LABEL
                )
            case SmoothedLabels():
                found = losses.towards(logits, reference.probabilities, reference.known)
            case SelfDistill():
                found = losses.distillation(logits, _deeper(target, output), target.temperature)
                if target.hint:
                    return {key: found, f"{key}_hint": losses.hint(*output.extra[f"{head} {name}"])}
            case Teacher(kind="logits"):
                _same_classes(logits, reference)
                found = losses.distillation(logits, reference, target.temperature)
            case Teacher(kind="hint"):
                found = losses.hint(*output.extra[f"{head} {name}"])
            case Teacher():
                found = losses.attention(*output.extra[f"{head} {name}"])
            case _:
                raise SupervisionError(f"{type(target).__name__} has no loss on PyTorch")
        return {key: found}

    def _sum(self, head: str, terms: Mapping[str, Tensor]) -> Tensor:
        parts = []
        for name, target in self.targets[head]:
            parts.append(target.weight * terms[f"{head}/{name}"])
            if isinstance(target, SelfDistill) and target.hint:
                parts.append(target.weight * target.hint * terms[f"{head}/{name}_hint"])
        return torch.stack(parts).sum()

    def _weighted(
        self, by_head: Mapping[str, Tensor], output: SupervisedOutput, progress: float
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What each adds to the total, and the weights. Weight 0 leaves a loss out, be it infinite."""
        weighting = self.settings.weighting
        if isinstance(weighting, Aggregated):
            return dict(by_head), {}
        if isinstance(weighting, Uncertainty):
            logs = dict(zip(by_head, output.extra["log_variances"].float().unbind(), strict=True))
            parts = {head: (-logs[head]).exp() * loss + logs[head] for head, loss in by_head.items()}
            return parts, {head: (-s.detach()).exp() for head, s in logs.items()}
        heads = [head for head in by_head if head != MAIN]
        weights = dict(zip(heads, weighting.weights(progress, len(heads)), strict=True))
        kept = {head: weight * by_head[head] for head, weight in weights.items() if weight}
        return {MAIN: by_head[MAIN], **kept}, weights

    def _for_teacher(self, head: str, target: Teacher, points: Mapping[str, Point]) -> nn.Module | None:
        """Raises `SupervisionError` where the features of head and teacher cannot be compared."""
        if head == MAIN:
            raise SupervisionError(
                f"Teacher(kind={target.kind!r}) compares the features of a layer, and 'main' is no layer: "
                "give it to a head"
            )
        place = _place(target, head)
        theirs = self._reference(self._index(target)).points().get(place)
        ours, other = Features.of(points[head]), Features.of(theirs) if theirs else None
        if ours is None or other is None or ours.kind != other.kind:
            raise SupervisionError(
                f"the teacher's {place!r} is {_described(other)}, and {head!r} is {_described(ours)}: choose "
                "layers of one kind"
            )
        if ours.kind == "tokens" and ours.size != other.size:
            raise SupervisionError(
                f"the teacher's {place!r} has {other.size[0]} tokens, and {head!r} has {ours.size[0]}"
            )
        if target.kind == "attention":
            if ours.kind == "vector":
                raise SupervisionError(f"kind='attention' compares maps or tokens, and {head!r} is a vector")
            return None
        if ours.kind == "map":
            return nn.Conv2d(ours.channels, other.channels, 1)
        return nn.Linear(ours.channels, other.channels)

    def _reference(self, index: int) -> Reference:
        found: Any = self.references[index]
        reference: Reference = found
        return reference

    def _index(self, target: Target) -> int:
        return next(i for i, r in enumerate(self.references) if r.target == target)

    def _all(self) -> Iterator[tuple[str, str, Target]]:
        for head, named in self.targets.items():
            for name, target in named:
                yield head, name, target


def _has_reference(target: Target) -> bool:
    return isinstance(target, PseudoLabels | SmoothedLabels | Teacher)


def _as_it_is(x: Tensor) -> Tensor:
    return x


def _place(target: Teacher, head: str) -> str:
    """The teacher's address for a head."""
    at = target.at
    if isinstance(at, str):
        return at
    if at is None or head not in at:
        raise SupervisionError(f"Teacher(at={at!r}) has no address for {head!r}")
    return at[head]


def _described(features: Features | None) -> str:
    if features is None:
        return "neither a map, nor tokens, nor a vector"
    return f"{'tokens' if features.kind == 'tokens' else f'a {features.kind}'}"


def _for_final(head: Head, point: Point, final: Point) -> nn.Module | None:
    """From a head's own features to the width of the final ones; none where they have it already."""
    ours, theirs = Features.of(point), Features.of(final)
    assert ours is not None and theirs is not None
    width = head.output.in_features if isinstance(head.output, nn.Linear) else ours.channels
    return None if width == theirs.channels else nn.Linear(width, theirs.channels)


def _vector(x: Tensor) -> Tensor:
    """One vector a sample of canonical features."""
    return x.mean((2, 3)) if x.ndim == 4 else x.mean(1) if x.ndim == 3 else x


def _deeper(target: SelfDistill, output: SupervisedOutput) -> Tensor:
    """Without gradient."""
    logits = [output.main] if target.source == "main" else [output.main, *output.aux.values()]
    return torch.stack([each.detach().float() for each in logits]).mean(0)


def _same_classes(logits: Tensor, teacher: Tensor) -> None:
    if logits.shape != teacher.shape:
        raise SupervisionError(
            f"the teacher gives {list(teacher.shape)}, and the head {list(logits.shape)}: its classes must "
            "be those of the task"
        )


def _pseudo_stats(head: str, reference: Any, labels: Tensor) -> dict[str, Tensor]:
    """NaN where there is no row to tell it from."""
    classes, confident = reference
    unlabelled = labels == losses.NO_LABEL
    sure = confident & ~unlabelled
    return {
        f"{head}/coverage": (confident & unlabelled).sum() / unlabelled.sum(),
        f"{head}/precision": (sure & (classes == labels)).sum() / sure.sum(),
    }

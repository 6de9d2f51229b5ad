"""What the targets of a supervised model keep and run: teachers, moving averages, adapters; and their
losses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
from keras import ops

from spile import pool as pools
from spile.errors import SupervisionError
from spile.keras import losses
from spile.keras.features import Feature
from spile.keras.heads import Head, canonical
from spile.keras.plans import Plan, picked
from spile.keras.pooling import pooled
from spile.keras.shadows import Shadow
from spile.keras.taps import Tap
from spile.keras.trees import Inputs
from spile.supervision.operations import Conv, Dense, Features
from spile.supervision.targets import (
    MAIN,
    Labels,
    PseudoLabels,
    SelfDistill,
    SmoothedLabels,
    Target,
    Teacher,
)


class Stat(NamedTuple):
    """A share, and of how many; NaN, not known, of none."""

    value: Any
    count: Any


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """What the losses of one batch are computed from."""

    logits: Mapping[str, Any]
    """float32, by head, the main output's among them."""
    extra: Mapping[str, Any]
    labels: Any
    """As `losses.as_labels` gives them for each head; ``None`` where there are none."""
    sample_weight: Any
    soft_labels: Any
    ids: Any


class _Pseudo(NamedTuple):
    """Of every row: the class that is predicted, one-hot; and 1 or 0."""

    wanted: Any
    confident: Any
    known: Any
    right: Any


class AdaptiveThreshold(keras.Layer):
    """Running means of the confidence (Wang et al. 2023, equations 5, 8 and 10)."""

    def __init__(self, classes: int, **kwargs: Any) -> None:
        super().__init__(trainable=False, **kwargs)
        start = keras.initializers.Constant(1 / classes)
        self.confidence = self.add_weight(shape=(), initializer=start, trainable=False, dtype="float32")
        self.classes = self.add_weight(shape=(classes,), initializer=start, trainable=False, dtype="float32")
        self.built = True

    def of(self, predicted: Any) -> Any:
        """The threshold of each predicted class."""
        classes = self.classes.value  # JAX takes no variables
        relative = classes / ops.maximum(ops.amax(classes), losses.TINY)
        return ops.take(self.confidence.value * relative, predicted, axis=0)

    def follow(self, probabilities: Any, weights: Any, decay: float) -> None:
        """Take in the unlabelled rows of a batch; without any nothing changes."""
        count = ops.sum(weights)
        total = ops.maximum(count, 1.0)
        kept = ops.where(count > 0, decay, 1.0)
        confidence = ops.sum(ops.amax(probabilities, axis=-1) * weights) / total
        classes = ops.sum(probabilities * weights[:, None], axis=0) / total
        self.confidence.assign(self.confidence.value * kept + confidence * (1 - kept))
        self.classes.assign(self.classes.value * kept + classes * (1 - kept))


class Averages(keras.Layer):
    """One moving average of probabilities a training row."""

    def __init__(self, target: SmoothedLabels, classes: int, **kwargs: Any) -> None:
        super().__init__(trainable=False, **kwargs)
        self._target = target
        options = {"initializer": "zeros", "trainable": False, "dtype": "float32"}
        self.sums = self.add_weight(shape=(target.samples, classes), name="sums", **options)
        self.seen = self.add_weight(shape=(target.samples,), name="seen", **options)
        self.built = True

    def of(self, ids: Any) -> tuple[Any, Any]:
        """Probabilities of these rows without start-up bias, and 1 for each that has been seen, else 0."""
        rows, inside = self._rows(ids)
        seen = ops.take(self.seen.value, rows, axis=0)
        correction = 1 - ops.power(self._target.decay, ops.maximum(seen, 1.0))
        known = losses.float32((seen > 0) & inside)
        return ops.take(self.sums.value, rows, axis=0) / ops.maximum(correction, 1e-6)[:, None], known

    def follow(self, ids: Any, probabilities: Any) -> None:
        """Take in a batch."""
        rows, inside = self._rows(ids)
        decay, new = self._target.decay, losses.float32(inside)
        before, seen = ops.take(self.sums.value, rows, axis=0), ops.take(self.seen.value, rows, axis=0)
        after = ops.where(inside[:, None], before * decay + probabilities * (1 - decay), before)
        index = ops.reshape(rows, (-1, 1))
        self.sums.assign(ops.scatter_update(self.sums.value, index, after))
        self.seen.assign(ops.scatter_update(self.seen.value, index, seen + new))

    def _rows(self, ids: Any) -> tuple[Any, Any]:
        """Row numbers, and which of them exist: nothing is learnt from, or of, others."""
        ids = ops.cast(ops.reshape(ids, (-1,)), "int32")
        return ops.clip(ids, 0, self._target.samples - 1), (ids >= 0) & (ids < self._target.samples)


class TargetStates(keras.Layer):
    """Everything that the targets of one supervised model keep."""

    def __init__(self, plan: Plan, base: keras.Model, heads: Mapping[str, keras.Layer]) -> None:
        super().__init__(name="targets", autocast=False, dtype="float32")
        self._plan = plan
        self._base = lambda: base
        every = [target for each in plan.targets.values() for target in each]
        self.averages = {
            _key(t): Averages(t, plan.outputs) for t in _unique(every) if isinstance(t, SmoothedLabels)
        }
        pseudo = [t for t in _unique(every) if isinstance(t, PseudoLabels)]
        self.thresholds = {
            _key(t): AdaptiveThreshold(plan.outputs) for t in pseudo if t.threshold == "adaptive"
        }
        self.moving = {_ema(t): Shadow(base) for t in pseudo if t.source == "ema"}
        self._teachers = list(plan.teachers)
        self.teachers = [Shadow(t.model) for t in self._teachers]
        self._taps = [self._tap(t) for t in self._teachers]
        self.adapters: dict[str, keras.Layer] = {}
        for name, targets in plan.targets.items():
            for target in targets:
                self._adapt(name, target, heads.get(name))
        self.built = True

    def _tap(self, teacher: Teacher) -> Tap | None:
        if teacher.at is None:
            return None
        at = {teacher.at} if isinstance(teacher.at, str) else set(teacher.at.values())
        return Tap(teacher.model, sorted(at), pool=None, example=self._plan.example)

    def _point(self, teacher: Teacher, head: str) -> Any:
        """Where in the teacher a head looks."""
        assert teacher.at is not None
        if head == MAIN:
            raise SupervisionError(
                f"Teacher(kind={teacher.kind!r}) is for heads: the main output has no features"
            )
        if not isinstance(teacher.at, str) and head not in teacher.at:
            raise SupervisionError(
                f"Teacher(at=...) names {', '.join(teacher.at)}, but not the head {head!r}: add it, or give "
                "the target to the other heads alone"
            )
        address = teacher.at if isinstance(teacher.at, str) else teacher.at[head]
        tap = self._taps[_index(self._teachers, teacher)]
        assert tap is not None
        found = [point for point in tap.points if point.name == address]
        if len(found) != 1:
            named = ", ".join(point.name for point in tap.points)
            raise SupervisionError(f"Teacher(at={address!r}) is not one layer, but {named}: name one")
        return found[0]

    def _adapt(self, name: str, target: Target, head: keras.Layer | None) -> None:
        """The projections that hints need."""
        if isinstance(target, Teacher) and target.kind != "logits":
            point = self._point(target, name)
            theirs, own = Features.of(point), self._plan.features(name)
            tokens = own.kind == "tokens"
            if theirs is None or theirs.kind != own.kind or (tokens and theirs.size != own.size):
                raise SupervisionError(
                    f"the teacher's {point.name!r} gives {list(point.shape)}, which is not like the "
                    f"{own.kind} of {name!r}: choose a layer of the teacher that gives the same kind"
                )
            if target.kind == "hint":
                self._project(_adapter(name, self._teachers, target), own.channels, theirs.channels)
            elif own.kind == "vector":
                raise SupervisionError(f"{name!r} gives vectors, which have no attention: use kind='hint'")
        if isinstance(target, SelfDistill) and target.hint:
            final = None if self._plan.final is None else Features.of(self._plan.final)
            last = head.operations[-1] if isinstance(head, Head) else None
            if not isinstance(last, Conv | Dense) or final is None:
                raise SupervisionError(
                    f"SelfDistill(hint=...) compares features of spile's own heads, and {name!r} has "
                    "another: use hint=0"
                )
            if last.inputs != final.channels:
                self._project(f"{name}/final", last.inputs, final.channels)

    def _project(self, key: str, inputs: int, outputs: int) -> None:
        self.adapters[key] = keras.layers.Dense(outputs, dtype="float32")
        self.adapters[key].build((None, inputs))

    def extras(
        self, inputs: Inputs, features: Mapping[str, Feature], own: Mapping[str, Any]
    ) -> dict[str, Any]:
        """What the losses need besides logits. `own` are the features that the heads' last layers read."""
        plan = self._plan
        found: dict[str, Any] = {}
        for key, shadow in self.moving.items():
            found[key] = self._logits(shadow.run(inputs))
        for index, (target, shadow, tap) in enumerate(
            zip(self._teachers, self.teachers, self._taps, strict=True)
        ):
            if tap is None:
                output = picked(shadow.run(inputs), plan.main)
                found[f"teacher/{index}"] = losses.logits_of(output, plan.taught[index])
                continue
            seen = tap.run(inputs, shadow.state)
            for name in plan.names:
                if any(each is target for each in plan.targets[name]):
                    point = self._point(target, name)
                    layout = "B" + str(point.layout).replace("B", "")
                    theirs = ops.stop_gradient(canonical(seen[point.name], layout)[0])
                    mine = canonical(features[name].value, str(plan.points[plan.names.index(name)].layout))[0]
                    found[f"teacher/{index}/{name}"], found[f"features/{name}"] = theirs, mine
        if plan.final is not None:
            value, mask = features["@final"]
            pool = pools.settle(
                pools.parse("auto"), plan.final.layout, place=plan.final.name, prefix_tokens=0
            )
            last = pooled(value, pool, plan.final.layout, mask=mask)
            found["final"] = losses.float32(ops.stop_gradient(last))
            found |= {f"own/{name}": value for name, value in own.items()}
        return found

    def _logits(self, output: Any) -> Any:
        return losses.logits_of(picked(output, self._plan.main), self._plan.gives)

    def loss(self, head: str, target: Target, batch: Batch) -> Any:
        """The loss of one target at one head."""
        logits = batch.logits[head]
        match target:
            case Labels():
                labels, known = _given(batch.labels, "y", target)[head]
                return losses.label_loss(
                    logits,
                    labels,
                    known,
                    self._plan.task,
                    smoothing=target.smoothing,
                    weights=batch.sample_weight,
                )
            case PseudoLabels():
                found = self._pseudo_labels(head, target, batch)
                unlabelled = 1 - found.known
                each = losses.towards(logits, found.wanted) * found.confident * unlabelled
                return ops.sum(each) / ops.maximum(ops.sum(unlabelled), 1.0)
            case SelfDistill():
                every = list(batch.logits.values())
                source = every[0] if target.source == "main" else ops.mean(ops.stack(every), axis=0)
                return losses.distillation(logits, source, target.temperature)
            case Teacher():
                return self._teacher(head, target, batch)
            case SmoothedLabels():
                wanted, known = self.averages[_key(target)].of(_given(batch.ids, "ids", target))
                return losses.mean(losses.towards(logits, wanted), known)
        raise SupervisionError(f"{type(target).__name__} is no target for Keras models")

    def hint(self, head: str, batch: Batch) -> Any:
        """The squared distance between a head's own features and the final ones."""
        own, adapter = batch.extra[f"own/{head}"], self.adapters.get(f"{head}/final")
        return losses.hint(own if adapter is None else adapter(own), batch.extra["final"])

    def stats(self, head: str, target: Target, batch: Batch) -> dict[str, Stat]:
        """What is told of a target beside its loss."""
        if not isinstance(target, PseudoLabels):
            return {}
        found = self._pseudo_labels(head, target, batch)
        unlabelled, sure = 1 - found.known, found.confident * found.known
        count, right = ops.sum(unlabelled), sure * found.right
        return {
            "coverage": Stat(losses.share(ops.sum(found.confident * unlabelled), count), count),
            "precision": Stat(losses.share(ops.sum(right), ops.sum(sure)), ops.sum(sure)),
        }

    def _pseudo_labels(self, head: str, target: PseudoLabels, batch: Batch) -> _Pseudo:
        probabilities = self._probabilities(target, batch)
        predicted, confidence = ops.argmax(probabilities, axis=-1), ops.amax(probabilities, axis=-1)
        adaptive = target.threshold == "adaptive"
        bar = self.thresholds[_key(target)].of(predicted) if adaptive else target.threshold
        nothing = probabilities, ops.zeros_like(confidence)
        labels, known = nothing if batch.labels is None else batch.labels[head]
        return _Pseudo(
            wanted=ops.one_hot(predicted, probabilities.shape[-1], dtype="float32"),
            confident=losses.float32(confidence >= bar),
            known=known,
            right=losses.float32(predicted == ops.argmax(labels, axis=-1)),
        )

    def _probabilities(self, target: PseudoLabels, batch: Batch) -> Any:
        if target.source == "given":
            return losses.float32(_given(batch.soft_labels, "soft_labels", target))
        source = batch.extra[_ema(target)] if target.source == "ema" else batch.logits[MAIN]
        return ops.stop_gradient(ops.softmax(source, axis=-1))

    def _teacher(self, head: str, target: Teacher, batch: Batch) -> Any:
        index = _index(self._teachers, target)
        if target.kind == "logits":
            teacher = batch.extra[f"teacher/{index}"]
            if teacher.shape[-1] != self._plan.outputs:
                raise SupervisionError(
                    f"the teacher gives {teacher.shape[-1]} classes, not {self._plan.outputs}: use one of "
                    "the same classes, or Teacher(kind='hint', at=...)"
                )
            return losses.distillation(batch.logits[head], teacher, target.temperature)
        theirs, mine = batch.extra[f"teacher/{index}/{head}"], batch.extra[f"features/{head}"]
        theirs, mine = losses.float32(theirs), losses.float32(mine)
        if target.kind == "hint":
            mine = self.adapters[_adapter(head, self._teachers, target)](mine)
        if len(mine.shape) == 4:
            mine, theirs = losses.one_size(mine, theirs)
        if target.kind == "hint":
            return losses.hint(mine, theirs)
        return losses.attention(_cells(mine), _cells(theirs))

    def lead(self, batch: Batch) -> None:
        """Take a training batch into the thresholds, once, before its losses, which they are for."""
        for target in self._distinct():
            if isinstance(target, PseudoLabels) and target.threshold == "adaptive":
                probabilities = self._probabilities(target, batch)
                known = 0.0 if batch.labels is None else batch.labels[MAIN][1]
                weights = ops.ones_like(probabilities[:, 0]) - known
                self.thresholds[_key(target)].follow(probabilities, weights, target.decay)

    def follow(self, batch: Batch) -> None:
        """Take a training batch into the moving averages, once, after its losses."""
        for target in self._distinct():
            if isinstance(target, SmoothedLabels):
                probabilities = ops.stop_gradient(ops.softmax(batch.logits[MAIN], axis=-1))
                self.averages[_key(target)].follow(_given(batch.ids, "ids", target), probabilities)
        for key, shadow in self.moving.items():
            shadow.follow(float(key.partition("/")[2]))

    def _distinct(self) -> list[Target]:
        return _unique([target for each in self._plan.targets.values() for target in each])


def _unique(targets: list[Target]) -> list[Target]:
    """Equal targets of several heads share what they keep; teachers are equal to themselves alone."""
    return list(dict.fromkeys(targets))


def _key(target: Target) -> str:
    return repr(target)


def _ema(target: PseudoLabels) -> str:
    return f"ema/{target.decay}"


def _index(teachers: list[Teacher], target: Teacher) -> int:
    return next(index for index, each in enumerate(teachers) if each is target)


def _adapter(head: str, teachers: list[Teacher], target: Teacher) -> str:
    return f"{head}/teacher/{_index(teachers, target)}"


def _given(value: Any, name: str, target: Target) -> Any:
    if value is None:
        raise SupervisionError(
            f"{type(target).__name__} needs {name}: pass them to loss(...), or fit with "
            "y={'labels': y, 'ids': rows, 'soft_labels': p}"
        )
    return value


def _cells(features: Any) -> Any:
    if len(features.shape) < 4:
        return features
    return ops.reshape(features, (-1, features.shape[1] * features.shape[2], features.shape[3]))

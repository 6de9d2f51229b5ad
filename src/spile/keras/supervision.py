"""A Keras model with auxiliary heads. It is compiled, fitted, evaluated and saved like any other.

supervised = spile.supervise(model, num_classes=10)
supervised.compile(optimizer="adam", metrics=["accuracy"])
supervised.fit(x, y, epochs=10)
model = supervised.strip()
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import keras
import numpy as np
from keras import ops

from spile.errors import SupervisionError
from spile.keras import losses
from spile.keras.certificates import certify, snapshot
from spile.keras.diagnosing import by_layer
from spile.keras.exits import EarlyExits, make_exits
from spile.keras.features import Feature, Pass
from spile.keras.heads import PACKAGE, Head
from spile.keras.observing import stateless
from spile.keras.plans import Plan, decoded, encoded, picked, planned
from spile.keras.runtime import runtime
from spile.keras.schedules import Progress, ProgressCallback, Table
from spile.keras.targets import Batch, Stat, TargetStates
from spile.keras.tracking import Known, logged
from spile.keras.trees import spread, tensor_of, transform
from spile.keras.weights import load_layers, save_layers
from spile.resolution import Point
from spile.supervision.heads import HeadSpec, Kept
from spile.supervision.settings import Certificate, Loss, Settings, SupervisedOutput
from spile.supervision.targets import MAIN, Labels, SelfDistill, term_names
from spile.supervision.weights import Schedule, checked

_Y = ("labels", "ids", "soft_labels")


class _Weighed(NamedTuple):
    """The losses of one batch."""

    total: Any
    parts: list[Any]
    """Of it: that of the main output and of every head, weighted."""
    terms: dict[str, Stat]
    stats: dict[str, Stat]


def supervise(model: Any, settings: Settings) -> Supervised:
    """Put auxiliary heads on a model; see `spile.supervise`."""
    return Supervised(model, *planned(model, settings))


@keras.saving.register_keras_serializable(PACKAGE)
class Supervised(keras.Model):
    """A model and its auxiliary heads; see `spile.supervise`.

    `fit` takes the labels of the model, which every head gets, or a dict of ``labels``, ``ids`` (row numbers,
    for `SmoothedLabels`) and ``soft_labels``. `predict`, and the metrics given to `compile`, see what the
    model itself gives.
    """

    def __init__(
        self, base: keras.Model, plan: Plan, heads: Mapping[str, keras.Layer], **kwargs: Any
    ) -> None:
        kwargs.setdefault("name", f"supervised_{base.name}")
        # The base casts its inputs itself.
        super().__init__(autocast=False, dtype=base.dtype_policy, **kwargs)
        self.base = base
        self.heads: Mapping[str, keras.Layer] = dict(heads)
        self.progress = Progress()
        """``progress.begin(0.3)`` sets it, for a loop of your own over `train_on_batch`."""
        self._plan = plan
        self._before = snapshot(base, plan.example)
        self._states = TargetStates(plan, base, self.heads)
        self._main_alone = False
        self._in_step = False
        watched = list(plan.points)
        if plan.final is not None:
            watched.append(replace(plan.final, name="@final"))
        self._run = Pass(base, watched)
        self._table = Table(plan.weighting, len(heads)) if isinstance(plan.weighting, Schedule) else None
        if self._table is None:
            self.log_variances = self.add_weight(
                shape=(1 + len(heads),), initializer="zeros", name="log_variances", dtype="float32"
            )
        self._trackers = {name: Known(name=name) for name in logged(plan)}
        self.built = True

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "loss":
            return  # where Keras keeps the loss that `compile` was given; here it is a method
        super().__setattr__(name, value)

    @property
    def points(self) -> tuple[Point, ...]:
        """Where the heads read."""
        return self._plan.points

    def call(self, inputs: Any, training: Any = None) -> SupervisedOutput:
        """Run the whole model and its heads."""
        plan = self._plan
        given = spread(self.base, (inputs,), {})
        training = bool(training) if training is None or isinstance(training, int) else training
        if self._main_alone:
            raw = picked(self.base(*given.args, **given.kwargs, training=training), plan.main)
            return SupervisedOutput(main=losses.logits_of(raw, plan.gives), aux={}, extra={"output": raw})
        output, found = self._run(given, training=training)
        raw = picked(output, plan.main)
        opened = self._opened(self.progress.now()) if self._in_step else {}
        features = {name: self._into_base(name, feature, opened) for name, feature in found.items()}
        aux, own = {}, {}
        for name, head in self.heads.items():
            feature = features[name]
            if isinstance(head, Head):
                aux[name], own[name] = head.with_features(*feature)
            else:
                aux[name] = head(feature.value)
        main = losses.logits_of(raw, plan.gives)
        if plan.task != "segmentation" and plan.outputs == 1 and len(main.shape) == 1:
            main = ops.expand_dims(main, -1)
        if main.shape[-1] != plan.outputs:
            raise SupervisionError(
                f"the main output has the shape {list(main.shape)}, but num_classes={plan.outputs} was asked "
                f"for: write num_classes={main.shape[-1]}, or say where the logits are, main=..."
            )
        extra = {"output": raw, "whole": output, **self._states.extras(given, features, own)}
        return SupervisedOutput(main=main, aux=aux, extra=extra)

    def _into_base(self, name: str, feature: Feature, opened: Mapping[str, Any]) -> Feature:
        """A feature whose gradient is scaled on its way into the base; its value is the same."""
        feature = feature._replace(value=losses.gated(feature.value, opened.get(name)))
        factor = self._plan.gradient
        if name == "@final" or factor == 1:
            return feature
        fixed = ops.stop_gradient(feature.value)
        if factor == 0:
            return feature._replace(value=fixed)
        return feature._replace(value=fixed + factor * (feature.value - fixed))

    def loss(
        self,
        output: SupervisedOutput,
        labels: Any,
        *,
        progress: Any,
        ids: Any = None,
        soft_labels: Any = None,
        training: bool = True,
        sample_weight: Any = None,
    ) -> Loss:
        """The weighted sum of all targets when the share `progress` of training is done.

        With `training` moving averages of targets take the batch in. For a loop of your own; `fit` does it by
        itself.
        """
        share = checked(progress) if isinstance(progress, int | float) else progress
        y = {"labels": labels, "ids": ids, "soft_labels": soft_labels}
        found = self._weighed(output, y, share, sample_weight, training=training)
        terms, stats = ({name: s.value for name, s in each.items()} for each in (found.terms, found.stats))
        return Loss(total=found.total, terms=terms, stats=stats)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """What `fit` minimises, with the base's own regularisation. Logs every term."""
        found = self._weighed(y_pred, _parts(y), self.progress.now(), sample_weight, training=training)
        for name, stat in (found.terms | found.stats).items():
            self._trackers[name].update_state(ops.stop_gradient(stat.value), sample_weight=stat.count)
        if training:
            self.progress.follow()
        total = found.total
        for own in self.losses:
            total = total + ops.sum(losses.float32(own))
        return total

    def _weighed(
        self,
        output: SupervisedOutput,
        y: Mapping[str, Any],
        progress: Any,
        sample_weight: Any,
        *,
        training: bool,
    ) -> _Weighed:
        plan = self._plan
        opened = self._opened(progress)
        logits = {MAIN: output.main}
        for name, each in output.aux.items():
            logits[name] = losses.gated(losses.float32(each), opened.get(name))
        known = None
        if y["labels"] is not None:
            known = {name: losses.as_labels(y["labels"], each, plan.task) for name, each in logits.items()}
        batch = Batch(
            logits=logits,
            extra={
                key: losses.gated(value, opened.get(_head_of(key))) for key, value in output.extra.items()
            },
            labels=known,
            sample_weight=sample_weight,
            soft_labels=y["soft_labels"],
            ids=y["ids"],
        )
        if training:
            self._states.lead(batch)
        terms, stats, sums = self._by_head(batch)
        weights, parts = self._weights(list(sums.values()), progress)
        rows = ops.cast(ops.shape(output.main)[0], "float32")
        stats |= {f"{name}/loss": Stat(value, rows) for name, value in sums.items()}
        stats |= {f"{name}/weight": Stat(w, 1.0) for name, w in zip(plan.names, weights[1:], strict=True)}
        if training:
            self._states.follow(batch)
        return _Weighed(total=sum(parts), parts=parts, terms=terms, stats=stats)

    def _by_head(self, batch: Batch) -> tuple[dict[str, Stat], dict[str, Stat], dict[str, Any]]:
        """Every term, what is told beside, and the loss of each head, unweighted."""
        plan = self._plan
        rows = ops.cast(ops.shape(batch.logits[MAIN])[0], "float32")
        terms: dict[str, Stat] = {}
        stats: dict[str, Stat] = {}
        sums: dict[str, Any] = {}
        for name, logits in batch.logits.items():
            targets = plan.targets[name]
            parts = []
            for term, target in zip(term_names(targets), targets, strict=True):
                key = f"{name}/{term}"
                loss = self._states.loss(name, target, batch)
                # A mean over what is labelled, so that a batch counts by that.
                terms[key] = Stat(
                    loss, ops.sum(batch.labels[name][1]) if isinstance(target, Labels) else rows
                )
                parts.append(target.weight * loss)
                if isinstance(target, SelfDistill) and target.hint:
                    hint = self._states.hint(name, batch)
                    terms[f"{key}_hint"] = Stat(hint, rows)
                    parts.append(target.weight * target.hint * hint)
                told = self._states.stats(name, target, batch)
                stats |= {f"{name}/{what}": stat for what, stat in told.items()}
            sums[name] = sum(parts)
            if batch.labels is not None and plan.task != "regression":
                labels, known = batch.labels[name]
                right, count = losses.hits(logits, labels, plan.task), ops.sum(known)
                stats[f"{name}/accuracy"] = Stat(losses.share(ops.sum(right * known), count), count)
        return terms, stats, sums

    def _opened(self, progress: Any) -> dict[str, Any]:
        """Of every head whose weight a schedule gives, whether that is above 0."""
        if self._table is None:
            return {}
        now = self._table.at(progress)
        return {name: now[i] > 0 for i, name in enumerate(self._plan.names)}

    def _weights(self, sums: list[Any], progress: Any) -> tuple[list[Any], list[Any]]:
        """The weights, and what each head adds to the total. Weight 0 leaves a loss out, be it infinite."""
        if self._table is None:
            logs = [self.log_variances[i] for i in range(len(sums))]
            weights = [ops.exp(-s) for s in logs]
            parts = [w * loss + s for w, loss, s in zip(weights, sums, logs, strict=True)]
            return weights, parts
        now = self._table.at(progress)
        weights = [1.0, *(now[i] for i in range(len(sums) - 1))]
        parts = [ops.where(w > 0, w * loss, 0.0) for w, loss in zip(weights, sums, strict=True)]
        return weights, [sums[0], *parts[1:]]

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict[str, Any]:
        """The metrics that `compile` was given, of the model's own output."""
        return dict(super().compute_metrics(x, _parts(y)["labels"], y_pred.extra["output"], sample_weight))

    def compile(self, optimizer: Any = "rmsprop", loss: Any = None, **kwargs: Any) -> None:
        """As of any Keras model, without a loss: the targets have theirs. Metrics are for the main output."""
        if loss is not None or kwargs.get("loss_weights") is not None:
            raise SupervisionError(
                f"compile(loss={loss!r}) is not for a supervised model, whose losses are its targets: leave "
                "loss and loss_weights out, and give targets= and weight= to spile.supervise"
            )
        optimizer = keras.optimizers.get(optimizer)
        known = {id(variable) for variable in getattr(optimizer, "_trainable_variables", ())}
        if optimizer.built and not {id(v) for v in self.trainable_variables} <= known:
            raise SupervisionError(
                "this optimizer was built before the heads, so that it would not train them: pass a new one, "
                f"e.g. keras.optimizers.{type(optimizer).__name__}.from_config(optimizer.get_config())"
            )
        super().compile(optimizer=optimizer, **kwargs)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """As it was compiled before it was saved."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def fit(self, *args: Any, callbacks: Any = None, **kwargs: Any) -> Any:
        """As of any Keras model."""
        own = ProgressCallback()
        if isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks.append(own)
        else:
            callbacks = [own, *keras.tree.flatten(callbacks or [])]  # before one that makes a checkpoint
        return super().fit(*args, callbacks=callbacks, **kwargs)

    def train_step(self, *args: Any) -> Any:
        """As of any Keras model. Nothing flows into the base from a head of weight 0, be the head broken."""
        self._in_step = True
        try:
            return super().train_step(*args)
        finally:
            self._in_step = False

    def predict_step(self, *args: Any) -> Any:
        """The main output alone, as the model itself gives it; no head is run."""
        self._main_alone = True
        try:
            found = super().predict_step(*args)
        finally:
            self._main_alone = False
        if isinstance(found, SupervisedOutput):
            return found.extra["output"]
        return found[0].extra["output"], *found[1:]  # JAX gives the state too

    def set_linear(self, address: str, weight: Any, bias: Any) -> None:
        """Start a head from a linear probe on pooled features.

        `weight` is (outputs, features), `bias` (outputs,). For heads that are one linear layer,
        ``head="linear"``. Raises `SupervisionError` for others, and for other shapes.
        """
        if address not in self.heads:
            raise SupervisionError(f"no head at {address!r}: there are {', '.join(self.heads)}")
        weights = self.heads[address].weights
        given = [np.asarray(weight, "float32").T, np.asarray(bias, "float32")]
        if [w.name for w in weights] != ["kernel", "bias"]:
            raise SupervisionError(f"the head at {address!r} is not one linear layer: use head='linear'")
        if [tuple(w.shape) for w in weights] != [each.shape for each in given]:
            wanted, got = list(weights[0].shape)[::-1], list(given[0].shape)[::-1]
            raise SupervisionError(f"the head at {address!r} takes {wanted}, received {got}")
        for own, each in zip(weights, given, strict=True):
            own.assign(each)

    def diagnose(
        self, inputs: Any, labels: Any, *, progress: float = 0.0, ids: Any = None, soft_labels: Any = None
    ) -> dict[str, dict[str, float]]:
        """By layer with weights: ``gradient_norm``, ``share/...`` of main and each head, ``cosine``.

        Runs one batch as in training, and leaves variables, averages and random state as they are.
        """
        variables = self.base.trainable_variables
        y = {"labels": labels, "ids": ids, "soft_labels": soft_labels}
        x = transform(inputs, tensor_of)

        def parts(values: Sequence[Any] | None) -> list[Any]:
            given = {} if values is None else dict(zip(map(id, variables), values, strict=True))
            state = [given.get(id(v), v.value) for v in self.variables] if given else None
            with stateless(self, state):
                found = self._weighed(self(x, training=True), y, checked(progress), None, training=False)
            return found.parts

        return by_layer(self.base, [MAIN, *self.heads], runtime().gradients(parts, variables))

    def head_specs(self) -> dict[str, HeadSpec | None]:
        """What each head is built of, as it is; ``None`` for one of your own."""
        return {
            name: Kept(head.operations) if isinstance(head, Head) else None
            for name, head in self.heads.items()
        }

    def save_heads(self, path: Path) -> None:
        """Write the weights of the heads alone, as safetensors."""
        save_layers(self.heads, path)

    def load_heads(self, path: Path) -> None:
        """Put back what `save_heads` wrote, of heads that are built alike. Raises `ModelError`."""
        load_layers(self.heads, path)

    def strip(self) -> keras.Model:
        """The model itself: the heads are no part of it. Twice is fine."""
        return self.base

    def certificate(self, inputs: Any) -> Certificate:
        """Check that stripping leaves the model as it was: keys, outputs, MACs and the graph of layers."""
        return certify(self, self._before, inputs)

    def exits(
        self, data: Any, *, accuracy: float | None = None, budget: float | None = None, holdout: float = 0.5
    ) -> EarlyExits:
        """A model that lets samples leave at the first head that is sure; `data` is (inputs, labels).

        Temperatures are fitted on a share ``1 - holdout`` of the samples, thresholds for the wanted accuracy,
        or budget of MACs a sample, on the others. See `spile.keras.exits`.
        """
        return make_exits(
            self,
            self._plan,
            data,
            whole_macs=self._before.macs,
            accuracy=accuracy,
            budget=budget,
            holdout=holdout,
        )

    def get_config(self) -> dict[str, Any]:
        """Base, heads and what they are trained towards."""
        return {
            "name": self.name,
            "base": keras.saving.serialize_keras_object(self.base),
            "heads": [[name, keras.saving.serialize_keras_object(head)] for name, head in self.heads.items()],
            "plan": encoded(self._plan),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Self:
        """The model that `get_config` described."""
        with keras.saving.custom_object_scope(custom_objects or {}):
            read = keras.saving.deserialize_keras_object
            heads = {name: read(head) for name, head in config["heads"]}
            return cls(read(config["base"]), decoded(config["plan"]), heads, name=config["name"])


def _head_of(key: str) -> str:
    """Of the features of a head among the extras of a pass."""
    kind, _, name = key.partition("/")
    return name if kind in ("features", "own") else ""


def _parts(y: Any) -> dict[str, Any]:
    """Labels, row numbers and soft labels of what `fit` was given."""
    if not isinstance(y, Mapping):
        return {"labels": y, "ids": None, "soft_labels": None}
    unknown = set(y) - set(_Y)
    if unknown:
        raise SupervisionError(f"y has {', '.join(sorted(unknown))}: as a dict it holds {', '.join(_Y)}")
    return {name: y.get(name) for name in _Y}

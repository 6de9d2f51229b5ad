"""What was asked for, resolved on a Keras model; and as plain data, for saved models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from functools import partial
from math import prod
from typing import Any, Literal

import keras
import numpy as np

from spile import structure, supervision
from spile.errors import SupervisionError
from spile.keras.heads import Head
from spile.keras.names import names_of
from spile.keras.observing import observe, stateless, with_samples
from spile.keras.taps import prefix_tokens_of
from spile.keras.trees import Inputs, inputs_of, transform
from spile.observation import Observation
from spile.pool import Pool
from spile.resolution import Point, resolve
from spile.supervision.heads import HeadSpec, check_size, heads_of
from spile.supervision.operations import Features, Operation, parameters
from spile.supervision.placement import final_features
from spile.supervision.settings import MainOutput, Settings
from spile.supervision.targets import SelfDistill, Target, Task, Teacher, checked_task, targets_of
from spile.supervision.weights import Aggregated, Weighting

Gives = Literal["logits", "softmax", "sigmoid"]

_FLIPS = 8
"""Of the signs of all weights: a logit would have to be positive every time."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """What a supervised Keras model is made from, beside the base and the heads."""

    points: tuple[Point, ...]
    """One a head, the shallowest first."""
    prefix_tokens: tuple[int, ...]
    final: Point | None
    """What the final classifier reads, where a target needs it."""
    outputs: int
    task: Task
    main: MainOutput
    gives: Gives
    """What the main output holds."""
    targets: Mapping[str, tuple[Target, ...]]
    weighting: Weighting
    gradient: float
    example: Any
    """The shapes of the inputs, nested as they are."""
    taught: tuple[Gives, ...] = ()
    """What the outputs of the teachers hold, in their order."""

    @property
    def teachers(self) -> tuple[Teacher, ...]:
        """Those of all heads, each once: a teacher is equal to itself alone."""
        every = (target for each in self.targets.values() for target in each)
        return tuple(dict.fromkeys(target for target in every if isinstance(target, Teacher)))

    @property
    def names(self) -> tuple[str, ...]:
        """Of the heads."""
        return tuple(point.name for point in self.points)

    def features(self, name: str) -> Features:
        """What a head reads."""
        index = self.names.index(name)
        return _features(self.points[index], self.prefix_tokens[index])


def planned(model: keras.Model, settings: Settings) -> tuple[Plan, dict[str, keras.Layer]]:
    """Resolve what was asked for, and make the heads. Raises `SupervisionError`, `AddressError`."""
    if isinstance(settings.weighting, Aggregated):
        raise SupervisionError(
            "Aggregated weights are for PyTorch models only, as TorchJD's aggregators are: use a schedule "
            "such as CosineDecay(0.4), or Uncertainty()"
        )
    observation = observe(model, settings.example)
    found, _ = resolve(settings.addresses, None, observation)
    points = tuple(sorted(found, key=lambda point: point.order))
    targets = targets_of(settings.targets, [point.name for point in points])
    hints = any(isinstance(t, SelfDistill) and t.hint for each in targets.values() for t in each)
    final = resolve(structure.last_features(observation), None, observation)[0][0] if hints else None
    gives = _gives(model, observation, settings)
    plan = Plan(
        points=points,
        prefix_tokens=tuple(prefix_tokens_of(point, observation) for point in points),
        final=final,
        outputs=settings.outputs,
        task=checked_task(settings.task, targets),
        main=settings.main,
        gives=gives,
        targets=targets,
        weighting=settings.weighting,
        gradient=settings.gradient,
        example=_shapes(inputs_of(model, settings.example)),
    )
    plan = replace(plan, taught=tuple(_taught(teacher, settings) for teacher in plan.teachers))
    return plan, _heads(model, plan, settings, observation)


def _features(point: Point, prefix_tokens: int) -> Features:
    found = Features.of(point, prefix_tokens=prefix_tokens)
    if found is None:
        raise SupervisionError(
            f"{point.name} holds {list(point.shape)} (axes {point.layout}), on which no head can be put: tap "
            "a layer that gives a map, tokens or a vector"
        )
    return found


def _heads(
    model: keras.Model, plan: Plan, settings: Settings, observation: Observation
) -> dict[str, keras.Layer]:
    wanted = heads_of(settings.heads, plan.names)
    layers = [id(head) for head in wanted.values() if isinstance(head, keras.Layer)]
    if len(set(layers)) < len(layers):
        raise SupervisionError(
            "one layer cannot be the head of several points: give a function that makes one, e.g. "
            "head=lambda channels: MyHead(channels), or one for each address, head={address: layer}"
        )
    unknown = set(settings.allow_large) - {name for p in plan.points for name in (p.name, p.address)}
    if unknown:
        raise SupervisionError(
            f"allow_large names {', '.join(unknown)}: heads are at {', '.join(plan.names)}"
        )
    base_params, final = observation.layers[""].params, final_features(observation)
    heads = {}
    for point in plan.points:
        given = wanted[point.name]
        check = partial(
            check_size,
            place=point.name,
            head=given if isinstance(given, HeadSpec) else "your own",
            base_params=base_params,
            allowed=point.name in settings.allow_large or point.address in settings.allow_large,
        )
        if isinstance(given, HeadSpec):
            features = plan.features(point.name)
            operations = given.operations(
                features, outputs=plan.outputs, final=final, base_params=base_params
            )
            check(parameters(operations))  # before anything is made: too large a head may not fit the memory
            heads[point.name] = _made(operations, point, features.prefix_tokens, model)
        else:
            heads[point.name] = head = _own(given, point, plan, model)
            check(sum(prod(weight.shape) for weight in head.weights))
    return heads


def _made(operations: tuple[Operation, ...], point: Point, prefix_tokens: int, model: keras.Model) -> Head:
    name = "".join(letter if letter.isalnum() else "_" for letter in f"head_{point.name}")
    head = Head(
        operations, layout=str(point.layout), prefix_tokens=prefix_tokens, name=name, dtype=model.dtype_policy
    )
    head.build((None, *point.shape))
    return head


def _own(given: Any, point: Point, plan: Plan, model: keras.Model) -> keras.Layer:
    """The user's own layer."""
    head = given if isinstance(given, keras.Layer) else given(plan.features(point.name).channels)
    if not isinstance(head, keras.Layer):
        raise SupervisionError(
            f"the head at {point.name!r} is a {type(head).__name__}: give a name such as 'linear', a spec of "
            "spile.supervision.heads, a keras.Layer, or a function from the number of channels to one"
        )
    scores = head(keras.KerasTensor((None, *point.shape), dtype=model.compute_dtype))
    if scores.shape[-1] != plan.outputs:
        raise SupervisionError(
            f"the head at {point.name!r} gives {list(scores.shape)}, not {plan.outputs} scores a sample"
        )
    return head


def picked(output: Any, main: MainOutput) -> Any:
    """The main output itself. Raises `SupervisionError` where `main` does not lead to a tensor."""
    found = output
    if callable(main):
        found = main(output)
    elif isinstance(main, int):
        found = output[main]
    elif isinstance(main, str):
        found = output[main] if isinstance(output, Mapping) else getattr(output, main, None)
    if hasattr(found, "shape"):
        return found
    keys = f" of {', '.join(map(str, output))}" if isinstance(output, Mapping) else ""
    raise SupervisionError(
        f"the model gives a {type(output).__name__}{keys}, and main={main!r} leads to no tensor of it: "
        "say which holds the logits, main='logits', a position, or a function of the output"
    )


def _gives(model: keras.Model, observation: Observation, settings: Settings) -> Gives:
    """What the main output holds, as the layer that made it tells, else its values."""
    if settings.task == "regression":
        return "logits"
    gives = _by_layer(model, observation, settings.main) or _by_values(model, settings)
    if gives not in ("logits", "sigmoid" if settings.task == "multilabel" else "softmax"):
        other = "classification" if gives == "softmax" else "multilabel"
        raise SupervisionError(
            f"the model ends with a {gives}, which task={settings.task!r} does not take: is it "
            f"task={other!r}? Else end the model with logits, or say where they are, main=..."
        )
    return gives


def _taught(teacher: Teacher, settings: Settings) -> Gives:
    """What a teacher's output holds. Raises `SupervisionError` for one that is no Keras model."""
    if not isinstance(teacher.model, keras.Model):
        raise SupervisionError(
            f"the teacher is a {type(teacher.model).__name__}: a Keras model needs a keras.Model"
        )
    if teacher.kind != "logits":
        return "logits"
    return _gives(teacher.model, observe(teacher.model, settings.example), settings)


def _by_layer(model: keras.Model, observation: Observation, main: MainOutput) -> Gives | None:
    wanted = [
        item.identity
        for item in observation.root.outputs
        if main is None or (not callable(main) and item.key == str(main))
    ]
    layers = {names[0]: layer for layer, names in names_of(model).items()}
    for call in observation.calls:
        if len(wanted) != 1 or not call.path or [o.identity for o in call.outputs] != wanted:
            continue
        layer = layers[call.path]
        if isinstance(layer, keras.layers.Softmax):
            return "softmax"
        gives = _by_activation(getattr(layer, "activation", None))
        # What only changes the type, as after a softmax in half precision, tells nothing.
        return None if gives == "logits" and isinstance(layer, keras.layers.Activation) else gives
    return None


def _by_activation(activation: Any) -> Gives | None:
    """What a layer's activation gives, whichever library it is of; ``None`` where that is none of these."""
    if not callable(activation) or isinstance(activation, keras.Layer):
        return None
    x = keras.ops.convert_to_tensor(np.array([[-2, 0.5, 3]], "float32"))
    try:
        found = keras.ops.convert_to_numpy(activation(x))
    except Exception:  # the user's own function: anything may come out
        return None
    known: dict[Gives, Callable[[Any], Any]] = {
        "softmax": keras.ops.softmax,
        "sigmoid": keras.ops.sigmoid,
        "logits": lambda x: x,
    }
    for gives, function in known.items():
        expected = keras.ops.convert_to_numpy(function(x))
        if found.shape == expected.shape and np.allclose(found, expected, atol=1e-5):
            return gives
    return None


def _by_values(model: keras.Model, settings: Settings) -> Gives:
    """For outputs of which no layer tells: rows that are positive and sum to 1 are probabilities.

    With several labels a row, numbers from 0 to 1 are, if they stay there whatever the signs of the weights.
    """
    random = np.random.default_rng(0)
    example = tuple(with_samples(inputs_of(model, settings.example), 2))

    def noise(value: Any) -> Any:
        dtype = keras.backend.standardize_dtype(value.dtype)
        return keras.ops.cast(random.normal(size=tuple(value.shape)), dtype) if "float" in dtype else value

    def values(state: list[Any] | None) -> Any:
        inputs = Inputs(*transform(example, noise))
        with stateless(model, state):
            output = model(*inputs.args, **inputs.kwargs, training=False)
        return keras.ops.convert_to_numpy(keras.ops.cast(picked(output, settings.main), "float32"))

    # Not statistics, of which a variance has no sign.
    weights = {id(v) for layer in model._flatten_layers() for v in layer._trainable_variables}

    def flipped(variable: Any) -> Any:
        if id(variable) not in weights or "float" not in str(variable.dtype):
            return variable.value
        signs = random.choice([-1.0, 1.0], size=tuple(variable.shape))
        return variable.value * keras.ops.cast(signs, variable.dtype)

    own = values(None)
    if own.min() >= 0 and np.abs(own.sum(axis=-1) - 1).max() < 1e-2:
        return "softmax"
    if settings.task != "multilabel" or not ((own > 0) & (own < 1)).any() or own.min() < 0 or own.max() > 1:
        return "logits"
    others = (values([flipped(variable) for variable in model.variables]) for _ in range(_FLIPS))
    return "sigmoid" if all(other.min() >= 0 and other.max() <= 1 for other in others) else "logits"


def _shapes(inputs: Inputs) -> Any:
    shapes = transform(tuple(inputs), lambda tensor: tuple(int(n) for n in tensor.shape))
    args, kwargs = shapes
    return kwargs if kwargs else args[0] if len(args) == 1 else args


def encoded(value: Any) -> Any:
    """A plan, a spec, or a value in one, as plain data."""
    if isinstance(value, Point):
        return {"is": "Point", **asdict(replace(value, pool=Pool("none"))), "pool": None}
    if is_dataclass(value) and not isinstance(value, type):
        kept = {field.name: encoded(getattr(value, field.name)) for field in fields(value)}
        return {"is": type(value).__name__, **kept}
    if isinstance(value, keras.Model) or (callable(value) and not isinstance(value, type)):
        return {"is": "object", "value": keras.saving.serialize_keras_object(value)}
    if isinstance(value, Mapping):
        return {"is": "dict", "items": [[key, encoded(each)] for key, each in value.items()]}
    if isinstance(value, tuple | list):
        return {"is": "tuple", "items": [encoded(each) for each in value]}
    return value


def decoded(value: Any) -> Any:
    """What `encoded` made plain."""
    if not isinstance(value, Mapping):
        return value
    described = dict(value)
    kind = described.pop("is")
    if kind == "object":
        return keras.saving.deserialize_keras_object(described["value"])
    if kind == "dict":
        return {key: decoded(each) for key, each in described["items"]}
    if kind == "tuple":
        return tuple(decoded(each) for each in described["items"])
    if kind == "Point":
        return Point(**{**described, "shape": tuple(described["shape"]), "pool": Pool("none")})
    known: dict[str, Callable[..., Any]] = {name: getattr(supervision, name) for name in supervision.__all__}
    return (known | {"Plan": Plan})[kind](**{name: decoded(each) for name, each in described.items()})

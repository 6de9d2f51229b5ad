"""Early exits: a model of its own that stops for a sample at the first head that is sure.

exits = supervised.exits((images, labels), accuracy=0.9)
exits.predict(more)                  # samples leave the batch as they finish
exits.measure(test, test_labels)     # accuracy, MACs and latencies, beside the whole and smaller models
exits.save("exits.keras")
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple, Self

import keras
import numpy as np
from keras import ops

from spile.errors import ModelError, SupervisionError
from spile.keras import losses
from spile.keras.capturing import padding
from spile.keras.certificates import twin_of
from spile.keras.features import plain_output
from spile.keras.heads import PACKAGE, Head
from spile.keras.names import is_graph
from spile.keras.observing import observe, stateless
from spile.keras.plans import Plan
from spile.keras.runtime import runtime
from spile.keras.trees import declared_inputs
from spile.supervision import exits as policies
from spile.supervision.exits import EARLY, WHOLE, ExitComparison, ExitPolicy, ExitReport, Way, compared
from spile.supervision.operations import macs

Array = np.ndarray[Any, Any]
_CHECKED = 8


class Exited(NamedTuple):
    """What `EarlyExits.run` gives, a row a sample."""

    logits: Array
    """Of the exit that the sample took."""
    exits: Array
    """Which one, from 0, the shallowest."""


@keras.saving.register_keras_serializable(PACKAGE)
class EarlyExits(keras.Model):
    """A network cut at its heads. Its weights are copies: further training of the other does not change it.

    Called, it runs every exit and chooses for each sample; `predict` and `run` stop early.
    """

    def __init__(
        self,
        segments: Sequence[keras.Model],
        heads: Sequence[keras.Layer],
        *,
        policy: ExitPolicy,
        costs: Sequence[float],
        static_costs: Sequence[float],
        gives: str,
        names: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(autocast=False, **kwargs)
        self.segments = list(segments)
        """From the input to the first head, from there to the next, and so on to the model's output."""
        self.exit_heads = list(heads)
        self.exit_names = tuple(names)
        """The layers where samples may leave, the last exit apart."""
        self.policy = policy
        self.costs = tuple(float(cost) for cost in costs)
        """Multiply-accumulates a sample to leave at each exit, the heads before it included."""
        self.static_costs = tuple(float(cost) for cost in static_costs)
        """The same of the model cut at each exit, without the heads before it."""
        self.expected: ExitReport | None = None
        """What the policy did on the samples its thresholds were chosen on."""
        self._gives = gives
        self._programs: dict[int, Callable[[Any], dict[str, Array]]] = {}
        self.built = True

    def call(self, inputs: Any, training: Any = None) -> Any:
        """Logits (samples, classes) of the exit that each sample would take; everything is run."""
        x, found = inputs, []
        for index in range(len(self.segments)):
            step = self._segment(index, x)
            x = step["features"]
            found.append(step["logits"])
        chosen = found[-1]
        for index in reversed(range(len(found) - 1)):
            scaled = ops.softmax(found[index] / self.policy.temperatures[index], axis=-1)
            sure = ops.amax(scaled, axis=-1, keepdims=True) >= self.policy.thresholds[index]
            chosen = ops.where(sure, found[index], chosen)
        return chosen

    def run(self, inputs: Any, *, batch_size: int = 32, policy: ExitPolicy | None = None) -> Exited:
        """Logits, and the exit taken. What has not left goes on in a smaller batch."""
        policy = policy or self.policy
        rows = [self._batch(inputs[i : i + batch_size], policy) for i in range(0, len(inputs), batch_size)]
        return Exited(*(np.concatenate(each) for each in zip(*rows, strict=True)))

    def predict(self, x: Any, batch_size: int | None = None, **_: Any) -> Array:
        """Logits (samples, classes), of arrays; samples leave as soon as an exit is sure."""
        return self.run(np.asarray(x), batch_size=batch_size or 32).logits

    def logits(self, inputs: Any, *, batch_size: int = 32) -> Array:
        """Those of every exit (exits, samples, classes)."""
        every = []
        for start in range(0, len(inputs), batch_size):
            x, found = inputs[start : start + batch_size], []
            for index in range(len(self.segments)):
                step = self._step(index, x)
                x = step["features"]
                found.append(step["logits"])
            every.append(np.stack(found))
        return np.concatenate(every, axis=1)

    def measure(
        self,
        inputs: Any,
        labels: Any,
        *,
        static: Mapping[str, keras.Model] | None = None,
        rounds: int = policies.ROUNDS,
    ) -> ExitComparison:
        """Accuracy, MACs and latency on samples of your own, which calibration must not have seen.

        Beside the early exits stand the full model, the model that ends at each head, and the `static` ones:
        smaller models that you trained on their own, by name. Latencies are of single samples, all ways one
        after the other in each of `rounds` rounds.
        """
        inputs, labels = np.asarray(inputs), np.asarray(labels).ravel()
        logits = self.logits(inputs)
        report = policies.measure(logits, labels, self.costs, self.policy)

        def way(of: EarlyExits, policy: ExitPolicy, accuracy: float, macs: float) -> Way:
            def run(number: int) -> object:
                return of._batch(inputs[number : number + 1], policy)

            return Way(accuracy=accuracy, macs=macs, run=run)

        ways = {EARLY: way(self, self.policy, report.accuracy, report.macs)}
        last = len(self.segments) - 1
        for exit, name in enumerate([*(f"ends at {name}" for name in self.exit_names), WHOLE]):
            right = float((logits[exit].argmax(-1) == labels).mean())
            ways[name] = way(self, _only(exit, last, self.policy), right, self.static_costs[exit])
        for name, model in (static or {}).items():
            alone = _alone(model, inputs)
            right = float((alone.predict(inputs).argmax(-1) == labels).mean())
            ways[name] = way(alone, alone.policy, right, alone.costs[0])
        return compared(ways, shares=report.shares, samples=len(labels), rounds=rounds)

    def _batch(self, x: Any, policy: ExitPolicy) -> tuple[Array, Array]:
        rows = np.arange(len(x))
        exits = np.full(len(x), len(self.segments) - 1)
        logits: Array | None = None
        for index in range(len(self.segments)):
            skip = policy.thresholds[index] == np.inf
            step = self._step(index, x, head=not skip)
            if skip:
                x = step["features"]
                continue
            here = step["logits"]
            logits = np.zeros((len(exits), here.shape[-1]), here.dtype) if logits is None else logits
            sure = policies.confidences(here[None], (policy.temperatures[index],))[0]
            leaves = sure >= policy.thresholds[index]
            logits[rows[leaves]], exits[rows[leaves]] = here[leaves], index
            x, rows = step["features"][~leaves], rows[~leaves]
            if not len(rows):
                break
        assert logits is not None
        return logits, exits

    def _segment(self, index: int, x: Any, *, head: bool = True) -> dict[str, Any]:
        features = self.segments[index](x, training=False)
        if index == len(self.segments) - 1:
            return {"features": features, "logits": losses.logits_of(features, self._gives)}
        if not head:
            return {"features": features}
        own = self.exit_heads[index]
        scores = own(features, padding(features, None)) if isinstance(own, Head) else own(features)
        return {"features": features, "logits": losses.float32(scores)}

    def _step(self, index: int, x: Any, *, head: bool = True) -> dict[str, Array]:
        """One segment on arrays, compiled where that soon pays; then in batches of few sizes."""
        backend = runtime()
        if backend.least_batches > 1:
            with backend.without_gradients(), stateless(self, None):
                found = self._segment(index, ops.convert_to_tensor(x), head=head)
            return {name: ops.convert_to_numpy(ops.cast(v, "float32")) for name, v in found.items()}
        key = 2 * index + head
        if key not in self._programs:

            def body(state: Any, given: Any) -> dict[str, Any]:
                with stateless(self, state):
                    return self._segment(index, given, head=head)

            self._programs[key] = backend.compiled(body, self.variables)
        rows = len(x)
        if backend.fixed_batch:
            missing = (1 << (rows - 1).bit_length()) - rows
            x = np.concatenate([x, np.repeat(np.asarray(x[-1:]), missing, axis=0)])
        return {name: value[:rows] for name, value in self._programs[key](x).items()}

    def get_config(self) -> dict[str, Any]:
        """Segments, heads and policy."""
        write = keras.saving.serialize_keras_object
        return {
            "name": self.name,
            "segments": [{**write(each), "compile_config": None} for each in self.segments],
            "heads": [write(each) for each in self.exit_heads],
            "temperatures": list(self.policy.temperatures),
            # JSON has no infinity, and no sample reaches 2.
            "thresholds": [min(threshold, 2.0) for threshold in self.policy.thresholds],
            "costs": list(self.costs),
            "static_costs": list(self.static_costs),
            "gives": self._gives,
            "names": list(self.exit_names),
            "expected": None if self.expected is None else asdict(self.expected),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Self:
        """The model that `get_config` described."""
        with keras.saving.custom_object_scope(custom_objects or {}):
            read = keras.saving.deserialize_keras_object
            thresholds = (np.inf if n > 1 else n for n in config["thresholds"])
            made = cls(
                [read(each) for each in config["segments"]],
                [read(each) for each in config["heads"]],
                policy=ExitPolicy(
                    temperatures=tuple(config["temperatures"]), thresholds=tuple(map(float, thresholds))
                ),
                costs=config["costs"],
                static_costs=config["static_costs"],
                gives=config["gives"],
                names=config["names"],
                name=config["name"],
            )
        if config["expected"] is not None:
            expected = config["expected"]
            made.expected = ExitReport(**{**expected, "shares": tuple(expected["shares"])})
        return made


def make_exits(
    supervised: Any,
    plan: Plan,
    data: tuple[Any, Any],
    *,
    whole_macs: int,
    accuracy: float | None,
    budget: float | None,
    holdout: float,
) -> EarlyExits:
    """Cut the network, fit temperatures, choose thresholds. Raises `SupervisionError`."""
    if plan.task != "classification":
        raise SupervisionError(f"early exits are for classes, not for task={plan.task!r}")
    inputs, labels = np.asarray(data[0]), np.asarray(data[1]).ravel()
    fitted = round((1 - holdout) * len(labels))
    if len(inputs) != len(labels) or not 0 < fitted < len(labels):
        raise SupervisionError(
            f"{len(inputs)} inputs, {len(labels)} labels and holdout={holdout}: give as many labels as "
            "inputs, and a holdout that leaves samples on both sides, e.g. 0.5"
        )
    own = [*(_head_macs(supervised.heads[name], plan, name) for name in plan.names), 0]
    static = [*(point.macs for point in plan.points), whole_macs]
    made = EarlyExits(
        _segments(supervised.base, plan),
        [_copied(head) for head in supervised.heads.values()],
        policy=ExitPolicy(temperatures=(1.0,) * len(own), thresholds=(0.0,) * len(own)),
        costs=[cost + heads for cost, heads in zip(static, np.cumsum(own), strict=True)],
        static_costs=[cost + head for cost, head in zip(static, own, strict=True)],
        gives=plan.gives,
        names=plan.names,
        name=f"exits_{supervised.base.name}",
    )
    _check(made, supervised, inputs[:_CHECKED])
    order = np.random.default_rng(0).permutation(len(labels))
    first, second = order[:fitted], order[fitted:]
    logits = made.logits(inputs[first])
    temperatures = tuple(policies.fit_temperature(each, labels[first]) for each in logits)
    held = made.logits(inputs[second])
    made.policy = policies.fit_policy(
        held, labels[second], made.costs, temperatures=temperatures, accuracy=accuracy, budget=budget
    )
    used = [
        share * (threshold < np.inf) for share, threshold in zip(own, made.policy.thresholds, strict=True)
    ]
    made.costs = tuple(float(cost + heads) for cost, heads in zip(static, np.cumsum(used), strict=True))
    made.expected = policies.measure(held, labels[second], made.costs, made.policy)
    return made


def _segments(base: keras.Model, plan: Plan) -> list[keras.Model]:
    """A twin of the base, cut at the points. Raises `SupervisionError` where it cannot be cut."""
    if not (is_graph(base) or isinstance(base, keras.Sequential)) or plan.main is not None:
        raise SupervisionError(
            "early exits cut the graph of a model: they need a Functional or Sequential one"
        )
    try:
        twin = twin_of(base)
    except ModelError as error:
        raise SupervisionError(f"early exits need a copy of the model: {error}") from error
    places = [plain_output(twin, point) for point in plan.points]
    inner = [point.name for point, place in zip(plan.points, places, strict=True) if place is None]
    if inner:
        raise SupervisionError(
            f"early exits cannot cut at {', '.join(inner)}: put heads on the model's own layers, not inside "
            "of them"
        )
    starts, ends = [declared_inputs(twin), *places], [*places, twin.outputs[0]]
    try:
        pairs = enumerate(zip(starts, ends, strict=True))
        return [keras.Model(start, end, name=f"part_{index}") for index, (start, end) in pairs]
    except ValueError as error:
        raise SupervisionError(
            f"early exits cannot cut at {', '.join(plan.names)}: something flows past one of them to the "
            "output. Put heads where everything goes through, such as the ends of stages"
        ) from error


def _copied(head: keras.Layer) -> keras.Layer:
    twin = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(head))
    if not twin.built:
        twin.build(head.get_build_config()["input_shape"])
    twin.set_weights(head.get_weights())
    return twin


def _check(made: EarlyExits, supervised: Any, inputs: Array) -> None:
    """The parts give what the whole gives; not so where more than features goes on, such as masks."""
    output = supervised(ops.convert_to_tensor(inputs), training=False)
    whole = [ops.convert_to_numpy(losses.float32(each)) for each in (*output.aux.values(), output.main)]
    largest = max(float(np.abs(each).max()) for each in whole)
    if not np.allclose(np.stack(whole), made.logits(inputs), rtol=1e-3, atol=1e-3 * largest):
        raise SupervisionError(
            "the model gives other logits when it is cut at its heads: does more than one tensor, such as a "
            "padding mask, go from part to part?"
        )


def _head_macs(head: keras.Layer, plan: Plan, name: str) -> int:
    """Of spile's own heads; a user's head counts nothing."""
    return macs(head.operations, plan.features(name)) if isinstance(head, Head) else 0


def _alone(model: keras.Model, inputs: Array) -> EarlyExits:
    """A model of its own, run as the parts of an early-exit model are."""
    macs = float(observe(model, inputs[:2]).root.macs)
    policy = ExitPolicy(temperatures=(1.0,), thresholds=(0.0,))
    return EarlyExits([model], [], policy=policy, costs=[macs], static_costs=[macs], gives="logits")


def _only(exit: int, last: int, policy: ExitPolicy) -> ExitPolicy:
    """Every sample leaves at one exit, and no other head is run."""
    thresholds = [np.inf] * (last + 1)
    thresholds[exit] = 0.0
    return replace(policy, thresholds=tuple(thresholds))

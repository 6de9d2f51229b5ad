"""The conformance suite on Keras: Functional networks, and the same ones as subclasses of `keras.Model`."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

from spile.keras import capturing

pytest.register_assert_rewrite("spile.testing")

from spile.keras.runtime import runtime  # noqa: E402
from spile.testing import Array, BackendTests, Case  # noqa: E402

pytestmark = pytest.mark.essential


class Row(keras.Model):
    """Its layers one after the other, as attributes."""

    def __init__(self, **inside: keras.Layer) -> None:
        super().__init__()
        self.names = list(inside)
        for name, layer in inside.items():
            setattr(self, name, layer)

    def call(self, x: Any) -> Any:
        for name in self.names:
            x = getattr(self, name)(x)
        return x


class Tripwire(layers.Layer):
    """Raises once it is armed; that is told to the class, as it is not part of the model's state."""

    armed = False

    def call(self, x: Any) -> Any:
        if Tripwire.armed:
            raise RuntimeError("tripped")
        return x


class Split(layers.Layer):
    def __init__(self, as_dict: bool, **options: Any) -> None:
        super().__init__(**options)
        self.as_dict = as_dict

    def call(self, x: Any) -> Any:
        return {"a": x + 1, "b": x * 2} if self.as_dict else (x + 1, x * 2)


class Siamese(keras.Model):
    def __init__(self, encoder: keras.Layer) -> None:
        super().__init__()
        self.encoder, self.head = encoder, layers.Dense(3)

    def call(self, left: Any, right: Any) -> Any:
        return self.head(self.encoder(left) - self.encoder(right))


class ReluTwice(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.relu = layers.Dense(5), layers.Dense(6), layers.ReLU()

    def call(self, x: Any) -> Any:
        return self.relu(self.second(self.relu(self.first(x))))


class Splitting(keras.Model):
    def __init__(self, as_dict: bool) -> None:
        super().__init__()
        self.split, self.head = Split(as_dict), layers.Dense(3)

    def call(self, x: Any) -> Any:
        parts = self.split(x)
        one, other = parts.values() if isinstance(parts, dict) else parts
        return self.head(one + other)


class TwoInputs(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.join, self.head = layers.Concatenate(), layers.Dense(3)

    def call(self, left: Any, right: Any) -> Any:
        return self.head(self.join([left, right]))


class Idle(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = layers.Dense(3), layers.Dense(3)
        self.unused.build((None, 4))

    def call(self, x: Any) -> Any:
        return self.used(x)


class Tied(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.first = layers.Dense(4)
        self.second = self.first

    def call(self, x: Any) -> Any:
        return self.second(x)


class Branching(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up, self.down = layers.Identity(), layers.Dense(3), layers.Dense(3)
        self.up.build((None, 4))
        self.down.build((None, 4))

    def call(self, x: Any) -> Any:
        x = self.stem(x)
        return self.up(x) if float(ops.sum(x)) > 0 else self.down(x)


class Looping(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = layers.Identity(), layers.Dense(3)

    def call(self, x: Any) -> Any:
        for _ in range(int(x[0, 0])):
            x = self.cell(x)
        return self.head(x)


def through(x: Any, *steps: tuple[str, keras.Layer]) -> dict[str, Any]:
    """One layer after the other."""
    found: dict[str, Any] = {}
    for name, layer in steps:
        x = found[name] = layer(x, training=False) if name in ("norm", "drop") else layer(x)
    return found


def of(model: keras.Model, run: Callable[..., dict[str, Any]], **inputs: tuple[int, ...]) -> Case:
    """`run` gives every layer's output, from tensors. A subclass is built by a first call."""
    if not model.built:
        model(*(np.ones((2, *shape), "float32") for shape in inputs.values()))
    return Case(model, inputs, expected=lambda *batch: run(*map(ops.convert_to_tensor, batch)))


class OnKeras(BackendTests):
    """What Functional models and subclasses have in common."""

    separator, map_layout, dense = "/", "BYXC", "Dense"
    engines = ("eager", "compile", "openvino") if runtime().openvino_helps else ("eager", "compile")

    @pytest.fixture(autouse=True)
    def _channels_last(self) -> None:
        assert keras.config.image_data_format() == "channels_last"

    def row(self, shape: tuple[int, ...], **inside: keras.Layer) -> keras.Model:
        """A model of layers one after the other."""
        raise NotImplementedError

    def chain(self) -> Case:
        keras.utils.set_random_seed(0)
        Tripwire.armed = False
        inside = {
            "first": layers.Dense(5, name="first"),
            "act": layers.Activation("tanh", name="act"),
            "second": layers.Dense(6, name="second"),
            "tripwire": Tripwire(name="tripwire"),
            "head": layers.Dense(3, name="head"),
        }
        case = of(self.row((4,), **inside), lambda x: through(x, *inside.items()), x=(4,))
        return replace(case, arm=lambda: setattr(Tripwire, "armed", True))

    def nested(self) -> Case:
        keras.utils.set_random_seed(0)
        dense, act = layers.Dense(6, name="dense"), layers.Activation("tanh", name="act")
        enter, stem = layers.Dense(5, name="enter"), layers.Dense(5, name="stem")
        head = layers.Dense(3, name="head")
        inner = self.row((5,), name="inner", dense=dense, act=act)
        outer = self.row((5,), name="outer", enter=enter, middle=self.row((5,), name="middle", inner=inner))

        def run(x: Any) -> dict[str, Any]:
            found = through(
                x,
                ("stem", stem),
                ("outer/enter", enter),
                ("outer/middle/inner/dense", dense),
                ("outer/middle/inner/act", act),
            )
            last = found["outer/middle/inner/act"]
            ends = dict.fromkeys(("outer/middle/inner", "outer/middle", "outer"), last)
            return found | ends | {"head": head(last)}

        return of(self.row((4,), stem=stem, outer=outer, head=head), run, x=(4,))

    def normalised(self) -> Case:
        keras.utils.set_random_seed(0)
        inside = {
            "conv": layers.Conv2D(4, 3, padding="same", name="conv"),
            "norm": layers.BatchNormalization(name="norm"),
            "act": layers.ReLU(name="act"),
            "drop": layers.Dropout(0.5, name="drop"),
            "pool": layers.GlobalAveragePooling2D(name="pool"),
            "head": layers.Dense(3, name="head"),
        }
        model = self.row((7, 6, 3), **inside)
        case = of(model, lambda x: through(x, *inside.items()), x=(7, 6, 3))
        inside["norm"].moving_mean.assign([0.1, 0.4, 0.2, 0.9])
        inside["norm"].moving_variance.assign([0.5, 2.0, 1.3, 0.8])
        model.compile(optimizer="adam", loss="mse")
        model.optimizer.build(model.trainable_variables)
        return case

    def tokens(self) -> Case:
        keras.utils.set_random_seed(0)
        inside = {"mix": layers.Dense(6, name="mix"), "head": layers.Dense(3, name="head")}
        return of(self.row((5, 4), **inside), lambda x: through(x, *inside.items()), x=(5, 4))

    def tuple_output(self) -> Case:
        return self.splitting(as_dict=False)

    def dict_output(self) -> Case:
        return self.splitting(as_dict=True)

    def splitting(self, *, as_dict: bool) -> Case:
        """With a layer of two outputs."""
        keras.utils.set_random_seed(0)
        model, items = self.splitting_model(as_dict), "ab" if as_dict else "01"

        def run(x: Any) -> dict[str, Any]:
            parts = {f"split:{items[0]}": x + 1, f"split:{items[1]}": x * 2}
            return parts | {"head": _layer(model, "head")(x + 1 + x * 2)}

        return of(model, run, x=(4,))

    def splitting_model(self, as_dict: bool) -> keras.Model:
        """The model of `splitting`."""
        raise NotImplementedError

    def shared(self) -> Case:
        keras.utils.set_random_seed(0)
        dense, act = layers.Dense(5, name="dense"), layers.Activation("tanh", name="act")
        model = self.shared_model(self.row((4,), name="encoder", dense=dense, act=act))

        def run(left: Any, right: Any) -> dict[str, Any]:
            found: dict[str, Any] = {}
            for call, x in enumerate((left, right)):
                found[f"encoder/dense#{call}"] = dense(x)
                found[f"encoder/act#{call}"] = found[f"encoder#{call}"] = ops.tanh(dense(x))
            return found | {"head": _layer(model, "head")(found["encoder#0"] - found["encoder#1"])}

        return of(model, run, left=(4,), right=(4,))

    def shared_model(self, encoder: keras.Model) -> keras.Model:
        """The model of `shared`."""
        raise NotImplementedError

    def relu_twice(self) -> Case:
        keras.utils.set_random_seed(0)
        model = self.relu_twice_model()

        def run(x: Any) -> dict[str, Any]:
            first = _layer(model, "first")(x)
            second = _layer(model, "second")(ops.relu(first))
            return {"first": first, "relu#0": ops.relu(first), "second": second, "relu#1": ops.relu(second)}

        return of(model, run, x=(4,))

    def relu_twice_model(self) -> keras.Model:
        """The model of `relu_twice`."""
        raise NotImplementedError

    def two_inputs(self) -> Case:
        keras.utils.set_random_seed(0)
        model = self.two_inputs_model()

        def run(left: Any, right: Any) -> dict[str, Any]:
            joined = ops.concatenate([left, right], axis=1)
            return {"join": joined, "head": _layer(model, "head")(joined)}

        return of(model, run, left=(4,), right=(3,))

    def two_inputs_model(self) -> keras.Model:
        """The model of `two_inputs`."""
        raise NotImplementedError

    # Subclasses only: a graph holds no layer that does not run, and does not look at values.

    def idle_layer(self) -> Case:
        keras.utils.set_random_seed(0)
        model = Idle()
        return of(model, lambda x: {"used": model.used(x)}, x=(4,))

    def tied(self) -> Case:
        keras.utils.set_random_seed(0)
        model = Tied()
        return of(model, lambda x: {"first": model.first(x)}, x=(4,))

    def branching(self) -> Case:
        keras.utils.set_random_seed(0)
        model = Branching()

        def run(x: Any) -> dict[str, Any]:
            name = "up" if float(ops.sum(x)) > 0 else "down"
            return {"stem": x, name: getattr(model, name)(x)}

        return of(model, run, x=(4,))

    def looping(self) -> Case:
        keras.utils.set_random_seed(0)
        model = Looping()

        def run(x: Any) -> dict[str, Any]:
            times = int(x[0, 0])
            cells = {f"cell#{call}" if times > 1 else "cell": x for call in range(times)}
            return cells | {"head": model.head(x)}

        return of(model, run, x=(4,))

    # What the suite asks of the framework.

    def to_numpy(self, value: Any) -> Array:
        return ops.convert_to_numpy(value)

    def state(self, model: keras.Model) -> Any:
        lines: list[str] = []
        model.summary(print_fn=lines.append)
        optimizer = getattr(model, "optimizer", None)
        return {
            "variables": [(v.path, id(v), v.trainable, v.numpy().tobytes()) for v in model.variables],
            "optimizer": [v.numpy().tobytes() for v in optimizer.variables] if optimizer else None,
            "layers": [_attributes(layer) for layer in model._flatten_layers()],
            "summary": lines,
            "random": (random.getstate(), np.random.get_state()[1].tobytes()),
        }

    def perturbed(self, model: keras.Model) -> Iterator[str]:
        for variable in model.weights:
            original = variable.numpy()
            changed = original.copy()
            changed.flat[-1] += 1
            variable.assign(changed)
            yield variable.path
            variable.assign(original)

    def scramble(self, model: keras.Model) -> None:
        values = np.random.default_rng(1)
        for variable in model.weights:
            variable.assign(values.uniform(0.1, 0.9, variable.shape))

    def gradient(self, function: Callable[[Any], Any], x: Array) -> Array:
        match keras.backend.backend():
            case "torch":
                import torch

                tensor = torch.tensor(x, requires_grad=True)
                return torch.autograd.grad(function(tensor).sum(), tensor)[0].numpy()
            case "jax":
                import jax

                return np.asarray(jax.grad(lambda tensor: function(tensor).sum())(x))
            case _:
                import tensorflow as tf

                with tf.GradientTape() as tape:
                    tensor = tf.convert_to_tensor(x)
                    tape.watch(tensor)
                    total = tf.reduce_sum(function(tensor))
                return tape.gradient(total, tensor).numpy()

    def tamper(self, monkeypatch: pytest.MonkeyPatch) -> None:
        true = capturing.pooled
        monkeypatch.setattr(capturing, "pooled", lambda *args, **options: true(*args, **options) + 1)


class TestFunctional(OnKeras):
    def row(self, shape: tuple[int, ...], *, name: str | None = None, **inside: keras.Layer) -> keras.Model:
        x = start = keras.Input(shape)
        for layer in inside.values():
            x = layer(x)
        return keras.Model(start, x, name=name)

    def splitting_model(self, as_dict: bool) -> keras.Model:
        start = keras.Input((4,))
        parts = Split(as_dict, name="split")(start)
        one, other = parts.values() if as_dict else parts
        return keras.Model(start, layers.Dense(3, name="head")(one + other))

    def shared_model(self, encoder: keras.Model) -> keras.Model:
        sides = {name: keras.Input((4,), name=name) for name in ("left", "right")}
        left, right = map(encoder, sides.values())
        return keras.Model(sides, layers.Dense(3, name="head")(left - right))

    def relu_twice_model(self) -> keras.Model:
        start, relu = keras.Input((4,)), layers.ReLU(name="relu")
        x = relu(layers.Dense(5, name="first")(start))
        return keras.Model(start, relu(layers.Dense(6, name="second")(x)))

    def two_inputs_model(self) -> keras.Model:
        sides = {"left": keras.Input((4,), name="left"), "right": keras.Input((3,), name="right")}
        joined = layers.Concatenate(name="join")(list(sides.values()))
        return keras.Model(sides, layers.Dense(3, name="head")(joined))


class TestSubclassed(OnKeras):
    def row(self, shape: tuple[int, ...], *, name: str | None = None, **inside: keras.Layer) -> keras.Model:
        return Row(**inside)

    def splitting_model(self, as_dict: bool) -> keras.Model:
        return Splitting(as_dict)

    def shared_model(self, encoder: keras.Model) -> keras.Model:
        return Siamese(encoder)

    def relu_twice_model(self) -> keras.Model:
        return ReluTwice()

    def two_inputs_model(self) -> keras.Model:
        return TwoInputs()


def _layer(model: keras.Model, name: str) -> keras.Layer:
    return getattr(model, name, None) or model.get_layer(name)


def _attributes(layer: keras.Layer) -> dict[str, Any]:
    """By identity; of lists, sets and dicts what is in them. That it ever ran, a layer may remember."""
    return {
        name: sorted(map(id, value)) if isinstance(value, list | set | dict | tuple) else id(value)
        for name, value in vars(layer).items()
        if name != "_called"
    }

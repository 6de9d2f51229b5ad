"""Every layer of many architectures at once: as a reference without spile has it, and none missing.

`zoo_values.json` holds one number for every layer, made on TensorFlow, that the others are compared with.
To make it anew: ``KERAS_BACKEND=tensorflow python tests/keras/test_zoo.py``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import spile
from spile.keras.accelerating import engine_for
from spile.keras.runtime import runtime

pytestmark = [pytest.mark.zoo, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(600)]

Array = Any
VALUES = Path(__file__).with_name("zoo_values.json")
RTOL = 1e-4
DIGITS = 6

APPLICATIONS: dict[str, dict[str, Any]] = {
    "ConvNeXtTiny": {},
    "DenseNet121": {},
    "EfficientNetB0": {"gain": 2.5},
    "EfficientNetV2B0": {"gain": 1.5},
    "InceptionResNetV2": {"size": 75},
    "InceptionV3": {"size": 75},
    "MobileNet": {"alpha": 0.25},
    "MobileNetV2": {"alpha": 0.35},
    "MobileNetV3Small": {"alpha": 0.75},
    "NASNetMobile": {"gain": 1.0},
    "ResNet50": {},
    "ResNet50V2": {},
    "VGG16": {},
    "VGG19": {},
    "Xception": {"size": 71, "gain": 1.0},
}
PIXELS = (keras.layers.Rescaling, keras.layers.Normalization)
"""A model that begins with one of them takes images from 0 to 255."""
GAIN = 2.0
"""Variance of a weight times the inputs of its unit: with more, some families magnify rounding errors; with
less, all images end up alike."""
NOT_ON_TORCH = "NASNetMobile"
"""Keras itself refuses to build it there."""

TEXT = {"vocabulary_size": 32, "num_layers": 2, "num_heads": 2, "intermediate_dim": 16}
IMAGE = {"num_layers": 2, "num_heads": 2, "hidden_dim": 8, "image_shape": (32, 32, 3)}
HUB: dict[str, dict[str, Any]] = {
    "ResNetBackbone": {
        "input_conv_filters": [64],
        "input_conv_kernel_sizes": [3],
        "stackwise_num_filters": [64, 64],
        "stackwise_num_blocks": [1, 1],
        "stackwise_num_strides": [1, 2],
        "block_type": "basic_block",
        "image_shape": (32, 32, 3),
    },
    "ViTBackbone": {**IMAGE, "patch_size": 8, "mlp_dim": 16},
    "DINOV2Backbone": {**IMAGE, "patch_size": 8, "intermediate_dim": 16, "num_register_tokens": 2},
    "MiTBackbone": {
        "max_drop_path_rate": 0.1,
        "layerwise_depths": [1, 1],
        "num_layers": 2,
        "layerwise_num_heads": [1, 2],
        "layerwise_sr_ratios": [2, 1],
        "layerwise_patch_sizes": [7, 3],
        "layerwise_strides": [4, 2],
        "hidden_dims": [8, 16],
        "image_shape": (32, 32, 3),
    },
    "BertBackbone": {**TEXT, "hidden_dim": 8, "max_sequence_length": 9},
    "GPT2Backbone": {**TEXT, "hidden_dim": 8, "max_sequence_length": 9},
    "T5Backbone": {**TEXT, "hidden_dim": 8, "key_value_dim": 4},
}


@dataclass(frozen=True)
class Case:
    """A model with weights from NumPy, three samples, and every layer's outputs by a way without spile."""

    name: str
    model: keras.Model
    inputs: Any
    expected: Mapping[str, Array]


def application(name: str) -> Case:
    options = dict(APPLICATIONS[name])
    size, gain = options.pop("size", 32), options.pop("gain", GAIN)
    build = getattr(keras.applications, name)
    options |= {"weights": None, "input_shape": (size, size, 3), "classes": 7, "classifier_activation": None}
    model = with_weights(lambda: build(**options), gain)
    images = np.random.default_rng(1).normal(size=(3, size, size, 3)).astype("float32")
    if any(isinstance(layer, PIXELS) for layer in model.layers):
        images = 128 + 64 * images
    return Case(name, model, images, outputs_of_graph(model, images))


def backbone(name: str) -> Case:
    keras_hub = pytest.importorskip("keras_hub")
    model = with_weights(lambda: getattr(keras_hub.models, name)(**HUB[name]))
    random = np.random.default_rng(1)
    tokens = random.integers(1, 32, (3, 9)).astype("int32")
    mask = (np.arange(9) < [[9], [6], [2]]).astype("int32")
    known = {"token_ids": tokens, "padding_mask": mask, "segment_ids": 1 - mask}
    known |= {f"{side}_{key}": known[key] for side in ("encoder", "decoder") for key in list(known)[:2]}
    known["images"] = images = random.normal(size=(3, 32, 32, 3)).astype("float32")
    inputs = {key: known[key] for key in model.input} if isinstance(model.input, dict) else images
    return Case(name, model, inputs, outputs_of_calls(model, inputs))


def with_weights(build: Callable[[], keras.Model], gain: float = GAIN) -> keras.Model:
    """A model whose weights and statistics are the same on every backend, and differ from layer to layer."""
    keras.utils.clear_session()  # the names that Keras makes up begin anew
    model = build()
    random = np.random.default_rng(0)
    for variable in model.weights:
        if "float" in variable.dtype and variable.name not in ("mean", "variance"):  # of a Normalization
            variable.assign(weight(variable.name, tuple(variable.shape), gain, random))
    return model


def weight(name: str, shape: tuple[int, ...], gain: float, random: np.random.Generator) -> Array:
    if name in ("gamma", "scale", "moving_variance"):
        return random.uniform(0.6, 1.4, shape)
    if "kernel" not in name:
        return random.normal(size=shape) * 0.1
    depthwise = len(shape) == 4 and shape[-1] == 1
    return random.normal(size=shape) * np.sqrt(gain / np.prod(shape[:2] if depthwise else shape[:-1]))


def outputs_of_graph(model: keras.Model, inputs: Any) -> dict[str, Array]:
    """By a graph with one output a layer; what is inside a Sequential model is called layer by layer."""
    layers = [layer for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]
    everything = keras.Model(model.input, [layer.output for layer in layers])
    found = dict(zip((layer.name for layer in layers), everything(inputs, training=False), strict=True))
    for outer in layers:
        if isinstance(outer, keras.Sequential):
            x = keras.Model(model.input, outer.input)(inputs, training=False)
            for layer in outer.layers:
                x = found[f"{outer.name}/{layer.name}"] = layer(x, training=False)
    return {name: keras.ops.convert_to_numpy(value) for name, value in found.items()}


def outputs_of_calls(model: keras.Model, inputs: Any) -> dict[str, Array]:
    """By watching every call of any layer but the model itself, in the order in which the calls end."""
    found: list[Array] = []
    call = keras.Layer.__call__

    def watched(layer: keras.Layer, *args: Any, **kwargs: Any) -> Any:
        output = call(layer, *args, **kwargs)
        if layer is not model:
            found.extend(keras.ops.convert_to_numpy(t) for t in keras.tree.flatten(output) if t is not None)
        return output

    keras.Layer.__call__ = watched
    try:
        model(inputs, training=False)
    finally:
        keras.Layer.__call__ = call
    return {str(position): value for position, value in enumerate(found)}


def families() -> Iterator[Any]:
    refused = pytest.mark.skipif(
        keras.backend.backend() == "torch", reason="Keras does not build it on torch"
    )
    for name in APPLICATIONS:
        yield pytest.param(name, marks=refused if name == NOT_ON_TORCH else ())


@pytest.fixture(scope="module", params=families())
def case(request: pytest.FixtureRequest) -> Case:
    return application(request.param)


@pytest.fixture(scope="module", params=HUB)
def hub_case(request: pytest.FixtureRequest) -> Case:
    return backbone(request.param)


def test_every_layer_at_once(case: Case) -> None:
    with spile.tap(case.model, "all", pool=None) as tap:
        found = tap(case.inputs)
        assert set(found) == set(case.expected)
        assert tap.left_out == ()
    for name, value in found.items():
        same(keras.ops.convert_to_numpy(value), case.expected[name], name)


def test_extracted_by_the_compiled_engine(case: Case) -> None:
    """Averaged over the image, with a last odd batch."""
    with spile.tap(case.model, "all", pool="auto") as tap:
        store = spile.extract(tap, case.inputs, dtype="float32", batch_size=2, progress=False)
    assert set(store.points) == set(case.expected)
    for name in store.points:
        same(store[name].numpy(), averaged(case.expected[name]), name)


helps = pytest.mark.skipif(not runtime().openvino_helps, reason="OpenVINO does not help on this backend")


@helps
def test_extracted_by_openvino(case: Case) -> None:
    """Averaged over the image, with a last odd batch."""
    with spile.tap(case.model, "all", pool="auto") as tap:
        store = spile.extract(
            tap, case.inputs, engine="openvino", dtype="float32", batch_size=2, progress=False
        )
    for name in store.points:
        same(store[name].numpy(), averaged(case.expected[name]), name)


@helps
def test_a_backbone_by_openvino(hub_case: Case) -> None:
    """Of images and of texts."""
    with spile.tap(hub_case.model, "blocks", pool=None) as tap:
        run = engine_for(tap, name="openvino", preprocessing=None, precision="float32")
        for name, value in run(hub_case.inputs).items():
            expected = keras.ops.convert_to_numpy(tap(hub_case.inputs)[name])
            np.testing.assert_allclose(value, expected, rtol=1e-3, atol=1e-4, err_msg=name)


def test_the_same_on_every_backend(case: Case) -> None:
    """One number of each layer, drawn from all of its channels, as TensorFlow has it."""
    known = json.loads(VALUES.read_text())[case.name]
    for (name, value), number in zip(case.expected.items(), known, strict=True):
        found, scale = summary(value)
        assert abs(found - number) <= RTOL * scale, name


def test_every_layer_of_a_backbone(hub_case: Case) -> None:
    """Also the layers inside of layers, such as the parts of an attention."""
    with spile.tap(hub_case.model, "all", pool=None) as tap:
        found = list(tap(hub_case.inputs).items())
        assert tap.verify(hub_case.inputs).largest_difference == 0
    wanted = list(hub_case.expected.values())
    assert any("/" in name for name, _ in found) or hub_case.name == "ResNetBackbone"
    unmatched = list(range(len(wanted)))
    for name, value in found:
        array = keras.ops.convert_to_numpy(value)
        twin = next((i for i in unmatched if close(array, wanted[i])), None)
        assert twin is not None, f"{name} has a value that no layer gave"
        unmatched.remove(twin)
    assert unmatched == [], "outputs that the tap left out"


def close(value: Array, expected: Array) -> bool:
    return value.shape == expected.shape and bool(np.array_equal(value, expected))


def same(value: Array, expected: Array, name: str) -> None:
    assert value.shape == expected.shape, name
    scale = float(np.abs(expected).max())
    assert np.isfinite(scale) and scale > 0, name
    np.testing.assert_allclose(value, expected, rtol=RTOL, atol=RTOL * scale, err_msg=name)


def averaged(value: Array) -> Array:
    return value.mean(axis=tuple(range(1, value.ndim - 1))) if value.ndim > 2 else value


def summary(value: Array) -> tuple[float, float]:
    """One number that every pooled value goes into, and how large such numbers are."""
    pooled = averaged(value.astype("float64")).ravel()
    found = pooled @ np.cos(np.arange(pooled.size)) / np.sqrt(pooled.size)
    return float(found), float(np.sqrt(np.mean(pooled**2)))


def write_values() -> None:
    """Make `zoo_values.json` on TensorFlow, which is where `NOT_ON_TORCH` can be built too."""
    assert keras.backend.backend() == "tensorflow"
    lines = [f"{json.dumps(name)}: {json.dumps(numbers(application(name)))}" for name in APPLICATIONS]
    VALUES.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def numbers(case: Case) -> list[float]:
    return [float(f"{summary(value)[0]:.{DIGITS}g}") for value in case.expected.values()]


if __name__ == "__main__":
    write_values()

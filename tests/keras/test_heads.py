"""Heads as Keras layers."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from spile.keras.heads import Head, _Convolution
from spile.supervision import MLP, Bottleneck, Flatten, HeadSpec, Linear, Pixels, Token
from spile.supervision.operations import (
    Activation,
    Conv,
    Dense,
    Features,
    GroupNorm,
    LayerNorm,
    Pooling,
    parameters,
)

MAP = Features(kind="map", channels=24, size=(9, 7))
TOKENS = Features(kind="tokens", channels=24, size=(5,), prefix_tokens=1)
VECTOR = Features(kind="vector", channels=24)
FINAL = Features(kind="map", channels=40, size=(3, 2))
CASES = [
    (Linear(), MAP),
    (Linear(), TOKENS),
    (Linear(), VECTOR),
    (Linear(pool="grid:2"), MAP),
    (MLP(), MAP),
    (MLP(width=16), VECTOR),
    (Token(), TOKENS),
    (Token(pool="cls+mean"), TOKENS),
    (Bottleneck(), MAP),
    (Bottleneck(), TOKENS),
    (Flatten(), MAP),
    (Pixels(), MAP),
]
LAYOUTS = {"map": "BYXC", "tokens": "BTC", "vector": "BC"}


def made(spec: HeadSpec, features: Features, **options: Any) -> tuple[Head, Any]:
    """With features for three samples."""
    operations = spec.operations(features, outputs=3, final=FINAL, base_params=10**6)
    layout = LAYOUTS[features.kind]
    head = Head(operations, layout=layout, prefix_tokens=features.prefix_tokens, **options)
    head.build((None, *features.size, features.channels))
    return head, np.random.default_rng(0).normal(size=(3, *features.size, features.channels)).astype(
        "float32"
    )


def numpy(value: Any) -> Any:
    return ops.convert_to_numpy(ops.stop_gradient(value))


@pytest.mark.parametrize(("spec", "features"), CASES, ids=lambda case: str(getattr(case, "kind", case)))
def test_heads_have_the_planned_parameters_and_outputs(spec: HeadSpec, features: Features) -> None:
    head, x = made(spec, features)
    assert head.count_params() == parameters(head.operations)
    shape = (3, 9, 7, 3) if isinstance(spec, Pixels) else (3, 3)
    assert tuple(head(x).shape) == shape == (3, *head.compute_output_shape((3, *x.shape[1:]))[1:])
    np.testing.assert_allclose(numpy(head(x[:1])), numpy(head(x))[:1], rtol=1e-4, atol=1e-5)
    again = Head.from_config(head.get_config())
    again.build(x.shape)
    again.set_weights(head.get_weights())
    np.testing.assert_array_equal(numpy(again(x)), numpy(head(x)))


def test_channels_first_features_are_turned() -> None:
    head, x = made(Bottleneck(), MAP)
    turned = Head(head.operations, layout="BCYX")
    turned.build((None, 24, 9, 7))
    turned.set_weights(head.get_weights())
    np.testing.assert_allclose(numpy(turned(x.transpose(0, 3, 1, 2))), numpy(head(x)), rtol=1e-5, atol=1e-6)


def test_padding_is_left_out() -> None:
    head, x = made(Linear(), TOKENS)
    real = np.array([[1, 1, 1, 0, 0]] * 3, "bool")
    spoilt = np.where(real[..., None], x, 1e3).astype("float32")
    np.testing.assert_allclose(numpy(head(spoilt, real)), numpy(head(x, real)), rtol=1e-4, atol=1e-5)
    assert np.abs(numpy(head(spoilt)) - numpy(head(x))).max() > 1


def test_what_follows_a_pool_is_in_float32() -> None:
    head, x = made(Bottleneck(), MAP, dtype="mixed_float16")
    scores = head(ops.cast(1000 * x, "float16"))
    assert keras.backend.standardize_dtype(scores.dtype) == "float32"
    assert np.isfinite(numpy(scores)).all()
    assert {step.compute_dtype for step in head.steps[:-2]} == {"float16"}


def test_convolutions_are_padded_alike_on_both_sides() -> None:
    """As in PyTorch. Keras' own ``same`` pads an even size with stride 2 on one side only."""

    convolution = _Convolution(Conv(1, 1, kernel=3, stride=2))
    convolution.build((None, None, None, 1))
    kernel = np.zeros((3, 3, 1, 1), "float32")
    kernel[0, 0] = 1  # reads what is up and left of the centre
    convolution.set_weights([kernel])
    x = np.arange(16, dtype="float32").reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(numpy(convolution(x))[0, :, :, 0], [[0, 0], [0, 5]])


@pytest.mark.parametrize(("spec", "features"), CASES, ids=lambda case: str(getattr(case, "kind", case)))
def test_heads_compute_what_pytorch_computes(spec: HeadSpec, features: Features) -> None:
    """The same plan with the same weights, operation by operation."""
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    head, features_last = made(spec, features)
    random = np.random.default_rng(2)
    head.set_weights([random.normal(size=weight.shape) * 0.3 for weight in head.get_weights()])
    x = torch.from_numpy(features_last)
    x = x.permute(0, 3, 1, 2) if features.kind == "map" else x
    weights = iter([torch.from_numpy(weight) for weight in head.get_weights()])
    pools = {
        "avg": lambda x: x.mean((2, 3)),
        "mean": lambda x: x[:, 1:].mean(1),
        "cls": lambda x: x[:, 0],
        "cls+mean": lambda x: torch.cat([x[:, 0], x[:, 1:].mean(1)], 1),
        "flatten": lambda x: x.flatten(1),
        "grid:2": lambda x: functional.adaptive_avg_pool2d(x, 2).flatten(1),
    }
    for operation in head.operations:
        match operation:
            case Conv():
                kernel, depthwise = next(weights), operation.groups > 1
                kernel = kernel.permute(2, 3, 0, 1) if depthwise else kernel.permute(3, 2, 0, 1)
                bias = next(weights) if operation.bias else None
                half, groups = operation.kernel // 2, operation.groups
                x = functional.conv2d(x, kernel, bias, operation.stride, half, groups=groups)
            case GroupNorm():
                x = functional.group_norm(x, operation.groups, next(weights), next(weights))
            case LayerNorm():
                x = functional.layer_norm(x, (operation.channels,), next(weights), next(weights))
            case Activation():
                x = getattr(functional, operation.name)(x)
            case Pooling():
                x = pools[operation.name](x)
            case Dense():
                x = functional.linear(x, next(weights).T, next(weights))
    expected = (x.permute(0, 2, 3, 1) if x.ndim == 4 else x).numpy()
    np.testing.assert_allclose(numpy(head(features_last)), expected, rtol=1e-3, atol=1e-4)

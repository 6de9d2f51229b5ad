"""One network, its heads and its teacher with the same weights in Keras and in PyTorch: the same losses."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import spile
from spile.supervision import (
    Constant,
    Labels,
    PseudoLabels,
    SelfDistill,
    SmoothedLabels,
    Teacher,
    Uncertainty,
)

torch = pytest.importorskip("torch")
nn = torch.nn

CLASSES, ROWS = 4, 12
HEADS = {"early": "bottleneck", "late": "mlp"}
LABELS = np.arange(ROWS) % (CLASSES + 1) - 1  # every fifth has none


def on_keras(seed: int, width: int) -> keras.Model:
    start = keras.Input((9, 9, 3))
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="early")(start)
    x = layers.Conv2D(width, 3, strides=2, activation="relu", name="late")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(start, layers.Dense(CLASSES, name="last")(x))
    rng = np.random.default_rng(seed)
    model.set_weights([0.4 * rng.normal(size=w.shape) for w in model.get_weights()])
    return model


class OnTorch(nn.Module):  # type: ignore[name-defined, misc]
    def __init__(self, twin: keras.Model) -> None:
        super().__init__()
        width = twin.get_layer("late").filters
        self.early = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.late = nn.Sequential(nn.Conv2d(8, width, 3, stride=2), nn.ReLU())
        self.last = nn.Linear(width, CLASSES)
        take_over(self, twin.get_weights())

    def forward(self, x: Any) -> Any:
        return self.last(self.late(self.early(x)).mean((2, 3)))


def take_over(module: Any, weights: list[Any]) -> None:
    """The weights of a Keras layer, in the same order: kernels turned, of depthwise ones otherwise."""
    parameters = list(module.parameters())
    assert len(parameters) == len(weights)
    for parameter, weight in zip(parameters, weights, strict=True):
        value = torch.from_numpy(np.array(weight))
        if value.ndim == 4:
            depthwise = parameter.shape[1] == 1
            value = value.permute((2, 3, 0, 1) if depthwise else (3, 2, 0, 1))
        with torch.no_grad():
            parameter.copy_((value.T if value.ndim == 2 else value).reshape(parameter.shape))


def targets(teacher: Any) -> dict[str, Any]:
    return {
        "main": Labels(smoothing=0.05),
        "early": [
            Labels(smoothing=0.1),
            SelfDistill(temperature=2.0, hint=0.5),
            PseudoLabels(threshold=0.4, weight=0.3),
            Teacher(model=teacher, kind="hint", at="late"),  # the student's map is larger
        ],
        "late": [
            PseudoLabels(threshold="adaptive", decay=0.5),
            SelfDistill(source="ensemble"),
            Teacher(model=teacher),
            Teacher(model=teacher, kind="attention", at="early"),  # the teacher's map is larger
            SmoothedLabels(samples=ROWS),
        ],
    }


def both(weight: Any) -> tuple[Any, Any]:
    base, teacher = on_keras(0, 12), on_keras(1, 6)
    common = {"num_classes": CLASSES, "taps": list(HEADS), "head": HEADS, "weight": weight}
    first = spile.supervise(base, targets=targets(teacher), **common)
    second = spile.supervise(OnTorch(base), example=(2, 3, 9, 9), targets=targets(OnTorch(teacher)), **common)
    rng = np.random.default_rng(2)
    for name, head in first.heads.items():
        head.set_weights([0.3 * rng.normal(size=w.shape) for w in head.get_weights()])
        assert second.heads[name].recipe.operations == head.operations
        take_over(second.heads[name], head.get_weights())
    adapters = first._states.adapters
    pairs = {"early teacher_hint": "early/teacher/0", "early self_distill": "early/final"}
    assert set(pairs.values()) == set(adapters) and set(pairs) == set(second.terms.adapters)
    for ours, theirs in pairs.items():
        kernel, bias = adapters[theirs].get_weights()
        take_over(second.terms.adapters[ours], [kernel if kernel.ndim > 2 else kernel, bias])
    return first, second


@pytest.mark.parametrize("weight", [Constant(0.6, share=[1, 2]), Uncertainty()], ids=["constant", "learnt"])
def test_the_same_losses_and_the_same_total(weight: Any) -> None:
    """Twice in training mode, so that what targets keep is compared too."""
    first, second = both(weight)
    if isinstance(weight, Uncertainty):
        first.log_variances.assign([0.3, -0.2, 0.5])
        with torch.no_grad():
            second.log_variances.copy_(torch.tensor([0.3, -0.2, 0.5]))
    images = np.random.default_rng(3).normal(size=(ROWS, 9, 9, 3)).astype("float32")
    given = torch.from_numpy(images).permute(0, 3, 1, 2)
    for progress in (0.0, 0.5):
        ours = first.loss(
            first(ops.convert_to_tensor(images), training=True),
            LABELS,
            progress=progress,
            ids=np.arange(ROWS),
        ).scalars()
        theirs = second.loss(
            second(given), torch.from_numpy(LABELS), progress=progress, ids=torch.arange(ROWS)
        ).scalars()
        known = {name: value for name, value in theirs.items() if name != "main/weight"}
        assert set(known) == set(ours) - {"main/weight"}
        for name, value in known.items():
            assert ours[name] == pytest.approx(value, rel=1e-4, abs=1e-4, nan_ok=True), (progress, name)
    assert ours["late/smoothed_labels"] > 0  # of the second pass
    assert 0 < ours["late/coverage"] < 1 or ours["late/coverage"] != ours["early/coverage"]


def test_of_no_rows_nothing_is_known() -> None:
    first, second = both(Constant(0.5))
    images = np.zeros((2, 9, 9, 3), "float32")
    for labels, unknown in (([0, 1], "coverage"), ([-1, -1], "accuracy"), ([-1, -1], "precision")):
        ours = first.loss(
            first(ops.convert_to_tensor(images)),
            np.array(labels),
            progress=0.0,
            ids=np.arange(2),
            training=False,
        ).scalars()
        theirs = second.loss(
            second(torch.zeros(2, 3, 9, 9)), torch.tensor(labels), progress=0.0, ids=torch.arange(2)
        ).scalars()
        for told in (ours, theirs):
            assert np.isnan(told[f"early/{unknown}"]) and np.isfinite(told["loss"])

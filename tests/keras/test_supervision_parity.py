"""One network, its heads and its teacher with the same weights in Keras and in PyTorch: the same losses.

PyTorch's half runs in a process without Keras: this file as a script.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

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

CLASSES, ROWS = 4, 12
HEADS = {"early": "bottleneck", "late": "mlp"}
ADAPTERS = {"early teacher_hint": "early/teacher/0", "early self_distill": "early/final"}
WEIGHTS: dict[str, Any] = {"constant": Constant(0.6, share=[1, 2]), "learnt": Uncertainty()}
LOG_VARIANCES = [0.3, -0.2, 0.5]
LABELS = {
    "some": np.where(np.arange(ROWS) % 2, -1, np.arange(ROWS) // 2 % CLASSES),
    "all": np.arange(ROWS) % CLASSES,
    "none": np.full(ROWS, -1),
}
IMAGES = np.random.default_rng(3).normal(size=(ROWS, 9, 9, 3)).astype("float32")


def targets(teacher: Any) -> dict[str, Any]:
    return {
        "main": Labels(smoothing=0.05),
        "early": [
            Labels(smoothing=0.1),
            SelfDistill(temperature=2.0, hint=0.5),
            PseudoLabels(threshold=0.6, weight=0.3),
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


def passes(supervised: Any, images: Any, labels: Any) -> list[dict[str, float]]:
    """Twice with some labels, so that what targets keep is compared too; then with all, and with none."""
    told = []
    for which, progress in (("some", 0.0), ("some", 0.5), ("all", 0.5), ("none", 0.5)):
        ids = labels(np.arange(ROWS))
        told.append(
            supervised.loss(supervised(images), labels(LABELS[which]), progress=progress, ids=ids).scalars()
        )
    return told


def on_keras(seed: int, width: int) -> Any:
    import keras
    from keras import layers

    start = keras.Input((9, 9, 3))
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="early")(start)
    x = layers.Conv2D(width, 3, strides=2, activation="relu", name="late")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(start, layers.Dense(CLASSES, name="last")(x))
    rng = np.random.default_rng(seed)
    model.set_weights([0.4 * rng.normal(size=w.shape) for w in model.get_weights()])
    return model


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Any]]:
    """What Keras and PyTorch tell, by the weighting."""
    from keras import ops

    folder, rng = tmp_path_factory.mktemp("parity"), np.random.default_rng(2)
    ours = {}
    for name, weight in WEIGHTS.items():
        base, teacher = on_keras(0, 12), on_keras(1, 6)
        supervised: Any = spile.supervise(
            base,
            num_classes=CLASSES,
            taps=list(HEADS),
            head=HEADS,
            weight=weight,
            targets=targets(teacher),
        )
        adapters = supervised._states.adapters
        assert set(adapters) == set(ADAPTERS.values())
        for layer in (*supervised.heads.values(), *adapters.values()):
            layer.set_weights([0.3 * rng.normal(size=w.shape) for w in layer.get_weights()])
        if name == "learnt":
            supervised.log_variances.assign(LOG_VARIANCES)
        layers = {"base": base, "teacher": teacher, **supervised.heads, **adapters}
        np.savez(
            folder / f"{name}.npz",
            **{
                f"{key}:{i:02}": w for key, layer in layers.items() for i, w in enumerate(layer.get_weights())
            },
        )
        ours[name] = passes(supervised, ops.convert_to_tensor(IMAGES), np.asarray)
    subprocess.run([sys.executable, __file__, folder], check=True)
    return {name: (ours[name], json.loads((folder / f"{name}.json").read_text())) for name in WEIGHTS}


@pytest.mark.parametrize("weight", WEIGHTS)
def test_the_same_losses_and_the_same_total(weight: str, both: dict[str, tuple[Any, Any]]) -> None:
    for number, (ours, theirs) in enumerate(zip(*both[weight], strict=True)):
        theirs.pop("main/weight", None)
        assert set(theirs) == set(ours)
        for name, value in theirs.items():
            assert ours[name] == pytest.approx(value, rel=1e-4, abs=1e-4, nan_ok=True), (number, name)
    assert both[weight][0][1]["late/smoothed_labels"] > 0  # of the second pass
    assert 0 < both[weight][0][0]["early/coverage"] < 1


def test_of_no_rows_nothing_is_known(both: dict[str, tuple[Any, Any]]) -> None:
    for told in both["constant"]:
        of_all, of_none = told[2:]
        assert np.isnan(of_all["early/coverage"]) and np.isfinite(of_all["early/accuracy"])
        assert np.isnan(of_none["early/accuracy"]) and np.isnan(of_none["early/precision"])
        assert np.isfinite([of_all["loss"], of_none["loss"], of_none["early/coverage"]]).all()


def on_torch(folder: Path) -> None:
    import torch
    from torch import nn

    def take_over(module: nn.Module, weights: list[Any]) -> None:
        """The weights of a Keras layer, in the same order: kernels turned, depthwise ones otherwise."""
        for parameter, weight in zip(module.parameters(), weights, strict=True):
            value = torch.from_numpy(weight)
            if value.ndim == 4:
                value = value.permute((2, 3, 0, 1) if parameter.shape[1] == 1 else (3, 2, 0, 1))
            with torch.no_grad():
                parameter.copy_((value.T if value.ndim == 2 else value).reshape(parameter.shape))

    class Net(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.early = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
            self.late = nn.Sequential(nn.Conv2d(8, width, 3, stride=2), nn.ReLU())
            self.last = nn.Linear(width, CLASSES)

        def forward(self, x: Any) -> Any:
            return self.last(self.late(self.early(x)).mean((2, 3)))

    for name, weight in WEIGHTS.items():
        kept: dict[str, list[Any]] = {}
        for key, value in sorted(np.load(folder / f"{name}.npz").items()):
            kept.setdefault(key.rpartition(":")[0], []).append(value)
        base, teacher = Net(12), Net(6)
        take_over(base, kept["base"])
        take_over(teacher, kept["teacher"])
        supervised: Any = spile.supervise(
            base,
            example=(2, 3, 9, 9),
            num_classes=CLASSES,
            taps=list(HEADS),
            head=HEADS,
            weight=weight,
            targets=targets(teacher),
        )
        for address, head in supervised.heads.items():
            take_over(head, kept[address])
        assert set(supervised.terms.adapters) == set(ADAPTERS)
        for ours, theirs in ADAPTERS.items():
            take_over(supervised.terms.adapters[ours], kept[theirs])
        if name == "learnt":
            with torch.no_grad():
                supervised.log_variances.copy_(torch.tensor(LOG_VARIANCES))
        told = passes(supervised, torch.from_numpy(IMAGES).permute(0, 3, 1, 2), torch.from_numpy)
        (folder / f"{name}.json").write_text(json.dumps(told))
    assert "keras" not in sys.modules


if __name__ == "__main__":
    on_torch(Path(sys.argv[1]))

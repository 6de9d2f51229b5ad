"""The whole model as one file: the pipeline's scores and labels, and nothing past the layers used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn

import spile
from spile.errors import CaptureError, ModelError
from spile.probing import deployment, exporting
from spile.probing.features import joined
from spile.probing.heads import fit_head
from spile.probing.ridge import fit_ridge
from spile.torch.engines import model_inputs

SPEC = spile.ImagePreprocessing(resize=12, crop=(12, 12), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.body = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3, stride=2)
        self.late = nn.Conv2d(8, 512, 3)
        self.head = nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.stem(x).relu()).relu()
        return self.head(self.late(x).relu().mean((2, 3)))


@pytest.fixture
def pixels() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 255, (40, 12, 12, 3)).astype(np.uint8)


def saved(folder: Path, pixels: Any, at: list[str], classes: Any, estimator: Any = "ridge") -> Any:
    net = Net().eval()
    x = model_inputs(pixels, preprocessing=SPEC, device=torch.device("cpu"))
    tap = spile.tap(net, at, example=x)
    features = joined([value.detach().numpy() for value in tap(x).values()])
    y = np.arange(40.0) if classes is None else classes[np.arange(40) % len(classes)]
    if estimator == "ridge":
        head = fit_ridge(features, y, classes=classes, calibrate=classes is not None)
    else:
        head = fit_head(estimator, features, y, kind="classes")
    about = {"point": " + ".join(at), "macs": 1000, "params": 600}
    deployment.save(folder, tap=tap, example=x, head=head, preprocessing=SPEC, about=about, exported=True)
    return spile.load(folder, trusted=deployment.untrusted_types(folder))


@pytest.mark.parametrize("name", ["pt2", "openvino", "onnx"])
def test_every_format_says_what_the_pipeline_says(tmp_path: Path, pixels: Any, name: str) -> None:
    pytest.importorskip({"pt2": "torch", "onnx": "onnxscript", "openvino": "openvino"}[name])
    model = saved(tmp_path / "model", pixels, ["stem", "body"], np.array(["ant", "bee", "cow"]))

    made = model.export(tmp_path / "made", pixels[:9], formats=name)

    (one,) = made.verified
    assert one.largest_difference < 1e-4
    assert one.labels_identical
    assert one.samples == 9
    assert one.megabytes < 0.2 < 4 * 512 * 8 * 9 / 1e6 + 0.1, "the layers past the tap are still there"
    (again,) = made.verify(pixels)
    assert again.samples == 40
    described = json.loads((tmp_path / "made" / "model.json").read_text())
    assert described["labels"] == ["ant", "bee", "cow"]
    assert described["preprocessing"]["resize"] == 12
    assert described["normalised_inside"]
    assert described["input"] == {"dtype": "uint8", "shape": [None, 12, 12, 3]}
    assert described["params"] == 600 + 14 * 3
    if name == "onnx":
        _onnx_holds_the_labels(tmp_path / "made" / "model.onnx", model, pixels)


def _onnx_holds_the_labels(path: Path, model: Any, pixels: Any) -> None:
    import onnx
    import onnxruntime

    loaded = onnx.load(path)
    held = {item.key: json.loads(item.value) for item in loaded.metadata_props}
    assert held["spile.labels"] == ["ant", "bee", "cow"]
    assert {n.op_type for n in loaded.graph.node} >= {"Conv"}
    assert sum(n.op_type == "Conv" for n in loaded.graph.node) == 2
    session = onnxruntime.InferenceSession(path)
    scores, label = session.run(None, {session.get_inputs()[0].name: pixels[:5]})
    np.testing.assert_allclose(scores, model.predict_proba(pixels[:5]), atol=1e-4)
    assert [held["spile.labels"][i] for i in label] == model.predict(pixels[:5]).tolist()


@pytest.mark.parametrize("kind", ["two classes", "numbers", "logistic"])
def test_heads_of_every_link(tmp_path: Path, pixels: Any, kind: str) -> None:
    classes = None if kind == "numbers" else np.arange(2) if kind == "two classes" else np.arange(3)
    model = saved(tmp_path / "m", pixels, ["body"], classes, "logistic" if kind == "logistic" else "ridge")

    (one,) = model.export(tmp_path / "made", pixels[:6], formats="pt2").verified

    assert one.labels_identical is (None if kind == "numbers" else True)


def test_a_file_that_gives_other_scores_is_an_error(
    tmp_path: Path, pixels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = saved(tmp_path / "m", pixels, ["body"], np.arange(3))
    original = exporting.linear_head

    def off(head: Any, *, points: int) -> Any:
        linear = original(head, points=points)
        linear.intercept[0] += 1e-3  # the file is written with this one
        return linear

    made = model.export(tmp_path / "made", pixels[:6], formats="pt2")
    monkeypatch.setattr(exporting, "linear_head", off)
    with pytest.raises(CaptureError, match=r"model.pt2 gives other scores .*labels"):
        made.verify(pixels)


def test_heads_and_formats_that_cannot_be(tmp_path: Path, pixels: Any) -> None:
    model = saved(tmp_path / "m", pixels, ["body"], np.arange(3), KNeighborsClassifier(1))
    with pytest.raises(ModelError, match=r"KNeighborsClassifier cannot be written into a network; ridge"):
        model.export(tmp_path / "made", pixels, formats="pt2")
    with pytest.raises(ModelError, match=r"cannot be exported as 'onyx'. Allowed: .* formats='onnx'"):
        model.export(tmp_path / "made", pixels, formats="onyx")

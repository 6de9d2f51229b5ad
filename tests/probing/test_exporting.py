"""The whole model as one file: the pipeline's scores and labels, and nothing past the layers used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.naive_bayes import GaussianNB
from torch import Tensor, nn

import spile
from spile.errors import CaptureError, ModelError
from spile.probing import deployment, exporting
from spile.probing.features import joined
from spile.probing.heads import fit_head
from spile.probing.ridge import fit_ridge
from spile.torch.inputs import model_inputs

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


PIXELS, NEW = (np.random.default_rng(s).integers(0, 255, (40, 12, 12, 3)).astype(np.uint8) for s in (0, 1))


@pytest.fixture
def pixels() -> np.ndarray[Any, Any]:
    return PIXELS


def saved(
    folder: Path,
    pixels: Any,
    at: list[str],
    classes: Any,
    estimator: Any = "ridge",
    *,
    y: Any = None,
    calibrate: bool = False,
) -> Any:
    net = Net().eval()
    x = model_inputs(pixels, preprocessing=SPEC, device=torch.device("cpu"))
    tap = spile.tap(net, at, example=x)
    features = joined([value.detach().numpy() for value in tap(x).values()])
    kind: Any = "classes" if y is None else "multilabel"
    if y is None:
        y = np.arange(40.0) if classes is None else classes[np.arange(40) % len(classes)]
    if estimator == "ridge":
        head = fit_ridge(features, y, classes=classes, calibrate=classes is not None)
    else:
        head = fit_head(estimator, features, y, kind=kind, calibrate=calibrate)
    about = {"point": " + ".join(at), "macs": 1000, "params": 600}
    about["classes"] = None if classes is None else classes.tolist()
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


@pytest.mark.parametrize("kind", ["numbers", "svm", "knn"])
def test_heads_that_are_not_of_classes_or_not_linear(tmp_path: Path, kind: str) -> None:
    """tests/torch/test_fitted.py has every kind in every format; here they stand on a network."""
    classes = None if kind == "numbers" else np.array(["ant", "bee", "cow"])
    model = saved(tmp_path / "m", PIXELS, ["body"], classes, "ridge" if kind == "numbers" else kind)
    made = model.export(tmp_path / "made", PIXELS[:6], formats="pt2")
    (one,) = made.verify(NEW)  # rows that the head was not fitted on
    assert one.largest_difference < 1e-4
    assert one.labels_identical is (None if kind == "numbers" else True)
    described = json.loads((tmp_path / "made" / "model.json").read_text())
    assert described["scores"] == {"numbers": "numbers", "svm": "decision values"}.get(kind, "probabilities")


@pytest.mark.parametrize("estimator", ["ridge", "svm"])
def test_several_labels_a_row(tmp_path: Path, estimator: str) -> None:
    several = (np.arange(40)[:, None] >> np.arange(3)) & 1
    model = saved(tmp_path / "m", PIXELS, ["body"], np.array(["ant", "bee", "cow"]), estimator, y=several)
    made = model.export(tmp_path / "made", PIXELS[:6], formats="pt2")
    (one,) = made.verify(NEW)
    assert one.largest_difference < 1e-4 and one.labels_identical
    described = json.loads((tmp_path / "made" / "model.json").read_text())
    assert described["labels"] == ["ant", "bee", "cow"]
    assert (
        f"of each label by itself, which holds above {0.0 if estimator == 'svm' else 0.5}"
        in (described["scores"])
    )
    ran = torch.export.load(tmp_path / "made" / "model.pt2").module()(torch.from_numpy(NEW))
    np.testing.assert_array_equal(ran[1].numpy(), model.predict(NEW))


def test_a_file_that_gives_other_scores_is_an_error(
    tmp_path: Path, pixels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = saved(tmp_path / "m", pixels, ["body"], np.arange(3))
    original = exporting.plain_head

    def off(head: Any, **options: Any) -> Any:
        plain = original(head, **options)
        plain.model.intercept[0] += 1e-3  # the file is written with this one
        return plain

    made = model.export(tmp_path / "made", pixels[:6], formats="pt2")
    monkeypatch.setattr(exporting, "plain_head", off)
    with pytest.raises(CaptureError, match=r"model.pt2 gives other scores .*labels"):
        made.verify(pixels)


def test_heads_and_formats_that_cannot_be(tmp_path: Path, pixels: Any) -> None:
    model = saved(tmp_path / "m", pixels, ["body"], np.arange(3), GaussianNB())
    with pytest.raises(ModelError, match=r"GaussianNB cannot be written into a network; ridge"):
        model.export(tmp_path / "made", pixels, formats="pt2")
    with pytest.raises(ModelError, match=r"cannot be exported as 'onyx'. Allowed: .* formats='onnx'"):
        model.export(tmp_path / "made", pixels, formats="onyx")


def test_rows_of_length_1_are_exported_too(tmp_path: Path) -> None:
    labels = [("ant", "bee")[i % 2] for i in range(40)]
    pixels = PIXELS // 2 + (np.arange(40, dtype=np.uint8) % 2 * 90)[:, None, None, None]
    options: dict[str, Any] = {"addresses": ["stem", "body"], "cv": 3, "nested": False, "progress": False}
    run = spile.transfer(
        Net().eval(), (pixels, labels), tmp_path / "run", preprocessing=SPEC, unit_rows=True, **options
    )
    loaded = spile.load(tmp_path / "run")
    assert not run.result.best.points
    np.testing.assert_allclose(np.linalg.norm(loaded.features(pixels), axis=1), 1)
    made = loaded.export(tmp_path / "made", pixels[:9], formats="pt2")
    assert made.verified[0].labels_identical and made.verified[0].largest_difference < 1e-4
    expected = (
        torch.export.load(tmp_path / "made" / "model.pt2").module()(torch.from_numpy(pixels))[0].detach()
    )
    np.testing.assert_allclose(loaded.predict_proba(pixels), expected.numpy(), atol=1e-4)

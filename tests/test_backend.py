"""Whose model is it: answered from what is loaded, Keras first."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
from torch import nn

import spile.torch.backend
from spile.backend import Backend, backend_of, framework_of
from spile.errors import ModelError


def test_a_torch_module_has_the_torch_backend() -> None:
    assert backend_of(nn.Linear(1, 1)) is spile.torch.backend


@pytest.mark.parametrize(
    "model", [3, "x", nn.Linear, lambda x: x, None], ids=["int", "str", "class", "function", "None"]
)
def test_anything_else_is_refused_with_what_to_pass(model: Any) -> None:
    with pytest.raises(ModelError) as caught:
        backend_of(model)
    message = str(caught.value)
    assert message.startswith(f"{type(model).__name__} is no model of a framework that is loaded")
    assert "torch.nn.Module" in message
    assert "'timm:resnet50'" in message


def test_keras_is_asked_first_because_its_models_may_be_torch_modules_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keras = types.ModuleType("keras")
    keras.Model = type("Model", (nn.Module,), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "keras", keras)
    ours = types.ModuleType("spile.keras.backend")
    monkeypatch.setitem(sys.modules, "spile.keras.backend", ours)
    assert framework_of(keras.Model()) == "keras"
    assert backend_of(keras.Model()) is ours
    assert framework_of(nn.Linear(1, 1)) == "torch"
    assert backend_of(nn.Linear(1, 1)) is spile.torch.backend
    assert framework_of(object()) is None


def test_a_framework_that_is_not_loaded_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "keras", raising=False)
    monkeypatch.delitem(sys.modules, "torch")
    with pytest.raises(ModelError, match="Linear is no model of a framework that is loaded"):
        backend_of(nn.Linear(1, 1))
    assert "torch" not in sys.modules


def test_a_module_only_half_imported_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keras", types.ModuleType("keras"))
    assert backend_of(nn.Linear(1, 1)) is spile.torch.backend


def test_the_torch_backend_has_all_that_a_backend_must_have() -> None:
    wanted = {name for name in vars(Backend) if not name.startswith("_")}
    assert wanted <= set(dir(spile.torch.backend))

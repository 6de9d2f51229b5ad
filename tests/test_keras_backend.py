"""What Keras will run on, found out before it is imported."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from spile import keras_backend
from spile.errors import MissingDependency, ModelError
from spile.keras_backend import configured_backend, require_backend


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    monkeypatch.delitem(sys.modules, "keras", raising=False)
    return tmp_path


def install(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in packages else None)


def test_the_environment_wins_over_the_file_and_the_file_over_tensorflow(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert configured_backend() == "tensorflow"
    (home / "keras.json").write_text("no json")
    assert configured_backend() == "tensorflow"
    (home / "keras.json").write_text(json.dumps({"floatx": "float32"}))
    assert configured_backend() == "tensorflow"
    (home / "keras.json").write_text(json.dumps({"backend": "jax"}))
    assert configured_backend() == "jax"
    monkeypatch.setenv("KERAS_BACKEND", "")
    assert configured_backend() == "jax"
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    assert configured_backend() == "torch"


def test_the_home_is_that_of_keras(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("KERAS_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert keras_backend.keras_home() == tmp_path / ".keras"
    monkeypatch.setenv("HOME", str(tmp_path / "absent"))
    assert keras_backend.keras_home() == Path("/tmp/.keras")


def test_no_keras(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "tensorflow")
    with pytest.raises(MissingDependency, match=r"loading it needs the package 'keras'.*'spile\[keras\]'"):
        require_backend("loading it")


def test_the_backend_that_is_set_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "keras", "jax")
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    require_backend("loading it")


@pytest.mark.parametrize(
    ("backend", "installed", "message"),
    [
        (
            "tensorflow",
            ["jax", "torch"],
            "Keras is set to its backend 'tensorflow', which is not installed. "
            "Type: pip install tensorflow, or KERAS_BACKEND=jax, or KERAS_BACKEND=torch",
        ),
        ("jax", [], "its backend 'jax', which is not installed. Type: pip install jax"),
        ("numpy", ["torch"], "spile runs Keras on tensorflow, jax, torch. Type: KERAS_BACKEND=torch"),
        ("numpy", [], "Type: pip install tensorflow, or pip install jax, or pip install torch"),
    ],
)
def test_a_backend_that_is_not_there(
    backend: str, installed: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, "keras", *installed)
    monkeypatch.setenv("KERAS_BACKEND", backend)
    with pytest.raises(ModelError) as caught:
        require_backend("loading it")
    assert str(caught.value).endswith(message)


def test_keras_that_is_imported_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    monkeypatch.setitem(sys.modules, "keras", sys)
    require_backend("loading it")


def test_asking_imports_nothing_and_sets_nothing() -> None:
    code = (
        "import os, sys; before = dict(os.environ)\n"
        "from spile.keras_backend import require_backend\n"
        "from spile.errors import SpileError\n"
        "try: require_backend('this')\n"
        "except SpileError: pass\n"
        "print({'keras', 'tensorflow', 'jax', 'torch'} & set(sys.modules), dict(os.environ) == before)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set() True"

"""What all Keras references share: devices, and that a backend is asked for before Keras is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import keras
import pytest

from spile.errors import ModelError
from spile.keras import models
from spile.models import load_model


def test_on_device() -> None:
    for device in (None, "cpu", "cpu:0"):
        with models.on_device(device):
            variable = keras.Variable([1.0])
        where = variable.value.device
        assert "cpu" in str(where).lower()


@pytest.mark.parametrize("device", ["nonsense", "tpu:7", "cuda:99"])
def test_unknown_devices(device: str, tmp_path: Path) -> None:
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).save(tmp_path / "net.keras")
    assert load_model(str(tmp_path / "net.keras"), device="cpu").model.built
    with pytest.raises(ModelError, match=f"cannot be put on device '{device}'") as caught:
        load_model(str(tmp_path / "net.keras"), device=device)
    assert "\n" not in str(caught.value)


@pytest.mark.zoo
def test_no_backend_is_imported_that_keras_does_not_import() -> None:
    code = (
        "import sys, keras; before = set(sys.modules)\n"
        "from spile.models import load_model\n"
        "load_model('demo:efficientnet_lite0_keras')\n"
        "print({'torch', 'tensorflow', 'jax'} & set(sys.modules) - before)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"

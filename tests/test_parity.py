"""The backends of Keras against each other; PyTorch against Keras is in `tests/keras/test_parity.py`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EVERY_LAYER = Path(__file__).with_name("keras") / "every_layer.py"
BACKENDS = ("tensorflow", "jax", "torch")


@pytest.mark.zoo
@pytest.mark.parametrize("name", ["MobileNetV2", "EfficientNetV2B0"])
def test_the_same_weights_give_the_same_values_on_every_backend(name: str, tmp_path: Path) -> None:
    """All layers of a network, called and extracted, within 1e-4 of the largest value of each."""
    found = {}
    for backend in BACKENDS:
        subprocess.run(
            [sys.executable, EVERY_LAYER, name, tmp_path / f"{backend}.npz"],
            env=os.environ | {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"},
            check=True,
        )
        found[backend] = dict(np.load(tmp_path / f"{backend}.npz"))
    reference = found[BACKENDS[0]]
    assert len(reference) > 100
    for backend in BACKENDS[1:]:
        assert list(found[backend]) == list(reference)
        for place, value in found[backend].items():
            expected = reference[place]
            assert value.shape == expected.shape, place
            assert np.abs(value - expected).max() <= 1e-4 * max(1.0, np.abs(expected).max()), (backend, place)

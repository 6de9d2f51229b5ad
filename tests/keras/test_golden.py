"""What Keras models are given, beside the golden images (see ``tests/test_golden.py``)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from keras import applications, ops

from spile.data.images import apply, read_image
from spile.keras.applications import preprocessing_of
from spile.keras.images import normalised
from spile.preprocessing import ImagePreprocessing, from_json

GOLDEN = Path(__file__).parent.parent / "golden"
IF_MEANT = "if this is meant: python tests/test_golden.py"
FAMILIES = {
    "keras:EfficientNetB0": applications.efficientnet,
    "keras:MobileNet": applications.mobilenet,
    "keras:ResNet50": applications.resnet50,
}


def listed(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / name).read_text())


def pixels_of(spec: ImagePreprocessing) -> np.ndarray:
    return apply(read_image(GOLDEN / "photo.png"), spec)


@pytest.mark.parametrize("name", listed("specs.json"))
def test_inputs_are_those_of_the_golden_image(name: str) -> None:
    golden = listed("specs.json")[name]
    spec = from_json(golden["spec"])
    assert isinstance(spec, ImagePreprocessing)
    pixels = pixels_of(spec)
    values = ops.convert_to_numpy(normalised(pixels[None], spec))[0]
    height, width = pixels.shape[:2]
    found = [values[y, x] for y, x in ((0, 0), (height // 2, width // 3), (height - 1, width - 1))]
    np.testing.assert_allclose(found, golden["inputs"], rtol=1e-5, atol=1e-5, err_msg=IF_MEANT)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_models_name_stands_for_the_same_preprocessing(name: str) -> None:
    golden = listed("references.json")[name]
    spec = preprocessing_of(name, FAMILIES[name].preprocess_input).at(224)
    assert json.loads(json.dumps(spec.to_json())) == golden["spec"], IF_MEANT
    assert hashlib.sha256(pixels_of(spec).tobytes()).hexdigest() == golden["sha256"], IF_MEANT

"""A Keras tap run by OpenVINO on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from spile import on_openvino
from spile.choosing import EngineUnfit, reason_of
from spile.errors import ModelError
from spile.keras.engines import as_arrays, checked, pass_of
from spile.keras.runtime import Compiled, runtime
from spile.keras.taps import Tap
from spile.preprocessing import ImagePreprocessing


class OpenVINOEngine:
    """The pass as one OpenVINO program, normalisation and pools included, with the weights as they are."""

    name = "openvino"
    notes: Mapping[str, Any] = {}
    at_once = 1

    def __init__(self, tap: Tap, inputs: Any, *, preprocessing: ImagePreprocessing | None) -> None:
        """Convert the tap, from its first batch. Raises `EngineUnfit`."""
        if tap.mode != "eval":
            raise EngineUnfit("a tap with mode='as_is' may run in training mode, which only eager does")
        if not tap.traceable:
            raise EngineUnfit("the pass cannot be traced")
        self.versions = on_openvino.versions()
        self._preprocessing = preprocessing
        self._body = pass_of(tap, preprocessing)
        arrays = as_arrays(checked(inputs, preprocessing))
        self._programs = {_form(arrays): self._converted(arrays)}

    def __call__(self, inputs: Any) -> dict[str, np.ndarray[Any, Any]]:
        """Run one batch; `inputs` as `spile.data.Batch.inputs`. Images of another size get a program too."""
        arrays = as_arrays(checked(inputs, self._preprocessing))
        form = _form(arrays)
        if form not in self._programs:
            try:
                self._programs[form] = self._converted(arrays)
            except EngineUnfit as unfit:
                raise ModelError(
                    f"this batch is built in another way than the first one, and {unfit}: "
                    "write engine='eager'"
                ) from unfit
        return self._programs[form](arrays)

    def _converted(self, arrays: Any) -> Compiled:
        try:
            return runtime().openvino(self._body, arrays)
        except EngineUnfit:
            raise
        except Exception as error:  # tracing runs the model's own code: anything may come out
            raise EngineUnfit(f"it cannot be traced: {reason_of(error)}") from error


def _form(arrays: Any) -> str:
    """What all batches of a program have in common: texts may have other lengths."""
    leaves = keras.tree.map_structure(lambda a: (str(a.dtype), a.shape[1:] if a.ndim > 2 else a.ndim), arrays)
    return str(leaves)

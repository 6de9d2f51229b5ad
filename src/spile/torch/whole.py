"""A tap and the model fitted on it as one program: `.pt2`, ONNX and OpenVINO files."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from spile.errors import MissingDependency, ModelError
from spile.interfaces import Runner
from spile.loading import first_line
from spile.on_openvino import import_openvino, openvino_core
from spile.plain import PlainHead
from spile.preprocessing import ImagePreprocessing
from spile.torch.exporting import Flows, traced
from spile.torch.fitted import FittedHead
from spile.torch.inputs import model_inputs, normalised
from spile.torch.on_openvino import converted
from spile.torch.taps import Tap

FORMATS = {"pt2": "model.pt2", "onnx": "model.onnx", "openvino": "model.xml"}
"""Format to file name; OpenVINO lays its weights beside as model.bin."""


class Whole(nn.Module):
    """From a batch to ``(scores (n, c) float32, index of the largest (n,))``; the same for numbers.

    Where a row has several labels the second is (n, c), 1 where a label holds. uint8 pixels (n, height,
    width, channels) of the model's input size are normalised inside.
    """

    def __init__(self, tap: Tap, head: PlainHead, images: ImagePreprocessing | None) -> None:
        super().__init__()
        self.flows, self.head = Flows(tap), FittedHead(head)
        self._images = images
        self._threshold = head.threshold if head.several else None

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Run a batch."""
        if self._images is not None and args:
            args = (normalised(args[0], self._images), *args[1:])
        scores = self.head([part.float().flatten(1) for part in self.flows(*args, **kwargs)])
        if self._threshold is not None:
            return scores, (scores > self._threshold).long()
        return scores, scores.argmax(1)


def save_whole(
    tap: Tap,
    head: PlainHead,
    inputs: Any,
    folder: Path,
    formats: tuple[str, ...],
    *,
    images: ImagePreprocessing | None,
    about: Mapping[str, Any],
) -> dict[str, Path]:
    """Write the files; `inputs` is a batch as `spile.data` reads it, `about` goes into the ONNX file.

    Raises `ModelError` where the model cannot be traced or converted, `MissingDependency` for a format whose
    package is not installed.
    """
    pixels = isinstance(inputs, np.ndarray) and inputs.dtype == np.uint8 and inputs.ndim == 4
    device = next(iter(tap.model.parameters()), torch.empty(0)).device
    if device.type != "cpu":
        raise ModelError(f"the model is on {device}: load it on the CPU to export it, device='cpu'")
    example = torch.from_numpy(inputs) if pixels else model_inputs(inputs, preprocessing=None, device=device)
    program = traced(tap, Whole(tap, head, images if pixels else None), example)
    written = {}
    for name in formats:
        path = folder / FORMATS[name]
        _WRITERS[name](program, path, about)
        written[name] = path
    return written


def _save_pt2(program: ExportedProgram, path: Path, about: Mapping[str, Any]) -> None:
    torch.export.save(program, path)


def _save_onnx(program: ExportedProgram, path: Path, about: Mapping[str, Any]) -> None:
    try:
        import onnx
        import onnxscript  # noqa: F401 - the exporter imports it
    except ImportError as error:
        raise MissingDependency(str(error.name), extra="onnx", purpose="export(formats=('onnx',))") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch, about its own exporter
        try:
            torch.onnx.export(
                program,
                (),
                path,
                dynamo=True,
                external_data=False,
                verbose=False,
                output_names=["scores", "label"],
            )
        except Exception as error:  # an operator that ONNX lacks, or a limit of its converter
            raise ModelError(f"the model cannot be converted to ONNX: {first_line(error)}") from error
    model = onnx.load(path)
    for key, value in about.items():
        model.metadata_props.add(key=f"spile.{key}", value=json.dumps(value))
    onnx.save(model, path)


def _save_openvino(program: ExportedProgram, path: Path, about: Mapping[str, Any]) -> None:
    openvino = _openvino()
    try:
        model = converted(program)
    except Exception as error:  # an operator that OpenVINO lacks
        raise ModelError(f"the model cannot be converted to OpenVINO: {first_line(error)}") from error
    openvino.save_model(model, path, compress_to_fp16=False)


def _openvino() -> Any:
    try:
        return import_openvino()
    except ImportError:
        raise MissingDependency(
            "openvino", extra="openvino", purpose="export(formats=('openvino',))"
        ) from None


_WRITERS: dict[str, Callable[[ExportedProgram, Path, Mapping[str, Any]], None]] = {
    "pt2": _save_pt2,
    "onnx": _save_onnx,
    "openvino": _save_openvino,
}


def open_whole(path: Path, name: str) -> Runner:
    """A function from a batch as `spile.data` reads it to scores (n, c), which runs the file."""
    return {"pt2": _open_pt2, "onnx": _open_onnx, "openvino": _open_openvino}[name](path)


def _open_pt2(path: Path) -> Runner:
    from spile.torch.pt2 import load

    module = load(path)

    def run(inputs: Any) -> np.ndarray[Any, Any]:
        with torch.inference_mode():
            ready = {k: torch.as_tensor(v) for k, v in _named(inputs).items()}
            found = module(**ready) if isinstance(inputs, dict) else module(*ready.values())
        return np.asarray(found[0])

    return run


def _open_onnx(path: Path) -> Runner:
    try:
        import onnxruntime
    except ImportError:
        raise MissingDependency("onnxruntime", extra="onnx", purpose="running an ONNX file") from None
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_inputs()]

    def run(inputs: Any) -> np.ndarray[Any, Any]:
        given = _named(inputs)
        values = [given[name] for name in names] if set(names) <= set(given) else list(given.values())
        return np.asarray(session.run(["scores"], dict(zip(names, values, strict=False)))[0])

    return run


def _open_openvino(path: Path) -> Runner:
    _openvino()
    compiled = openvino_core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    names = [set(item.get_names()) for item in compiled.inputs]

    def run(inputs: Any) -> np.ndarray[Any, Any]:
        given = _named(inputs)
        ready = [next((v for k, v in given.items() if k in known), None) for known in names]
        chosen = list(given.values()) if any(value is None for value in ready) else ready
        return np.asarray(compiled(chosen)[0])

    return run


def _named(inputs: Any) -> dict[str, Any]:
    return {k: np.asarray(v) for k, v in inputs.items()} if isinstance(inputs, dict) else {"": inputs}

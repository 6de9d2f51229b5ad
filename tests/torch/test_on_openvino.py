"""OpenVINO as an engine: silent, complete, of one program, and honest about what it cannot."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import spile
from spile import on_openvino
from spile.choosing import EngineUnfit
from spile.preprocessing import ImagePreprocessing
from spile.torch.engines import EagerEngine
from spile.torch.on_openvino import OpenVINOEngine
from spile.torch.tracing import trace

SPEC = ImagePreprocessing(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), channel_order="BGR")


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 8, 3)
    )


def pixels(samples: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, (samples, 8, 6, 3), dtype=np.uint8)


def openvino(tap: Any, inputs: Any, preprocessing: Any = None, precision: Any = "float32") -> OpenVINOEngine:
    return OpenVINOEngine(tap, inputs, preprocessing=preprocessing, precision=precision)


def test_images_are_normalised_and_pooled_inside_and_results_are_the_callers_own() -> None:
    model = net()
    tap = spile.tap(model, ["1", "2", "3"], pool={"1": None, "2": "max", "3": "grid:2"}, example=(1, 3, 8, 6))
    eager = EagerEngine(tap, preprocessing=SPEC, precision="float32")
    engine = openvino(tap, pixels(4), SPEC)
    first = engine(pixels(5))
    kept = {name: value.copy() for name, value in first.items()}
    for samples in (5, 1, 3):
        batch = pixels(samples) // 2
        for name, expected in eager(batch).items():
            np.testing.assert_allclose(engine(batch)[name], expected, rtol=1e-4, atol=1e-5)
    for name, value in first.items():  # the next batches have not written into it
        np.testing.assert_array_equal(value, kept[name])
    assert all(module.training for module in model.modules())


def test_the_graph_ends_at_the_deepest_point() -> None:
    tap = spile.tap(net(), "2", example=(1, 3, 8, 6))
    program = trace(tap, pixels(2), SPEC).program
    assert sum("conv2d" in str(node.target) for node in program.graph.nodes) == 1


class Remembering(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add_(1)
        return self.layer(x) + self.seen


class Looking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x if x.sum().item() > 0 else -x)


@pytest.mark.parametrize(
    ("model", "mode", "reason"),
    [
        (Remembering, "eval", "the pass changes the model's own .*seen"),
        (Looking, "eval", "may depend on the values"),
        (lambda: nn.Sequential(nn.Linear(3, 3)), "as_is", "training mode"),
    ],
)
def test_what_cannot_be_traced_faithfully_is_refused(model: Any, mode: Any, reason: str) -> None:
    made = model()
    address = "0" if isinstance(made, nn.Sequential) else "layer"
    tap = spile.tap(made, address, example=torch.ones(2, 3), mode=mode)
    with pytest.raises(EngineUnfit, match=reason):
        openvino(tap, np.ones((2, 3), np.float32))


def test_a_batch_that_is_built_in_another_way_is_an_error() -> None:
    engine = openvino(spile.tap(net(), "0", example=(1, 3, 8, 6)), pixels(2), SPEC)
    with pytest.raises(spile.ModelError, match=r"another way than the first one.*engine='eager'"):
        engine(np.zeros((2, 3, 8, 6), np.float32))


def test_a_precision_that_the_processor_lacks_is_refused() -> None:
    tap = spile.tap(net(), "0", example=(1, 3, 8, 6))
    core = on_openvino.openvino_core()
    if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        exact = openvino(tap, pixels(4), SPEC)(pixels(4))["0"]
        found = openvino(tap, pixels(4), SPEC, "bfloat16")(pixels(4))["0"]
        assert 0 < np.abs(found - exact).max() < 0.1 * np.abs(exact).max()
    else:
        with pytest.raises(EngineUnfit, match="this processor has no bfloat16"):
            openvino(tap, pixels(4), SPEC, "bfloat16")


def test_extraction_says_which_engine_and_resumes_with_it(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tap = spile.tap(net(), "3", example=(1, 3, 8, 6))
    options: dict[str, Any] = {"preprocessing": SPEC, "batch_size": 4, "progress": False, "dtype": "float32"}
    whole = spile.extract(tap, pixels(10), tmp_path / "whole.lance", engine="openvino", **options)
    made = whole.manifest
    assert made.fingerprinted["engine"] == "openvino"
    assert made.fingerprinted["versions"]["openvino"] == on_openvino.versions()["openvino"]
    assert made.recorded["engine"]["largest_difference"] <= made.recorded["engine"]["tolerance"]

    call, calls = OpenVINOEngine.__call__, []

    def cut_off(self: Any, inputs: Any) -> Any:
        calls.append(len(inputs))
        if len(calls) == 3:
            raise RuntimeError("cut off")
        return call(self, inputs)

    monkeypatch.setattr(OpenVINOEngine, "__call__", cut_off)
    with pytest.raises(RuntimeError, match="cut off"):
        spile.extract(tap, pixels(10), tmp_path / "cut.lance", engine="openvino", **options)
    resumed = spile.extract(tap, pixels(10), tmp_path / "cut.lance", **options | {"batch_size": "auto"})
    assert resumed.fingerprint == whole.fingerprint
    np.testing.assert_array_equal(resumed["3"].numpy(), whole["3"].numpy())
    assert calls[3:] == [2], "only what was missing ran, in the batches of the first run"
    with pytest.raises(spile.FingerprintMismatch, match=r"engine: stored .openvino., given .eager."):
        spile.extract(tap, pixels(10), tmp_path / "cut.lance", engine="eager", **options)

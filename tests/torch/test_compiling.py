"""`torch.compile` as an engine: the same values, and one program for the last odd batch too."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import spile
from spile.preprocessing import ImagePreprocessing
from spile.torch import backend, compiling
from spile.torch.compiling import CompileEngine
from spile.torch.engines import EagerEngine

SPEC = ImagePreprocessing(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


def test_a_last_odd_batch_compiles_nothing_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3))
    tap = spile.tap(model, ["1", "2"], pool={"1": None}, example=(1, 3, 8, 6))
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 6, 3), dtype=np.uint8)
    graphs = []

    def counted(program: nn.Module, **options: object) -> object:
        def backend(graph: torch.fx.GraphModule, _: object) -> object:
            graphs.append(graph)
            return graph.forward

        return true(program, backend=backend, **options)

    true = compiling.torch.compile
    monkeypatch.setattr(compiling.torch, "compile", counted)
    engine = CompileEngine(tap, pixels, preprocessing=SPEC, precision="float32")
    eager = EagerEngine(tap, preprocessing=SPEC, precision="float32")
    for rows in (4, 3, 1):
        found = engine(pixels[:rows])
        for name, expected in eager(pixels[:rows]).items():
            np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-5)
    assert len(graphs) == 1


@pytest.mark.zoo
def test_it_is_the_real_compiler() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
    tap = spile.tap(model, "2", example=(1, 3, 8, 6))
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 6, 3), dtype=np.uint8)
    engine = backend.engine(tap, preprocessing=SPEC, precision="float32", name="compile")
    engine(pixels)
    assert engine.notes["largest_difference"] <= engine.notes["tolerance"]


def test_an_unknown_engine_is_refused() -> None:
    tap = spile.tap(nn.Linear(3, 3), "@out", example=torch.ones(1, 3))
    with pytest.raises(
        spile.ModelError, match="unknown engine 'tpu': write one of 'auto', 'eager', 'compile', 'ope"
    ):
        backend.engine(tap, preprocessing=None, precision="float32", name="tpu")  # type: ignore[arg-type]

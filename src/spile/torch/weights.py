"""A model's weights: read from a file without running any of it, saved, restored, and hashed."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import warnings
from collections.abc import Collection, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from spile.errors import ModelError
from spile.hashing import hash_of
from spile.loading import first_line
from spile.trees import leaves

_WRAPPERS = ("state_dict", "model", "model_state_dict")
_PREFIXES = ("module.", "_orig_mod.")


def weights_hash(model: nn.Module) -> str:
    """Hash of all tensors in the order of their names: name, dtype, shape and bytes of each.

    Those of the state dict, those inside what else it holds, as of quantised layers, and buffers that it
    leaves out. Device and memory format do not matter.
    """
    held = dict(model.named_buffers(remove_duplicate=False)) | model.state_dict()
    found = (part for name in sorted(held) for part in leaves(held[name], _is_tensor, name))
    return hash_of(
        (f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}", partial(_bytes, tensor)) for name, tensor in found
    )


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _bytes(tensor: Tensor) -> Any:
    if tensor.layout == torch.sparse_coo:
        tensor = tensor.coalesce()
        return b"".join(map(bytes, (_bytes(tensor.indices()), _bytes(tensor.values()))))
    if tensor.layout != torch.strided:
        return _bytes(tensor.to_sparse(layout=torch.sparse_coo))
    plain = tensor.dequantize() if tensor.is_quantized else tensor.resolve_conj().resolve_neg()
    return plain.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def architecture_hash(model: nn.Module) -> str:
    """SHA-256 over the tree of modules: path, class, ``extra_repr``, plain attributes of each, and graphs."""
    digest = hashlib.sha256()
    for name, module in model.named_modules(remove_duplicate=False):
        graph = getattr(module, "graph", None)
        traced = str(graph) if isinstance(graph, torch.fx.Graph) else ""
        described = re.sub(r" at 0x[0-9a-fA-F]+", "", module.extra_repr())
        plain = sorted((key, value) for key, value in vars(module).items() if _is_setting(key, value))
        digest.update(f"{name}\0{type(module).__qualname__}\0{described}\0{traced}\0{plain}\0".encode())
    return digest.hexdigest()


def _is_setting(name: str, value: Any) -> bool:
    """Whether an attribute says how the module computes, and not in which mode, or where it came from."""
    if name.startswith("_") or name in ("training", "name_or_path") or value is None:
        return False  # None may stand for a module that is left out, which is then no attribute at all
    parts = value if isinstance(value, (tuple, list)) else (value,)
    return all(part is None or type(part) in (bool, int, float, str) for part in parts)


def save_weights(model: nn.Module, path: str | Path, *, keep: Collection[str] | None = None) -> None:
    """Write the state dict as a safetensors file, at once or not at all; tied tensors are stored once.

    `keep` limits it to the keys that are, or lie below, one of these paths: ``{"conv1", "layer1"}``.
    """
    tensors = {k: t for k, t in _tensors(model).items() if keep is None or _below(k, keep)}
    first: dict[object, str] = {}
    aliases = {
        name: original
        for name, t in tensors.items()
        if (original := first.setdefault(_memory(t), name)) != name
    }
    # Copies, because safetensors refuses tensors that share memory, also where they only overlap.
    stored = {name: t.cpu().contiguous().clone() for name, t in tensors.items() if name not in aliases}
    unfinished = Path(f"{path}.{os.getpid()}.tmp")
    try:
        save_file(stored, unfinished, metadata={"format": "pt", "aliases": json.dumps(aliases)})
        unfinished.replace(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"The weights cannot be written to {path}: {first_line(error)}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def load_weights(model: nn.Module, path: str | Path, *, allow_missing: bool = False) -> None:
    """Put back what `save_weights` wrote, in its dtypes; parameters stay the same objects, ties stay tied.

    Raises `ModelError` where keys or shapes differ; `allow_missing` permits keys that the file does not hold.
    """
    weights = read_weights(path)
    check_weights(model, weights, origin=str(path), allow_missing=allow_missing)
    for name, own in model.state_dict(keep_vars=True).items():
        if name in weights and own.dtype != weights[name].dtype:
            own.data = own.data.to(weights[name].dtype)
    model.load_state_dict(weights, strict=False)


def assign_weights(model: nn.Module, weights: Mapping[str, Tensor], *, origin: str) -> None:
    """Copy `weights` into the model, in the model's own dtypes; every key must be there, and no other."""
    check_weights(model, weights, origin=origin)
    model.load_state_dict(weights, strict=False)


def check_weights(
    model: nn.Module, weights: Mapping[str, Tensor], *, origin: str, allow_missing: bool = False
) -> None:
    """Raise a `ModelError` that lists a few of the keys and shapes of `weights` that do not fit the model."""
    own = _tensors(model)
    problems = {
        "missing": [] if allow_missing else [name for name in own if name not in weights],
        "unexpected": [name for name in weights if name not in own],
        "of another shape": [
            f"{name} {tuple(weights[name].shape)}, not {tuple(tensor.shape)}"
            for name, tensor in own.items()
            if name in weights and weights[name].shape != tensor.shape
        ],
    }
    if any(problems.values()):
        found = "; ".join(
            f"{len(names)} {problem} ({_few(names)})" for problem, names in problems.items() if names
        )
        raise ModelError(f"The weights in {origin} do not fit {type(model).__name__}: {found}")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read named tensors to the CPU, from .safetensors, or from .pth, .pt, .bin or .ckpt of `torch.save`.

    Of the latter only tensors and plain containers are read, so no code in the file runs. Dicts wrapped as
    ``{"state_dict": ...}`` or ``{"model": ...}`` are unwrapped, prefixes of parallel and compiled models cut.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"There is no weights file {path}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in {".pth", ".pt", ".bin", ".ckpt"}:
        return _unprefixed(_unwrapped(_read_tensors(path), path))
    raise ModelError(
        f"{path} is not a weights file that can be read: use .safetensors (preferred), .pth or .pt"
    )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} is not a readable safetensors file: {first_line(error)}") from error
    aliases: dict[str, str] = json.loads(metadata.get("aliases", "{}"))
    return _unprefixed({**tensors, **{name: tensors[original] for name, original in aliases.items()}})


def _read_tensors(path: Path) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path} holds more than tensors, and reading that would run code from the file. "
            "Save only the weights: torch.save(model.state_dict(), 'weights.pth')"
        ) from error
    except Exception as error:  # the readers of broken and foreign files raise all sorts
        raise ModelError(
            f"{path} is not a weights file that torch.save wrote: {first_line(error)}"
        ) from error


def _unwrapped(content: object, path: Path) -> dict[str, Tensor]:
    while isinstance(content, Mapping) and (
        inner := next((content[k] for k in _WRAPPERS if k in content), None)
    ):
        content = inner
    tensors = {}
    if isinstance(content, Mapping):
        tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ModelError(f"{path} holds no state dict: a dict of named tensors, as model.state_dict() gives")
    return tensors


def _unprefixed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES * 2:
        if weights and all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    return weights


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}


def _below(key: str, paths: Iterable[str]) -> bool:
    return any(key == path or key.startswith(f"{path}.") for path in paths)


def _memory(tensor: Tensor) -> object:
    """What two tensors have in common exactly when they are one."""
    if tensor.numel() == 0:
        return id(tensor)
    place = tensor.untyped_storage().data_ptr(), tensor.storage_offset()
    return tensor.device, *place, tensor.dtype, tuple(tensor.shape), tensor.stride()


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")

"""Saving just the part of a network that a tap needs, and putting it back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spile.errors import ModelError
from spile.interfaces import Trained
from spile.loading import first_line
from spile.preprocessing import TextPreprocessing
from spile.saved import HERE, WEIGHTS
from spile.torch.exporting import export_model
from spile.torch.quiet import watching_calls
from spile.torch.taps import Tap
from spile.torch.trees import inputs_of, names_of, unwrap
from spile.torch.weights import save_weights


def save_reached(tap: Tap, example: Any, path: Path) -> None:
    """Save the weights that the tap's pass needs; layers past the deepest point are left out.

    Of a Hugging Face model the configuration, and the tokenizer where it reads text, are laid beside them,
    so that the folder loads as ``hf:FOLDER`` without a network.
    """
    model = unwrap(tap.model)
    save_weights(model, path, keep=_reached(tap, example))
    _save_configuration(model, tap.origin, path.parent)


def save_trained(loaded: Any, example: Any, folder: Path, *, rebuildable: bool) -> Trained:
    """Save all weights as safetensors; and an exported program, where no library builds the model again.

    Of a Hugging Face model the configuration is laid beside them.
    """
    model, weights = unwrap(loaded.model), folder / WEIGHTS
    save_weights(model, weights)
    try:
        if not rebuildable:
            return Trained(weights, export_model(model, example, folder))
        configured = _save_configuration(model, loaded, folder)
        return Trained(weights, HERE if configured else loaded.reference)
    except ModelError as error:
        return Trained(weights, "", str(error))


def _save_configuration(model: Any, origin: Any, folder: Path) -> bool:
    """Of a Hugging Face model; whether it is one."""
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "save_pretrained"):
        return False
    try:
        config.save_pretrained(folder)
        _save_tokenizer(origin, folder)
    except OSError as error:
        raise ModelError(f"the model cannot be saved to {folder}: {first_line(error)}") from error
    return True


def _save_tokenizer(origin: Any, folder: Path) -> None:
    if origin is not None and isinstance(origin.preprocessing, TextPreprocessing):
        from transformers import AutoTokenizer

        name = origin.preprocessing.tokenizer
        AutoTokenizer.from_pretrained(name, trust_remote_code=False).save_pretrained(folder)


def _reached(tap: Tap, example: Any) -> set[str]:
    """State-dict keys and prefixes of what the pass runs through, and of every tensor an operation reads.

    The first are all of a layer that was left; the second are weights that are used without running the layer
    they belong to, and those of a layer that was entered only.
    """
    model = unwrap(tap.model)
    names = {module: found[0] for module, found in names_of(model).items()}
    kept = {point.path for point in tap.points if point.side == "out"}

    def watch(module: nn.Module, run: Callable[[], Any], *_: Any) -> Any:
        output = run()
        if names.get(module):
            kept.add(names[module])
        return output

    inputs = inputs_of(model, example)
    with torch.no_grad(), _Reads() as reads, watching_calls(watch):
        tap(*inputs.args, **inputs.kwargs)
    weights = model.state_dict()
    return kept | {key for key, value in weights.items() if isinstance(value, Tensor) and reads.saw(value)}


class _Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remembers the memory of every tensor that an operation is given."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._memory: set[int] = set()

    def saw(self, tensor: Tensor) -> bool:
        """Whether an operation was given this tensor, or a view of it."""
        return _place(tensor) in self._memory

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation."""
        self._memory.update(map(_place, _tensors((args, kwargs))))
        return func(*args, **(kwargs or {}))


def _tensors(value: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor))


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()

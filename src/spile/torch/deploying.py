"""Saving just the part of a network that a tap needs, and putting it back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spile.torch.quiet import watching_calls
from spile.torch.taps import Tap
from spile.torch.trees import arguments, names_of, unwrap, unwrapped_name
from spile.torch.weights import save_weights


def save_reached(tap: Tap, example: Any, path: Path) -> None:
    """Save the weights of the layers that run until the tap's deepest point; later ones are left out."""
    save_weights(unwrap(tap.model), path, keep=_reached(tap, example))


def _reached(tap: Tap, example: Any) -> set[str]:
    """State-dict keys and prefixes: all of a layer that was left or tapped, a layer's own once it was entered."""
    names = {module: unwrapped_name(found[0]) for module, found in names_of(unwrap(tap.model)).items()}
    tapped = {point.path for point in tap.points}
    kept: set[str] = set()

    def watch(module: nn.Module, run: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        path = names.get(module)
        if path is None:
            return run()
        start = f"{path}." if path else ""
        kept.update(start + name for name in (*module._parameters, *module._buffers))
        if path in tapped:
            kept.add(path)
        output = run()
        if path:
            kept.add(path)
        return output

    args, kwargs = arguments(example)
    with torch.no_grad(), watching_calls(watch):
        tap(*args, **kwargs)
    return kept

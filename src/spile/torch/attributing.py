"""What a guide needs besides activations: gradients of a class score, attention matrices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spile.errors import AugmentationError
from spile.torch.quiet import quiet_pass
from spile.torch.references import logits_of
from spile.torch.taps import Tap
from spile.torch.trees import names_of, unwrap


def score_gradients(tap: Tap, images: Tensor, labels: Any) -> tuple[Tensor, Tensor]:
    """The activation at the tap's point and the gradient of each image's class score by it.

    Parameters get no gradient: what is asked for is that of the activation alone.
    """
    (point,) = tap.points
    if point.side != "out" or point.item is not None or not point.only_call:
        raise AugmentationError(
            f"gradcam reads the output of a layer that runs once, not {point.name}: name one such layer"
        )
    base = unwrap(tap.model)
    module = next(module for module, names in names_of(base).items() if point.path in names)
    caught: list[Tensor] = []

    def catch(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        # A copy goes on, as what follows may change its input in place.
        caught.append(output if output.requires_grad else output.detach().requires_grad_())
        return caught[-1].clone()

    handle = module.register_forward_hook(catch)
    try:
        with torch.enable_grad(), quiet_pass(base, evaluate=True):
            logits = logits_of(base(images), None)
            if logits.ndim != 2:
                raise AugmentationError(
                    f"gradcam needs a classifier's scores (n, classes); the guide gives {list(logits.shape)}"
                )
            chosen = logits.argmax(1) if labels is None else _classes(labels, logits)
            score = logits.gather(1, chosen[:, None]).sum()
            (gradient,) = torch.autograd.grad(score, caught[-1])
    finally:
        handle.remove()
    axis = (point.layout or "B").index("B")
    return caught[-1].detach().movedim(axis, 0), gradient.movedim(axis, 0)


def _classes(labels: Any, logits: Tensor) -> Tensor:
    chosen = torch.as_tensor(labels, device=logits.device).long()
    if chosen.ndim != 1 or int(chosen.min()) < 0 or int(chosen.max()) >= logits.shape[1]:
        raise AugmentationError(
            f"gradcam explains classes 0..{logits.shape[1] - 1} of the guide, and the labels lie in "
            f"{int(chosen.min())}..{int(chosen.max())}: pass labels of the guide's own classes, or none"
        )
    return chosen


def attentions(tap: Tap, images: Tensor) -> tuple[list[np.ndarray[Any, Any]], int]:
    """The attention matrices (n, heads, tokens, tokens) of every block, and how many tokens are no patches.

    The fused kernel, which never forms them, is off for this pass alone.
    """
    base = unwrap(tap.model)
    fused = [module for module in base.modules() if isinstance(getattr(module, "fused_attn", None), bool)]
    drops = [getattr(module, "attn_drop", None) for module in fused]
    found = [drop for drop in drops if isinstance(drop, nn.Module)]
    if not found:
        raise AugmentationError(
            "rollout reads the attention of timm's transformers, and this guide has none: use reduce='l2'"
        )
    kept: list[np.ndarray[Any, Any]] = []

    def keep(_: nn.Module, args: tuple[Any, ...]) -> None:
        kept.append(args[0].detach().float().cpu().numpy())

    handles = [module.register_forward_pre_hook(keep) for module in found]
    try:
        with torch.no_grad(), quiet_pass(base, evaluate=True), _unfused(fused):
            base(images)
    finally:
        for handle in handles:
            handle.remove()
    return kept, tap.prefix_tokens(tap.points[0])


@contextmanager
def _unfused(modules: list[nn.Module]) -> Iterator[None]:
    before = [module.fused_attn for module in modules]
    try:
        for module in modules:
            module.fused_attn = False  # type: ignore[assignment]
        yield
    finally:
        for module, was in zip(modules, before, strict=True):
            module.fused_attn = was

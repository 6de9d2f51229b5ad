"""Policies by name, with operations of the library at hand: what ``--policy`` and ``--augment`` say."""

from __future__ import annotations

from collections.abc import Callable

from spile.augmentation.canvas import Canvas
from spile.augmentation.mixes import AttentiveCutMix, MapCutMix, SaliencyMix, SnapMix
from spile.augmentation.policies import (
    AttentionCrop,
    AttentionDrop,
    ByLevel,
    Inside,
    KeepSalient,
    Outside,
    Policy,
    TargetedCutout,
)
from spile.errors import AugmentationError, nearest

_MADE: dict[str, Callable[[Canvas], Policy]] = {
    "bylevel": lambda c: ByLevel(low=c.standard("strong"), mid=c.standard("weak")),
    "inside": lambda c: Inside(c.standard("strong")),
    "outside": lambda c: Outside(c.standard("strong")),
    "keep": lambda c: KeepSalient(c.standard("strong")),
    "crop": lambda c: AttentionCrop(),
    "drop": lambda c: AttentionDrop(),
    "cutout": lambda c: TargetedCutout(),
    "mapcutmix": lambda c: MapCutMix(),
    "attentivecutmix": lambda c: AttentiveCutMix(),
    "saliencymix": lambda c: SaliencyMix(),
    "snapmix": lambda c: SnapMix(),
}

NAMES = tuple(_MADE)


def policy_named(name: str, canvas: Canvas) -> Policy:
    """A policy with its defaults. Raises `AugmentationError` for another name."""
    if name not in _MADE:
        near = nearest(name, NAMES, n=1)[0]
        raise AugmentationError(
            f"unknown policy {name!r}: did you mean {near!r}? Allowed: {', '.join(NAMES)}"
        )
    return _MADE[name](canvas)

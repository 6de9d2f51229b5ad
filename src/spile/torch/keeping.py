"""Raw maps out of the training passes of a PyTorch model; see `spile.banking.Keeper`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn

from spile.augmentation.geometry import Frame, Grid
from spile.augmentation.settings import watched_point
from spile.errors import AugmentationError
from spile.interfaces import Take
from spile.torch.guides import Guide
from spile.torch.trees import device_of, is_compiled, names_of, unwrap


class Watched:
    """Hands on the reduced activation of every training pass; `close` ends it."""

    def __init__(self, guide: Guide, take: Take, *, pictures: bool = False) -> None:
        if is_compiled(guide.model):
            raise AugmentationError(
                "a compiled model runs no hooks that are new: make the keeper before torch.compile"
            )
        base = unwrap(guide.model)
        self._guide, self._base, self._take, self._pictures = guide, base, take, pictures
        self._point = watched_point(guide.point, guide.settings)
        self._images: Tensor | None = None
        self.active = False
        module = next(module for module, names in names_of(base).items() if self._point.path in names)
        self._handles = [
            base.register_forward_pre_hook(self._begin, with_kwargs=True),
            module.register_forward_hook(self._read),
        ]

    @property
    def leads(self) -> bool:
        """Whether this process writes."""
        return not _together() or distributed.get_rank() == 0

    def grid(self, shape: tuple[int, ...], size: tuple[int, int]) -> Grid:
        """Where the cells lie in pictures of `size`."""
        grid = self._guide.grid(torch.zeros((1, *shape[1:]), device=device_of(self._base)))
        return grid.in_source(Frame.whole(size, (shape[2], shape[3])))

    def gathered(self, made: list[Any]) -> list[Any]:
        """Those of all processes."""
        if not _together():
            return made
        parts: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(parts, made)
        return [each for part in parts for each in part]

    def close(self) -> None:
        """Leave the model as it was."""
        for handle in self._handles:
            handle.remove()

    def _begin(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found = (v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.ndim == 4)
        self._images = next(found, None) if self._base.training and self.active else None

    def _read(self, _: nn.Module, __: Any, output: Any) -> None:
        images, self._images = self._images, None  # what checkpointing runs again is not read again
        if images is None:
            return
        axis = (self._point.layout or "B").index("B")
        with torch.no_grad():
            pixels = images.round().clamp(0, 255).to(torch.uint8).cpu().numpy() if self._pictures else None
            self._take(self._guide.reduced(output.movedim(axis, 0)), tuple(images.shape), pixels)


def _together() -> bool:
    return distributed.is_available() and distributed.is_initialized()

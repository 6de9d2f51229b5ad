"""Catching tensors: hooks that pool and copy at the moment a tensor is made."""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.hooks import RemovableHandle

from spile.errors import CaptureError
from spile.interfaces import Activations
from spile.resolution import Point
from spile.torch.pooling import pooled
from spile.torch.trees import given, pick

_LISTED = 8


class Stop(BaseException):
    """Every point is taken. Not an `Exception`, so that a model's own error handling lets it through."""

    def __init__(self, capture: Capture) -> None:
        self.capture = capture


class Capture:
    """What one tap takes, and the passes under way: one a thread. A deep copy of the tap has its own."""

    def __init__(
        self, points: tuple[Point, ...] = (), prefix_tokens: Mapping[str, int] | None = None
    ) -> None:
        self.points = points
        self.prefix_tokens = prefix_tokens or {}
        self._passes: dict[int, _Pass] = {}

    def begin(self, *, stop: bool, mask: Tensor | None) -> None:
        """Take what the hooks see from now on. With `stop`, raise `Stop` once every point is taken."""
        if self.runs_here():
            raise CaptureError(
                "this tap is already running: the model it is on calls it from inside its forward pass"
            )
        self._passes[_thread()] = _Pass(stop, mask)

    def end(self) -> _Pass:
        """What was taken; `check` it."""
        return self._passes.pop(_thread())

    def runs_here(self) -> bool:
        """Whether this thread is in a pass."""
        return _thread() in self._passes

    def see(self, points: tuple[Point, ...], value: Any) -> None:
        """One run of the layer that these `points` are on."""
        current = self._passes[_thread()]
        if torch.compiler.is_compiling():
            self._take(points, value, current)
            return
        try:
            self._take(points, value, current)
        except Exception as error:  # kept for `check`: a model may swallow what is raised inside it
            current.fault = error
        if current.fault or (current.stop and len(current.values) == len(self.points)):
            raise Stop(self)

    def check(self, done: _Pass) -> Activations:
        """The activations, or the error for points that did not run as in the dry pass."""
        if done.fault is not None:
            raise done.fault
        missing = [point.name for point in self.points if point.name not in done.values]
        if missing:
            more = f" and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
            names = ", ".join(missing[:_LISTED]) + more
            raise CaptureError(f"did not run in this batch, though it did in the dry pass: {names}")
        return Activations({point.name: done.values[point.name] for point in self.points})

    def _take(self, points: tuple[Point, ...], value: Any, current: _Pass) -> None:
        place = f"{points[0].path}@{points[0].side}"
        call = current.counts.get(place, 0)
        current.counts[place] = call + 1
        for point in points:
            if point.only_call and call:
                again = f"{point.path}{'@in' if point.side == 'in' else ''}#0"
                raise CaptureError(
                    f"{point.name} ran again in this batch, but once in the dry pass: name a call, {again!r}"
                )
            if point.call == call:
                current.values[point.name] = self._kept(point, value, current)

    def _kept(self, point: Point, value: Any, current: _Pass) -> Tensor:
        try:
            tensor = value if point.item is None else pick(value, point.item)
        except LookupError:
            tensor = None
        if not isinstance(tensor, Tensor):
            raise CaptureError(f"{point.name} held no tensor in this batch, though it did in the dry pass")
        if point.layout is not None and tensor.ndim != len(point.layout):
            raise CaptureError(
                f"{point.name} has the shape {list(tensor.shape)} in this batch, "
                f"but had {len(point.layout)} axes in the dry pass"
            )
        if current.grad and not torch.is_grad_enabled() and _in_reentrant_checkpoint():
            raise CaptureError(
                f"{point.name} runs inside checkpoint(use_reentrant=True), which cuts its gradients: "
                "use use_reentrant=False"
            )
        with _saving_for_itself():
            return pooled(
                tensor,
                point.pool,
                point.layout,
                prefix_tokens=self.prefix_tokens.get(point.name, 0),
                mask=current.mask,
            )


class _Pass:
    """The state of one pass."""

    def __init__(self, stop: bool, mask: Tensor | None) -> None:
        self.stop = stop
        self.mask = mask
        self.grad = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        self.values: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.fault: Exception | None = None


class Observer:
    """One hook: sees every call of one layer, on one side. It acts outside the layer's other hooks."""

    def __init__(self, capture: Capture, points: tuple[Point, ...], module: nn.Module) -> None:
        self.capture = capture
        self.points = points
        self._out = points[0].side == "out"
        self.handle: RemovableHandle = (
            module.register_forward_hook(self)
            if self._out
            else module.register_forward_pre_hook(self, with_kwargs=True)
        )
        self.go_outside()

    def __call__(self, module: nn.Module, args: tuple[Any, ...], *more: Any) -> None:
        """What PyTorch calls before the layer, with keywords, or after it, with the output.

        It may leave the keywords out in other threads while the hook is being set; those have no pass.
        """
        if self.capture.runs_here():
            self.capture.see(self.points, more[0] if self._out else given(args, *more))

    def go_outside(self) -> None:
        """Be the first to see the input and the last to see the output, as whoever calls the layer."""
        hooks: Any = self.handle.hooks_dict_ref()
        placed = list((hooks or {}).items())  # in one go, as other threads may add to it
        for key, hook in reversed(placed) if self._out else placed:
            if key == self.handle.id:
                return
            if not isinstance(hook, Observer):
                hooks.move_to_end(self.handle.id, last=self._out)
                return


def _thread() -> int:
    return 0 if torch.compiler.is_compiling() else threading.get_ident()


def _saving_for_itself() -> AbstractContextManager[Any]:
    """Keep what a pool saves for its gradient out of activation checkpoints: it is not saved again."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return nullcontext()
    return saved_tensors_hooks(lambda t: t, lambda t: t)


def _in_reentrant_checkpoint() -> bool:
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_qualname == "CheckpointFunction.forward":
            return True
        frame = frame.f_back
    return False

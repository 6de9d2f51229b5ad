"""Catching tensors: what a tap takes of one pass, pooled at the moment it is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
from keras.src.backend import get_keras_mask  # the attribute alone is not set on what JAX traces

from spile.address import Side
from spile.errors import CaptureError
from spile.keras.pooling import needs_mask, pooled
from spile.keras.trees import given, is_tensor, tensors
from spile.resolution import Point, by_place
from spile.trees import pick

_LISTED = 8


class Stop(BaseException):
    """Every point is taken. Not an `Exception`, so that a model's own error handling lets it through."""

    def __init__(self, capture: Capture) -> None:
        self.capture = capture


class Padding:
    """Which tokens of one pass are real: as Keras says of a tensor, else as the model was `told`.

    `keras.layers.MultiHeadAttention` takes what Keras says from the tensors that it is given; here it is
    kept.
    """

    def __init__(self, told: Any) -> None:
        self._told = told
        self._taken: dict[int, tuple[Any, Any]] = {}
        """By identity: the mask, with the tensor, so that no other one gets its identity."""

    def around(self, run: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The output of a layer's ``run()``; keeps the masks that it takes away."""
        masks = [(tensor, get_keras_mask(tensor)) for _, tensor in tensors((args, kwargs))]
        try:
            return run()
        finally:
            for tensor, mask in masks:
                if mask is not None and get_keras_mask(tensor) is None:
                    self._taken.setdefault(id(tensor), (mask, tensor))

    def of(self, tensor: Any) -> Any:
        """The mask (samples, tokens), or ``None``."""
        taken, _ = self._taken.get(id(tensor), (self._told, None))
        return padding(tensor, taken)


class Capture:
    """What a tap takes of one pass."""

    def __init__(
        self,
        points: tuple[Point, ...],
        paths: Mapping[keras.Layer, str],
        *,
        prefix_tokens: Mapping[str, int],
        mask: Any,
        stop: bool,
    ) -> None:
        self._points = points
        self._paths = paths
        self._places = by_place(points)
        self._prefix_tokens = prefix_tokens
        self._tokens = any("T" in (point.layout or "") for point in points)
        self.padding = Padding(mask)
        self._stop = stop
        self._values: dict[str, Any] = {}
        self._unpooled: list[tuple[Point, Any, Any]] = []
        """With the tensor itself, which is told its padding when the layer is left, and its value now."""
        self._counts: dict[tuple[str, Side], int] = {}
        self._taken = 0
        self._fault: Exception | None = None
        self.entered: set[str] = set()
        self.originals: dict[str, Any] = {}
        """The tensors themselves, which know their padding once their layer was left."""

    def watch(
        self, layer: keras.Layer, run: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """See one run of a layer; see `spile.keras.watching`."""
        # A point's padding is known only after its layer was left for good, hence the stop at the next one.
        self._stop_when_done()
        path = self._paths[layer]
        self.entered.add(path)
        self._see(path, "in", lambda: given(args, kwargs))
        self._stop_when_done()
        output = self.padding.around(run, args, kwargs) if self._tokens else run()
        self._see(path, "out", lambda: output)
        return output

    def values(self) -> dict[str, Any]:
        """What was taken, or the error for points that did not run as in the dry pass."""
        if self._fault is not None:
            raise self._fault
        for point, tensor, value in self._unpooled:
            self._values[point.name] = self._pooled(point, value, self.padding.of(tensor))
        self._unpooled.clear()
        missing = [point.name for point in self._points if point.name not in self._values]
        if missing:
            more = f" and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
            names = ", ".join(missing[:_LISTED]) + more
            raise CaptureError(f"did not run in this batch, though it did in the dry pass: {names}")
        return {point.name: self._values[point.name] for point in self._points}

    def _stop_when_done(self) -> None:
        if self._fault or (self._stop and self._taken == len(self._points)):
            raise Stop(self)

    def _see(self, path: str, side: Side, value: Callable[[], Any]) -> None:
        points = self._places.get((path, side))
        if not points:
            return
        try:
            self._take(points, value())
        except Exception as error:  # kept for `values`: a model may swallow what is raised inside it
            self._fault = error
            raise Stop(self) from error

    def _take(self, points: tuple[Point, ...], value: Any) -> None:
        place = points[0].path, points[0].side
        call = self._counts.get(place, 0)
        self._counts[place] = call + 1
        for point in points:
            if point.only_call and call:
                again = f"{point.path}{'@in' if point.side == 'in' else ''}#0"
                raise CaptureError(
                    f"{point.name} ran again in this batch, but once in the dry pass: name a call, {again!r}"
                )
            if point.call == call:
                self._keep(point, value)
                self._taken += 1

    def _keep(self, point: Point, value: Any) -> None:
        try:
            tensor = value if point.item is None else pick(value, point.item)
        except LookupError:
            tensor = None
        if not is_tensor(tensor):
            raise CaptureError(f"{point.name} held no tensor in this batch, though it did in the dry pass")
        if point.layout is not None and len(tensor.shape) != len(point.layout):
            raise CaptureError(
                f"{point.name} has the shape {list(tensor.shape)} in this batch, "
                f"but had {len(point.layout)} axes in the dry pass"
            )
        self.originals[point.name] = tensor
        if needs_mask(point.pool, point.layout):
            self._unpooled.append((point, tensor, copied(tensor)))
        else:
            self._values[point.name] = self._pooled(point, copied(tensor), None)

    def _pooled(self, point: Point, tensor: Any, mask: Any) -> Any:
        return pooled(
            tensor,
            point.pool,
            point.layout,
            prefix_tokens=self._prefix_tokens.get(point.name, 0),
            mask=mask,
        )


def copied(tensor: Any) -> Any:
    """A copy where the backend lets a layer change a tensor in place."""
    return tensor.clone() if keras.backend.backend() == "torch" else tensor


def padding(tensor: Any, mask: Any) -> Any:
    """Which tokens are real: as Keras says of this tensor, else as the model was told with its inputs."""
    own = get_keras_mask(tensor)
    return mask if own is None else own

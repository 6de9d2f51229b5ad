"""The reference that taps are verified against: the whole pass, caught at the class, not at the layer."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import keras
import numpy as np

from spile.errors import CaptureError
from spile.interfaces import Verification
from spile.keras.capturing import Padding, copied
from spile.keras.names import names_of
from spile.keras.pooling import pooled
from spile.keras.runtime import runtime
from spile.keras.trees import Inputs, given
from spile.resolution import Point, by_place
from spile.trees import pick

_LISTED = 8


def reference(
    model: keras.Model,
    points: tuple[Point, ...],
    inputs: Inputs,
    *,
    training: Mapping[str, Any],
    prefix_tokens: Mapping[str, int],
    mask: Any,
) -> dict[str, Any]:
    """Run the whole model, and return the value of every point that ran."""
    names = {layer: found[0] for layer, found in names_of(model).items()}
    places = by_place(points)
    kept: dict[str, tuple[Point, Any, Any]] = {}
    ran: dict[str, int] = {}
    padding = Padding(mask)

    def keep(path: str, side: Any, call: int, value: Any) -> None:
        for point in places.get((path, side), ()):
            if point.call == call:
                tensor = value if point.item is None else pick(value, point.item)
                kept[point.name] = point, tensor, copied(tensor)

    def seen(layer: keras.Layer, run: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        path = names.get(layer)
        if path is None:
            return run()
        call = ran[path] = ran.get(path, -1) + 1
        keep(path, "in", call, given(args, kwargs))
        output = padding.around(run, args, kwargs)
        keep(path, "out", call, output)
        return output

    with runtime().without_gradients(), _watching_classes(names, seen):
        model(*inputs.args, **{**training, **inputs.kwargs})
    return {
        name: pooled(
            value,
            point.pool,
            point.layout,
            prefix_tokens=prefix_tokens.get(name, 0),
            mask=padding.of(tensor),
        )
        for name, (point, tensor, value) in kept.items()
    }


@contextmanager
def _watching_classes(layers: Iterable[keras.Layer], seen: Any) -> Iterator[None]:
    """Have every run of these layers in this thread go through ``seen(layer, run, args, kwargs)``."""
    thread = threading.get_ident()
    running: set[int] = set()

    def watched(call: Any) -> Any:
        @functools.wraps(call)
        def wrapper(layer: keras.Layer, *args: Any, **kwargs: Any) -> Any:
            # A class may use the `call` of its base: that is the same run.
            if id(layer) in running or threading.get_ident() != thread:
                return call(layer, *args, **kwargs)
            running.add(id(layer))
            try:
                return seen(layer, lambda: call(layer, *args, **kwargs), args, kwargs)
            finally:
                running.discard(id(layer))

        return wrapper

    classes = {c for layer in layers for c in type(layer).__mro__ if issubclass(c, keras.Layer)}
    with ExitStack() as stack:
        for owner in classes:
            for name in vars(owner).keys() & {"call", "quantized_call"}:
                stack.callback(setattr, owner, name, vars(owner)[name])
                setattr(owner, name, watched(vars(owner)[name]))
        yield


def compare(
    found: Mapping[str, Any], expected: Mapping[str, Any], *, rtol: float, atol: float
) -> Verification:
    """Raise `CaptureError` naming the points that differ by more than ``atol + rtol * |expected|``."""
    wrong, largest = [], 0.0
    for name, captured in found.items():
        if name not in expected:
            wrong.append(f"{name}: the reference did not reach it")
            continue
        value, other = (keras.ops.convert_to_numpy(tensor) for tensor in (captured, expected[name]))
        if (value.shape, value.dtype) != (other.shape, other.dtype):
            wrong.append(f"{name}: {_kind(value)} instead of {_kind(other)}")
            continue
        difference = _largest_difference(value, other)
        largest = max(largest, difference)
        if not np.allclose(_wide(value), _wide(other), rtol=rtol, atol=atol, equal_nan=True):
            wrong.append(f"{name}: off by {difference:.3g}")
    if wrong:
        raise CaptureError(
            f"{len(wrong)} of {len(found)} points differ from the reference: " + "; ".join(wrong[:_LISTED])
        )
    return Verification(points=len(found), largest_difference=largest)


def _kind(array: np.ndarray[Any, Any]) -> str:
    return f"{list(array.shape)} {array.dtype}"


def _wide(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return array if array.dtype.kind in "biu" else array.astype(np.float64)


def _largest_difference(value: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    if not value.size:
        return 0.0
    one, two = value.astype(np.float64), other.astype(np.float64)
    same = (one == two) | (np.isnan(one) & np.isnan(two))
    with np.errstate(invalid="ignore"):  # infinite on both sides
        difference = np.where(same, 0.0, np.abs(one - two))
    return float(np.nan_to_num(difference, nan=np.inf, posinf=np.inf).max())

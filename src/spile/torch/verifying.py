"""The reference that taps are verified against: clones every value when it is made, and uses no hook."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from spile.errors import CaptureError
from spile.interfaces import Verification
from spile.resolution import Point, by_place
from spile.torch.pooling import pooled
from spile.torch.quiet import watching_calls
from spile.torch.trees import Inputs, given, names_of, pick

_LISTED = 8


def reference(
    model: nn.Module,
    points: tuple[Point, ...],
    inputs: Inputs,
    *,
    prefix_tokens: Mapping[str, int],
    mask: Tensor | None,
) -> dict[str, Tensor]:
    """Run the whole model, and return the value of every point that ran."""
    names = {module: found[0] for module, found in names_of(model).items()}
    places = by_place(points)
    values: dict[str, Tensor] = {}
    ran: dict[str, int] = {}

    def keep(path: str, side: Any, call: int, value: Any) -> None:
        for point in places.get((path, side), ()):
            if point.call == call:
                tensor = (value if point.item is None else pick(value, point.item)).clone()
                values[point.name] = pooled(
                    tensor,
                    point.pool,
                    point.layout,
                    prefix_tokens=prefix_tokens.get(point.name, 0),
                    mask=mask,
                )

    def watch(
        module: nn.Module, run: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        path = names.get(module)
        if path is None:
            return run()
        call = ran[path] = ran.get(path, -1) + 1
        keep(path, "in", call, given(args, kwargs))
        output = run()
        keep(path, "out", call, output)
        return output

    with torch.no_grad(), watching_calls(watch):
        model(*inputs.args, **inputs.kwargs)
    return values


def compare(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, rtol: float, atol: float
) -> Verification:
    """Raise `CaptureError` naming the points that differ by more than ``atol + rtol * |expected|``."""
    wrong, largest = [], 0.0
    for name, captured in found.items():
        value, reference = captured.detach(), expected.get(name)
        if reference is None:
            wrong.append(f"{name}: the reference did not reach it")
        elif (value.shape, value.dtype) != (reference.shape, reference.dtype):
            wrong.append(f"{name}: {_kind(value)} instead of {_kind(reference)}")
        else:
            difference = _largest_difference(value, reference)
            largest = max(largest, difference)
            if not _close(value, reference, rtol, atol):
                wrong.append(f"{name}: off by {difference:.3g}")
    if wrong:
        raise CaptureError(
            f"{len(wrong)} of {len(found)} points differ from the reference: " + "; ".join(wrong[:_LISTED])
        )
    return Verification(points=len(found), largest_difference=largest)


def _kind(value: Tensor) -> str:
    return f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')}"


def _close(value: Tensor, expected: Tensor, rtol: float, atol: float) -> bool:
    if not (value.is_floating_point() or value.is_complex()):
        return torch.equal(value, expected)
    return torch.allclose(value, expected, rtol=rtol, atol=atol, equal_nan=True)


def _largest_difference(value: Tensor, expected: Tensor) -> float:
    if not value.numel():
        return 0.0
    kind = torch.complex128 if value.is_complex() else torch.float64
    return float((value.to(kind) - expected.to(kind)).abs().nan_to_num(0.0).max())

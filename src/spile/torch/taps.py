"""The tap on PyTorch: hooks that pool and copy at the moment a tensor is made, and a pass that stops when it has all."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from spile import structure
from spile.backend import Activations, Mode, Verification
from spile.errors import CaptureError, ModelError
from spile.resolution import AddressesLike, LeftOut, Point, PoolsLike, resolve
from spile.torch.observing import as_example, observe
from spile.torch.pooling import pooled
from spile.torch.quiet import quiet_pass, watching_calls
from spile.torch.trees import device_of, given, is_compiled, names_of, pick, transform, unwrap, unwrapped_name


class Tap(nn.Module):
    """Points and pools on a model. Calling it runs the model up to the deepest point and returns `Activations`.

    The model is a submodule, shared and not copied: ``tap.to(device)`` moves it, its own hooks stay. What a call changes
    (training flags, random state) it puts back; `close` takes spile's hooks off again.
    """

    def __init__(
        self, model: nn.Module, addresses: AddressesLike, *, pool: PoolsLike = "auto", example: Any = None, mode: Mode = "eval"
    ) -> None:
        super().__init__()
        if is_compiled(model):
            raise ModelError(
                "the model is already compiled, and hooks set after that may never run: tap the model first and compile the "
                "tap, torch.compile(spile.tap(model, ...))"
            )
        if isinstance(model, nn.DataParallel) and len(model.device_ids) > 1:
            raise ModelError("DataParallel runs copies of the model in threads: tap model.module, or use DistributedDataParallel")
        self.model = model
        self.mode = mode
        self.origin: Any = None
        """The `spile.models.LoadedModel` that the model came from, where it came from a reference."""
        self.last_features = ""
        """Address of what the model's final classifier reads; empty until the points are resolved."""
        self._wanted = (addresses, pool)
        self._points: tuple[Point, ...] = ()
        self._left_out: tuple[LeftOut, ...] = ()
        self._capture = _Capture()
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._closed = False
        if example is not None:
            self._resolve(as_example(example, unwrap(model)))

    @property
    def points(self) -> tuple[Point, ...]:
        """The resolved points. Raises `CaptureError` before the first batch of a tap made without an example."""
        if not self._points:
            raise CaptureError("the points are learnt from the first batch: call the tap once, or make it with example=...")
        return self._points

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """Places that a pattern matched but that hold nothing for each sample, and why."""
        return self._left_out

    def forward(self, *args: Any, **kwargs: Any) -> Activations:
        """Run the model on a batch up to the deepest point. Raises `CaptureError` where a point did not fire as it should."""
        return self._run(args, kwargs, stop=True)[1]

    def with_output(self, *args: Any, **kwargs: Any) -> tuple[Any, Activations]:
        """Run the whole model: its own output, and the activations."""
        return self._run(args, kwargs, stop=False)

    def verify(self, *args: Any, rtol: float = 0.0, atol: float = 0.0, **kwargs: Any) -> Verification:
        """Compare every point with a reference that clones every value the moment it is made, without any hook.

        Raises `CaptureError` naming the points that differ by more than ``atol + rtol * |reference|``.
        """
        found = self(*args, **kwargs)
        reference = self._reference(*_on_device(args, kwargs, self.model))
        wrong, largest = [], 0.0
        for name, expected in reference.items():
            value = found[name]
            if expected is None or value.shape != expected.shape:
                wrong.append(f"{name}: {list(value.shape)} instead of {None if expected is None else list(expected.shape)}")
                continue
            difference = _largest_difference(value, expected)
            largest = max(largest, difference)
            if not torch.allclose(value, expected, rtol=rtol, atol=atol, equal_nan=True):
                wrong.append(f"{name}: off by {difference:.3g}")
        if wrong:
            raise CaptureError(f"{len(wrong)} of {len(reference)} points differ from the reference: " + "; ".join(wrong[:8]))
        return Verification(points=len(reference), largest_difference=largest)

    def close(self) -> None:
        """Take the hooks off the model. The tap cannot be used afterwards; closing twice is fine."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        for handle in self.__dict__.get("_handles", ()):
            handle.remove()

    def _resolve(self, example: Any) -> None:
        observation = observe(self.model, example)
        self.last_features = structure.last_features(observation)
        addresses, pool = self._wanted
        self._points, self._left_out = resolve(addresses, pool, observation)
        modules = {unwrapped_name(names[0]): module for module, names in names_of(unwrap(self.model)).items()}
        self._capture = _Capture(self._points, observation.prefix_tokens or 0)
        for path, side in dict.fromkeys((p.path, p.side) for p in self._points):
            points = tuple(p for p in self._points if (p.path, p.side) == (path, side))
            observer = _Observer(self._capture, points)
            register = modules[path].register_forward_hook if side == "out" else modules[path].register_forward_pre_hook
            self._handles.append(register(observer, with_kwargs=True))  # type: ignore[arg-type]

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any], *, stop: bool) -> tuple[Any, Activations]:
        if torch.compiler.is_compiling():
            return self._traced(args, kwargs)
        if self._closed:
            raise CaptureError("this tap is closed: make a new one with spile.tap(...)")
        args, kwargs = _on_device(args, kwargs, self.model)
        if not self._points:
            self._resolve(args if not kwargs else kwargs)
        target, may_stop = self._target()
        output = None
        with quiet_pass(self.model, evaluate=self.mode == "eval"):
            self._capture.begin(stop=stop and may_stop, mask=kwargs.get("attention_mask"))
            try:
                output = target(*args, **kwargs)
            except _Stop as signal:
                if signal.capture is not self._capture:
                    raise
            finally:
                values = self._capture.end()
        self._capture.check(values)
        return output, Activations((point.name, values[point.name]) for point in self._points)

    def _traced(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Activations]:
        """The pass as `torch.compile` and `torch.export` see it: no early stop, the compiler drops what is not used."""
        if not self._points:
            raise CaptureError("call the tap once, or make it with example=..., before it is compiled")
        if self.mode == "eval" and any(module.training for module in self.model.modules()):
            raise CaptureError("call model.eval() before the tap is compiled, or make the tap with mode='as_is'")
        self._capture.begin(stop=False, mask=kwargs.get("attention_mask"))
        output = self.model(*args, **kwargs)
        values = self._capture.end()
        self._capture.check(values)
        return output, Activations({point.name: values[point.name] for point in self._points})

    def _target(self) -> tuple[nn.Module, bool]:
        """What to call, and whether it may stop early: DDP must finish its forward pass when gradients are wanted."""
        base = unwrap(self.model)
        if base is not self.model and torch.is_grad_enabled():
            return self.model, False
        return base, True

    def _reference(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor | None]:
        names = {module: unwrapped_name(found[0]) for module, found in names_of(unwrap(self.model)).items()}
        values: dict[str, Tensor | None] = {point.name: None for point in self._points}
        ran: dict[str, int] = {}
        mask = kwargs.get("attention_mask")

        def keep(path: str, side: str, call: int, value: Any) -> None:
            for point in self._points:
                if (point.path, point.side, point.call) == (path, side, call):
                    tensor = value if point.item is None else pick(value, point.item)
                    values[point.name] = pooled(
                        tensor.clone(), point.pool, point.layout, prefix_tokens=self._capture.prefix_tokens, mask=mask
                    )

        def watch(module: nn.Module, run: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            path = names.get(module)
            if path is None:
                return run()
            call = ran[path] = ran.get(path, -1) + 1
            keep(path, "in", call, given(args, kwargs))
            output = run()
            keep(path, "out", call, output)
            return output

        with quiet_pass(self.model, evaluate=self.mode == "eval"), torch.no_grad(), watching_calls(watch):
            unwrap(self.model)(*args, **kwargs)
        return values


class _Stop(BaseException):
    """Every point is taken. Not an `Exception`, so that a model's own error handling lets it through."""

    def __init__(self, capture: _Capture) -> None:
        self.capture = capture


class _Capture:
    """The state of one pass. Objects instead of closures, so that a deep copy of the tap has its own."""

    def __init__(self, points: tuple[Point, ...] = (), prefix_tokens: int = 0) -> None:
        self.points = points
        self.prefix_tokens = prefix_tokens
        self.values: dict[str, Tensor] | None = None
        self.counts: dict[str, int] = {}
        self.stop = False
        self.grad = False
        self.mask: Tensor | None = None
        self.thread: int | None = None

    def begin(self, *, stop: bool, mask: Tensor | None) -> None:
        if self.values is not None:
            raise CaptureError("this tap is already running, in another thread or inside itself: give each thread its own tap")
        self.values, self.counts = {}, {}
        self.stop, self.mask, self.grad = stop, mask, torch.is_grad_enabled()
        self.thread = None if torch.compiler.is_compiling() else threading.get_ident()

    def end(self) -> dict[str, Tensor]:
        values, self.values, self.mask = self.values or {}, None, None
        return values

    def runs_here(self) -> bool:
        return self.values is not None and (torch.compiler.is_compiling() or self.thread == threading.get_ident())

    def take(self, point: Point, value: Any) -> None:
        assert self.values is not None
        if not torch.compiler.is_compiling() and self.grad and not torch.is_grad_enabled() and _in_reentrant_checkpoint():
            raise CaptureError(
                f"{point.name} runs inside checkpoint(use_reentrant=True), which cuts its gradients: use use_reentrant=False"
            )
        try:
            tensor = value if point.item is None else pick(value, point.item)
        except LookupError:
            tensor = None
        if not isinstance(tensor, Tensor):
            raise CaptureError(f"{point.name} held no tensor in this batch, though it did in the dry pass")
        self.values[point.name] = pooled(
            tensor, point.pool, point.layout, prefix_tokens=self.prefix_tokens, mask=self.mask
        )
        if self.stop and len(self.values) == len(self.points):
            raise _Stop(self)

    def check(self, values: dict[str, Tensor]) -> None:
        missing = [point.name for point in self.points if point.name not in values]
        if missing:
            raise CaptureError(f"did not run in this batch, though it did in the dry pass: {', '.join(missing[:8])}")
        for point in self.points:
            if point.only_call and self.counts[f"{point.path}@{point.side}"] != 1:
                runs = self.counts[f"{point.path}@{point.side}"]
                raise CaptureError(f"{point.name} ran {runs} times in this batch and once in the dry pass: name a call, {point.path}#0")


class _Observer:
    """One hook: sees every call of one layer and takes the points on it."""

    def __init__(self, capture: _Capture, points: tuple[Point, ...]) -> None:
        self.capture = capture
        self.points = points
        self.key = f"{points[0].path}@{points[0].side}"

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *output: Any) -> None:
        if not self.capture.runs_here():
            return
        call = self.capture.counts.get(self.key, 0)
        self.capture.counts[self.key] = call + 1
        value = output[0] if output else given(args, kwargs)
        for point in self.points:
            if point.call == call:
                self.capture.take(point, value)


def _in_reentrant_checkpoint() -> bool:
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_qualname == "CheckpointFunction.forward":
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


def _on_device(args: tuple[Any, ...], kwargs: dict[str, Any], model: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arrays become tensors, and tensors go where the model is."""
    device = device_of(model)
    args = tuple(torch.as_tensor(a) if hasattr(a, "__array__") and not isinstance(a, Tensor) else a for a in args)
    if len(args) == 1 and isinstance(args[0], dict) and not kwargs:
        args, kwargs = (), args[0]
    moved = transform((args, kwargs), lambda t: t if t.device == device else t.to(device))
    return moved[0], moved[1]


def _largest_difference(value: Tensor, expected: Tensor) -> float:
    if not value.numel():
        return 0.0
    return float((value.double() - expected.double()).abs().nan_to_num(0.0).max())

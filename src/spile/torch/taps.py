"""The tap on PyTorch: a pass that stops when it has every point; `spile.torch.capturing` catches them."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from typing import Any, Self

import torch
from torch import Tensor, nn

from spile import structure
from spile.errors import CaptureError, ModelError
from spile.interfaces import Activations, Mode, Verification
from spile.observation import Observation
from spile.resolution import AddressesLike, LeftOut, Point, PoolsLike, by_place, resolve
from spile.torch.capturing import Capture, Observer, Stop
from spile.torch.inputs import ready_images
from spile.torch.observing import observe
from spile.torch.quiet import Writing, quiet_pass, unchanged
from spile.torch.trees import (
    Inputs,
    called_with,
    inputs_of,
    is_compiled,
    names_of,
    position_of,
    transform,
    unwrap,
)
from spile.torch.verifying import compare, reference

_resolving = threading.RLock()


class Tap(nn.Module):
    """Points and pools on a model. Calling it runs the model up to the deepest point; returns `Activations`.

    The model is a submodule, shared and not copied: ``tap.to(device)`` moves it, its own hooks stay. What a
    call changes (training flags, random state) it puts back; `close` takes spile's hooks off again.
    """

    def __init__(
        self,
        model: nn.Module,
        addresses: AddressesLike,
        *,
        pool: PoolsLike = "auto",
        example: Any = None,
        mode: Mode = "eval",
    ) -> None:
        super().__init__()
        if mode not in ("eval", "as_is"):
            raise ModelError(f"unknown mode {mode!r}: write 'eval' (the default) or 'as_is'")
        if is_compiled(model):
            raise ModelError(
                "the model is already compiled, and hooks set after that may never run: tap the model first "
                "and compile the tap, torch.compile(spile.tap(model, ...))"
            )
        if isinstance(model, nn.DataParallel) and len(model.device_ids) > 1:
            raise ModelError(
                "DataParallel runs copies of the model in threads: tap model.module, or use "
                "DistributedDataParallel"
            )
        self.model = model
        self.mode = mode
        self.origin: Any = None
        """The `spile.models.LoadedModel` of a model that came from a reference."""
        self.last_features = ""
        """Address of what the model's final classifier reads; empty until the points are resolved."""
        self._wanted = (addresses, pool)
        self._points: tuple[Point, ...] = ()
        self._left_out: tuple[LeftOut, ...] = ()
        self.value_dependent = False
        """Which layers run, and how often, may depend on the values of the inputs."""
        self._may_stop = True
        self._channels_last = True
        self._mask_at: int | None = None
        self._capture = Capture()
        self._writing = Writing()
        self._observers: list[Observer] = []
        self._closed = False
        if example is not None:
            self._resolve(inputs_of(unwrap(model), example))

    @property
    def points(self) -> tuple[Point, ...]:
        """The resolved points. Raises `CaptureError` before the first batch of a tap without an example."""
        if not self._points:
            raise CaptureError(
                "the points are learnt from the first batch: call the tap once, or make it with example=..."
            )
        return self._points

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """Places that a pattern matched but that hold nothing for each sample, and why."""
        return self._left_out

    def prefix_tokens(self, point: Point) -> int:
        """Class and register tokens at a point."""
        return self._capture.prefix_tokens.get(point.name, 0)

    def forward(self, *args: Any, **kwargs: Any) -> Activations:
        """Run the model on a batch up to the deepest point.

        Raises `CaptureError` where a point did not fire as it should.
        """
        return self._run(args, kwargs, stop=True)[1]

    def with_output(self, *args: Any, **kwargs: Any) -> tuple[Any, Activations]:
        """Run the whole model: its own output, and the activations."""
        return self._run(args, kwargs, stop=False)

    def verify(self, *args: Any, rtol: float = 0.0, atol: float = 0.0, **kwargs: Any) -> Verification:
        """Compare every point with a reference that clones every value when it is made, without any hook.

        Raises `CaptureError` naming the points that differ by more than ``atol + rtol * |reference|``.
        """
        base = unwrap(self.model)
        given = self._inputs(base, args, kwargs)
        inputs = transform(given, Tensor.clone)  # for each pass, as models may write into what they are given
        with unchanged(self.model):
            found = self(*inputs.args, **inputs.kwargs)
        inputs = transform(self.taken(given), Tensor.clone)
        with unchanged(self.model), quiet_pass(self.model, evaluate=self.mode == "eval"):
            expected = reference(
                base,
                self._points,
                inputs,
                prefix_tokens=self._capture.prefix_tokens,
                mask=self.mask_of(inputs.args, inputs.kwargs),
            )
        return compare(found, expected, rtol=rtol, atol=atol)

    def close(self) -> None:
        """Take the hooks off the model. The tap cannot be used afterwards; closing twice is fine."""
        self.detach()
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        for observer in self.__dict__.get("_observers", ()):
            observer.handle.remove()

    def _resolve(self, example: Inputs) -> None:
        self.settle(observe(self.model, example))

    def settle(self, observation: Observation) -> None:
        """Resolve the points on a dry pass that was made before, and set the hooks."""
        self.last_features = structure.last_features(observation)
        addresses, pool = self._wanted
        points, self._left_out = resolve(addresses, pool, observation)
        self.value_dependent = observation.value_dependent
        # Where the values decide what runs, only the whole pass shows that a layer did not run once more.
        self._may_stop = not (observation.value_dependent and any(point.only_call for point in points))
        self._channels_last = observation.channels_last
        self._mask_at = position_of(unwrap(self.model), "attention_mask")
        self._capture = Capture(
            points, {point.name: prefix_tokens_at(point, observation) for point in points}
        )
        self._points = points
        self.attach()

    def attach(self) -> None:
        """Set the hooks."""
        modules = {names[0]: module for module, names in names_of(unwrap(self.model)).items()}
        self._observers = [
            Observer(self._capture, on_layer, modules[path])
            for (path, _), on_layer in by_place(self._points).items()
        ]

    def detach(self) -> None:
        """Take the hooks off until `attach`."""
        for observer in self._observers:
            observer.handle.remove()
        self._observers.clear()

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any], *, stop: bool) -> tuple[Any, Activations]:
        if self._closed:
            raise CaptureError("this tap is closed: make a new one with spile.tap(...)")
        if torch.compiler.is_compiling():
            return self._traced(args, kwargs)
        base = unwrap(self.model)
        inputs = self._inputs(base, args, kwargs)
        with _resolving:
            if not self._points:
                self._resolve(inputs)
        inputs = self.taken(inputs)
        # DDP synchronises gradients of whole forward passes; without gradients it is not needed at all.
        distributed = base is not self.model and torch.is_grad_enabled()
        stop = stop and self._may_stop and not distributed
        target = self.model if distributed else base
        for observer in self._observers:
            observer.go_outside()
        output = None
        undone = self._writing.undone(base) if self.mode == "eval" else nullcontext()
        with undone, quiet_pass(self.model, evaluate=self.mode == "eval"):
            self._capture.begin(stop=stop, mask=self.mask_of(inputs.args, inputs.kwargs))
            try:
                output = target(*inputs.args, **inputs.kwargs)
            except Stop as signal:
                if signal.capture is not self._capture:
                    raise
            finally:
                done = self._capture.end()
        return output, self._capture.check(done)

    def _inputs(self, base: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs:
        preprocessing = self.origin.preprocessing if self.origin is not None else None
        ready = (ready_images(a, preprocessing=preprocessing, model=base) for a in args)
        return called_with(base, tuple(ready), kwargs)

    def taken(self, inputs: Any) -> Any:
        """The tensors of a batch as the model takes them: spile's own are channels last, which is faster."""
        return inputs if self._channels_last else transform(inputs, Tensor.contiguous)

    def _traced(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Activations]:
        """The pass as the compiler sees it: without a stop, it drops by itself what is not used."""
        if not self._points:
            raise CaptureError("call the tap once, or make it with example=..., before it is compiled")
        if self.mode == "eval" and any(module.training for module in self.model.modules()):
            raise CaptureError(
                "call model.eval() before the tap is compiled, or make the tap with mode='as_is'"
            )
        args, kwargs = self.taken((args, kwargs))
        self._capture.begin(stop=False, mask=self.mask_of(args, kwargs))
        output = self.model(*args, **kwargs)
        return output, self._capture.check(self._capture.end())

    def mask_of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """Which tokens are real, where the model is told so."""
        mask = kwargs.get("attention_mask")
        if self._mask_at is not None and self._mask_at < len(args):
            mask = args[self._mask_at]
        return mask if isinstance(mask, Tensor) else None


def prefix_tokens_at(point: Point, observation: Observation) -> int:
    """Class and register tokens at this point: none yet in a layer before they are put in front."""
    call = observation.by_path[point.path][point.call]
    own = next(item.prefix_tokens for item in call.items(point.side) if item.key == point.item)
    return (observation.prefix_tokens if own is None else own) or 0

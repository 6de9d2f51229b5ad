"""The dry pass: which layers run, how often, with which tensors, at what cost; without data if possible."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit._script import RecursiveScriptModule
from torch.nn.parameter import is_lazy

from spile import layouts
from spile.address import Side
from spile.errors import ModelError
from spile.layouts import Place
from spile.observation import Call, Item, Layer, Observation
from spile.torch.capturing import Observer
from spile.torch.layouts import channels_of
from spile.torch.modes import FakeTensors, Meter
from spile.torch.quiet import quiet_pass, unchanged, watching_calls
from spile.torch.trees import Inputs, given, inputs_of, names_of, tensors, transform, unwrap

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)

_SIDES: tuple[Side, Side] = ("in", "out")


def observe(model: nn.Module, example: Any) -> Observation:
    """Run one dry pass. `example` is a batch (tensor, positional tuple, keyword dict) or the shape of one.

    Nothing of the model changes: the pass runs on a structural copy that shares the parameters. Raises
    `ModelError` where the model does not take the example.
    """
    base = unwrap(model)
    if isinstance(base, RecursiveScriptModule):
        raise ModelError(
            "a TorchScript model runs without Python, so its layers cannot be observed: pass the nn.Module "
            "that it was made of, or what torch.export.export makes of that, saved as a .pt2 file"
        )
    lazy = next((name for name, parameter in base.named_parameters() if is_lazy(parameter)), None)
    if lazy is not None:
        raise ModelError(
            f"the parameter {lazy!r} has no shape yet: run the model on one batch before it is tapped"
        )
    inputs = inputs_of(base, example)
    two = with_samples(inputs, 2)
    subject, calls = _first_pass(base, two)
    three = with_samples(inputs, 3)
    channels_last = subject.variant(_each(three, _channels_last))
    more = channels_last or subject.variant(three)
    larger = next(filter(None, map(subject.variant, _enlarged(two))), {})
    modules = dict(subject.model.named_modules())
    observation = Observation(
        layers={layer.path: layer for layer in _layers(model, base)},
        calls=layouts.settled(
            calls, more, larger, lambda call: channels_of(modules[call.path], call), channels_first=True
        ),
        separator=".",
        prefix_tokens=None,
        text=any(not t.is_floating_point() and t.ndim == 2 for _, t in tensors(inputs)),
        class_token=_has_class_token(base),
        value_dependent=subject.fake is None,
        channels_last=bool(channels_last),
    )
    said: Any = getattr(base, "num_prefix_tokens", None)
    return layouts.with_prefix_tokens(observation, larger, said=said if isinstance(said, int) else None)


def takes_channels_last(model: nn.Module, example: Any) -> bool:
    """Whether images may come in memory that is channels last."""
    if all(t.ndim != 4 for _, t in tensors(example)):
        return True
    try:
        return observe(model, example).channels_last
    except ModelError:  # as for two samples alone
        return False


def _has_class_token(base: nn.Module) -> bool:
    """False for vision transformers of timm whose prefix is registers only."""
    tokens = [m.cls_token for m in base.modules() if hasattr(m, "cls_token")]
    return not tokens or tokens[0] is not None


def with_samples(inputs: Inputs, samples: int) -> Inputs:
    """The first sample of every batched input, repeated: of all with as many rows as the first one."""
    rows = next((t.shape[0] for _, t in tensors(inputs) if t.ndim), None)

    def repeated(t: Tensor) -> Tensor:
        return t[:1].expand(samples, *t.shape[1:]).contiguous() if t.ndim and t.shape[0] == rows else t

    return _each(inputs, repeated)


def _channels_last(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t


class _EscapedError(Exception):
    """The copy of the model called a layer of the model itself, so it is no faithful copy."""


class _CannotCopyError(Exception):
    pass


@dataclass(frozen=True)
class _Subject:
    """What the dry passes run on."""

    model: nn.Module
    base: nn.Module
    fake: FakeTensors | None
    """Fake tensors cost nothing and hold no values. One mode for all passes: the copy may keep some."""

    def run(self, inputs: Inputs) -> list[Call]:
        """One recorded pass."""
        meter = Meter()
        with ExitStack() as stack:
            stack.enter_context(quiet_pass(self.model, evaluate=True))
            stack.enter_context(torch.no_grad())
            if self.model is self.base:
                stack.enter_context(unchanged(self.base))
            if self.fake is not None:
                inputs = _each(inputs, self.fake.from_tensor)
                stack.enter_context(self.fake.running())
            stack.enter_context(meter)
            originals = set() if self.model is self.base else set(self.base.modules())
            return _record(self.model, originals, _without_hooks(self.base), meter, inputs)

    def variant(self, inputs: Inputs) -> dict[Place, Item]:
        """The items of a further pass by their place; empty where the model does not take such an input."""
        try:
            calls = self.run(inputs)
        except Exception:  # fixed-size models say so in many ways
            return {}
        return {_key(c, side, item): item for c in calls for side in _SIDES for item in c.items(side)}


def _first_pass(base: nn.Module, inputs: Inputs) -> tuple[_Subject, list[Call]]:
    """The pass on a copy with fake tensors; else with real ones; else on the model itself with real ones."""
    for subject in _subjects(base):
        try:
            return subject, subject.run(inputs)
        except _EscapedError:
            continue
        except Exception as error:
            if subject.fake is None:  # else the fake tensors may be at fault, which the next pass shows
                shapes = ", ".join(
                    f"{list(t.shape)} {str(t.dtype).removeprefix('torch.')}" for _, t in tensors(inputs)
                )
                raise ModelError(
                    f"the model does not take two samples like the example ({shapes}): "
                    f"{type(error).__name__}: {error}"
                ) from error
    raise AssertionError("the model itself cannot escape from itself")


def _subjects(base: nn.Module) -> Iterator[_Subject]:
    try:
        yield _Subject(_copy(base), base, FakeTensors())
        yield _Subject(_copy(base), base, None)
    except _CannotCopyError:
        pass
    yield _Subject(base, base, None)


def _copy(base: nn.Module) -> nn.Module:
    """A copy whose modules the pass may change; parameters are shared, buffers and state are its own."""
    try:
        model = copy.deepcopy(base, {id(p): p for p in base.parameters()})
    except Exception as error:  # locks, open files, tensors with a history: whatever cannot be copied
        raise _CannotCopyError from error
    for module in model.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key in [key for key, hook in hooks.items() if not isinstance(hook, Observer)]:
                del hooks[
                    key
                ]  # the user's would be shown fake tensors; those of a tap inside the model belong to it
    return model


def _layers(model: nn.Module, base: nn.Module) -> Iterator[Layer]:
    wrapper = next(name for name, module in model.named_modules() if module is base)
    for module, names in names_of(base).items():
        classes = [
            c.__name__ for c in type(module).__mro__ if issubclass(c, nn.Module) and c is not nn.Module
        ]
        wrapped = [f"{wrapper}.{name}" for name in names if name] if wrapper else []
        yield Layer(
            path=names[0],
            aliases=(*names[1:], *wrapped),
            types=tuple(classes) or ("Module",),
            leaf=next(module.children(), None) is None,
            container=isinstance(module, _CONTAINERS),
            params=sum(p.numel() for p in module.parameters()),
        )


def _key(call: Call, side: Side, item: Item) -> Place:
    return call.path, call.index, side, item.key


def _without_hooks(base: nn.Module) -> set[str]:
    """Names of compiled TorchScript, which takes no hooks; traced modules do, but copies of them are none."""
    return {name for name, m in base.named_modules() if isinstance(m, RecursiveScriptModule)}


def _record(
    model: nn.Module, originals: set[nn.Module], left_out: set[str], meter: Meter, inputs: Inputs
) -> list[Call]:
    calls: list[Call] = []
    names = names_of(model)
    ran: dict[str, int] = {}
    clock = count()
    alive: list[Tensor] = []  # keeps every tensor, so that an identity is never used twice
    needed = _NeededParameters()

    def items(value: Any) -> tuple[Item, ...]:
        found = list(tensors(value))
        alive.extend(t for _, t in found)
        return tuple(
            Item(key or None, tuple(int(n) for n in t.shape), str(t.dtype).removeprefix("torch."), id(t))
            for key, t in found
        )

    def watch(
        module: nn.Module, run: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if module in originals:
            raise _EscapedError
        if module not in names or names[module][0] in left_out:
            return run()
        path = names[module][0]
        index = ran[path] = ran.get(path, -1) + 1
        entered = Call(
            path=path,
            index=index,
            start=next(clock),
            end=0,
            inputs=items(given(args, kwargs)),
            outputs=(),
            macs_before=meter.macs,
            macs=0,
            params_before=needed.total,
            params=0,
        )
        needed.enter(module)
        output = run()
        needed.leave(module)
        calls.append(
            replace(entered, end=next(clock), outputs=items(output), macs=meter.macs, params=needed.total)
        )
        return output

    with watching_calls(watch):
        model(*inputs.args, **inputs.kwargs)
    return calls


class _NeededParameters:
    """Counts the parameters used so far: all of a layer that was left, a layer's own once it was entered."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self.total = 0

    def enter(self, module: nn.Module) -> None:
        self._add(module.parameters(recurse=False))

    def leave(self, module: nn.Module) -> None:
        self._add(module.parameters())

    def _add(self, parameters: Iterator[nn.Parameter]) -> None:
        for parameter in parameters:
            if id(parameter) not in self._seen:
                self._seen.add(id(parameter))
                self.total += parameter.numel()


def _enlarged(inputs: Inputs) -> Iterator[Inputs]:
    """Larger inputs to try: images by 64 x 32 pixels, texts by a token, signals to twice an axis."""
    found = [t for _, t in tensors(inputs)]
    ndims = {t.ndim for t in found}
    floating = {t.is_floating_point() for t in found}
    if ndims == {4} and floating == {True}:
        yield _each(inputs, lambda t: t.new_zeros(*t.shape[:2], t.shape[2] + 64, t.shape[3] + 32))
    elif ndims == {2} and floating == {False}:
        yield _each(inputs, lambda t: torch.cat([t, t[:, -1:]], dim=1))
    elif ndims in ({2}, {3}) and floating == {True}:
        yield _each(inputs, lambda t: torch.cat([t, t], dim=1))
        if ndims == {3}:
            yield _each(inputs, lambda t: torch.cat([t, t], dim=2))


def _each(inputs: Inputs, function: Callable[[Tensor], Tensor]) -> Inputs:
    transformed: Inputs = transform(inputs, function)
    return transformed

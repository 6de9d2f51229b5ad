"""The dry pass: which layers run, how often, with which tensors, at what cost. On fake tensors where the model allows it.

Axes are told apart by measurement, not by their sizes: the pass is repeated with one sample more and with larger
inputs, and what grows with the samples is the batch axis, what grows with the image or text is space or tokens.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from spile import structure
from spile.errors import ModelError
from spile.observation import Call, Item, Layer, Observation
from spile.torch.quiet import quiet_pass, watching_calls
from spile.torch.trees import arguments, device_of, given, names_of, tensors, transform, unwrap, unwrapped_name

_CHANNELS_FIRST = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)
_CHANNELS_LAST = (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Embedding)
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_MOST_PREFIX_TOKENS = 16

_Key = tuple[str, int, str, str | None]


def observe(model: nn.Module, example: Any) -> Observation:
    """Run one dry pass. `example` is a batch (tensor, positional tuple, keyword dict) or the shape of one.

    Nothing of the model changes: the pass runs on a structural copy that shares the parameters.
    """
    base = unwrap(model)
    example = as_example(example, base)
    subject, names = _subject(base)
    first = _pass(subject, names, _with_samples(example, 2), fake=True)
    fake = first is not None
    if first is None:
        first = _pass(subject, names, _with_samples(example, 2), fake=False)
        assert first is not None
    more = _variant(subject, names, _with_samples(example, 3), fake=fake)
    larger = _variant(subject, names, _enlarged(_with_samples(example, 2)), fake=fake)
    calls = _with_layouts(first, more, larger, dict(subject.named_modules()))
    text = any(not t.is_floating_point() and t.ndim == 2 for _, t in tensors(example))
    layers = {found[0]: _layer(module, found) for module, found in names.items()}
    observation = Observation(layers=layers, calls=calls, separator=".", prefix_tokens=0, text=text)
    return replace(observation, prefix_tokens=_prefix_tokens(base, observation))


def as_example(example: Any, model: nn.Module) -> Any:
    """An example batch from a batch or from its shape. Raises `ModelError` where there is neither."""
    if example is None:
        raise ModelError(
            "the layers of a model are learnt from one dry pass, which needs an example: pass a batch or its shape, "
            "e.g. example=(1, 3, 224, 224)"
        )
    if isinstance(example, (tuple, torch.Size)) and example and all(isinstance(n, int) for n in example):
        return torch.zeros(example, device=device_of(model))
    return transform(example, lambda t: t) if not hasattr(example, "__array__") else torch.as_tensor(example)


def _subject(base: nn.Module) -> tuple[nn.Module, dict[nn.Module, tuple[str, ...]]]:
    """A copy whose modules may be mutated by the pass; parameters are shared, buffers and state are its own."""
    try:
        subject = copy.deepcopy(base, {id(p): p for p in base.parameters()})
    except Exception:  # a model that cannot be copied is observed itself
        subject = base
    for module in subject.modules() if subject is not base else ():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            hooks.clear()
    names = names_of(subject)
    return subject, {module: tuple(unwrapped_name(n) for n in found) for module, found in names.items()}


def _layer(module: nn.Module, names: tuple[str, ...]) -> Layer:
    classes = [c.__name__ for c in type(module).__mro__ if issubclass(c, nn.Module) and c is not nn.Module]
    return Layer(
        path=names[0],
        aliases=names[1:],
        types=tuple(classes) or ("Module",),
        leaf=next(module.children(), None) is None,
        container=isinstance(module, _CONTAINERS),
        params=sum(p.numel() for p in module.parameters()),
    )


def _variant(subject: nn.Module, names: dict[nn.Module, tuple[str, ...]], example: Any, *, fake: bool) -> dict[_Key, Item]:
    """The items of a further pass by their place; empty where the model does not take such an input."""
    if example is None:
        return {}
    try:
        calls = _pass(subject, names, example, fake=fake)
    except Exception:  # fixed-size models say so in many ways
        calls = None
    return {_key(c, side, item): item for c in calls or () for side in ("in", "out") for item in c.items(side)}  # type: ignore[arg-type]


def _key(call: Call, side: str, item: Item) -> _Key:
    return call.path, call.index, side, item.key


@contextmanager
def _quiet_fake_tensors() -> Iterator[None]:
    """A pass that fake tensors cannot do is expected here; torch would log a traceback for it."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _pass(subject: nn.Module, names: dict[nn.Module, tuple[str, ...]], example: Any, *, fake: bool) -> list[Call] | None:
    """One recorded pass; ``None`` where fake tensors do not suffice (control flow on values, custom kernels)."""
    meter = FlopCounterMode(display=False)
    with quiet_pass(subject, evaluate=True), torch.no_grad():
        if not fake:
            args, kwargs = arguments(example)
            with meter:
                return _record(subject, names, meter, args, kwargs)
        try:
            mode = FakeTensorMode(allow_non_fake_inputs=True)
            args, kwargs = arguments(transform(example, mode.from_tensor))
            with _quiet_fake_tensors(), mode, meter:
                return _record(subject, names, meter, args, kwargs)
        except Exception:  # the real pass that follows shows whether the model or the fake tensors are at fault
            return None


@dataclass
class _Open:
    """A call that was entered and not yet left."""

    path: str
    index: int
    start: int
    inputs: tuple[Item, ...]
    macs_before: int
    params_before: int


def _record(
    subject: nn.Module,
    names: dict[nn.Module, tuple[str, ...]],
    meter: FlopCounterMode,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> list[Call]:
    calls: list[Call] = []
    ran: dict[str, int] = {}
    clock = count()
    alive: list[Tensor] = []  # keeps every tensor, so that an identity is never used twice
    needed = _NeededParameters()

    def macs() -> int:
        return int(meter.get_total_flops()) // 4  # two operations a multiply-accumulate, two samples

    def items(value: Any) -> tuple[Item, ...]:
        found = list(tensors(value))
        alive.extend(t for _, t in found)
        return tuple(
            Item(key or None, tuple(int(n) for n in t.shape), str(t.dtype).removeprefix("torch."), id(t)) for key, t in found
        )

    def watch(module: nn.Module, run: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if module not in names:
            return run()
        path = names[module][0]
        index = ran[path] = ran.get(path, -1) + 1
        inputs = items(given(args, kwargs))
        opened = _Open(path, index, next(clock), inputs, macs(), needed.total)
        needed.enter(module)
        output = run()
        needed.leave(module)
        calls.append(
            Call(
                path=path,
                index=index,
                start=opened.start,
                end=next(clock),
                inputs=inputs,
                outputs=items(output),
                macs_before=opened.macs_before,
                macs=macs(),
                params_before=opened.params_before,
                params=needed.total,
            )
        )
        return output

    with watching_calls(watch):
        subject(*args, **kwargs)
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


def _with_samples(example: Any, samples: int) -> Any:
    """The first sample of every batched input, repeated."""
    sizes = {t.shape[0] for _, t in tensors(example) if t.ndim}
    if len(sizes) != 1:
        return example
    return transform(example, lambda t: t[:1].expand(samples, *t.shape[1:]).contiguous() if t.ndim else t)


def _enlarged(example: Any) -> Any:
    """Images larger by 64 x 32 pixels, texts longer by a token; ``None`` for other inputs."""
    found = [t for _, t in tensors(example)]
    if found and all(t.ndim == 4 and t.is_floating_point() for t in found):
        return transform(example, lambda t: t.new_zeros(*t.shape[:2], t.shape[2] + 64, t.shape[3] + 32))
    if found and all(t.ndim == 2 and not t.is_floating_point() for t in found):
        return transform(example, lambda t: torch.cat([t, t[:, -1:]], dim=1))
    return None


def _with_layouts(
    calls: list[Call], more: dict[_Key, Item], larger: dict[_Key, Item], modules: dict[str, nn.Module]
) -> tuple[Call, ...]:
    leaves = sorted((c for c in calls if next(modules[c.path].children(), None) is None), key=lambda c: c.end)

    def layout(call: Call, side: str, item: Item) -> str | None:
        key = _key(call, side, item)
        grown = more.get(key)
        batch = _batch_axis(item.shape, grown.shape if grown else None)
        if batch is None:
            return None
        wide = larger.get(key)
        measured = _measured_layout(item.shape, batch, wide.shape if wide else None)
        if measured is not None:
            return measured
        until = call.end if side == "out" else call.start
        return _layout_by_type(item.shape, batch, [modules[c.path] for c in leaves if c.end <= until])

    def settled(call: Call, side: str) -> tuple[Item, ...]:
        return tuple(replace(item, layout=layout(call, side, item)) for item in call.items(side))  # type: ignore[arg-type]

    return tuple(replace(c, inputs=settled(c, "in"), outputs=settled(c, "out")) for c in calls)


def _batch_axis(two: tuple[int, ...], three: tuple[int, ...] | None) -> int | None:
    """The axis that had two and then three samples; without a second pass, the first one if it has two."""
    if three is None:
        return 0 if two and two[0] == 2 else None
    if len(two) != len(three):
        return None
    axes = [i for i, (a, b) in enumerate(zip(two, three, strict=True)) if (a, b) == (2, 3)]
    return axes[0] if len(axes) == 1 else None


def _measured_layout(shape: tuple[int, ...], batch: int, larger: tuple[int, ...] | None) -> str | None:
    """Name the axes from what grew with the input; ``None`` where that does not settle it."""
    if len(shape) <= 2:
        return "".join("B" if i == batch else "C" for i in range(len(shape)))
    if larger is None or len(larger) != len(shape):
        return None
    grew = [i for i in range(len(shape)) if i != batch and shape[i] != larger[i]]
    kept = [i for i in range(len(shape)) if i != batch and i not in grew]
    if not grew:
        return None
    letters = {1: "T", 2: "YX", 3: "ZYX"}.get(len(grew))
    if letters is None or len(kept) != 1:
        return "".join("B" if i == batch else "?" for i in range(len(shape)))
    named = dict(zip(grew, letters, strict=True)) | {kept[0]: "C", batch: "B"}
    return "".join(named[i] for i in range(len(shape)))


def _layout_by_type(shape: tuple[int, ...], batch: int, before: list[nn.Module]) -> str:
    """Name the axes by the last layer that has an opinion: convolutions put channels first, linear layers last."""
    first = next((isinstance(m, _CHANNELS_FIRST) for m in reversed(before) if isinstance(m, _CHANNELS_FIRST + _CHANNELS_LAST)), None)
    if first is None:
        first = len(shape) >= 4
    space = {1: "T", 2: "YX", 3: "ZYX"}.get(len(shape) - 2)
    if space is None:
        return "".join("B" if i == batch else "?" for i in range(len(shape)))
    rest = iter("C" + space if first else space + "C")
    return "".join("B" if i == batch else next(rest) for i in range(len(shape)))


def _prefix_tokens(model: nn.Module, observation: Observation) -> int | None:
    """Tokens before the patches: as the model says, or what the token count has beyond the patch grid."""
    if observation.text:
        return 0
    said = getattr(model, "num_prefix_tokens", None)
    if isinstance(said, int):
        return said
    block_paths = structure.blocks(observation)
    last = observation.by_path[block_paths[-1]][-1] if block_paths else None
    item = last.outputs[0] if last and last.outputs else None
    if item is None or item.layout is None or "T" not in item.layout:
        return None
    tokens = item.shape[item.layout.index("T")]
    started = observation.by_path[block_paths[0]][0].start
    for call in reversed([c for c in observation.calls if c.end < started]):
        shape = call.outputs[0].shape if call.outputs else ()
        if len(shape) == 4 and "Conv2d" in observation.layers[call.path].types:
            extra = tokens - shape[2] * shape[3]
            return extra if 0 <= extra <= _MOST_PREFIX_TOKENS else None
    return None



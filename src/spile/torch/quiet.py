"""Running somebody's model without leaving a trace."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_lock = threading.RLock()
_set_to_eval: dict[nn.Module, int] = {}
"""Modules whose training flag passes under way have taken down, and how many passes those are."""
_without_fast_path: list[bool] = []
"""One entry a pass under way; the first is what to go back to."""


@contextmanager
def quiet_pass(model: nn.Module, *, evaluate: bool) -> Iterator[None]:
    """Run a pass that leaves no trace, also after an exception and beside other passes in other threads.

    `evaluate` runs every module in eval mode, so that batch norm neither mixes samples nor moves its
    statistics, and puts training flags and random states back. The fused transformer fast path is off: it
    skips the very layers that are to be observed.
    """
    with ExitStack() as stack:
        if evaluate:
            stack.enter_context(_evaluating(model))
            stack.enter_context(_same_random_state())
        stack.enter_context(_no_fast_path())
        yield


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Put random states and the model's buffers back, whatever mode the model runs in."""
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    with _same_random_state():
        try:
            yield
        finally:
            for module, name, buffer, before in buffers:
                module._buffers[name] = _put_back(buffer, before)


class Writing:
    """Whether passes of a model in eval mode write into its buffers, and what was in these."""

    def __init__(self) -> None:
        self._known: bool | None = None

    @contextmanager
    def undone(self, model: nn.Module) -> Iterator[None]:
        """Put buffers back that a pass writes. While none has written, this only looks whether one did.

        What the first one writes after others have not stays: copying all buffers before every pass would
        cost more than small passes do.
        """
        before = [
            (module, name, buffer, _version(buffer))
            for module in model.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        with ExitStack() as stack:
            if self._known is not False:
                stack.enter_context(unchanged(model))
            try:
                yield
            finally:
                self._known = bool(self._known) or any(
                    module._buffers.get(name) is not buffer or _version(buffer) != version
                    for module, name, buffer, version in before
                )


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _put_back(buffer: Tensor, before: Tensor) -> Tensor:
    """Only where it changed: writing alone would already invalidate a backward pass under way."""
    with torch.no_grad():
        return buffer if torch.equal(buffer, before) else buffer.copy_(before)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Counted for each module: of several passes under way, the last one puts the flag back."""
    with _lock:
        held = [module for module in model.modules() if module.training or module in _set_to_eval]
        for module in held:
            _set_to_eval[module] = _set_to_eval.get(module, 0) + 1
            module.training = False
    try:
        yield
    finally:
        with _lock:
            for module in held:
                _set_to_eval[module] -= 1
                if not _set_to_eval[module]:
                    del _set_to_eval[module]
                    module.training = True


@contextmanager
def _same_random_state() -> Iterator[None]:
    cpu_state = torch.get_rng_state()
    on_cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    cuda_states = torch.cuda.get_rng_state_all() if on_cuda else None
    try:
        yield
    finally:
        torch.set_rng_state(cpu_state)
        if cuda_states is not None:
            torch.cuda.set_rng_state_all(cuda_states)


@contextmanager
def _no_fast_path() -> Iterator[None]:
    with _lock:
        _without_fast_path.append(torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        with _lock:
            before = _without_fast_path[0]
            _without_fast_path.pop()
            if not _without_fast_path:
                torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def watching_calls(
    watcher: Callable[[nn.Module, Callable[[], Any], tuple[Any, ...], dict[str, Any]], Any],
) -> Iterator[None]:
    """Route every module call of this thread through ``watcher(module, run, args, kwargs)``.

    It stands outside a module's own hooks, so it sees what the caller gives and gets. Independent of hooks on
    purpose: it is what taps are verified against. One thread at a time.
    """
    with _lock:
        original = nn.Module.__call__
        thread = threading.get_ident()

        def watched(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != thread:
                return original(module, *args, **kwargs)
            return watcher(module, lambda: original(module, *args, **kwargs), args, kwargs)

        nn.Module.__call__ = watched  # type: ignore[method-assign]
        try:
            yield
        finally:
            nn.Module.__call__ = original  # type: ignore[method-assign]

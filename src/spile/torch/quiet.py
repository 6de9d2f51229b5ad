"""Running somebody's model without leaving a trace."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def quiet_pass(model: nn.Module, *, evaluate: bool) -> Iterator[None]:
    """Put training flags, random states and the attention fast path back afterwards, also after an exception.

    `evaluate` runs every module in eval mode, so that batch norm neither mixes samples nor moves its statistics. The
    fused transformer fast path is off: it skips the very layers that are to be observed.
    """
    training = [module for module in model.modules() if module.training] if evaluate else []
    fast_path = torch.backends.mha.get_fastpath_enabled()
    cpu_state = torch.get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        for module in training:
            module.training = False
        torch.backends.mha.set_fastpath_enabled(False)
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for module in training:
            module.training = True
        torch.set_rng_state(cpu_state)
        if cuda_states is not None:
            torch.cuda.set_rng_state_all(cuda_states)


@contextmanager
def watching_calls(watcher: Callable[[nn.Module, Callable[[], Any], tuple[Any, ...], dict[str, Any]], Any]) -> Iterator[None]:
    """Route every module call of this thread through ``watcher(module, run, args, kwargs)``.

    It stands outside a module's own hooks, so it sees what the caller gives and gets. Independent of hooks on purpose:
    it is what taps are verified against.
    """
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

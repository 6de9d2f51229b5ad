"""Watching the layers of a model run, and leaving no trace: their `call` is wrapped for one pass."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import keras

from spile.keras.runtime import runtime

Watch = Callable[[keras.Layer, Callable[[], Any], tuple[Any, ...], dict[str, Any]], Any]

Change = Callable[[Callable[[], Any], tuple[Any, ...], dict[str, Any]], Any]

_one_at_a_time = threading.RLock()


@contextmanager
def watching_calls(
    layers: Iterable[keras.Layer], watch: Watch, beyond: Callable[[keras.Layer], None] | None = None
) -> Iterator[None]:
    """While it lasts, runs of these layers in this thread go through ``watch(layer, run, args, kwargs)``.

    `watch` calls ``run()`` for the layer's output and returns it. A run inside a loop or branch of the
    backend, of which no tensor can be had outside, is only told to `beyond`. The wrapper stands in the
    layer's own dictionary, where it comes before the class: also a layer whose `call` is called directly is
    seen.
    """
    thread, scope = threading.get_ident(), runtime().scope()

    def wrapper_of(layer: keras.Layer, call: Any) -> Any:
        @functools.wraps(call)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != thread:
                return call(*args, **kwargs)
            if runtime().scope() != scope:
                if beyond is not None:
                    beyond(layer)
                return call(*args, **kwargs)
            return watch(layer, lambda: call(*args, **kwargs), args, kwargs)

        return wrapper

    with _one_at_a_time:
        wrapped: list[tuple[keras.Layer, str, Any]] = []
        try:
            for layer in layers:
                name = "quantized_call" if getattr(layer, "quantization_mode", None) else "call"
                wrapped.append((layer, name, vars(layer).get(name)))
                object.__setattr__(layer, name, wrapper_of(layer, getattr(layer, name)))
            yield
        finally:
            for layer, name, before in reversed(wrapped):
                object.__delattr__(layer, name)
                if before is not None:
                    object.__setattr__(layer, name, before)


def wrap_call(layer: keras.Layer, change: Change) -> Callable[[], None]:
    """From now on runs of `layer`, in every thread and trace, go through ``change(run, args, kwargs)``.

    Gives what undoes it. `change` calls ``run()`` for the layer's output, and returns what is to be it.
    """
    before, call = vars(layer).get("call"), layer.call

    @functools.wraps(call)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return change(lambda: call(*args, **kwargs), args, kwargs)

    object.__setattr__(layer, "call", wrapper)

    def undo() -> None:
        if vars(layer).get("call") is wrapper:
            object.__delattr__(layer, "call")
            if before is not None:
                object.__setattr__(layer, "call", before)

    return undo

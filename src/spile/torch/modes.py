"""What the dry pass runs under: tensors without data, and a count of operations."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

_BATCH_NORM = torch.ops.aten._native_batch_norm_legit_no_training.default


class FakeTensors(FakeTensorMode):  # type: ignore[no-untyped-call]
    """Tensors with shapes and no data. Remembers what they could not do: a model may swallow the error."""

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self._failed: Exception | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Work on fake tensors. Raises at the end what they could not do, if nothing raised it before."""
        self._failed = None
        with _quiet(), _no_autocast_cache(), self:
            yield
        if self._failed is not None:
            raise self._failed

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation."""
        try:
            if func is _BATCH_NORM:  # by its parts it would be most of the time of a pass
                with self:
                    return torch.empty_like(args[0]), args[0].new_empty(0), args[0].new_empty(0)
            return super().__torch_dispatch__(func, types, args, kwargs)
        except Exception as error:
            self._failed = error
            raise


class Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations. Unlike `FlopCounterMode` it asks nothing of gradients or modules."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = 0

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one of the two samples."""
        return self.operations // 4

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation."""
        kwargs = kwargs or {}
        count = flop_registry.get(func._overloadpacket)
        if count is None and func is not torch.ops.prim.device.default:
            with self:  # what a composite operation consists of, as in inference mode they come whole
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        if count is not None:
            self.operations += int(count(*args, **kwargs, out_val=out))
        return out


@contextmanager
def _quiet() -> Iterator[None]:
    """A pass that fake tensors cannot do is expected; torch would log a traceback for it."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _no_autocast_cache() -> Iterator[None]:
    """Autocast keeps the weights it has cast for the passes that follow; those must not get fake ones."""
    enabled = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(enabled)

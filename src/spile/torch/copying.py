"""Between host and device: pinned memory, streams beside the one that computes, one wait a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

Arrays = dict[str, np.ndarray[Any, Any]]


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """On `device`. To a GPU from pinned memory, while it computes what was asked of it before."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    computing, beside = torch.cuda.current_stream(device), _stream(device, "up")
    with torch.cuda.stream(beside):
        there = tensor.pin_memory().to(device, non_blocking=True)
    computing.wait_stream(beside)
    there.record_stream(computing)  # its memory is not given away before that one has read it
    return there


def copied(values: Mapping[str, Tensor], *, half: bool) -> Callable[[], Arrays]:
    """Start to copy results to the host; what comes back waits for them.

    Floats become float32, or float16 with `half`, on the device, before they are copied.
    """
    dtype = torch.float16 if half else torch.float32
    kept = {name: v.to(dtype) if v.is_floating_point() else v for name, v in values.items()}
    devices = {value.device for value in kept.values() if value.is_cuda}
    if not devices:
        return lambda: {name: value.cpu().numpy() for name, value in kept.items()}
    hosts = {name: torch.empty(v.shape, dtype=v.dtype, pin_memory=v.is_cuda) for name, v in kept.items()}
    done = []
    for device in devices:  # several, where a model lies on several
        beside = _stream(device, "down")
        beside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(beside):
            for name, value in kept.items():
                if value.device == device:
                    hosts[name].copy_(value, non_blocking=True)
                    value.record_stream(beside)
            done.append(beside.record_event())
    for name, value in kept.items():
        if not value.is_cuda:
            hosts[name].copy_(value)

    def wait() -> Arrays:
        for event in done:
            event.synchronize()
        return {name: host.numpy() for name, host in hosts.items()}

    return wait


_streams: dict[tuple[torch.device, str], torch.cuda.Stream] = {}


def _stream(device: torch.device, direction: str) -> torch.cuda.Stream:
    """One for each direction: results wait for a pass, which the inputs of the next one must not do."""
    key = device, direction
    if key not in _streams:
        _streams[key] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return _streams[key]

"""A hash of many arrays, computed on several processors. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from spile.cores import usable_cores

_MOST_THREADS = 8


def hash_of(parts: Iterable[tuple[str, Callable[[], Any]]]) -> str:
    """SHA-256 over the SHA-256 of each part, in their order: of its name and of the bytes it makes.

    A part makes its bytes when it is its turn, so that few are in memory at once.
    """
    with ThreadPoolExecutor(min(_MOST_THREADS, usable_cores())) as pool:
        return hashlib.sha256(b"".join(pool.map(_digest, parts))).hexdigest()


def _digest(part: tuple[str, Callable[[], Any]]) -> bytes:
    name, make = part
    digest = hashlib.sha256(f"{name}\0".encode())
    digest.update(make())
    return digest.digest()

"""What keeps a long run moving and honest: writing behind the computation, and a limit on bad samples."""

from __future__ import annotations

import math
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from spile.backend import backend_of
from spile.data import Batch
from spile.errors import CaptureError, DataError, StoreError
from spile.interfaces import Tap

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

BATCH_SIZE = 32
"""Samples a batch where nothing is known yet of the points."""

_SMALLEST, _LARGEST = 8, 256
_MACS_A_BATCH = 4e9
"""About a tenth of a second on two processors: what a batch costs besides is then little."""
_MACS_ON_A_GPU = 1e12
"""A few hundredths of a second in float32: less does not keep all of a large GPU busy."""
_KEPT_BYTES = 128 << 20
"""Of a batch's kept values; a few batches wait to be written at any time."""

_WHOLE = ("none", "flatten", "callable")
"""Pools that may keep as much as there is."""

_QUEUED = 2
_SAMPLES_BEFORE_JUDGING_A_STREAM = 1000


def automatic_batch_size(tap: Tap) -> int:
    """A power of two: large where samples are cheap or a GPU computes, small where what is kept is large."""
    try:
        points = tap.points
    except CaptureError:  # they are learnt from the first batch
        return BATCH_SIZE
    macs = max(point.macs for point in points)
    kept = sum(4 * math.prod(point.shape) if point.pool.kind in _WHOLE else 0 for point in points)
    fitting = _KEPT_BYTES / kept if kept else _LARGEST
    worth = _MACS_A_BATCH if backend_of(tap.model).device(tap.model) == "cpu" else _MACS_ON_A_GPU
    wanted = min(max(worth / max(macs, 1), BATCH_SIZE), fitting, _LARGEST)
    return max(_SMALLEST, 2 ** int(math.log2(wanted))) if wanted >= 1 else 1


def several_at_once(
    items: Iterable[_Item], compute: Callable[[_Item], _Result], at_once: Callable[[], int]
) -> Iterator[tuple[_Item, _Result]]:
    """Every item with what is computed of it, in order, up to `at_once` under way in threads of their own.

    How many is asked before each, as computing the first may decide it. An error ends it after the items
    before it.
    """
    waiting: deque[tuple[_Item, Future[_Result]]] = deque()
    pool: ThreadPoolExecutor | None = None
    try:
        for item in items:
            if (count := at_once()) == 1 and not waiting:
                yield item, compute(item)
                continue
            pool = pool or ThreadPoolExecutor(count, thread_name_prefix="spile-compute")
            waiting.append((item, pool.submit(compute, item)))
            if len(waiting) > count:  # one more waits for the thread that is ready first
                yield _done(waiting)
        while waiting:
            yield _done(waiting)
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)


def _done(waiting: deque[tuple[_Item, Future[_Result]]]) -> tuple[_Item, _Result]:
    item, result = waiting.popleft()
    return item, result.result()


@contextmanager
def written_behind(
    append: Callable[[Batch, dict[str, Any]], None], commit: Callable[[], None]
) -> Iterator[Callable[[Batch, dict[str, Any]], None]]:
    """Write in a thread of its own, a few batches behind; what came before an error is still committed."""
    waiting: queue.Queue[tuple[Batch, dict[str, Any]] | None] = queue.Queue(maxsize=_QUEUED)
    failed: list[BaseException] = []

    def work() -> None:
        while (item := waiting.get()) is not None:
            if not failed:
                try:
                    append(*item)
                except BaseException as error:
                    failed.append(error)

    def write(batch: Batch, arrays: dict[str, Any]) -> None:
        if failed:
            raise failed[0]
        waiting.put((batch, arrays))

    thread = threading.Thread(target=work, name="spile-writer", daemon=True)
    thread.start()
    try:
        yield write
    finally:
        waiting.put(None)
        thread.join()
        try:
            commit()
        except StoreError:  # where writing is what failed, the first error is the one to tell
            if not failed:
                raise
    if failed:
        raise failed[0]


class BadSampleLimit:
    """Stops a run with too many bad samples."""

    def __init__(self, max_bad: float, total: int | None, *, skipped: int, kept: str | None) -> None:
        if not 0 <= max_bad <= 1:
            raise DataError(f"max_bad={max_bad} is no share: write a number from 0 to 1, e.g. 0.05")
        self._max_bad, self._total, self._kept = max_bad, total, kept
        self.skipped = skipped

    def count(self, batch: Batch) -> None:
        """Raise `DataError` where too many samples were skipped so far, those of `batch` included."""
        self.skipped += len(batch.skipped)
        total = self._total or max(batch.stop, _SAMPLES_BEFORE_JUDGING_A_STREAM)
        if self.skipped > math.ceil(self._max_bad * total):
            last = (
                f"{batch.skipped[-1].id}: {batch.skipped[-1].reason}"
                if batch.skipped
                else "see store.skipped"
            )
            kept = f"; what is done is kept in {self._kept} and the run can be resumed" if self._kept else ""
            raise DataError(
                f"{self.skipped} of {total} samples cannot be used (last: {last}), more than "
                f"max_bad={self._max_bad:g} allows{kept}: mend the data or give a larger max_bad"
            )

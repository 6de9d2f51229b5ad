"""What keeps a long run moving and honest: writing behind the computation, and a limit on bad samples."""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from spile.data import Batch
from spile.errors import DataError, StoreError

_QUEUED = 2
_SAMPLES_BEFORE_JUDGING_A_STREAM = 1000


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

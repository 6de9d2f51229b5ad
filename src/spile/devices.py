"""Several devices of one machine: a process of its own on each computes every n-th batch."""

from __future__ import annotations

import multiprocessing
import pickle
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from multiprocessing.connection import Connection
from typing import Any

from spile import python_files
from spile.backend import backend_named, backend_of, framework_of
from spile.computing import Pass, Settings
from spile.cores import usable_cores
from spile.data import Batch
from spile.errors import DataError, ModelError
from spile.interfaces import EngineName, Tap
from spile.loading import first_line
from spile.pipeline import written_behind

_PATIENCE = 10.0
"""Seconds that a process which has broken off may take to end."""


@dataclass(frozen=True, kw_only=True)
class Processes:
    """What is sent to the processes: a tap and its data, pickled, and how the tap is run."""

    devices: tuple[str, ...]
    framework: str
    files: tuple[str, ...]
    """Of the user's own Python, where the model's classes may be."""
    tap: bytes
    data: bytes
    settings: Settings

    @classmethod
    def of(cls, devices: Sequence[str], tap: Tap, data: Any, settings: Settings) -> Processes:
        """Raises `ModelError` or `DataError` where a device is not there, or something cannot be sent."""
        if isinstance(devices, str) or not devices:
            raise ModelError(f"devices={devices!r} names none: write a list, e.g. ['cuda:0', 'cuda:1']")
        packed = backend_of(tap.model).pack(tap, devices)
        try:
            sent = pickle.dumps(data)
        except Exception as error:  # what an object of the user's own makes of it
            raise DataError(
                f"the data cannot be sent to a process on each device ({first_line(error)}): give a folder, "
                "a manifest, arrays, or a dataset that can be pickled; or leave out devices"
            ) from error
        return cls(
            devices=tuple(devices),
            framework=str(framework_of(tap.model)),
            files=python_files.imported(),
            tap=packed,
            data=sent,
            settings=settings,
        )

    def results(
        self, *, start: int, engine: EngineName, batch_size: int
    ) -> Iterator[tuple[Batch, dict[str, Any]]]:
        """Every batch from the position `start` on with its arrays, in order; the batches without inputs.

        Raises what a process raised, and `ModelError` for one that ended by itself.
        """
        settings = replace(self.settings, engine=engine, batch_size=batch_size)
        order = replace(self, settings=settings)
        workers: list[_Worker] = []
        try:
            workers.extend(_Worker(device) for device in self.devices)
            for turn, worker in enumerate(workers):
                worker.send(order, turn, start)
            for worker in cycle(workers):
                found = worker.next()
                if found is None:  # the batches after it would be the others'
                    return
                yield found
        finally:
            for worker in workers:
                worker.stop()


class _Worker:
    """One process, as seen from here."""

    def __init__(self, device: str) -> None:
        self._device = device
        # Not forked: neither CUDA nor the threads of a framework outlive that.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        # Nothing large among the arguments: where the process ends before it has read them, Python waits on.
        self._process = context.Process(target=_serve, args=(theirs,), name=f"spile-{device}", daemon=True)
        try:
            self._process.start()
        finally:
            theirs.close()

    def send(self, order: Processes, turn: int, start: int) -> None:
        try:
            self._connection.send((order, turn, start))
        except ConnectionError:
            raise self._ended() from None

    def next(self) -> tuple[Batch, dict[str, Any]] | None:
        try:
            found: Any = self._connection.recv()
        except (EOFError, ConnectionError):
            raise self._ended() from None
        if isinstance(found, BaseException):
            raise found
        return None if found is None else (found[0], found[1])

    def _ended(self) -> ModelError:
        self._process.join(_PATIENCE)
        return ModelError(
            f"the process on {self._device} ended by itself, with exit code {self._process.exitcode}; "
            "what it said stands above. A script that gives devices must do its work under "
            'if __name__ == "__main__":, as each process imports it'
        )

    def stop(self) -> None:
        self._connection.close()
        self._process.terminate()
        self._process.join()


def _serve(connection: Connection) -> None:
    """The work of one process: what it computes of each of its batches, then ``None``; or what went wrong."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one is told, and ends it

    def send(batch: Batch, arrays: dict[str, Any]) -> None:
        connection.send((replace(batch, inputs=None), arrays))

    try:
        order, turn, start = connection.recv()
        try:
            own = _opened(order, turn)
            first = start + turn * own.batch_size
            with written_behind(send, lambda: None) as write:
                for batch, arrays in own.results(own.read(first, every=len(order.devices))):
                    write(batch, arrays)
            connection.send(None)
        except ConnectionError:
            raise
        except Exception as error:
            connection.send(_sendable(error))
    except (ConnectionError, EOFError):
        pass  # nobody waits for it any more


def _opened(order: Processes, turn: int) -> Pass:
    of = len(order.devices)
    python_files.import_again(order.files)
    tap = backend_named(order.framework).unpack(order.tap, order.devices[turn], of)
    readers = max(1, (order.settings.workers or usable_cores()) // of)
    data = pickle.loads(order.data)  # noqa: S301 - from the process that started this one
    return Pass.of(tap, data, replace(order.settings, workers=readers))


def _sendable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301
    except Exception:  # what an exception class of the user's own makes of it
        return ModelError(f"{type(error).__name__}: {first_line(error)}")
    return error

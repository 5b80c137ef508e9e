"""Threads that work tasks off and hand the results back to the one thread that keeps the books.

A task gets the worker's pack stream. A task that raises ends the whole run: its error comes out of `next_result`.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass

from diskprep.errors import DiskprepError
from diskprep.repository.pack import BlobKind
from diskprep.staging.blobs import BlobSession, PackStream

#: Runs in a worker; what it returns runs in the thread that asks for results.
Task = Callable[[PackStream], Callable[[], None]]


@dataclass(frozen=True, slots=True)
class _Failure:
    error: BaseException


class Workers:
    """`count` threads, each with a stream for data blobs. Use from one thread."""

    def __init__(self, session: BlobSession, count: int) -> None:
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[Callable[[], None] | _Failure] = queue.SimpleQueue()
        self._session = session
        self._discard = False  # tasks that wait
        self._drop_packs = False
        self.outstanding = 0
        self._threads = [threading.Thread(target=self._work, name=f"backup {i}", daemon=True) for i in range(count)]
        for thread in self._threads:
            thread.start()

    def submit(self, task: Task) -> None:
        self.outstanding += 1
        self._tasks.put(task)

    def collect(self, *, wait: bool) -> bool:
        """Run the continuation of one finished task; False when there is none (`wait`: block until there is)."""
        if not self.outstanding:
            return False
        try:
            result = self._results.get(block=wait)
        except queue.Empty:
            return False
        self.outstanding -= 1
        if isinstance(result, _Failure):
            raise result.error
        result()
        return True

    def finish(self) -> None:
        """Write the open packs of all workers and end them. Raises what any of them raises."""
        self._end()
        for _ in self._threads:
            result = self._results.get()
            if isinstance(result, _Failure):
                raise result.error

    def abandon(self, *, flush: bool) -> None:
        """End the workers after their present task; open packs are written only with `flush`. Raises nothing."""
        self._discard = True
        self._drop_packs = not flush
        self._end()
        with contextlib.suppress(DiskprepError):
            self._session.save_index()

    def _end(self) -> None:
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        stream = self._session.stream(BlobKind.DATA)
        while (task := self._tasks.get()) is not None:
            if self._discard:
                continue
            try:
                self._results.put(task(stream))
            except BaseException as error:  # noqa: BLE001 - it is raised again in the thread that collects
                self._results.put(_Failure(error))
        try:
            if not self._drop_packs:
                stream.flush()
            self._results.put(_nothing)
        except BaseException as error:  # noqa: BLE001
            self._results.put(_Failure(error))


def _nothing() -> None:
    return None

"""Threads that work tasks off and hand the results back to the one thread that keeps the books.

A task gets the worker's pack stream. A task that raises ends the whole run: its error comes out of `collect`.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass

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
        self._awaited = False
        self.wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)  # readable when a result came that is awaited
        self.outstanding = 0
        self._threads = [threading.Thread(target=self._work, name=f"backup {i}", daemon=True) for i in range(count)]
        for thread in self._threads:
            thread.start()

    def submit(self, task: Task) -> None:
        self.outstanding += 1
        self._tasks.put(task)

    def collect(self) -> bool:
        """Run the continuation of one finished task; False when there is none."""
        try:
            result = self._results.get_nowait()
        except queue.Empty:
            return False
        self.outstanding -= 1
        if isinstance(result, _Failure):
            raise result.error
        result()
        return True

    def announce_wait(self) -> bool:
        """Make `wake` readable for every result from now on; False when one is there already."""
        self._awaited = True
        if not self._results.empty():
            self._awaited = False
            return False
        return True

    def end_wait(self) -> None:
        self._awaited = False
        try:
            os.eventfd_read(self.wake)
        except BlockingIOError:
            return

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

    def _end(self) -> None:
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()
        if self.wake >= 0:
            os.close(self.wake)
            self.wake = -1

    def _put(self, result: Callable[[], None] | _Failure) -> None:
        self._results.put(result)
        if self._awaited:
            os.eventfd_write(self.wake, 1)

    def _work(self) -> None:
        stream = self._session.stream(BlobKind.DATA)
        while (task := self._tasks.get()) is not None:
            if self._discard:
                continue
            try:
                self._put(task(stream))
            except BaseException as error:  # noqa: BLE001 - it is raised again in the thread that collects
                self._put(_Failure(error))
        try:
            if not self._drop_packs:
                stream.flush()
            self._put(_nothing)
        except BaseException as error:  # noqa: BLE001
            self._put(_Failure(error))


def _nothing() -> None:
    return None

"""Dispatch: who does what. Batches of small files go to a crew of processes, chunks of long files to threads; results
come back to the one thread that keeps the books, which waits for both kinds at once.

Where the repository cannot be written from several processes (a blob container, whose connections do not survive a
fork) there is no crew, and the threads do batches too: the network is slower than they are.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from diskprep.errors import DiskprepError
from diskprep.source import OpenDirectory
from diskprep.staging.batch import (
    Batch,
    BatchResult,
    BatchWorker,
    FileRule,
    pack_batch,
    run_batch,
    unpack_result,
    unpack_stored,
)
from diskprep.staging.blobs import BlobSession, PackStream, Stored
from diskprep.staging.crew import Crew
from diskprep.staging.workers import Task, Workers

_THREAD_BATCHES = 16
_CHUNKS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Manpower:
    """`threads` for the chunks of long files, `processes` for small files (0: the threads do those too)."""

    threads: int
    processes: int

    @classmethod
    def of_computer(cls) -> Manpower:
        """A process for each processor, and a thread more than that: one of them waits for the disk at any time."""
        processors = len(os.sched_getaffinity(0))
        return cls(threads=processors + 1, processes=processors)


class Dispatcher:
    """Takes work and hands results back. Use from one thread; make it before other threads are started."""

    def __init__(
        self, *, manpower: Manpower, session: BlobSession, child_session: Callable[[], BlobSession], rule: FileRule
    ) -> None:
        """`child_session` makes, inside a worker process, the session that it stores with."""
        self._session, self._rule = session, rule
        self._batches = 0  # that threads have
        self._crew: Crew | None = None
        if manpower.processes:
            self._crew = Crew(manpower.processes, lambda: _batch_worker(child_session(), rule))
        self._threads = Workers(session, manpower.threads)

    @property
    def outstanding(self) -> int:
        return self._threads.outstanding + (self._crew.outstanding if self._crew else 0)

    @property
    def has_room_for_batches(self) -> bool:
        return self._crew.has_room if self._crew else self._batches < _THREAD_BATCHES

    @property
    def has_room_for_chunks(self) -> bool:
        return self._threads.outstanding < _CHUNKS

    def submit_chunk(self, task: Task) -> None:
        self._threads.submit(task)

    def submit_batch(self, opened: OpenDirectory, batch: Batch, then: Callable[[BatchResult], None]) -> None:
        """Have a batch done; `then` gets its result. `opened` must stay open until then."""
        if self._crew is not None:
            self._crew.submit(opened.descriptor, pack_batch(batch), lambda answer: then(unpack_result(answer)))
            return
        self._batches += 1

        def entered(result: BatchResult) -> None:
            self._batches -= 1
            then(result)

        def work(stream: PackStream) -> Callable[[], None]:
            return partial(entered, run_batch(opened, batch, self._rule, stream))

        self._threads.submit(work)

    def collect(self, *, wait: bool) -> bool:
        """Hand on what has come back; False when nothing has (`wait`: and nothing is outstanding)."""
        while True:
            found = self._threads.collect()
            if self._crew is not None and self._poll(0):
                found = True
            if found or not wait or not self.outstanding:
                return found
            if self._threads.announce_wait():
                try:
                    self._poll(None)
                finally:
                    self._threads.end_wait()
                return True

    def _poll(self, timeout_ms: int | None) -> bool:
        sockets = {end.fileno(): end for end in self._crew.sockets()} if self._crew else {}
        poll = select.poll()
        for number in sockets:
            poll.register(number, select.POLLIN)
        if timeout_ms is None:
            poll.register(self._threads.wake, select.POLLIN)
        elif not sockets:
            return False
        ready = [number for number, _ in poll.poll(timeout_ms) if number in sockets]
        for number in ready:
            assert self._crew is not None
            self._crew.collect(sockets[number])
        return bool(ready)

    def finish(self) -> Stored:
        """Make everything durable that was stored; what it came to, without the caller's own session."""
        self._threads.finish()
        parts = [unpack_stored(answer) for answer in self._crew.finish()] if self._crew else []
        return Stored(*map(sum, zip(Stored(0, 0), *parts, strict=True)))

    def abandon(self, *, flush: bool) -> None:
        """End all work; what was begun and not finished becomes durable only with `flush`. Raises nothing."""
        self._threads.abandon(flush=flush)
        if self._crew is not None:
            with contextlib.suppress(DiskprepError, RuntimeError):
                self._crew.abandon(flush=flush)
            self._crew.close()
        with contextlib.suppress(DiskprepError):
            self._session.save_index()


def _batch_worker(session: BlobSession, rule: FileRule) -> BatchWorker:
    return BatchWorker(session, replace(rule, session=session))

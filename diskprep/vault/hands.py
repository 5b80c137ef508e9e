"""Hands: workers that each answer one message after the other, in forked processes or in threads.

Small blobs and files need the interpreter more than the processor's other talents, so threads would wait for each
other: where the store is a directory, the workers are processes. The connections of a blob container do not survive a
fork; there they are threads. A process shares the memory of the moment it was forked, and ends when its socket is
closed, also when the parent was killed.

Invariant: a worker has one message at a time, and is given it while it waits. So neither side of a socket ever waits
for a reader that itself waits to write, however long messages and answers are.
"""

from __future__ import annotations

import contextlib
import os
import queue
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

from diskprep import process
from diskprep.errors import StorageUnavailable
from diskprep.store import Store
from diskprep.store.directory import DirectoryStore

_HEADER = struct.Struct("<?Q")
_REQUESTS = 6  # a network wants more requests under way than there are cores

T = TypeVar("T")


class Worker(Protocol):
    """What one process or thread does."""

    def answer(self, message: bytes) -> bytes:
        """Do one piece of work. What it raises ends the whole crew's work, and is raised by `collect`."""
        ...

    def close(self) -> None: ...


class Hands(Protocol[T]):
    """A crew of workers, used from one thread. `T` tells the messages apart."""

    @property
    def count(self) -> int: ...

    @property
    def has_room(self) -> bool: ...

    @property
    def is_busy(self) -> bool: ...

    def submit(self, tag: T, message: bytes) -> None:
        """Give a message to a worker; call only while there is room."""

    def collect(self) -> tuple[T, bytes]:
        """The next answer, waited for; call only while some worker is busy. Raises what the work raised."""

    def close(self) -> None:
        """End all workers after what they are at."""


def hands(store: Store, make: Callable[[], Worker]) -> Hands[T]:
    """As many workers as suit `store`; `make` runs in each. Raises StorageUnavailable when none can be started."""
    cores = os.cpu_count() or 1
    if isinstance(store, DirectoryStore):
        return _Processes(cores, make)
    return _Threads(max(_REQUESTS, cores), make)


def spread(crew: Hands[T], items: Iterable[tuple[T, bytes]]) -> Iterator[tuple[T, bytes]]:
    """The answers to all messages, in whatever order they come."""
    for tag, message in items:
        while not crew.has_room:
            yield crew.collect()
        crew.submit(tag, message)
    while crew.is_busy:
        yield crew.collect()


class _Processes(Hands[T]):
    def __init__(self, count: int, make: Callable[[], Worker]) -> None:
        self._children: dict[socket.socket, int] = {}
        self._busy: dict[socket.socket, T] = {}
        self._idle: list[socket.socket] = []
        try:
            for _ in range(count):
                pid, ours = process.fork(lambda end: _serve(end, make()), close=self._children)
                self._children[ours] = pid
                self._idle.append(ours)
        except OSError as error:
            self.close()
            raise StorageUnavailable(f"cannot start a worker process: {error.strerror}") from error

    @property
    def count(self) -> int:
        return len(self._children)

    @property
    def has_room(self) -> bool:
        return bool(self._idle)

    @property
    def is_busy(self) -> bool:
        return bool(self._busy)

    def submit(self, tag: T, message: bytes) -> None:
        end = self._idle.pop()
        self._busy[end] = tag
        try:
            end.sendall(_HEADER.pack(True, len(message)) + message)
        except OSError:
            raise process.ended_early(self._children[end]) from None

    def collect(self) -> tuple[T, bytes]:
        (end, *_), _, _ = select.select(list(self._busy), [], [])
        try:
            good, length = _HEADER.unpack(process.receive_exactly(end, _HEADER.size))
            answer = process.receive_exactly(end, length)
        except OSError:
            raise process.ended_early(self._children[end]) from None
        tag = self._busy.pop(end)
        self._idle.append(end)
        if not good:
            raise process.revive_error(answer)
        return tag, answer

    def close(self) -> None:
        for end in self._children:
            end.close()
        for pid in self._children.values():
            process.wait(pid)
        self._children.clear()
        self._busy.clear()
        self._idle.clear()


def _serve(end: socket.socket, worker: Worker) -> None:
    """A child's life."""
    with contextlib.suppress(ConnectionError):
        while True:
            _, length = _HEADER.unpack(process.receive_exactly(end, _HEADER.size))
            message = process.receive_exactly(end, length)
            try:
                good, answer = True, worker.answer(message)
            except BaseException as error:  # noqa: BLE001 - it is raised again in the parent
                good, answer = False, process.describe_error(error)
            end.sendall(_HEADER.pack(good, len(answer)) + answer)


class _Threads(Hands[T]):
    def __init__(self, count: int, make: Callable[[], Worker]) -> None:
        self._tasks: queue.SimpleQueue[tuple[T, bytes] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[T, bytes | BaseException]] = queue.SimpleQueue()
        self._under_way = 0
        self._given_up = False
        self._threads = [threading.Thread(target=self._work, args=(make(),), daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    @property
    def count(self) -> int:
        return len(self._threads)

    @property
    def has_room(self) -> bool:
        return self._under_way < len(self._threads)

    @property
    def is_busy(self) -> bool:
        return self._under_way > 0

    def submit(self, tag: T, message: bytes) -> None:
        self._under_way += 1
        self._tasks.put((tag, message))

    def collect(self) -> tuple[T, bytes]:
        tag, answer = self._answers.get()
        self._under_way -= 1
        if isinstance(answer, BaseException):
            raise answer
        return tag, answer

    def close(self) -> None:
        self._given_up = True
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self, worker: Worker) -> None:
        try:
            while (task := self._tasks.get()) is not None:
                if self._given_up:
                    continue
                try:
                    answer: bytes | BaseException = worker.answer(task[1])
                except BaseException as error:  # noqa: BLE001 - it is raised again where it is collected
                    answer = error
                self._answers.put((task[0], answer))
        finally:
            worker.close()

"""A crew: forked processes that work messages off, each with a directory's descriptor, and answer with messages.

Small files need the interpreter more than the processor's other talents, so threads would wait for each other. A child
shares the memory of the moment it was forked; what it is told afterwards, and what it answers, goes through a socket.
It ends when its end of the socket is closed, also when the parent was killed.

Invariant: at most two messages are under way to a child, each shorter than `MESSAGE_BYTES`, so that sending never waits
for a child that itself waits to be read.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from diskprep import interrupts, process
from diskprep.errors import DiskprepError, StorageUnavailable

MESSAGE_BYTES = 64 << 10
_AHEAD = 2
_HEADER = struct.Struct("<BI")
_WORK, _FINISH, _FLUSH, _DROP = 0, 1, 2, 3
_ANSWER, _ERROR = 0, 1

Then = Callable[[bytes], None]


class Worker(Protocol):
    """What a child does. Errors end the whole crew's work."""

    def work(self, directory: int, message: bytes) -> bytes:
        """Do one piece of work; `directory` is the worker's to close."""
        ...

    def finish(self) -> bytes:
        """Make everything durable; the last answer."""
        ...

    def abandon(self, *, flush: bool) -> bytes:
        """Make durable what is finished, with `flush` also what is not."""
        ...


class _Member:
    def __init__(self, make: Callable[[], Worker], siblings: Sequence[_Member]) -> None:
        others = [sibling.socket for sibling in siblings]
        self.pid: int
        self.socket: socket.socket
        self.pid, self.socket = process.fork(lambda end: _serve(end, make()), close=others)
        self.under_way: deque[Then] = deque()


class Crew:
    """`count` children; `make` runs in each of them. Use from one thread."""

    def __init__(self, count: int, make: Callable[[], Worker]) -> None:
        self._members: list[_Member] = []
        try:
            for _ in range(count):
                self._members.append(_Member(make, self._members))
        except OSError as error:
            self.close()
            raise StorageUnavailable(f"cannot start a worker process: {error.strerror}") from error

    @property
    def has_room(self) -> bool:
        return any(len(member.under_way) < _AHEAD for member in self._members)

    @property
    def outstanding(self) -> int:
        return sum(len(member.under_way) for member in self._members)

    def submit(self, directory: int, message: bytes, then: Then) -> None:
        """Give a message to the child with least to do; call only while there is room. `then` gets the answer."""
        assert len(message) < MESSAGE_BYTES
        member = min(self._members, key=lambda one: len(one.under_way))
        with interrupts.held():  # half a message would be the end of the conversation
            try:
                socket.send_fds(member.socket, [_HEADER.pack(_WORK, len(message))], [directory])
                member.socket.sendall(message)
            except OSError:
                raise process.ended_early(member.pid) from None
            member.under_way.append(then)

    def sockets(self) -> list[socket.socket]:
        """Those that an answer can come from; readable when one has come."""
        return [member.socket for member in self._members if member.under_way]

    def collect(self, readable: socket.socket) -> None:
        """Read one answer and hand it on. Raises what the child's work raised."""
        member = next(one for one in self._members if one.socket is readable)
        with interrupts.held():
            then = member.under_way.popleft()  # an error is an answer, too: `abandon` must not wait for another
            answer = _receive(member)
        then(answer)

    def finish(self) -> list[bytes]:
        """Let all children finish; their last answers. Nothing may be outstanding."""
        return self._end(_FINISH)

    def abandon(self, *, flush: bool) -> None:
        """Let all children end what they are at, and make durable what they have. Raises what that raises."""
        for member in self._members:
            while member.under_way:
                with contextlib.suppress(DiskprepError, RuntimeError):  # one error is known; what others did counts
                    _receive(member)
                member.under_way.popleft()
        self._end(_FLUSH if flush else _DROP)

    def close(self) -> None:
        """End the children that are left, at once."""
        for member in self._members:
            member.socket.close()
        for member in self._members:
            process.wait(member.pid)
        self._members.clear()

    def _end(self, order: int) -> list[bytes]:
        """Give all members their last order; the first failure of any is raised when all have ended."""
        answers: list[bytes] = []
        failures: list[Exception] = []
        for member in self._members:
            with contextlib.suppress(OSError):  # one that is gone is found out below
                member.socket.sendall(_HEADER.pack(order, 0))
        for member in self._members:
            try:
                answers.append(_receive(member))
            except (DiskprepError, RuntimeError) as error:
                failures.append(error)
        self.close()
        if failures:
            raise failures[0]
        return answers


def _serve(end: socket.socket, worker: Worker) -> None:
    """A child's life."""
    while True:
        header, descriptors, _, _ = socket.recv_fds(end, _HEADER.size, 1)
        if not header:
            return
        order, length = _HEADER.unpack(header + process.receive_exactly(end, _HEADER.size - len(header)))
        message = process.receive_exactly(end, length)
        try:
            if order == _WORK:
                answer = worker.work(descriptors[0], message)
            else:
                answer = worker.finish() if order == _FINISH else worker.abandon(flush=order == _FLUSH)
            end.sendall(_HEADER.pack(_ANSWER, len(answer)))
            end.sendall(answer)
        except ConnectionError:
            return
        except BaseException as error:  # noqa: BLE001 - it is raised again in the parent
            text = process.describe_error(error)
            end.sendall(_HEADER.pack(_ERROR, len(text)) + text)
        if order != _WORK:
            return


def _receive(member: _Member) -> bytes:
    try:
        kind, length = _HEADER.unpack(process.receive_exactly(member.socket, _HEADER.size))
        answer = process.receive_exactly(member.socket, length)
    except OSError:
        raise process.ended_early(member.pid) from None
    if kind == _ERROR:
        raise process.revive_error(answer)
    return answer

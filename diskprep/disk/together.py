"""Together: several disks at once, a forked process each, so that one that fails does not disturb the others.

A child tells its parent, through a socket, what it does and how it ended: one JSON object a line. It stops at its next
step forward when the parent asks for that, and at once when the parent is gone; the same command then goes on.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import socket
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from diskprep import interrupts, process
from diskprep.disk import copying
from diskprep.disk.prepare import prepare_disk
from diskprep.disk.record import PreparedDisk
from diskprep.disk.work import Order
from diskprep.errors import DiskFailed, DiskprepError, Interrupted, StorageUnavailable
from diskprep.events import Emit, Event, Note, Progress
from diskprep.secrets import Secret

_STOP = b"S"
_CHUNK_BYTES = 64 << 10
_PROGRESS_STEP_BYTES = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one disk ended: `disk`, or the error."""

    serial: str
    disk: PreparedDisk | None = None
    error: Exception | None = None


def prepare_disks(orders: Sequence[Order], emit: Emit) -> list[Outcome]:
    """Prepare all disks at once; return how each ended, in their order.

    An interrupt (KeyboardInterrupt) stops all of them at the next step forward, waits for them, and goes up.
    """
    children: list[_Child] = []
    copying.warm_up()
    try:
        for order in orders:
            children.append(_Child.start(order, children))
        _listen(children, emit)
    except KeyboardInterrupt:
        for child in children:
            child.stop()
        _listen(children, emit)
        raise
    finally:
        for child in children:
            child.close()
    return [child.outcome or _vanished(child.order) for child in children]


def check(outcomes: Sequence[Outcome]) -> list[PreparedDisk]:
    """The disks when all are prepared. Otherwise raises the first error, naming all disks that failed."""
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    for outcome in failed:
        error = outcome.error
        if not isinstance(error, DiskprepError):
            assert error is not None
            raise error
        if len(failed) > 1:
            others = ", ".join(other.serial for other in failed if other is not outcome)
            raise type(error)(f"{error.message} (failed too: {others})", hint=error.hint)
        raise error
    return [outcome.disk for outcome in outcomes if outcome.disk is not None]


@dataclass(slots=True)
class _Child:
    """The parent's side of a child."""

    order: Order
    pid: int
    socket: socket.socket
    outcome: Outcome | None = None
    is_open: bool = True
    pending: bytearray = field(default_factory=bytearray)

    @classmethod
    def start(cls, order: Order, siblings: Sequence[_Child]) -> _Child:
        try:
            pid, ours = process.fork(
                lambda end: _Teller(order, end).run(), close=[sibling.socket for sibling in siblings]
            )
        except OSError as error:
            raise StorageUnavailable(f"cannot start a process for disk {order.serial}: {error.strerror}") from error
        return cls(order=order, pid=pid, socket=ours)

    def lines(self) -> Iterator[dict[str, Any]]:
        """What has come in. At the child's end `is_open` becomes False."""
        try:
            data = self.socket.recv(_CHUNK_BYTES)
        except OSError:
            data = b""
        self.is_open = bool(data)
        self.pending += data
        while (end := self.pending.find(b"\n")) >= 0:
            line, self.pending = self.pending[:end], self.pending[end + 1 :]
            yield json.loads(line)

    def stop(self) -> None:
        try:
            self.socket.sendall(_STOP)
        except OSError:
            return

    def close(self) -> None:
        self.socket.close()
        process.wait(self.pid)


def _listen(children: Sequence[_Child], emit: Emit) -> None:
    """Hand on what the children tell, until all have ended."""
    while waiting := {child.socket: child for child in children if child.is_open}:
        for ready in select.select(list(waiting), [], [])[0]:
            child = waiting[ready]
            with interrupts.held():  # nothing that was received may be lost
                for message in child.lines():
                    _hear(child, message, emit)
            if not child.is_open and child.outcome is None:
                child.outcome = _vanished(child.order)
                _tell_failure(child.outcome, emit)


def _hear(child: _Child, message: dict[str, Any], emit: Emit) -> None:
    kind = message.pop("kind")
    serial = child.order.serial
    if kind == "progress":
        emit(Progress(**message))
    elif kind == "note":
        emit(Note(**message))
    elif kind == "error":
        error = process.revive_error(message["error"].encode("utf-8", "surrogatepass"))
        child.outcome = Outcome(serial=serial, error=error)
        _tell_failure(child.outcome, emit)
    else:
        child.outcome = Outcome(serial=serial, disk=_disk(message))


def _tell_failure(outcome: Outcome, emit: Emit) -> None:
    """Say at once what has failed; the other disks may go on for days."""
    error, serial = outcome.error, outcome.serial
    if isinstance(error, DiskprepError) and not isinstance(error, Interrupted):
        emit(Note(stage="disk", item=serial, text=f"disk {serial} failed: {error.message}"))


def _vanished(order: Order) -> Outcome:
    return Outcome(
        serial=order.serial,
        error=DiskFailed(
            f"the process for disk {order.serial} has ended before its work was done",
            hint="it may have been killed, or memory ran out (see dmesg); give the same command again",
        ),
    )


class _Teller:
    """The child's side: prepares one disk and tells of it."""

    def __init__(self, order: Order, end: socket.socket) -> None:
        self._order, self._end = order, end
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._told: dict[str, int] = {}

    def run(self) -> None:
        gc.enable()  # the file system's library is mounted for every batch, and leaves cycles behind
        threading.Thread(target=self._hear, daemon=True).start()
        try:
            disk = prepare_disk(self._order, self._emit)
        except BaseException as error:  # noqa: BLE001  it is raised again in the parent
            self._tell("error", error=process.describe_error(error).decode("utf-8", "surrogatepass"))
        else:
            self._tell("done", **_fields(disk))

    def _hear(self) -> None:
        """Wait for the parent's word; without a parent there is nothing to do any more."""
        with contextlib.suppress(OSError):  # a parent that was killed with something unread resets the connection
            while self._end.recv(1):
                self._stop.set()
        os._exit(1)

    def _emit(self, event: Event) -> None:
        if self._stop.is_set():
            raise Interrupted("stopped", hint="give the same command again to go on")
        if isinstance(event, Note):
            self._tell("note", **asdict(event))
        elif self._is_news(event):
            self._tell("progress", **asdict(event))

    def _is_news(self, event: Progress) -> bool:
        """Not every block is worth a message."""
        last = self._told.get(event.stage, -_PROGRESS_STEP_BYTES)
        if event.done_bytes - last < _PROGRESS_STEP_BYTES and event.done_bytes != event.total_bytes:
            return False
        self._told[event.stage] = event.done_bytes
        return True

    def _tell(self, kind: str, **message: Any) -> None:
        data = json.dumps({"kind": kind, **message}).encode() + b"\n"
        with self._lock:
            try:
                self._end.sendall(data)
            except OSError:
                os._exit(1)


def _fields(disk: PreparedDisk) -> dict[str, Any]:
    """A prepared disk for the way through the socket, which nobody else can read."""
    password = disk.recovery_password
    values = {name.name: getattr(disk, name.name) for name in fields(disk)}
    return {**values, "path": str(disk.path), "recovery_password": password.reveal() if password else None}


def _disk(message: dict[str, Any]) -> PreparedDisk:
    password = message.pop("recovery_password")
    return PreparedDisk(
        **{**message, "path": Path(message["path"])}, recovery_password=Secret(password) if password else None
    )

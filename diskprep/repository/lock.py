"""Locks: small sealed files that keep writers and destroyers of one repository apart, also across computers.

Backups take a non-exclusive lock, prune and the like an exclusive one. To take a lock: look for conflicts, write the
own file, wait, look again. A lock not refreshed for 30 minutes, or of a dead process of this computer, counts for
nothing; refreshing writes a new file, then deletes the old one. Once a lock is lost - not refreshed in time, by either
clock, or removed by somebody - it stays lost: what was relied on may have been pruned since.

A hold is a non-exclusive lock that outlives its process: it keeps prune, check and repair out of a vault while its
packs travel on disks, whereas backups go on. Its time lies ahead, so that nobody takes it for stale before then. Who
wants the repository alone, but leaves packs, index and snapshots as they are, may tolerate holds, and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from diskprep import clock
from diskprep.errors import DataDamaged, DiskprepError, Locked, NotFound
from diskprep.repository import codec, keys
from diskprep.repository.crypto import DataKey
from diskprep.store import Store

REFRESH_S = 300.0
STALE_S = 1800.0
GIVE_UP_S = 1320.0  # without a refresh for so long, stop writing: others will soon take the lock for stale
SETTLE_S = 0.2
HOLD_LIFETIME_S = 60 * 86400.0
HOLD_PREFIX = "diskprep-hold-"
_PREFIX = "locks/"


@dataclass(frozen=True, slots=True, kw_only=True)
class LockRecord:
    """What a lock file says. `name` is its object name."""

    name: str
    time: datetime
    exclusive: bool
    hostname: str
    username: str
    pid: int

    @property
    def is_hold(self) -> bool:
        return self.hostname.startswith(HOLD_PREFIX)

    def is_stale(self) -> bool:
        if clock.now() - self.time > timedelta(seconds=STALE_S):
            return True
        return self.hostname == socket.gethostname() and not _is_alive(self.pid)


class LockDirectory:
    """The locks of one repository."""

    def __init__(self, store: Store, key: DataKey) -> None:
        self._store, self._key = store, key

    def records(self) -> list[LockRecord]:
        """All readable locks. Raises DataDamaged when one is not: what it forbids is unknown."""
        found = []
        for item in list(self._store.list(_PREFIX)):
            if item.size_bytes == 0:  # an interrupted write of restic; it ignores them too
                continue
            with contextlib.suppress(NotFound):  # released between listing and reading
                found.append(self._parse(item.name, self._store.read(item.name)))
        return found

    def write(self, *, exclusive: bool, hostname: str, time: datetime) -> str:
        """Write a lock file; return its object name."""
        document = {
            "time": clock.rfc3339(time),
            "exclusive": exclusive,
            "hostname": hostname,
            "username": keys.username(),
            "pid": os.getpid(),
            "uid": os.getuid(),
            "gid": os.getgid(),
        }
        sealed = self._key.seal(codec.encode_json(document))
        name = _PREFIX + hashlib.sha256(sealed).hexdigest()
        self._store.write(name, [sealed])
        return name

    @property
    def location(self) -> str:
        return self._store.location

    def exists(self, name: str) -> bool:
        return self._store.stat(name) is not None

    def delete(self, name: str) -> None:
        self._store.delete(name)

    def refuse_conflict(self, *, exclusive: bool, own: str | None, tolerate_holds: bool = False) -> None:
        """Raise Locked when a live lock of somebody else forbids a lock of this kind."""
        for record in self.records():
            if record.name == own or record.is_stale() or not (exclusive or record.exclusive):
                continue
            if tolerate_holds and record.is_hold and not record.exclusive:
                continue
            kind = "a hold for disks in transit" if record.is_hold else "a lock"
            raise Locked(
                f"{self._store.location} has {kind} of {record.username or 'somebody'} on {record.hostname}, "
                f"process {record.pid}, since {clock.rfc3339(record.time)}",
                hint="wait until the other command has ended"
                if not record.is_hold
                else "ingest the disks first; the hold is released then. When they will never all come: "
                "`diskprep vault give-up`",
            )

    def _parse(self, name: str, sealed: bytes) -> LockRecord:
        try:
            document = codec.decode_json(self._key.open(sealed))
            return LockRecord(
                name=name,
                time=clock.parse_rfc3339(document["time"]),
                exclusive=bool(document["exclusive"]),
                hostname=str(document.get("hostname", "")),
                username=str(document.get("username", "")),
                pid=int(document.get("pid", 0)),
            )
        except (DataDamaged, KeyError, TypeError, ValueError, AttributeError):
            raise DataDamaged(f"the lock {name} in {self._store.location} cannot be read") from None


class _State:
    """What a lock is by now, in memory that forked processes see too: a copy of their own would never be refreshed."""

    _LAYOUT = struct.Struct("<dd?80s")

    def __init__(self, name: str, time: datetime, monotonic_s: float) -> None:
        self._memory = mmap.mmap(-1, self._LAYOUT.size)
        self.refreshed(name, time, monotonic_s)

    def refreshed(self, name: str, time: datetime, monotonic_s: float) -> None:
        self._LAYOUT.pack_into(self._memory, 0, time.timestamp(), monotonic_s, self.lost, name.encode())

    @property
    def name(self) -> str:
        text: bytes = self._LAYOUT.unpack_from(self._memory)[3]
        return text.rstrip(b"\0").decode()

    @property
    def lost(self) -> bool:
        return bool(self._LAYOUT.unpack_from(self._memory)[2])

    def lose(self) -> None:
        self._memory[16] = 1

    def age_s(self) -> float:
        """By the clock that says more: one stands still while the computer sleeps, the other can be set back."""
        wall_s: float
        monotonic_s: float
        wall_s, monotonic_s, _, _ = self._LAYOUT.unpack_from(self._memory)
        return max(clock.monotonic_s() - monotonic_s, clock.now().timestamp() - wall_s)


class Lock:
    """A lock of this process, kept fresh by a thread until `release`. Worker processes forked while it is held may ask
    whether it still is. `tolerate_holds` changes what may be there before it, and not what others see of it."""

    def __init__(self, directory: LockDirectory, *, exclusive: bool, tolerate_holds: bool = False) -> None:
        self._directory, self._exclusive = directory, exclusive
        self._stop = threading.Event()
        self._mutex = threading.Lock()  # a refresh, or a look at the lock file
        self._owner = os.getpid()
        directory.refuse_conflict(exclusive=exclusive, own=None, tolerate_holds=tolerate_holds)
        now, now_s = clock.now(), clock.monotonic_s()
        self._state = _State(self._write(now), now, now_s)
        try:
            clock.sleep(SETTLE_S)
            directory.refuse_conflict(exclusive=exclusive, own=self.name, tolerate_holds=tolerate_holds)
        except BaseException:
            directory.delete(self.name)
            raise
        self._thread = threading.Thread(target=self._keep_fresh, name="repository lock", daemon=True)
        self._thread.start()

    @property
    def name(self) -> str:
        return self._state.name

    def require_fresh(self) -> None:
        """Raise Locked when the lock is lost, or not refreshed for so long that others may soon ignore it."""
        if self._state.lost or self._state.age_s() > GIVE_UP_S:
            self._state.lose()
            raise Locked(
                f"the lock on {self._directory.location} was lost: it was removed, or not refreshed for too long, "
                "as when the computer sleeps",
                hint="give the same command again",
            )

    def require_held(self) -> None:
        """`require_fresh`, and the lock file is there."""
        self.require_fresh()
        with self._not_refreshing():
            name = self.name
            # A refresh in another process may just have put another file in its place.
            if not self._directory.exists(name) and (name == self.name or not self._directory.exists(self.name)):
                self._state.lose()
        self.require_fresh()

    def _not_refreshing(self) -> contextlib.AbstractContextManager[object]:
        """A worker process has no thread that refreshes, but may have been forked while it held the mutex."""
        return self._mutex if os.getpid() == self._owner else contextlib.nullcontext()

    def release(self) -> None:
        self._stop.set()
        self._thread.join()
        self._directory.delete(self.name)

    def _write(self, time: datetime) -> str:
        return self._directory.write(exclusive=self._exclusive, hostname=socket.gethostname(), time=time)

    def _keep_fresh(self) -> None:
        while not self._state.lost and not self._stop.wait(REFRESH_S):
            # Tried again next time; require_fresh counts the minutes.
            with contextlib.suppress(DiskprepError), self._mutex:
                self._refresh()

    def _refresh(self) -> None:
        if self._is_gone():
            return
        now, now_s = clock.now(), clock.monotonic_s()
        surplus = fresh = self._write(now)
        try:
            if not self._is_gone():  # all may have stood still while it was written
                surplus = self.name
                self._state.refreshed(fresh, now, now_s)
        finally:
            self._directory.delete(surplus)

    def _is_gone(self) -> bool:
        if self._state.age_s() > GIVE_UP_S or not self._directory.exists(self.name):
            self._state.lose()
        return self._state.lost


class Hold:
    """A lock without a process. `name` is the lock file's object name; a refresh changes it."""

    def __init__(self, directory: LockDirectory, label: str, name: str, expires: datetime) -> None:
        self._directory, self.label, self._name, self._expires = directory, label, name, expires

    @property
    def name(self) -> str:
        return self._name

    @property
    def expires(self) -> datetime:
        """Half an hour after this moment others may take the hold for stale."""
        return self._expires

    def refresh(self, lifetime_s: float = HOLD_LIFETIME_S) -> None:
        """Prolong the hold: write a new lock file, then delete the old one."""
        old, fresh = self._name, place_hold(self._directory, self.label, lifetime_s)
        self._name, self._expires = fresh.name, fresh.expires
        self._directory.delete(old)

    def release(self) -> None:
        self._directory.delete(self._name)


def place_hold(directory: LockDirectory, label: str, lifetime_s: float = HOLD_LIFETIME_S) -> Hold:
    """Write a hold. Raises Locked when somebody has an exclusive lock."""
    directory.refuse_conflict(exclusive=False, own=None)
    expires = clock.now() + timedelta(seconds=lifetime_s)
    name = directory.write(exclusive=False, hostname=HOLD_PREFIX + label, time=expires)
    try:
        clock.sleep(SETTLE_S)
        directory.refuse_conflict(exclusive=False, own=name)
    except BaseException:
        directory.delete(name)
        raise
    return Hold(directory, label, name, expires)


def find_holds(directory: LockDirectory) -> list[Hold]:
    """The holds of this and earlier processes."""
    return [
        Hold(directory, record.hostname.removeprefix(HOLD_PREFIX), record.name, record.time)
        for record in directory.records()
        if record.is_hold
    ]


@contextlib.contextmanager
def locked(directory: LockDirectory, *, exclusive: bool, tolerate_holds: bool = False) -> Iterator[Lock]:
    """A lock inside a `with`. Raises Locked on entering."""
    lock = Lock(directory, exclusive=exclusive, tolerate_holds=tolerate_holds)
    try:
        yield lock
    except BaseException:
        with contextlib.suppress(DiskprepError):  # what went wrong first says more
            lock.release()
        raise
    lock.release()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True

"""The recovery points of a vault as one tree of directories, read as far as somebody looks.

    ids/ID  snapshots/TIME  hosts/HOST/TIME  tags/TAG/TIME       as in restic's mount, with a link `latest` beside times

Memory: 48 bytes for each blob of the vault, `cache_bytes` of opened blobs, and listings of about two million entries
(see `folder`). Opening a directory reads its listing and nothing else.

Inode numbers are drawn from where an entry is, so that the same file in two recovery points does not pass for one;
names that were linked within a recovery point still are.
"""

from __future__ import annotations

import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from functools import partial
from typing import NamedTuple, TypeVar
from weakref import WeakValueDictionary

import numpy as np

from diskprep import clock
from diskprep.errors import DataDamaged, DiskprepError, NotFound
from diskprep.events import Emit, Note
from diskprep.repository.locations import Locations
from diskprep.repository.pack import BlobKind, BlobLocation
from diskprep.repository.repository import Repository, hash_names
from diskprep.repository.snapshot import Snapshot
from diskprep.vault.blobcache import BlobCache
from diskprep.vault.folder import Listing, Status, Xattrs, folder_status, read_listing

CACHE_BYTES = 128 << 20
LATEST = b"latest"
_ROOT = b"/"
_REFRESH_S = 30.0  # how old the list of recovery points may be
_LISTED_ENTRIES = 2_000_000
_LISTED_LEAST = 4  # a directory that is larger than that is still not read anew for each of its own
_AHEAD_BYTES = 16 << 20
_ID_DIGITS = 8
_NAME_BYTES = 255
_NOTES = 100

T = TypeVar("T")


class Directory(NamedTuple):
    """A directory at its place. `point`: the inode number of the recovery point it is in, 0 above them."""

    listing: Listing
    inode: int
    point: int

    def child_inode(self, number: int, status: Status) -> int:
        """The inode number of an entry; never 0."""
        if self.point and status.links > 1 and status.inode and not stat.S_ISDIR(status.mode):
            drawn = hash((self.point, status.device_id, status.inode))
        else:
            drawn = hash((self.inode, self.listing.names[number]))
        return (drawn & 0x7FFF_FFFF_FFFF_FFFF) | 1 << 62


class Entry(NamedTuple):
    """Something in a directory. `value` and `xattrs` are as in `Listing`."""

    status: Status
    inode: int
    value: bytes
    xattrs: Xattrs


class OpenFile:
    """A file that is read. `ends`: where each of its blobs ends, in bytes."""

    __slots__ = ("_last", "ends", "ids", "path")

    def __init__(self, path: bytes, ids: bytes, ends: np.ndarray) -> None:
        self.path, self.ids, self.ends = path, ids, ends
        self._last = 0

    def blob(self, number: int) -> bytes:
        return self.ids[number * 32 : number * 32 + 32]

    def goes_on(self, offset: int, number: int) -> bool:
        """Whether this read of blob `number` follows those before it."""
        before, self._last = self._last, number
        return offset > 0 and 0 <= number - before <= 1


class Browser:
    """Answers for paths below the mount point: absolute, as bytes, without `.` and `..`. Safe from many threads.

    What cannot be read raises DataDamaged, NotFound or StorageUnavailable, and is told once in a Note.
    """

    def __init__(self, repository: Repository, pool: Executor, *, cache_bytes: int = CACHE_BYTES, emit: Emit) -> None:
        """Reads the recovery points and the index; `pool` opens blobs and listings."""
        self._repository, self._pool, self._emit = repository, pool, emit
        self._owner = os.getuid(), os.getgid()
        self._made_ns = int(clock.now().timestamp() * 1e9)
        self._blobs = BlobCache(self._load, pool, cache_bytes)
        self._directories: OrderedDict[bytes, Directory] = OrderedDict()
        self._listed = 0
        self._listings: WeakValueDictionary[bytes, Listing] = WeakValueDictionary()
        self._coming: dict[bytes, Future[Listing]] = {}
        self._lock = threading.Lock()
        self._refreshing = threading.Lock()
        self._told: set[str] = set()
        self._names: frozenset[str] = frozenset()
        self._layout: dict[bytes, Listing] = {}
        self._fresh_until_s = 0.0
        self._ahead_bytes = min(_AHEAD_BYTES, cache_bytes // 4)  # or a few readers would take it from each other
        self.points = 0
        self._take_in()

    # -- paths

    def directory(self, path: bytes) -> Directory | None:
        """The directory at `path`; None when there is none."""
        missing: list[bytes] = []
        current = path
        while True:
            with self._lock:
                found = self._directories.get(current)
                if found is not None:
                    self._directories.move_to_end(current)
            if found is None and current == _ROOT:
                self._refresh()
                found = Directory(self._layout[_ROOT], 1, 0)
            if found is not None:
                break
            current, _, name = current.rpartition(b"/")
            current = current or _ROOT
            missing.append(name)
        for name in reversed(missing):
            current = current.rstrip(b"/") + b"/" + name
            below = self._descend(found, name, current)
            if below is None:
                return None
            found = below
        return found

    def entry(self, path: bytes) -> Entry | None:
        """What is at `path`; None when there is nothing."""
        if path == _ROOT:
            return Entry(self._folder(), 1, b"", {})
        above, _, name = path.rpartition(b"/")
        directory = self.directory(above or _ROOT)
        number = None if directory is None else directory.listing.find(name)
        if directory is None or number is None:
            return None
        listing, status = directory.listing, directory.listing.status(number)
        return Entry(status, directory.child_inode(number, status), listing.value(number), listing.xattrs(number))

    def _descend(self, directory: Directory, name: bytes, path: bytes) -> Directory | None:
        number = directory.listing.find(name)
        if number is None:
            return None
        status = directory.listing.status(number)
        if not stat.S_ISDIR(status.mode):
            return None
        value, inode = directory.listing.value(number), directory.child_inode(number, status)
        if not directory.point and value in self._layout:
            return Directory(self._layout[value], inode, 0)
        found = Directory(self._tried(path, lambda: self._listing(value)), inode, directory.point or inode)
        with self._lock:
            if path not in self._directories:
                self._directories[path] = found
                self._listed += len(found.listing)
            while self._listed > _LISTED_ENTRIES and len(self._directories) > _LISTED_LEAST:
                self._listed -= len(self._directories.popitem(last=False)[1].listing)
        return found

    def _listing(self, tree: bytes) -> Listing:
        if not tree:
            raise DataDamaged("it has no listing")
        with self._lock:
            listing = self._listings.get(tree)
            if listing is not None:
                return listing
            coming = self._coming.get(tree)
            if coming is None:
                coming = self._coming[tree] = self._pool.submit(self._read_listing, tree)
        try:
            listing = coming.result()
        finally:
            with self._lock:
                self._coming.pop(tree, None)
        with self._lock:
            return self._listings.setdefault(tree, listing)

    def _read_listing(self, tree: bytes) -> Listing:
        return read_listing(self._repository.load_blob(BlobKind.TREE, tree, index=self._trees))

    # -- files

    def open(self, path: bytes) -> OpenFile | None:
        """The file at `path`; None when there is none. Raises NotFound when a part of it is in no index."""
        entry = self.entry(path)
        if entry is None or not stat.S_ISREG(entry.status.mode):
            return None
        if len(entry.value) == 32:  # most are one blob, whose length need not be known
            return OpenFile(path, entry.value, np.array([entry.status.size]))
        lengths = self._data.plaintext_lengths(entry.value)
        if (lengths < 0).any():
            self._tried(path, lambda: self._locate(OpenFile(path, entry.value, lengths).blob(int(lengths.argmin()))))
        return OpenFile(path, entry.value, np.cumsum(lengths))

    def read(self, file: OpenFile, size: int, offset: int) -> bytes:
        """At most `size` bytes from `offset`; fewer at the end of the file only."""
        first = number = int(np.searchsorted(file.ends, offset, side="right"))
        start = int(file.ends[number - 1]) if number else 0
        parts = []
        while size and number < len(file.ends):
            blob = self._tried(file.path, partial(self._blob, file.blob(number)))
            part = blob[offset - start : offset - start + size]
            parts.append(part)
            start = int(file.ends[number])
            size, offset, number = size - len(part), start, number + 1
        if file.goes_on(offset, first):
            self._read_ahead(file, number)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read_ahead(self, file: OpenFile, number: int) -> None:
        until = file.ends[number - 1] + self._ahead_bytes if number else 0
        while number < len(file.ends) and file.ends[number - 1] < until:
            blob_id = file.blob(number)
            if not self._blobs.has(blob_id):
                location = self._data.find(BlobKind.DATA, blob_id)
                if location is not None:
                    self._blobs.want(location)
            number += 1

    def _blob(self, blob_id: bytes) -> bytes:
        known = self._blobs.find(blob_id)
        return (known or self._blobs.want(self._locate(blob_id))).result()

    def _locate(self, blob_id: bytes) -> BlobLocation:
        location = self._data.find(BlobKind.DATA, blob_id)
        if location is None:
            raise NotFound(f"no index of {self._repository.store.location} has the data blob {blob_id.hex()}")
        return location

    def _load(self, location: BlobLocation) -> bytes:
        return self._repository.load_blob(BlobKind.DATA, location.id, index=self._data)

    def _tried(self, path: bytes, read: Callable[[], T]) -> T:
        """What `read` returns; a failure is told before it goes up."""
        try:
            return read()
        except DiskprepError as error:
            text = f"{os.fsdecode(path)}: {error.message}"
            with self._lock:
                tell = text not in self._told and len(self._told) <= _NOTES
                if tell:
                    self._told.add(text)
                    text = text if len(self._told) <= _NOTES else "further files that cannot be read are not told"
            if tell:
                self._emit(Note(stage="mount", text=text))
            raise

    # -- the recovery points

    def _refresh(self) -> None:
        """Take in recovery points that were added or removed, when somebody looked last a while ago."""
        if clock.monotonic_s() < self._fresh_until_s or not self._refreshing.acquire(blocking=False):
            return
        try:
            self._fresh_until_s = clock.monotonic_s() + _REFRESH_S
            if frozenset(hash_names(self._repository.store, "snapshots/")) != self._names:
                self._take_in()
        except DiskprepError as error:  # those that are known can still be read
            self._emit(Note(stage="mount", text=f"the recovery points could not be read again: {error.message}"))
        finally:
            self._refreshing.release()

    def _take_in(self) -> None:
        points = self._repository.snapshots()  # before the index: what they need is then in it
        trees, data = Locations(BlobKind.TREE), Locations(BlobKind.DATA)
        for _, entries in self._repository.index_files():
            trees.add(entries)
            data.add(entries)
        trees.sort()
        data.sort()
        self._trees, self._data = trees, data
        self._layout = self._lay_out(points)
        self._names, self.points = frozenset(point.id for point in points), len(points)
        self._fresh_until_s = clock.monotonic_s() + _REFRESH_S

    def _lay_out(self, points: list[Snapshot]) -> dict[bytes, Listing]:
        """The listings above the recovery points, by what stands for a tree in the entries that lead there."""
        by_host: dict[bytes, list[Snapshot]] = {}
        by_tag: dict[bytes, list[Snapshot]] = {}
        for point in points:
            by_host.setdefault(_name(point.hostname), []).append(point)
            for tag in dict.fromkeys(map(_name, point.tags)):
                by_tag.setdefault(tag, []).append(point)
        layout = {
            _ROOT: self._folders((name, name) for name in (b"hosts", b"ids", b"snapshots", b"tags")),
            b"ids": self._points([(point.id[:_ID_DIGITS].encode(), point) for point in points], with_latest=False),
            b"snapshots": self._points(_by_time(points)),
        }
        for area, groups in ((b"hosts", by_host), (b"tags", by_tag)):
            layout[area] = self._folders((name, area + b"/" + name) for name in groups)
            layout |= {area + b"/" + name: self._points(_by_time(of_group)) for name, of_group in groups.items()}
        return layout

    def _folders(self, names: Iterator[tuple[bytes, bytes]]) -> Listing:
        return Listing((name, self._folder(), key, {}) for name, key in names)

    def _points(self, points: list[tuple[bytes, Snapshot]], *, with_latest: bool = True) -> Listing:
        named: dict[bytes, Snapshot] = {}
        for name, point in points:
            unique, count = name, 0
            while unique in named:
                count += 1
                unique = b"%s-%d" % (name, count)
            named[unique] = point
        uid, gid = self._owner
        entries: list[tuple[bytes, Status, bytes, Xattrs]] = [
            (name, folder_status(uid=uid, gid=gid, time_ns=_time_ns(point)), point.tree, {})
            for name, point in named.items()
        ]
        if named and with_latest:
            newest, point = list(named.items())[-1]
            status = folder_status(
                mode=stat.S_IFLNK | 0o777, uid=uid, gid=gid, time_ns=_time_ns(point), size=len(newest)
            )
            entries.append((LATEST, status, newest, {}))
        return Listing(entries)

    def _folder(self) -> Status:
        uid, gid = self._owner
        return folder_status(uid=uid, gid=gid, time_ns=self._made_ns)


def _by_time(points: list[Snapshot]) -> list[tuple[bytes, Snapshot]]:
    """Each with its time as a name: of the zone it was taken in, to the second."""
    return [(point.time.isoformat(timespec="seconds").replace("+00:00", "Z").encode(), point) for point in points]


def _time_ns(point: Snapshot) -> int:
    return int(point.time.timestamp()) * 10**9 + point.time.microsecond * 1000


def _name(text: str) -> bytes:
    """A host or tag as a name of a directory."""
    name = text.replace("/", "_").replace("\0", "_").encode("utf-8", "replace")[:_NAME_BYTES]
    return b"_" if name in (b"", b".", b"..") else name

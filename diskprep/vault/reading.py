"""Reading many blobs: each pack's wanted ranges are read once, and opened in several threads.

Memory: per thread two buffers of 8 MiB that are used again, one longer blob, and what its reader makes of it; at most
twice as many ranges as threads are under way.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from diskprep.durable import Buffer, storage_error
from diskprep.errors import DataDamaged, DiskprepError, NotFound
from diskprep.repository.crypto import SEAL_ROOM_BYTES
from diskprep.repository.pack import BlobKind, BlobLocation, PackEntry, object_name, open_blob, verify_pack
from diskprep.repository.repository import Repository
from diskprep.store import Store, check_name
from diskprep.store.directory import DirectoryStore

RANGE_BYTES = 8 << 20
_GAP_BYTES = 128 << 10  # reading so much for nothing costs less than another request
_REQUESTS = 6  # a network wants more requests under way than there are cores

T = TypeVar("T")
R = TypeVar("R")
Range = list[BlobLocation]
_local = threading.local()


def in_threads(store: Store, work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """`work` of each item, in their order, as many at a time as suit `store`. The first error ends it."""
    cores = os.cpu_count() or 1
    threads = cores if isinstance(store, DirectoryStore) else max(_REQUESTS, cores)
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def ranges(locations: Iterable[BlobLocation]) -> Iterator[Range]:
    """The blobs grouped so that each group is one read of one pack: packs in the order of their first blob."""
    packs: dict[str, Range] = {}
    for location in locations:
        packs.setdefault(location.pack, []).append(location)
    for blobs in packs.values():
        blobs.sort(key=lambda blob: blob.offset)
        group: Range = []
        for blob in blobs:
            if group and (
                blob.offset - (group[-1].offset + group[-1].length) > _GAP_BYTES
                or blob.offset + blob.length - group[0].offset > RANGE_BYTES
            ):
                yield group
                group = []
            group.append(blob)
        yield group


def open_range(repository: Repository, group: Range) -> Iterator[tuple[BlobLocation, bytes | DiskprepError]]:
    """Read a group's bytes and open its blobs; a blob that is missing or damaged comes as its error."""
    for blob, plaintext in _open(repository, group, borrow=False):
        assert not isinstance(plaintext, (bytearray, memoryview))
        yield blob, plaintext


def borrow_range(repository: Repository, group: Range) -> Iterator[tuple[BlobLocation, Buffer | DiskprepError]]:
    """The same; a plaintext may be a view that is valid until the next one is asked for."""
    return _open(repository, group, borrow=True)


def _open(
    repository: Repository, group: Range, *, borrow: bool
) -> Iterator[tuple[BlobLocation, Buffer | DiskprepError]]:
    start = group[0].offset
    length = group[-1].offset + group[-1].length - start
    with _buffers(2) as (for_sealed, for_plain):
        try:
            data = _read(repository.store, object_name(group[0].pack), start, length, for_sealed)
        except (DataDamaged, NotFound) as error:
            if len(group) > 1:  # the pack may only be short: its blobs one by one
                for blob in group:
                    yield from _open(repository, [blob], borrow=borrow)
            else:
                yield group[0], error
            return
        for blob in group:
            offset = blob.offset - start
            sealed = data[offset : offset + blob.length]
            try:
                plaintext = open_blob(sealed, blob, repository.key, for_plain)
                yield blob, plaintext if borrow or isinstance(plaintext, bytes) else bytes(plaintext)
            except DataDamaged as error:
                yield blob, error


def _read(store: Store, name: str, offset: int, length: int, buffer: bytearray) -> memoryview:
    """A range of an object; of a directory's, where it fits, in `buffer`. Raises as `Store.read` does."""
    if not isinstance(store, DirectoryStore) or length > len(buffer):
        return memoryview(store.read(name, offset, length))
    view = memoryview(buffer)[:length]
    try:
        descriptor = os.open(store.root / check_name(name), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            done = 0
            while done < length:
                count = os.preadv(descriptor, [view[done:]], offset + done)
                if not count:
                    raise DataDamaged(f"{name} in {store.location} is shorter than it should be")
                done += count
        finally:
            os.close(descriptor)
    except OSError as error:
        raise storage_error(error, f"read {name} in {store.location}") from error
    return view


def verify_whole(repository: Repository, entry: PackEntry) -> None:
    """Read a pack and check all of it, as `verify_pack` does. Raises DataDamaged, NotFound."""
    with _buffers(1) as (for_sealed,):
        if entry.size_bytes > len(for_sealed):
            for_sealed.extend(bytes(entry.size_bytes - len(for_sealed)))
        data = _read(repository.store, object_name(entry.pack), 0, entry.size_bytes, for_sealed)
        verify_pack(entry.pack, data, repository.key, entry)


@contextmanager
def _buffers(count: int) -> Iterator[list[bytearray]]:
    """Buffers of this thread, which are used again: new memory for each range costs more than filling it."""
    free: list[bytearray] = _local.__dict__.setdefault("free", [])
    taken = [free.pop() if free else bytearray(RANGE_BYTES + SEAL_ROOM_BYTES) for _ in range(count)]
    try:
        yield taken
    finally:
        free += taken


def locate(repository: Repository, kind: BlobKind, ids: Iterable[bytes]) -> tuple[list[BlobLocation], list[bytes]]:
    """Where the blobs lie, and those that no index names."""
    found, unknown = [], []
    for blob_id in ids:
        location = repository.index.find(kind, blob_id)
        if location is None:
            unknown.append(blob_id)
        else:
            found.append(location)
    return found, unknown

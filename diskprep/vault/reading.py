"""Reading many blobs: each pack's wanted ranges are read once, and opened in several threads.

Memory: per thread one range (8 MiB, or one longer blob) and what its reader makes of it; at most twice as many ranges
as threads are under way.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from diskprep.errors import DataDamaged, DiskprepError, NotFound
from diskprep.repository.pack import BlobKind, BlobLocation, object_name, open_blob
from diskprep.repository.repository import Repository
from diskprep.store import Store
from diskprep.store.directory import DirectoryStore

RANGE_BYTES = 8 << 20
_GAP_BYTES = 128 << 10  # reading so much for nothing costs less than another request
_REQUESTS = 6  # a network wants more requests under way than there are cores

T = TypeVar("T")
R = TypeVar("R")
Range = list[BlobLocation]


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
    start = group[0].offset
    length = group[-1].offset + group[-1].length - start
    try:
        data = memoryview(repository.store.read(object_name(group[0].pack), start, length))
    except (DataDamaged, NotFound) as error:
        if len(group) > 1:  # the pack may only be short: its blobs one by one
            for blob in group:
                yield from open_range(repository, [blob])
        else:
            yield group[0], error
        return
    for blob in group:
        try:
            offset = blob.offset - start
            yield blob, open_blob(data[offset : offset + blob.length], blob, repository.key)
        except DataDamaged as error:
            yield blob, error


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

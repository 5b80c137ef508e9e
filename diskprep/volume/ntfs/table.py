"""The files of an NTFS volume in the order in which they lie, for one pass over the disk.

The file table is read once from end to end, then the directories' indexes; both have to agree on every file. What is
kept are arrays, 40 to 60 bytes a file, so that a million files take no more memory than a few. Records of files in many
pieces, and of those with something unusual, are read again when their turn comes.

What is read may be hostile: damage raises DataDamaged or NotNtfs, nothing loops, and sizes are bounded.
"""

from __future__ import annotations

import hashlib
import itertools
import secrets
from array import array
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from diskprep.errors import DataDamaged
from diskprep.volume.device import BlockDevice
from diskprep.volume.ntfs import records
from diskprep.volume.ntfs.reader import CHUNK_BYTES, SYSTEM_FOLDER, Reader, Stream
from diskprep.volume.ntfs.records import Attribute, Geometry, Record, Run

RECORDS_MAX: Final = 1 << 24
_CLUSTERS_MAX = 1 << 32  # what Windows takes, and what fits the arrays
_RUNS_KEPT = 16  # of a file; one in more pieces is looked up again
_NO_DATA = -1


class _Kind(IntEnum):
    """What a record is."""

    UNUSED = 0  # or a further part of another
    FILE = 1
    DIRECTORY = 2


class _Named(IntEnum):
    """How a record was reached through the directories."""

    NOT = 0
    USER = 1
    SYSTEM = 2  # below the file system's own folders


class Table(Reader):
    """All files but the file system's own. A file is a number from 0 to `len()` - 1, in the order of first clusters.

    Used by one thread; the streams it gives may be used by others. Raises NotNtfs, DataDamaged, DiskFailed.
    """

    def __init__(self, volume: BlockDevice) -> None:
        super().__init__(volume)
        self._key = secrets.token_bytes(16)
        if self.geometry.clusters > _CLUSTERS_MAX:
            raise DataDamaged("the NTFS volume has more clusters than Windows takes")
        scan = _Scan(self._mft, self.geometry, self._record)
        keys = np.zeros(scan.count, np.uint64)
        named = np.zeros(scan.count, np.uint8)
        self._kinds = scan.kind
        for path, number, how in self._paths(scan):
            if named[number]:
                raise DataDamaged(f"{path} is in two places on the NTFS volume")
            named[number] = how
            keys[number] = self._path_key(path)
        _check_all_named(scan, named)
        numbers = np.flatnonzero((named == _Named.USER) & (scan.kind == _Kind.FILE)).astype(np.uint32)
        if len(numbers) and int(scan.size[numbers].min()) == _NO_DATA:
            raise DataDamaged("a file on the NTFS volume has no data")
        self._numbers = numbers[np.argsort(scan.first[numbers], kind="stable")]
        self._sizes, self._sequences = scan.size[self._numbers], scan.sequence[self._numbers]
        ends = np.cumsum(scan.runs, dtype=np.uint32)
        self._run_ends, self._run_counts = ends[self._numbers], scan.runs[self._numbers]
        self._places = np.frombuffer(scan.places, np.uint32).reshape(-1, 2)
        keys = keys[self._numbers]
        self._by_key: NDArray[np.uint32] = np.argsort(keys, kind="stable").astype(np.uint32)
        self._keys: NDArray[np.uint64] = keys[self._by_key]

    def __len__(self) -> int:
        return len(self._numbers)

    def find(self, path: str) -> int | None:
        """The file at `path` (from the root, with forward slashes, exactly so written), or None."""
        key = np.uint64(self._path_key(path))
        place = int(np.searchsorted(self._keys, key))
        return int(self._by_key[place]) if place < len(self._keys) and self._keys[place] == key else None

    def forget_names(self) -> None:
        """Give up what `find` needs: a quarter of the memory. It finds nothing from now on; `path` does."""
        self._keys, self._by_key = self._keys[:0], self._by_key[:0]

    def size_bytes(self, number: int) -> int:
        return int(self._sizes[number])

    def total_bytes(self) -> int:
        return int(self._sizes.sum())

    def open(self, number: int) -> Stream:
        """The data of a file."""
        count, end = int(self._run_counts[number]), int(self._run_ends[number])
        if not count:
            record = self._record(int(self._numbers[number]), int(self._sequences[number]))
            return self._data(record)
        size, runs, vcn = self.size_bytes(number), [], 0
        for place, clusters in self._places[end - count : end].tolist():
            runs.append(Run(vcn, place, clusters))
            vcn += clusters
        data = Attribute(
            type=records.DATA,
            name="",
            flags=0,
            value=None,
            runs=tuple(runs),
            size_bytes=size,
            initialized_bytes=size,
        )
        return Stream(self._volume, self.geometry, data)

    def path(self, number: int) -> str:
        """The path of a file. It is not kept: the directories are read again."""
        wanted, names = int(self._numbers[number]), itertools.islice(self._paths(), len(self._kinds))
        return next((path for path, record, _how in names if record == wanted), "a file that is gone")

    def _path_key(self, path: str) -> int:
        """64 bits that stand for a path. Nobody can prepare two paths that agree, for the key is a secret."""
        digest = hashlib.blake2b(path.encode("utf-8", "surrogatepass"), digest_size=8, key=self._key)
        return int.from_bytes(digest.digest(), "little")

    def _paths(self, scan: _Scan | None = None) -> Iterator[tuple[str, int, _Named]]:
        """(path, record, how it was reached) of all files and directories, each directory before what is in it.

        It may go round in circles where directories do; who takes a record twice has to stop.
        """
        pending = [("", records.ROOT, _Named.USER)]
        if self._kinds[records.EXTEND] == _Kind.DIRECTORY:
            pending.append(("$Extend/", records.EXTEND, _Named.SYSTEM))
        while pending:
            prefix, number, how = pending.pop()
            for child in self._walk(self._record(number)):
                path = prefix + child.name
                below = _Named.SYSTEM if path == SYSTEM_FOLDER else how
                if scan is not None:
                    scan.check(child.number, child.sequence)
                yield path, child.number, below
                if child.number < len(self._kinds) and self._kinds[child.number] == _Kind.DIRECTORY:
                    pending.append((path + "/", child.number, below))


class _Scan:
    """The file table, read from end to end into arrays with a place for each record."""

    def __init__(self, table: Stream, geometry: Geometry, look_up: Callable[[int], Record]) -> None:
        self._cluster_bytes, self._clusters = geometry.cluster_bytes, geometry.clusters
        self._volume_bytes = self._clusters * self._cluster_bytes
        size = geometry.record_bytes
        self.count = table.size_bytes // size
        if not records.FIRST_USER_RECORD <= self.count <= RECORDS_MAX:
            raise DataDamaged(f"the NTFS volume has a file table of {self.count} records")
        self.kind = np.zeros(self.count, np.uint8)
        self.sequence = np.zeros(self.count, np.uint16)
        self.size = np.full(self.count, _NO_DATA, np.int64)
        self.first = np.zeros(self.count, np.uint32)  # cluster; 0 for what lies in the file table
        self.runs = np.zeros(self.count, np.uint8)  # how many of `places` are the file's; 0: look it up
        self.places = array("I")  # first cluster and number of clusters of each run, file by file
        scattered = array("I")  # files whose attributes are in several records
        for offset in range(0, self.count * size, CHUNK_BYTES):
            chunk = table.read(offset, min(CHUNK_BYTES, self.count * size - offset))
            for at in range(0, len(chunk), size):
                block, number = chunk[at : at + size], (offset + at) // size
                if records.is_in_use(block):
                    record = records.parse_record(block, number)
                    if not record.base and record.find(records.ATTRIBUTE_LIST) is not None:
                        scattered.append(number)
                    self._take(record)
        for number in scattered:
            self._take(look_up(number))

    def check(self, number: int, sequence: int) -> None:
        """Raise DataDamaged unless a directory's entry refers to a record that is in use, and to this use of it."""
        if number >= self.count or self.kind[number] == _Kind.UNUSED or self.sequence[number] != sequence:
            raise DataDamaged(f"NTFS record {number} is not the one that is referred to")

    def _take(self, record: Record) -> None:
        """Note what a record says. What is unusual about a file's data is left to be looked up."""
        number, data = record.number, record.find(records.DATA)
        if record.base:
            return
        self.kind[number] = _Kind.DIRECTORY if record.is_directory else _Kind.FILE
        self.sequence[number] = record.sequence
        if record.is_directory or number < records.FIRST_USER_RECORD or data is None or data.first_vcn:
            return
        if data.size_bytes > self._volume_bytes:
            raise DataDamaged(f"the file in NTFS record {number} is larger than the volume")
        self.size[number] = data.size_bytes
        if data.value is not None or not data.runs:
            return
        self.first[number] = max(data.runs[0].lcn, 0)
        whole = sum(run.count for run in data.runs) * self._cluster_bytes >= data.size_bytes
        plain = not data.flags and data.initialized_bytes == data.size_bytes
        if whole and plain and len(data.runs) <= _RUNS_KEPT and record.find(records.ATTRIBUTE_LIST) is None:
            for run in data.runs:
                if not 0 <= run.lcn <= run.lcn + run.count <= self._clusters:
                    raise DataDamaged("an NTFS run list refers to clusters outside the volume")
                self.places.extend((run.lcn, run.count))
            self.runs[number] = len(data.runs)


def _check_all_named(scan: _Scan, named: NDArray[np.uint8]) -> None:
    """Raise DataDamaged when a file or directory is in the file table, but in no directory."""
    lost = np.flatnonzero((scan.kind != _Kind.UNUSED) & (named == _Named.NOT))
    lost = lost[lost >= records.FIRST_USER_RECORD]
    if len(lost):
        raise DataDamaged(f"{len(lost)} files on the NTFS volume have no name, record {lost[0]} among them")

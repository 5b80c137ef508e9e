"""NTFS read without a mount: names through the directories' indexes, data through the run lists.

What is read may be hostile: damage raises DataDamaged or NotNtfs, never anything else, and nothing loops. Reads go
straight to the volume in the size they are asked for. A Reader is used by one thread; several may share a volume.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Final, Self

import numpy as np

from diskprep.errors import DataDamaged, NotFound
from diskprep.volume.device import BlockDevice
from diskprep.volume.ntfs import names, records
from diskprep.volume.ntfs.records import Attribute, Geometry, Record, Run

CHUNK_BYTES: Final = 4 * 1024 * 1024
SYSTEM_FOLDER: Final = "System Volume Information"
_MFT_WINDOW_BYTES = 64 * 1024
_INDEX_AT_ONCE_BYTES = 16 * 1024 * 1024
_ATTRIBUTE_LIST_MAX_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A file or directory: path from the root with forward slashes."""

    path: str
    size_bytes: int
    is_directory: bool


@dataclass(frozen=True, slots=True)
class _Child:
    name: str
    number: int
    sequence: int


class Stream:
    """The bytes of one attribute."""

    def __init__(self, volume: BlockDevice, geometry: Geometry, attribute: Attribute) -> None:
        attribute.check_plain()
        self._volume, self._attribute = volume, attribute
        self._cluster = geometry.cluster_bytes
        self.size_bytes = attribute.size_bytes
        self.unit_bytes = 1 if attribute.value is not None else self._cluster
        for run in attribute.runs:
            if run.lcn >= 0 and (run.lcn + run.count) * self._cluster > volume.size_bytes:
                raise DataDamaged("an NTFS run list refers to clusters outside the volume")

    @property
    def runs(self) -> tuple[Run, ...]:
        return self._attribute.runs

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes. Raises DataDamaged past the end, or where clusters are missing."""
        self._check_range(offset, length)
        if self._attribute.value is not None:
            return self._attribute.value[offset : offset + length]
        buffer = bytearray(length)
        self.read_into(memoryview(buffer), offset)
        return bytes(buffer)

    def read_into(self, view: memoryview, offset: int) -> None:
        """Fill `view` with the bytes from `offset`. Raises as `read` does.

        The view may reach past the end, up to a whole `unit_bytes`: so nothing less than a cluster has to be read. What
        comes there then says nothing.
        """
        length = len(view)
        self._check_range(offset, length, self.unit_bytes)
        if self._attribute.value is not None:
            view[:] = self._attribute.value[offset : offset + length]
            return
        end = offset + length
        if end <= self.size_bytes or self._attribute.initialized_bytes < self.size_bytes:
            end = min(end, self._attribute.initialized_bytes)
        covered = offset
        for run in self._attribute.runs:
            begin, stop = max(run.vcn * self._cluster, offset), min((run.vcn + run.count) * self._cluster, end)
            if begin >= stop:
                continue
            if begin != covered:
                raise DataDamaged("an NTFS run list has a gap")
            covered = stop
            part = view[begin - offset : stop - offset]
            if run.lcn >= 0:
                self._volume.pread_into(part, run.lcn * self._cluster + begin - run.vcn * self._cluster)
            else:
                part[:] = bytes(len(part))
        if covered < end:
            raise DataDamaged("an NTFS run list is shorter than its file")
        if covered < offset + length:  # what was never written reads as zeros
            view[covered - offset :] = bytes(offset + length - covered)

    def chunks(self, chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
        """All of it, in chunks of `chunk_bytes`; the last is shorter."""
        for offset in range(0, self.size_bytes, chunk_bytes):
            yield self.read(offset, min(chunk_bytes, self.size_bytes - offset))

    def _check_range(self, offset: int, length: int, unit_bytes: int = 1) -> None:
        if offset < 0 or length < 0 or offset + length > -(-self.size_bytes // unit_bytes) * unit_bytes:
            raise DataDamaged(f"bytes {offset} to {offset + length} of a file of {self.size_bytes} were asked for")


class Reader:
    """The files of an NTFS volume. Raises NotNtfs, DataDamaged, DiskFailed; NotFound for a path that is not there."""

    def __init__(self, volume: BlockDevice) -> None:
        self._volume = volume
        self.geometry = records.parse_boot_sector(volume.pread(512, 0), volume.size_bytes)
        self._mft = self._open_mft()
        self._window: tuple[int, bytes] = (0, b"")
        self._directories: dict[int, dict[str, _Child]] = {}
        self._open: tuple[str, Stream] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Forget what was read; the volume itself stays open."""
        self._directories.clear()
        self._open = None

    def list(self) -> Iterator[Entry]:
        """Every file and directory, a directory before what is in it; without the file system's own."""
        seen = {records.ROOT}
        pending = [("", self._record(records.ROOT))]
        while pending:
            prefix, directory = pending.pop()
            for child in self._children(directory).values():
                if not prefix and child.name == SYSTEM_FOLDER:
                    continue
                record = self._record(child.number, child.sequence)
                entry = self._entry(prefix + child.name, record)
                if record.is_directory:
                    if record.number in seen:
                        raise DataDamaged("an NTFS directory is in two places")
                    seen.add(record.number)
                    pending.append((entry.path + "/", record))
                yield entry

    def stat(self, path: str) -> Entry:
        return self._entry(path, self._lookup(path))

    def read(self, path: str, offset: int, length: int) -> bytes:
        """Exactly `length` bytes of a file from `offset`. A range past its end raises DataDamaged."""
        return self._stream(path).read(offset, length)

    def stream(self, path: str, chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
        """The whole file, in chunks of `chunk_bytes`; the last is shorter."""
        return self._stream(path).chunks(chunk_bytes)

    def extents(self, path: str) -> Sequence[tuple[int, int]]:
        """(volume offset, length) in bytes of a file's clusters, in the order of the file."""
        size = self.geometry.cluster_bytes
        return [(run.lcn * size, run.count * size) for run in self._stream(path).runs if run.lcn >= 0]

    def free_bytes(self) -> int:
        """Room in clusters that nothing uses. Records, names and index blocks of new files take some of it."""
        bitmap, free = self._bitmap(), 0
        for offset in range(0, bitmap.size_bytes, CHUNK_BYTES):
            bits = np.frombuffer(bitmap.read(offset, min(CHUNK_BYTES, bitmap.size_bytes - offset)), np.uint8)
            here = max(min(self.geometry.clusters - offset * 8, len(bits) * 8), 0)
            free += here - int(np.bitwise_count(bits[: here // 8]).sum())
            if here % 8:
                free -= (int(bits[here // 8]) & ((1 << here % 8) - 1)).bit_count()
        return free * self.geometry.cluster_bytes

    def clusters_used(self, offset: int, length: int) -> tuple[int, int]:
        """How many clusters of those that touch a range of the volume are in use, and how many there are."""
        size = self.geometry.cluster_bytes
        first, end = offset // size, min(-(-(offset + length) // size), self.geometry.clusters)
        if first >= end:
            return 0, 0
        packed = np.frombuffer(self._bitmap().read(first // 8, (end - 1) // 8 - first // 8 + 1), np.uint8)
        used = int(np.bitwise_count(packed).sum())
        used -= (int(packed[0]) & ((1 << first % 8) - 1)).bit_count()
        if end % 8:
            used -= (int(packed[-1]) >> (end % 8)).bit_count()
        return used, end - first

    def _bitmap(self) -> Stream:
        attribute = self._record(records.BITMAP).find(records.DATA)
        if attribute is None or attribute.size_bytes * 8 < self.geometry.clusters:
            raise DataDamaged("the NTFS volume has no whole cluster bitmap")
        return Stream(self._volume, self.geometry, attribute)

    def _open_mft(self) -> Stream:
        geometry = self.geometry
        block = self._volume.pread(geometry.record_bytes, geometry.mft_cluster * geometry.cluster_bytes)
        record = records.parse_record(block, 0)
        attribute = record.find(records.DATA)
        if attribute is None or attribute.value is not None:
            raise DataDamaged("the NTFS volume has no file table")
        stream = Stream(self._volume, geometry, attribute)
        listed = record.find(records.ATTRIBUTE_LIST)
        if listed is None:
            return stream
        # A file table in many pieces: the records that name the later pieces lie in the first ones.
        self._mft, self._window = stream, (0, b"")
        whole = self._with_list(record, listed).find(records.DATA)
        assert whole is not None
        return Stream(self._volume, geometry, whole)

    def _block(self, number: int) -> bytes:
        size = self.geometry.record_bytes
        offset = number * size
        begin, window = self._window
        if not begin <= offset < begin + len(window):
            begin = offset - offset % _MFT_WINDOW_BYTES
            window = self._mft.read(begin, max(min(_MFT_WINDOW_BYTES, self._mft.size_bytes - begin), 0))
            self._window = begin, window
        block = window[offset - begin : offset - begin + size]
        if len(block) != size:
            raise DataDamaged(f"NTFS record {number} is outside the file table")
        return block

    def _record(self, number: int, sequence: int = 0) -> Record:
        if number * self.geometry.record_bytes >= self._mft.size_bytes:
            raise DataDamaged(f"NTFS record {number} is outside the file table")
        record = records.parse_record(self._block(number), number)
        if record.base or (sequence and record.sequence != sequence):
            raise DataDamaged(f"NTFS record {number} is not the one that is referred to")
        listed = record.find(records.ATTRIBUTE_LIST)
        return record if listed is None else self._with_list(record, listed)

    def _with_list(self, record: Record, listed: Attribute) -> Record:
        if listed.size_bytes > _ATTRIBUTE_LIST_MAX_BYTES:
            raise DataDamaged("an NTFS attribute list is too long")
        value = Stream(self._volume, self.geometry, listed).read(0, listed.size_bytes)
        parts = list(record.attributes)
        for number in records.parse_attribute_list(value):
            if number != record.number:
                part = records.parse_record(self._block(number), number)
                if part.base != record.number:
                    raise DataDamaged(f"NTFS record {number} does not belong to record {record.number}")
                parts += part.attributes
        return Record(
            number=record.number,
            sequence=record.sequence,
            is_directory=record.is_directory,
            base=0,
            attributes=tuple(records.merge(parts)),
        )

    def _children(self, directory: Record) -> dict[str, _Child]:
        known = self._directories.get(directory.number)
        if known is None:
            known = self._directories[directory.number] = {child.name: child for child in self._walk(directory)}
        return known

    def _walk(self, directory: Record) -> Iterator[_Child]:
        """The children of a directory, each once, node by node; the file system's own files are left out."""
        root = directory.find(records.INDEX_ROOT, records.DIRECTORY_INDEX)
        if not directory.is_directory or root is None or root.value is None:
            raise DataDamaged(f"NTFS record {directory.number} is not a directory")
        block_bytes, node = records.parse_index_root(root.value)
        allocation = directory.find(records.INDEX_ALLOCATION, records.DIRECTORY_INDEX)
        blocks = None if allocation is None else self._index_blocks(allocation)
        unit = self.geometry.cluster_bytes if self.geometry.cluster_bytes <= block_bytes else 512
        seen: set[int] = set()
        pending = [node]
        while pending:
            node = pending.pop()
            for entry in node.entries:
                if entry.number >= records.FIRST_USER_RECORD:
                    yield _checked_child(entry)
            for vcn in reversed(node.children):
                if vcn in seen or blocks is None:
                    raise DataDamaged("an NTFS directory's index is no tree")
                seen.add(vcn)
                pending.append(records.parse_index_block(blocks.read(vcn * unit, block_bytes), vcn))

    def _index_blocks(self, allocation: Attribute) -> Stream:
        """A directory's index blocks; unless they are many, read at once, in the order in which they lie."""
        blocks = Stream(self._volume, self.geometry, allocation)
        if blocks.size_bytes > _INDEX_AT_ONCE_BYTES:
            return blocks
        held = replace(allocation, value=blocks.read(0, blocks.size_bytes), runs=())
        return Stream(self._volume, self.geometry, held)

    def _lookup(self, path: str) -> Record:
        record = self._record(records.ROOT)
        for component in path.split("/"):
            if not record.is_directory:
                raise NotFound(f"{path} is not on the volume")
            children = self._children(record)
            child = children.get(component)
            if child is None:
                wanted = names.fold(component)
                child = next((c for c in children.values() if names.fold(c.name) == wanted), None)
            if child is None:
                raise NotFound(f"{path} is not on the volume")
            record = self._record(child.number, child.sequence)
        return record

    def _stream(self, path: str) -> Stream:
        if self._open is None or self._open[0] != path:
            record = self._lookup(path)
            if record.is_directory:
                raise NotFound(f"{path} is a directory")
            self._open = path, self._data(record)
        return self._open[1]

    def _data(self, record: Record) -> Stream:
        return Stream(self._volume, self.geometry, _data(record))

    def _entry(self, path: str, record: Record) -> Entry:
        size = 0 if record.is_directory else _data(record).size_bytes
        return Entry(path=path, size_bytes=size, is_directory=record.is_directory)


def _data(record: Record) -> Attribute:
    attribute = record.find(records.DATA)
    if attribute is None:
        raise DataDamaged(f"NTFS record {record.number} has no data")
    return attribute


def _checked_child(entry: records.IndexEntry) -> _Child:
    """A name that a caller may join to a path of its own: never a step up or a separator."""
    if not entry.name or entry.name in (".", "..") or "/" in entry.name or "\0" in entry.name:
        raise DataDamaged(f"the NTFS volume has the impossible name {entry.name!r}")
    return _Child(entry.name, entry.number, entry.sequence)

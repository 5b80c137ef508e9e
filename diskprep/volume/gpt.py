"""GUID partition tables: written with a protective MBR, read with every check, from the backup where need be.

Write order: backup table, primary table, MBR, so that a torn write leaves either the old disk or a table that a
reader accepts. Format: UEFI specification, chapter "GUID Partition Table Disk Layout".
"""

from __future__ import annotations

import struct
import uuid
import zlib
from dataclasses import dataclass, replace
from typing import Final

from diskprep.errors import DataDamaged
from diskprep.volume.device import BlockDevice

BASIC_DATA: Final = uuid.UUID("ebd0a0a2-b9e5-4433-87c0-68b6b72699c7")
_HEADER = struct.Struct("<8sIIII4Q16sQIII")
_ENTRY = struct.Struct("<16s16sQQQ72s")
_MAGIC = b"EFI PART"
_ENTRIES = 128
_ARRAY_BYTES = _ENTRIES * _ENTRY.size
_ARRAY_MAX_BYTES = 1024 * 1024


class NoPartitionTable(DataDamaged):
    """Neither the primary nor the backup partition table is whole, or there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """A partition; both LBAs belong to it."""

    first_lba: int
    last_lba: int
    name: str
    type_guid: uuid.UUID = BASIC_DATA
    guid: uuid.UUID
    attributes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The partitions of a disk, in the order of their entries."""

    disk_guid: uuid.UUID
    partitions: tuple[Partition, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Header:
    my_lba: int
    other_lba: int
    first_usable: int
    last_usable: int
    disk_guid: uuid.UUID
    array_lba: int
    entries: int
    entry_bytes: int
    array_crc: int

    def encode(self, sector_bytes: int) -> bytes:
        def pack(crc: int) -> bytes:
            return _HEADER.pack(
                *(_MAGIC, 0x10000, _HEADER.size, crc, 0),
                *(self.my_lba, self.other_lba, self.first_usable, self.last_usable, self.disk_guid.bytes_le),
                *(self.array_lba, self.entries, self.entry_bytes, self.array_crc),
            )

        return pack(zlib.crc32(pack(0))).ljust(sector_bytes, b"\0")


def backup_sectors(sector_bytes: int) -> int:
    """How many sectors at the end of a disk the backup table takes."""
    return 1 + _array_sectors(sector_bytes)


def write(device: BlockDevice, table: Table) -> None:
    """Write both tables and the protective MBR, and sync. Raises DiskFailed."""
    size, total = device.sector_bytes, device.size_bytes // device.sector_bytes
    array = b"".join(_encode_entry(partition) for partition in table.partitions).ljust(_ARRAY_BYTES, b"\0")
    array_sectors = _array_sectors(size)
    primary = _Header(
        my_lba=1,
        other_lba=total - 1,
        first_usable=2 + array_sectors,
        last_usable=total - 2 - array_sectors,
        disk_guid=table.disk_guid,
        array_lba=2,
        entries=_ENTRIES,
        entry_bytes=_ENTRY.size,
        array_crc=zlib.crc32(array),
    )
    for partition in table.partitions:
        assert primary.first_usable <= partition.first_lba <= partition.last_lba <= primary.last_usable
    backup = replace(primary, my_lba=total - 1, other_lba=1, array_lba=total - 1 - array_sectors)
    for header in (backup, primary):
        device.pwrite(array, header.array_lba * size)
        device.pwrite(header.encode(size), header.my_lba * size)
        device.sync()
    device.pwrite(_protective_mbr(total).ljust(size, b"\0"), 0)
    device.sync()


def read(device: BlockDevice) -> Table:
    """The partition table. Raises NoPartitionTable, DiskFailed."""
    total = device.size_bytes // device.sector_bytes
    problems = []
    for lba in (1, total - 1):
        try:
            return _read_table(device, lba, total)
        except DataDamaged as problem:
            problems.append(problem.message)
    raise NoPartitionTable(f"no whole partition table: {problems[0]}; backup: {problems[1]}")


def _read_table(device: BlockDevice, lba: int, total: int) -> Table:
    size = device.sector_bytes
    if not 0 < lba < total:
        raise DataDamaged("the disk is too small")
    header = _parse_header(device.pread(size, lba * size), lba)
    array_bytes = header.entries * header.entry_bytes
    if header.entry_bytes not in (128, 256, 512, 1024) or not 0 < array_bytes <= _ARRAY_MAX_BYTES:
        raise DataDamaged("impossible partition entries")
    if not 0 < header.array_lba <= total - -(-array_bytes // size):
        raise DataDamaged("the partition entries are outside the disk")
    array = device.pread(array_bytes, header.array_lba * size)
    if zlib.crc32(array) != header.array_crc:
        raise DataDamaged("the partition entries have a wrong CRC-32")
    partitions = tuple(
        partition
        for at in range(0, array_bytes, header.entry_bytes)
        if (partition := _parse_entry(array[at : at + _ENTRY.size])) is not None
    )
    for partition in partitions:
        if not header.first_usable <= partition.first_lba <= partition.last_lba < total:
            raise DataDamaged("a partition is outside the disk")
    return Table(disk_guid=header.disk_guid, partitions=partitions)


def _parse_header(sector: bytes, lba: int) -> _Header:
    magic, _revision, size, crc, _zero, mine, other, first, last, guid, array, entries, entry_bytes, array_crc = (
        _HEADER.unpack_from(sector)
    )
    if magic != _MAGIC:
        raise DataDamaged("no signature")
    if not _HEADER.size <= size <= len(sector):
        raise DataDamaged("impossible header size")
    if zlib.crc32(sector[:16] + bytes(4) + sector[20:size]) != crc or mine != lba:
        raise DataDamaged("the header has a wrong CRC-32 or place")
    return _Header(
        my_lba=mine,
        other_lba=other,
        first_usable=first,
        last_usable=last,
        disk_guid=uuid.UUID(bytes_le=guid),
        array_lba=array,
        entries=entries,
        entry_bytes=entry_bytes,
        array_crc=array_crc,
    )


def _encode_entry(partition: Partition) -> bytes:
    name = partition.name.encode("utf-16-le")
    assert len(name) <= 72
    return _ENTRY.pack(
        partition.type_guid.bytes_le,
        partition.guid.bytes_le,
        partition.first_lba,
        partition.last_lba,
        partition.attributes,
        name,
    )


def _parse_entry(entry: bytes) -> Partition | None:
    kind, guid, first, last, attributes, name = _ENTRY.unpack(entry)
    if not any(kind):
        return None
    return Partition(
        first_lba=first,
        last_lba=last,
        name=name.decode("utf-16-le", "replace").split("\0")[0],
        type_guid=uuid.UUID(bytes_le=kind),
        guid=uuid.UUID(bytes_le=guid),
        attributes=attributes,
    )


def _protective_mbr(total: int) -> bytes:
    """A sector that tells old programs the whole disk is taken."""
    count = min(total - 1, 0xFFFFFFFF)
    entry = struct.pack("<B3sB3sII", 0, b"\x00\x02\x00", 0xEE, b"\xff\xff\xff", 1, count)
    return bytes(446) + entry + bytes(48) + b"\x55\xaa"


def _array_sectors(sector_bytes: int) -> int:
    return -(-_ARRAY_BYTES // sector_bytes)

"""A whole disk: partition table, one BitLocker volume, an empty NTFS inside.

Write order: what an older system could recognise becomes zeros; partition table; the encrypted file system; the three
metadata copies; the boot sector last, with a sync after each. A disk that was interrupted anywhere is therefore not
recognised as a BitLocker volume. Everything is read back and compared before the disk counts as made. Free space keeps
what was there before: wiping a used disk is the caller's.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from diskprep import process
from diskprep.errors import DataDamaged, DiskRefused, ReadBackFailed, UsageError
from diskprep.secrets import Secret
from diskprep.volume import gpt
from diskprep.volume.bitlocker import Metadata, Method, NotBitLocker, Volume, unlock
from diskprep.volume.bitlocker.layout import BootSector
from diskprep.volume.bitlocker.metadata import create, read_identity
from diskprep.volume.device import BlockDevice, Device, open_memory
from diskprep.volume.ntfs import names
from diskprep.volume.ntfs.reader import Reader
from diskprep.volume.ntfs.reserve import Reserved, reserve

MINIMUM_BYTES: Final = 64 * 1024 * 1024
_MIB = 1024 * 1024
_CHUNK_BYTES = 4 * _MIB
_CHECK_BYTES = 1 << 38  # 8 MiB of the map of clusters
#: The map of clusters is made in memory, a bit a cluster; larger disks get larger clusters, and packs are much larger.
_MAP_BYTES = 64 * _MIB
_CLUSTERS_BYTES = (4096, 8192, 16384, 32768, 65536)
_LABEL_MAX_UNITS = 32
_PARTITION_NAME = "Basic data partition"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What was made: where the volume lies on the disk, in bytes, and what identifies disk and volume."""

    start_bytes: int
    size_bytes: int
    volume_guid: uuid.UUID
    method: Method
    label: str
    disk_guid: uuid.UUID


def format_disk(
    device: BlockDevice,
    *,
    method: Method,
    label: str,
    description: str,
    recovery_password: Secret[str],
    created: datetime,
    start_lba: int = 2048,
) -> Layout:
    """Make `device` a disk with one BitLocker volume and an empty NTFS, and read it back.

    `label`: of the NTFS volume, 1 to 32 characters. `description`: what Windows shows when it asks for the recovery
    password. `created`: with a zone. Raises UsageError, DiskRefused for a disk under 64 MiB, DiskFailed,
    ReadBackFailed, ToolMissing, DiskprepError when mkntfs fails.
    """
    _check_texts(label, description)
    layout = Layout(
        start_bytes=start_lba * device.sector_bytes,
        size_bytes=_partition_bytes(device, start_lba),
        volume_guid=uuid.uuid4(),
        method=method,
        label=label,
        disk_guid=uuid.uuid4(),
    )
    with open_memory(layout.size_bytes) as plain:
        _make_ntfs(plain, device.sector_bytes, start_lba, label)
        _check_written(plain)
        reserved = reserve(plain)
        metadata = Metadata(
            method=method,
            guid=layout.volume_guid,
            created=created,
            description=description,
            sector_bytes=device.sector_bytes,
            encrypted_bytes=layout.size_bytes,
            copy_offsets=reserved.copy_offsets,
            header_offset=reserved.header_offset,
        )
        region, key = create(metadata, further_offset=reserved.further_offset, recovery_password=recovery_password)
        volume = Volume(
            device, start_bytes=layout.start_bytes, size_bytes=layout.size_bytes, metadata=metadata, key=key
        )
        _forget_old_content(device, layout)
        gpt.write(device, _table(device, layout))
        _copy(plain, volume)
        device.sync()
        for offset in reserved.copy_offsets:
            device.pwrite(region, layout.start_bytes + offset)
        device.sync()
        device.pwrite(_boot_sector(reserved, device.sector_bytes, start_lba), layout.start_bytes)
        device.sync()
        _read_back(device, plain, layout, region, recovery_password)
    return layout


def cluster_bytes(size_bytes: int) -> int:
    """The cluster size that a volume of this size is given."""
    return next((size for size in _CLUSTERS_BYTES if size_bytes // size // 8 <= _MAP_BYTES), _CLUSTERS_BYTES[-1])


def open_disk(device: BlockDevice, recovery_password: Secret[str]) -> Volume:
    """Unlock the first basic data partition of a disk, or a volume without a partition table.

    Raises what `unlock` raises; NotBitLocker when there is neither.
    """
    start, size = _find_volume(device)
    return unlock(device, recovery_password, start_bytes=start, size_bytes=size)


def read_volume_identity(device: BlockDevice) -> tuple[uuid.UUID, str] | None:
    """Identifier and description of the BitLocker volume on a disk, without its password; None when there is none."""
    try:
        start, size = _find_volume(device)
        return read_identity(device, start_bytes=start, size_bytes=size)
    except DataDamaged:
        return None


def _find_volume(device: BlockDevice) -> tuple[int, int]:
    """Start and size in bytes of the first basic data partition, or of the whole disk where it has no partitions."""
    try:
        table = gpt.read(device)
    except gpt.NoPartitionTable:
        return 0, device.size_bytes
    for partition in table.partitions:
        if partition.type_guid == gpt.BASIC_DATA:
            start = partition.first_lba * device.sector_bytes
            return start, (partition.last_lba + 1) * device.sector_bytes - start
    raise NotBitLocker("the disk has no basic data partition")


def _check_texts(label: str, description: str) -> None:
    for what, text, limit in (("label", label, _LABEL_MAX_UNITS), ("description", description, 255)):
        if not text or re.search(r"[\x00-\x1f\x7f]", text) or names.units(text) > limit:
            raise UsageError(f"a volume's {what} has 1 to {limit} characters, none of them a control character")


def _partition_bytes(device: BlockDevice, start_lba: int) -> int:
    """Size of the one partition: up to the last whole MiB before the backup partition table."""
    if device.size_bytes < MINIMUM_BYTES:
        raise DiskRefused(f"a disk of {device.size_bytes} bytes is too small; the least is {MINIMUM_BYTES}")
    if device.sector_bytes not in (512, 4096):
        raise DiskRefused(f"the disk has sectors of {device.sector_bytes} bytes; only 512 and 4096 are known")
    end = device.size_bytes - gpt.backup_sectors(device.sector_bytes) * device.sector_bytes
    return end // _MIB * _MIB - start_lba * device.sector_bytes


def _make_ntfs(plain: Device, sector_bytes: int, start_lba: int, label: str) -> None:
    argv = ["mkntfs", "-F", "-Q", "-q", "-s", str(sector_bytes), "-p", str(start_lba), "-H", "255", "-S", "63"]
    argv += ["-c", str(cluster_bytes(plain.size_bytes))]
    process.run([*argv, "-L", label, f"/proc/self/fd/{plain.descriptor}"], pass_fds=[plain.descriptor])


def _check_written(plain: Device) -> None:
    """Every cluster that mkntfs uses was written, so that copying what was written copies all of the file system."""
    end = 0
    with Reader(plain) as reader:
        size = reader.geometry.cluster_bytes
        for offset, length in [*plain.data_extents(), (plain.size_bytes, 0)]:
            begin, stop = -(-end // size) * size, offset // size * size
            for at in range(begin, stop, _CHECK_BYTES):
                if reader.clusters_used(at, min(_CHECK_BYTES, stop - at))[0]:
                    raise DataDamaged(f"mkntfs uses clusters it did not write, after byte {at}")
            end = offset + length


def _forget_old_content(device: BlockDevice, layout: Layout) -> None:
    """Zeros over the places where partition tables and boot sectors are looked for."""
    head, tail = (
        layout.start_bytes + _MIB,
        min(2 * _MIB, device.size_bytes - layout.size_bytes - layout.start_bytes + _MIB),
    )
    device.pwrite(bytes(head), 0)
    device.pwrite(bytes(tail), device.size_bytes - tail)
    device.sync()


def _table(device: BlockDevice, layout: Layout) -> gpt.Table:
    first = layout.start_bytes // device.sector_bytes
    partition = gpt.Partition(
        first_lba=first,
        last_lba=first + layout.size_bytes // device.sector_bytes - 1,
        name=_PARTITION_NAME,
        guid=uuid.uuid4(),
    )
    return gpt.Table(disk_guid=layout.disk_guid, partitions=(partition,))


def _copy(plain: Device, volume: Volume) -> None:
    for offset, length in plain.data_extents():
        for at in range(offset, offset + length, _CHUNK_BYTES):
            volume.pwrite(plain.pread(min(_CHUNK_BYTES, offset + length - at), at), at)


def _boot_sector(reserved: Reserved, sector_bytes: int, start_lba: int) -> bytes:
    return BootSector(
        sector_bytes=sector_bytes,
        cluster_sectors_code=reserved.cluster_sectors_code,
        hidden_sectors=start_lba,
        copy_offsets=reserved.copy_offsets,
    ).encode()


def _read_back(
    device: BlockDevice, plain: Device, layout: Layout, region: bytes, recovery_password: Secret[str]
) -> None:
    """Open the disk as a stranger would and compare every byte that was written. Raises ReadBackFailed."""
    if isinstance(device, Device):
        device.drop_cache()
    try:
        volume = open_disk(device, recovery_password)
    except DataDamaged as error:
        raise ReadBackFailed(f"the new disk does not open: {error.message}") from error
    if (volume.start_bytes, volume.size_bytes) != (layout.start_bytes, layout.size_bytes):
        raise ReadBackFailed("the new disk's partition is not where it was put")
    for offset in volume.metadata.copy_offsets:
        if device.pread(len(region), layout.start_bytes + offset) != region:
            raise ReadBackFailed("a copy of the BitLocker metadata reads back differently")
    for offset, length in plain.data_extents():
        for at in range(offset, offset + length, _CHUNK_BYTES):
            count = min(_CHUNK_BYTES, offset + length - at)
            if volume.pread(count, at) != plain.pread(count, at):
                raise ReadBackFailed(f"the new file system reads back differently after byte {at}")

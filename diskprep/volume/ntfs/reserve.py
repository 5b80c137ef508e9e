"""Sets clusters of a fresh NTFS volume aside for BitLocker, in the way Windows does.

The three metadata copies, the relocated header and one further region are files in `System Volume Information`, each
in one piece, hidden, for the system alone. So the file system never gives their clusters to anything else, and
Windows' tools neither move nor delete them. Names and sizes: public notes on the format and listings of volumes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from diskprep import interrupts
from diskprep.errors import DataDamaged
from diskprep.volume.device import Device
from diskprep.volume.ntfs import selftest
from diskprep.volume.ntfs.libntfs import HIDDEN_SYSTEM, Mount
from diskprep.volume.ntfs.planner import Extent, Overlay, Tree, overlay_on, plan_data
from diskprep.volume.ntfs.reader import Reader

FOLDER: Final = "System Volume Information"
COPY_NAMES: Final = tuple(f"FVE2.{{e40ad34d-dae9-4bc7-95bd-b16218c10f72}}.{number}" for number in (1, 2, 3))
HEADER_NAME: Final = "FVE2.{24e6f0ae-6a00-4f73-984b-75ce9942852d}"
FURTHER_NAME: Final = "FVE2.{da392a22-cae0-4f0f-9a30-b8830385d046}"
_COPY_BYTES = 65536
_FILES: Final = {**dict.fromkeys(COPY_NAMES, _COPY_BYTES), HEADER_NAME: 8192, FURTHER_NAME: _COPY_BYTES}
_TRIES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserved:
    """Where the regions are, in bytes from the start of the volume."""

    copy_offsets: tuple[int, int, int]
    header_offset: int
    further_offset: int
    cluster_bytes: int
    cluster_sectors_code: int


def reserve(memory: Device) -> Reserved:
    """Allocate the five files in the fresh NTFS volume in `memory`. Raises StorageFull, DataDamaged, ToolMissing."""
    with Reader(memory) as reader:
        geometry = reader.geometry
    offsets = _allocate(memory, geometry.cluster_bytes)
    memory.pwrite(bytes(max(_COPY_BYTES, geometry.cluster_bytes)), offsets[4])
    reserved = Reserved(
        copy_offsets=(offsets[0], offsets[1], offsets[2]),
        header_offset=offsets[3],
        further_offset=offsets[4],
        cluster_bytes=geometry.cluster_bytes,
        cluster_sectors_code=geometry.cluster_sectors_code,
    )
    _check(memory, reserved)
    return reserved


def _allocate(memory: Device, cluster_bytes: int) -> list[int]:
    """Make the files, each in one piece; their volume offsets.

    On some volumes the first place the library takes is a small gap. Then it is done again from the start, with other
    files that keep such gaps busy meanwhile.
    """
    for holders in range(_TRIES):
        with overlay_on(memory, cluster_bytes) as overlay:
            with interrupts.held(), Mount(selftest.library(), overlay) as mount:
                with Tree(mount) as tree:
                    folder = tree.directory(FOLDER)
                    mount.set_attributes(folder, HIDDEN_SYSTEM)
                    mount.set_security(folder, _system_only(inherit=True))
                    for number in range(holders):
                        with tree.file(f"{FOLDER}/{number}") as inode:
                            plan_data(mount, overlay, inode, _COPY_BYTES)
                    planned = [_plan_file(mount, overlay, tree, name) for name in _FILES]
                for number in range(holders):
                    mount.delete(FOLDER, str(number))
            if all(len(extents) == 1 for extents in planned):
                for offset, data in overlay.changes():
                    memory.pwrite(data, offset)
                return [extents[0].volume_offset for extents in planned]
    raise DataDamaged("no place in one piece was found for BitLocker's regions")


def _plan_file(mount: Mount, overlay: Overlay, tree: Tree, name: str) -> list[Extent]:
    """Make one of the files; the places it was given."""
    with tree.file(f"{FOLDER}/{name}") as inode:
        mount.set_attributes(inode, HIDDEN_SYSTEM)
        mount.set_security(inode, _system_only(inherit=False))
        return plan_data(mount, overlay, inode, _FILES[name])


def _check(memory: Device, reserved: Reserved) -> None:
    """The regions are zeros, in use, and those of the files that the file system itself shows."""
    offsets = (*reserved.copy_offsets, reserved.header_offset, reserved.further_offset)
    with Reader(memory) as reader:
        for (name, length), offset in zip(_FILES.items(), offsets, strict=True):
            extents = reader.extents(f"{FOLDER}/{name}")
            used, all_clusters = reader.clusters_used(offset, length)
            if len(extents) != 1 or extents[0][0] != offset or extents[0][1] < length or used != all_clusters:
                raise DataDamaged(f"the NTFS volume does not hold the place of {name}")
            if any(memory.pread(length, offset)):
                raise DataDamaged(f"the NTFS volume has data in the place of {name}")


def _system_only(*, inherit: bool) -> bytes:
    """A self-relative security descriptor: full control for SYSTEM, nothing for anybody else."""
    system = struct.pack("<BB6BI", 1, 1, 0, 0, 0, 0, 0, 5, 18)
    administrators = struct.pack("<BB6B2I", 1, 2, 0, 0, 0, 0, 0, 5, 32, 544)
    entry = struct.pack("<BBHI", 0, 0x03 if inherit else 0, 8 + len(system), 0x001F01FF) + system
    access = struct.pack("<BBHHH", 2, 0, 8 + len(entry), 1, 0) + entry
    owner, group = 20, 20 + len(administrators)
    head = struct.pack("<BBHIIII", 1, 0, 0x9004, owner, group, 0, group + len(system))
    return head + administrators + system + access

"""Looks names up on an NTFS volume as Windows does, however many there are.

A directory's index is a tree in the order of the volume's own table of upper case letters, so one name is found with a
few blocks, and nothing is kept for the others. What is read may be hostile: damage raises DataDamaged, nothing loops.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from diskprep.errors import DataDamaged
from diskprep.volume.device import BlockDevice
from diskprep.volume.ntfs import names, records
from diskprep.volume.ntfs.reader import Reader, Stream
from diskprep.volume.ntfs.records import Record

_UPCASE: Final = 10  # number of the record of $UpCase
_DIRECTORY: Final = 0x10000000
_HAS_CHILD, _LAST = 1, 2
_KEY_BYTES = 66  # of a name's key, before the name itself


@dataclass(frozen=True, slots=True)
class _Found:
    name: str
    number: int
    sequence: int
    is_directory: bool


class Lookup(Reader):
    """Finds what stands in the way of new files. Raises NotNtfs, DataDamaged, DiskFailed."""

    def __init__(self, volume: BlockDevice) -> None:
        super().__init__(volume)
        table = self._record(_UPCASE).find(records.DATA)
        if table is None or table.size_bytes != 1 << 17:
            raise DataDamaged("the NTFS volume has no table of upper case letters")
        self._upper = np.frombuffer(Stream(volume, self.geometry, table).read(0, 1 << 17), "<u2")

    def present(self, paths: Iterable[str]) -> dict[str, tuple[str, bool]]:
        """What the volume has of `paths` and of the directories above them.

        Folded path, as it was asked for -> (path as it is on the volume, is a directory); for `names.check_collisions`.
        """
        found: dict[str, tuple[str, bool]] = {}
        directories: dict[str, Record | None] = {"": self._record(records.ROOT)}
        for path in paths:
            above = ""
            for component in path.split("/"):
                here = f"{above}/{component}" if above else component
                if here not in directories and (directory := directories[above]) is not None:
                    child = self._find(directory, component)
                    directories[here] = None
                    if child is not None:
                        found[names.fold(here)] = here[: -len(component)] + child.name, child.is_directory
                        if child.is_directory and child.name == component:
                            directories[here] = self._record(child.number, child.sequence)
                directories.setdefault(here, None)
                above = here
        return found

    def _find(self, directory: Record, name: str) -> _Found | None:
        root = directory.find(records.INDEX_ROOT, records.DIRECTORY_INDEX)
        if not directory.is_directory or root is None or root.value is None:
            raise DataDamaged(f"NTFS record {directory.number} is not a directory")
        allocation = directory.find(records.INDEX_ALLOCATION, records.DIRECTORY_INDEX)
        blocks = None if allocation is None else Stream(self._volume, self.geometry, allocation)
        block_bytes = records.parse_index_root(root.value)[0]
        unit = self.geometry.cluster_bytes if self.geometry.cluster_bytes <= block_bytes else 512
        wanted, node, header, seen = self._key(name.encode("utf-16-le")), root.value, 16, set[int]()
        while True:
            found, child = self._search(node, header, wanted)
            if found is not None or child is None:
                return found
            if child in seen or blocks is None:
                raise DataDamaged("an NTFS directory's index is no tree")
            seen.add(child)
            node, header = records.apply_fixups(blocks.read(child * unit, block_bytes), b"INDX"), 24
            if records.unpack("<Q", node, 16)[0] != child:
                raise DataDamaged("an NTFS index block is in the wrong place")

    def _search(self, node: bytes, header: int, wanted: bytes) -> tuple[_Found | None, int | None]:
        """The entry of a node that is `wanted`; else where below the node it would be, if there is anything below."""
        for entry, key, child in _entries(node, header):
            if key is None:
                return None, child
            name = key[66 : 66 + 2 * key[64]]
            here = self._key(name)
            if here == wanted:
                (reference,) = struct.unpack_from("<Q", entry)
                (attributes,) = struct.unpack_from("<I", key, 56)
                text = name.decode("utf-16-le", "replace")
                return _Found(text, reference & 0xFFFFFFFFFFFF, reference >> 48, bool(attributes & _DIRECTORY)), None
            if here > wanted:
                return None, child
        raise DataDamaged("an NTFS directory has no last entry")

    def _key(self, name: bytes) -> bytes:
        """What names are ordered by: UTF-16 units in upper case, the higher byte of each first."""
        return bytes(self._upper[np.frombuffer(name, "<u2")].astype(">u2").tobytes())


def _entries(node: bytes, header: int) -> Iterator[tuple[bytes, bytes | None, int | None]]:
    """Each entry of an index node: its bytes, its key (None in the last), and the node below, before it."""
    first, length = records.unpack("<II", node, header)
    at, end = header + first, header + length
    while at < end:
        _reference, size, key_bytes, flags = records.unpack("<QHHH", node, at)
        entry = node[at : at + size]
        if size < 16 or at + size > end or len(entry) != size:
            raise DataDamaged("an NTFS directory entry has an impossible size")
        child = records.unpack("<Q", entry, size - 8)[0] if flags & _HAS_CHILD else None
        key = entry[16 : 16 + key_bytes]
        if flags & _LAST:
            yield entry, None, child
            return
        if key_bytes < _KEY_BYTES or len(key) != key_bytes or len(key) < _KEY_BYTES + 2 * key[64]:
            raise DataDamaged("an NTFS name is cut off")
        yield entry, key, child
        at += size

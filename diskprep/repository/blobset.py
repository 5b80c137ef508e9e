"""Which blobs are stored: a set of 32-byte ids in memory that forked processes share.

Open addressing with linear probing over slots of 32 bytes; a slot of zeros is empty. There is no lock: two processes
that meet in one slot at the same moment can lose one of the two ids, or leave a mixture that equals neither. Both only
mean that a blob is stored a second time, which the format allows; an id that was never added is never found.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from diskprep.durable import storage_error

ID_BYTES = 32
#: slots for each id that is expected; a fuller table is slower
SPARE = 1.25
_EMPTY = bytes(ID_BYTES)
_LONGEST_PROBE = 256
_MIN_SLOTS = 1 << 14


def table_bytes(expected_ids: int) -> int:
    """Memory, or room in the scratch directory, that a set of so many ids takes once it is full."""
    return max(_MIN_SLOTS, int(expected_ids * SPARE)) * ID_BYTES


class BlobSet:
    """A set of blob ids; ids are only ever added. Made before the processes that share it are forked.

    When many more ids are added than were expected, some are forgotten: their blobs may then be stored twice.
    """

    def __init__(self, expected_ids: int, scratch: Path | None = None) -> None:
        """`scratch`: a directory for a file of `table_bytes(expected_ids)` that the table is kept in, so that it need
        not stay in memory; the file has no name and ends with the processes. Raises NotFound, StorageFull,
        StorageUnavailable."""
        size_bytes = table_bytes(expected_ids)
        self._slots = size_bytes // ID_BYTES
        if scratch is None:
            self._table = mmap.mmap(-1, size_bytes)
            return
        try:
            with tempfile.TemporaryFile(dir=scratch, buffering=0) as file:
                os.posix_fallocate(file.fileno(), 0, size_bytes)  # a full disk must not end in SIGBUS
                self._table = mmap.mmap(file.fileno(), size_bytes)
        except OSError as error:
            raise storage_error(
                error, f"make a file of {size_bytes} bytes in the scratch directory {scratch}"
            ) from error

    def add(self, blob_id: bytes) -> bool:
        """Add an id; whether it was new."""
        table, slots = self._table, self._slots
        start = int.from_bytes(blob_id[:8], "little") % slots
        for probe in range(start, start + _LONGEST_PROBE):
            offset = probe % slots * ID_BYTES
            found = table[offset : offset + ID_BYTES]
            if found == _EMPTY:
                table[offset : offset + ID_BYTES] = blob_id
                return True
            if found == blob_id:
                return False
        return True

    def update(self, blob_ids: Iterable[bytes]) -> None:
        """Add many ids."""
        for blob_id in blob_ids:
            self.add(blob_id)

    def __contains__(self, blob_id: bytes) -> bool:
        table, slots = self._table, self._slots
        start = int.from_bytes(blob_id[:8], "little") % slots
        for probe in range(start, start + _LONGEST_PROBE):
            offset = probe % slots * ID_BYTES
            found = table[offset : offset + ID_BYTES]
            if found == _EMPTY:
                return False
            if found == blob_id:
                return True
        return False

    def close(self) -> None:
        """Give the memory back; the set is not used again."""
        self._table.close()

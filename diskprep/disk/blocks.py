"""Blocks: the MD5 of every block that was copied to a disk, in a file beside its journal.

They belong into the manifest, which is written when all files are on the disk; a disk of 20 TB has five million. Order:
that of the share's files. 16 bytes each. A batch's are durable before the batch is, and its record holds their SHA-256.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from diskprep import durable
from diskprep.durable import Buffer
from diskprep.errors import DataDamaged
from diskprep.exchange.manifest import BLOCK_BYTES

MD5_BYTES = 16


def count_blocks(size_bytes: int) -> int:
    """How many blocks a file of this size has."""
    return -(-size_bytes // BLOCK_BYTES)


class BlockDigests:
    """The file, open. `count` is how many digests it has."""

    def __init__(self, path: Path, count: int) -> None:
        """Open it with its first `count` digests, and make it where it does not exist.

        Raises DataDamaged when it has fewer, StorageFull or StorageUnavailable.
        """
        self._path, self.count = path, count
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                if os.fstat(self._descriptor).st_size < count * MD5_BYTES:
                    raise DataDamaged(f"{path} is shorter than the journal says")
                os.ftruncate(self._descriptor, count * MD5_BYTES)
                durable.fsync_directory(path.parent)
            except BaseException:
                os.close(self._descriptor)
                raise
        except OSError as error:
            raise durable.storage_error(error, f"open {path}") from error

    def append(self, digests: Buffer) -> str:
        """Add digests, durably; return the SHA-256 of what was added, in hex. Raises as the constructor."""
        view = memoryview(digests).cast("B")
        at = self.count * MD5_BYTES
        try:
            while view:
                written = os.pwrite(self._descriptor, view, at)
                view, at = view[written:], at + written
            os.fsync(self._descriptor)
        except OSError as error:
            raise durable.storage_error(error, f"write {self._path}") from error
        self.count = at // MD5_BYTES
        return hashlib.sha256(digests).hexdigest()

    def read(self, first: int, count: int) -> bytes:
        """`count` digests from number `first`. Raises DataDamaged or StorageUnavailable."""
        try:
            data = os.pread(self._descriptor, count * MD5_BYTES, first * MD5_BYTES)
        except OSError as error:
            raise durable.storage_error(error, f"read {self._path}") from error
        if len(data) != count * MD5_BYTES:
            raise DataDamaged(f"{self._path} is shorter than the journal says")
        return data

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

"""Redo records: what a batch is about to change in place, kept beside the disk until it is changed.

A record lies on the copy computer's own file system and belongs to one disk. It holds (device offset, ciphertext), so
there is no plaintext in it, and no key is needed to write it again. Whoever finds a whole one writes it in place;
that may be done any number of times, up to the next change of the file system.

The bytes, integers little-endian: magic (16), length of the owner (4), owner in UTF-8, length of the tag (4), tag; for
each write its offset (8), length (4) and bytes; a last write of length 0; SHA-256 of all of this (32).

Write order: temporary file, sync, rename, sync of the directory. So a record is whole or not there, and a torn one,
which only a medium that lies about its syncs can leave, counts as none.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

from diskprep import durable
from diskprep.durable import Buffer
from diskprep.errors import DataDamaged
from diskprep.volume.device import BlockDevice

_MAGIC: Final = b"diskprep redo 1\n"
_LENGTH: Final = struct.Struct("<I")
_WRITE: Final = struct.Struct("<QI")
_DIGEST_BYTES: Final = 32
_PIECE_BYTES: Final = 4 * 1024 * 1024


class Redo:
    """The redo record of one batch, for one disk. Used by one thread of one process at a time."""

    def __init__(self, path: Path, owner: str) -> None:
        """`owner`: the disk and the volume on it; a volume that is made anew must be another owner."""
        self._path, self._owner = path, owner.encode()
        self._temporary = path.with_name(f"{durable.TEMPORARY_PREFIX}{path.name}")

    def save(self, tag: bytes, writes: Iterable[tuple[int, Buffer]]) -> None:
        """Keep `writes` durably, in place of an earlier record. `tag` is the caller's and comes back from `pending`.

        Raises StorageFull or StorageUnavailable; an earlier record is then still there.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            descriptor = os.open(self._temporary, flags, 0o600)  # one left over is used again: they must not pile up
            try:
                durable.write_all(descriptor, self._encode(tag, writes))
            finally:
                os.close(descriptor)
        except OSError as error:
            raise durable.storage_error(error, f"write {self._path}") from error
        durable.move_file(self._temporary, self._path, mode=0o600)

    def pending(self) -> bytes | None:
        """The tag of the record that waits; None where there is none, or one that is torn or another disk's.

        Raises StorageUnavailable where that cannot be told.
        """
        try:
            with self._path.open("rb") as stream:
                return self._check(stream)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise durable.storage_error(error, f"read {self._path}") from error

    def replay(self, device: BlockDevice) -> None:
        """Write the record in place and sync; it stays until `clear`. May be called again after any failure.

        `device`: the whole disk. Raises DataDamaged when nothing is pending, StorageUnavailable, DiskFailed.
        """
        if self.pending() is None:
            raise DataDamaged(f"{self._path} is not a whole redo record of this disk")
        try:
            with self._path.open("rb") as stream:
                stream.seek(len(_MAGIC))
                _skip(stream)
                _skip(stream)
                for offset, data in _writes(stream):
                    device.pwrite(data, offset)
        except OSError as error:
            raise durable.storage_error(error, f"read {self._path}") from error
        device.sync()

    def clear(self) -> None:
        """Remove the record, durably. Raises StorageUnavailable."""
        try:
            for path in (self._temporary, self._path):
                path.unlink(missing_ok=True)
            durable.fsync_directory(self._path.parent)
        except OSError as error:
            raise durable.storage_error(error, f"remove {self._path}") from error

    def _encode(self, tag: bytes, writes: Iterable[tuple[int, Buffer]]) -> Iterator[Buffer]:
        digest = hashlib.sha256()
        for part in self._parts(tag, writes):
            digest.update(part)
            yield part
        yield digest.digest()

    def _parts(self, tag: bytes, writes: Iterable[tuple[int, Buffer]]) -> Iterator[Buffer]:
        yield _MAGIC + _LENGTH.pack(len(self._owner)) + self._owner + _LENGTH.pack(len(tag)) + tag
        for offset, data in writes:
            view = memoryview(data).cast("B")
            for at in range(0, len(view), _PIECE_BYTES):
                part = view[at : at + _PIECE_BYTES]
                yield _WRITE.pack(offset + at, len(part))
                yield part
        yield _WRITE.pack(0, 0)

    def _check(self, stream: BinaryIO) -> bytes | None:
        """The tag of a whole record of this owner."""
        left = os.fstat(stream.fileno()).st_size - _DIGEST_BYTES
        if left < 0:
            return None
        digest = hashlib.sha256()
        while left:
            data = stream.read(min(left, _PIECE_BYTES))
            if not data:
                return None
            digest.update(data)
            left -= len(data)
        if stream.read() != digest.digest():
            return None
        stream.seek(0)
        if stream.read(len(_MAGIC)) != _MAGIC or _skip(stream) != self._owner:
            return None
        return _skip(stream)


def _skip(stream: BinaryIO) -> bytes:
    """The next field: its length, and so many bytes."""
    return stream.read(_LENGTH.unpack(stream.read(_LENGTH.size))[0])


def _writes(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    while True:
        offset, length = _WRITE.unpack(stream.read(_WRITE.size))
        if not length:
            return
        yield offset, stream.read(length)

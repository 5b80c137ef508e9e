"""The decrypted view of a BitLocker volume.

What stands at byte p of the view: the relocated header's bytes for p < 8192; zeros inside the three metadata regions
and the relocated header's region; the decrypted bytes in place elsewhere; plain bytes past the encrypted part.

Invariants: no write reaches a reserved region (zeros are dropped, as Windows does; anything else raises, because the
file system would lose it). All calls may be made from several threads; writes that overlap are the caller's affair.
"""

from __future__ import annotations

import bisect
import mmap
import threading
from collections.abc import Iterator
from enum import Enum, auto
from typing import Protocol

from diskprep.durable import Buffer
from diskprep.errors import DataDamaged, DiskFailed
from diskprep.secrets import Secret
from diskprep.volume.bitlocker import metadata as _metadata
from diskprep.volume.bitlocker.cbc import Cbc
from diskprep.volume.bitlocker.layout import COPY_BYTES, HEADER_BYTES, Method
from diskprep.volume.bitlocker.metadata import Metadata
from diskprep.volume.bitlocker.xts import Xts
from diskprep.volume.device import BlockDevice

_PIECE_BYTES = 1024 * 1024  # ciphertext of one device write


class SectorCipher(Protocol):
    """Whole sectors in, whole sectors out; `offset_bytes` is where they lie on the volume."""

    def encrypt(self, data: Buffer, out: memoryview, offset_bytes: int) -> None: ...

    def decrypt(self, data: Buffer, out: memoryview, offset_bytes: int) -> None: ...


class _Kind(Enum):
    ENCRYPTED = auto()
    RESERVED = auto()
    CLEAR = auto()


class _Bounce(threading.local):
    """One thread's buffer for ciphertext."""

    def __init__(self) -> None:
        self.view = memoryview(mmap.mmap(-1, _PIECE_BYTES))  # whole pages, as a device may want them


def sector_cipher(method: Method, key: Secret[bytes], sector_bytes: int) -> SectorCipher:
    """The cipher of `method` with the volume key `key`."""
    if method in (Method.XTS_AES_128, Method.XTS_AES_256):
        return Xts(key, sector_bytes)
    return Cbc(key, sector_bytes)


class Volume:
    """A BlockDevice that shows the file system inside a BitLocker volume."""

    def __init__(
        self, device: BlockDevice, *, start_bytes: int, size_bytes: int, metadata: Metadata, key: Secret[bytes]
    ) -> None:
        self.metadata = metadata
        self._device, self._start, self._size = device, start_bytes, size_bytes
        self._cipher = sector_cipher(metadata.method, key, metadata.sector_bytes)
        self._bounce, self._edges = _Bounce(), threading.Lock()
        self._map = _segments(metadata, size_bytes)
        self._starts = [segment[0] for segment in self._map]

    @property
    def size_bytes(self) -> int:
        return self._size

    @property
    def sector_bytes(self) -> int:
        return self.metadata.sector_bytes

    @property
    def start_bytes(self) -> int:
        """Where the volume starts on its disk."""
        return self._start

    @property
    def reserved(self) -> list[tuple[int, int]]:
        """(offset, length) of each region that shows zeros, in bytes, sorted."""
        return [(begin, end - begin) for begin, end, kind, _ in self._map if kind is _Kind.RESERVED]

    def pread(self, length: int, offset: int) -> bytes:
        buffer = bytearray(length)
        self.pread_into(memoryview(buffer), offset)
        return bytes(buffer)

    def pread_into(self, buffer: memoryview, offset: int) -> None:
        view = buffer.cast("B")
        first, end = self._aligned(offset, len(view))
        if (first, end) == (offset, offset + len(view)):
            self._read(view, offset)
        else:
            whole = memoryview(bytearray(end - first))
            self._read(whole, first)
            view[:] = whole[offset - first : offset - first + len(view)]

    def pwrite(self, data: Buffer, offset: int) -> None:
        view = memoryview(data).cast("B")
        first, end = self._aligned(offset, len(view))
        if (first, end) == (offset, offset + len(view)):
            self._write(view, offset)
            return
        with self._edges:
            whole = memoryview(bytearray(end - first))
            self._read(whole, first)
            whole[offset - first : offset - first + len(view)] = view
            self._write(whole, first)

    def sealed_writes(self, data: Buffer, offset: int) -> Iterator[tuple[int, bytes]]:
        """What `pwrite` would write, as (offset on the device, bytes), without writing it; whole sectors only.

        Raises what `pwrite` raises.
        """
        view = memoryview(data).cast("B")
        assert self._aligned(offset, len(view)) == (offset, offset + len(view)), "whole sectors"
        for place, part in self._sealed(view, offset):
            yield place, bytes(part)

    def sync(self) -> None:
        self._device.sync()

    def _aligned(self, offset: int, length: int) -> tuple[int, int]:
        if offset < 0 or offset + length > self._size:
            raise DiskFailed(f"byte {offset + length} is outside the volume of {self._size} bytes")
        sector = self.metadata.sector_bytes
        return offset - offset % sector, -(-(offset + length) // sector) * sector

    def _pieces(self, view: memoryview, offset: int) -> Iterator[tuple[_Kind, memoryview, int]]:
        """`view` at volume `offset`, cut where the kind changes and at a piece's size, with the place on the volume."""
        at = bisect.bisect_right(self._starts, offset) - 1
        while view:
            _begin, end, kind, shift = self._map[at]
            count = min(len(view), end - offset, _PIECE_BYTES)
            yield kind, view[:count], offset + shift
            view, offset = view[count:], offset + count
            if offset == end:
                at += 1

    def _read(self, view: memoryview, offset: int) -> None:
        for kind, part, place in self._pieces(view, offset):
            if kind is _Kind.RESERVED:
                part[:] = bytes(len(part))
                continue
            self._device.pread_into(part, self._start + place)
            if kind is _Kind.ENCRYPTED:
                self._cipher.decrypt(part, part, place)

    def _write(self, view: memoryview, offset: int) -> None:
        for place, part in self._sealed(view, offset):
            self._device.pwrite(part, place)

    def _sealed(self, view: memoryview, offset: int) -> Iterator[tuple[int, memoryview]]:
        """(offset on the device, bytes) of each piece; a piece is good until the next is asked for."""
        for kind, part, place in self._pieces(view, offset):
            if kind is _Kind.RESERVED:
                if any(part):
                    raise DataDamaged(f"a write into the region that BitLocker reserves at byte {place} of the volume")
            elif kind is _Kind.CLEAR:
                yield self._start + place, part
            else:
                sealed = self._bounce.view[: len(part)]
                self._cipher.encrypt(part, sealed, place)
                yield self._start + place, sealed


def _segments(metadata: Metadata, size_bytes: int) -> list[tuple[int, int, _Kind, int]]:
    """The whole volume as (begin, end, kind, distance to where the bytes really are), without gaps."""
    reserved = sorted([(at, COPY_BYTES) for at in metadata.copy_offsets] + [(metadata.header_offset, HEADER_BYTES)])
    segments, at = [(0, HEADER_BYTES, _Kind.ENCRYPTED, metadata.header_offset)], HEADER_BYTES
    for offset, length in reserved:
        segments += [(at, offset, _Kind.ENCRYPTED, 0), (offset, offset + length, _Kind.RESERVED, 0)]
        at = offset + length
    segments += [(at, metadata.encrypted_bytes, _Kind.ENCRYPTED, 0)]
    segments += [(metadata.encrypted_bytes, size_bytes, _Kind.CLEAR, 0)]
    return [segment for segment in segments if segment[0] < segment[1]]


def unlock(device: BlockDevice, recovery_password: Secret[str], *, start_bytes: int, size_bytes: int) -> Volume:
    """Open the volume that takes `size_bytes` of `device` from `start_bytes`. Takes about half a second.

    Raises UsageError for a recovery password that is none, NotBitLocker, VolumeNotActive, NoRecoveryProtector,
    WrongRecoveryPassword, MethodNotSupported, MetadataDamaged, DiskFailed.
    """
    return _unlock(device, _metadata.recovery_protector(recovery_password), start_bytes, size_bytes)


def unlock_with_password(device: BlockDevice, password: Secret[str], *, start_bytes: int, size_bytes: int) -> Volume:
    """As `unlock`, with a password that a user gave the volume in Windows."""
    return _unlock(device, _metadata.password_protector(password), start_bytes, size_bytes)


def _unlock(device: BlockDevice, protector: _metadata.Protector, start_bytes: int, size_bytes: int) -> Volume:
    found, key = _metadata.open_copies(device, start_bytes, size_bytes, protector)
    return Volume(device, start_bytes=start_bytes, size_bytes=size_bytes, metadata=found, key=key)

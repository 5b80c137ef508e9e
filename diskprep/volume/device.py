"""The door to disks: the one module that opens images and block devices.

Invariants: a device opened for writing is held exclusively (O_EXCL on a block device, a lock on an image); a failed
sync is final for the descriptor; a short read or write is an error.

What is written or read in large whole pages goes past the page cache where the caller wants it and the kernel allows
it: that saves a copy and the cache's own work, and keeps other files' pages in memory. The kernel keeps both ways of
writing coherent.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import os
import stat
import struct
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from diskprep import durable, process
from diskprep.durable import Buffer
from diskprep.errors import DiskFailed, DiskprepError, Locked

_BLKGETSIZE64 = 0x80081272
_BLKSSZGET = 0x1268
_BLKFLSBUF = 0x1261
_BLKGETDISKSEQ = 0x80081280
_BLKDISCARD = 0x1277
_BLKPBSZGET = 0x127B
_HDIO_GET_IDENTITY = 0x030D
_SG_IO = 0x2285
_SG_HEADER = "@iiBBHIPPPIIiPBBBBHHiII4x"  # struct sg_io_hdr
_ATA_BYTES = 512
_PAGE_BYTES = 4096
_ZEROS_BYTES = 4 << 20
_PAST_CACHE_BYTES = 64 * 1024


class BlockDevice(Protocol):
    """Random access to bytes. Offsets and sizes are in bytes; all calls may be made from several threads."""

    @property
    def size_bytes(self) -> int: ...

    @property
    def sector_bytes(self) -> int:
        """Logical sector size."""

    def pread(self, length: int, offset: int) -> bytes:
        """Exactly `length` bytes; raises DiskFailed."""

    def pread_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer`; raises DiskFailed."""

    def pwrite(self, data: Buffer, offset: int) -> None:
        """Write all of `data`; raises DiskFailed."""

    def sync(self) -> None:
        """Everything written is on the medium when this returns; raises DiskFailed, and then for ever."""


class Device:
    """An image file or a block device, opened."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path, self._descriptor, self._failed = path, descriptor, False
        self._uncached = -1
        status = os.fstat(descriptor)
        self._block = stat.S_ISBLK(status.st_mode)
        self._number = status.st_rdev
        if self._block:
            self._size: int = struct.unpack("Q", fcntl.ioctl(descriptor, _BLKGETSIZE64, b"\0" * 8))[0]
            self._sector: int = struct.unpack("I", fcntl.ioctl(descriptor, _BLKSSZGET, b"\0" * 4))[0]
        else:
            self._size, self._sector = status.st_size, 512

    @property
    def path(self) -> Path:
        return self._path

    @property
    def is_block_device(self) -> bool:
        return self._block

    @property
    def identity(self) -> tuple[int, int, int]:
        """What stays the same as long as it is this very image or this very attachment of a disk.

        Device and inode of an image; the device number and the kernel's count of attachments of a block device.
        """
        status = os.fstat(self._descriptor)
        if not self._block:
            return 0, status.st_dev, status.st_ino
        try:
            sequence = struct.unpack("Q", fcntl.ioctl(self._descriptor, _BLKGETDISKSEQ, b"\0" * 8))[0]
        except OSError:
            sequence = 0  # kernels before 5.15 do not count
        return 1, status.st_rdev, int(sequence)

    @property
    def number(self) -> int:
        """The device number of a block device; 0 for an image."""
        return self._number

    def ata_identity(self) -> bytes:
        """512 bytes of ATA IDENTIFY DEVICE data, asked of the drive through this descriptor; none when it has none."""
        return _ata_identity(self._descriptor) if self._block else b""

    @property
    def physical_sector_bytes(self) -> int:
        if not self._block:
            return self._sector
        try:
            return int(struct.unpack("I", fcntl.ioctl(self._descriptor, _BLKPBSZGET, b"\0" * 4))[0])
        except OSError:
            return self._sector

    @property
    def size_bytes(self) -> int:
        return self._size

    @property
    def sector_bytes(self) -> int:
        return self._sector

    def pread(self, length: int, offset: int) -> bytes:
        buffer = bytearray(length)
        self.pread_into(memoryview(buffer), offset)
        return bytes(buffer)

    def pread_into(self, buffer: memoryview, offset: int) -> None:
        try:
            while buffer:
                count = self._pread(buffer, offset)
                if not count:
                    raise DiskFailed(f"{self._path} ends before byte {offset}")
                buffer, offset = buffer[count:], offset + count
        except OSError as error:
            raise DiskFailed(f"cannot read {self._path} at byte {offset}: {error.strerror}") from error

    def pwrite(self, data: Buffer, offset: int) -> None:
        view = memoryview(data).cast("B")
        if offset + len(view) > self._size:
            raise DiskFailed(f"a write past the end of {self._path} (byte {offset + len(view)} of {self._size})")
        try:
            while view:
                count = self._pwrite(view, offset)
                view, offset = view[count:], offset + count
        except OSError as error:
            self._failed = True
            raise DiskFailed(f"cannot write {self._path} at byte {offset}: {error.strerror}") from error

    def write_past_cache(self) -> None:
        """Let large writes from whole pages go past the page cache, where the file system or driver can do it."""
        self._open_past_cache(os.O_RDWR)

    def read_past_cache(self) -> None:
        """Let large reads into whole pages go past the page cache, as `write_past_cache` does for writes."""
        self._open_past_cache(os.O_RDONLY)

    def _open_past_cache(self, mode: int) -> None:
        try:
            uncached = os.open(f"/proc/self/fd/{self._descriptor}", mode | os.O_CLOEXEC | os.O_DIRECT)
        except OSError:
            return
        try:
            same = Device(self._path, uncached).identity == self.identity
        except OSError:
            same = False
        if same:  # not another disk that got the same number meanwhile
            self._uncached = uncached
        else:
            os.close(uncached)

    def _pread(self, buffer: memoryview, offset: int) -> int:
        if self._goes_past_cache(buffer, offset):
            try:
                return os.preadv(self._uncached, [buffer], offset)
            except OSError as error:
                if error.errno != errno.EINVAL:  # memory that does not start with a page, or larger sectors
                    raise
        return os.preadv(self._descriptor, [buffer], offset)

    def _goes_past_cache(self, view: memoryview, offset: int) -> bool:
        return self._uncached >= 0 and len(view) >= _PAST_CACHE_BYTES and not (len(view) | offset) % _PAGE_BYTES

    def _pwrite(self, view: memoryview, offset: int) -> int:
        if self._goes_past_cache(view, offset):
            try:
                return os.pwrite(self._uncached, view, offset)
            except OSError as error:
                if error.errno != errno.EINVAL:  # memory that does not start with a page, or larger sectors
                    raise
        return os.pwrite(self._descriptor, view, offset)

    def sync(self) -> None:
        if self._failed:
            raise DiskFailed(f"{self._path} failed before; nothing is retried on this descriptor")
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            self._failed = True
            raise DiskFailed(f"{self._path} could not write its data to the medium: {error.strerror}") from error

    def discard(self) -> bool:
        """Give up everything the disk holds; False when it does not offer that. An image becomes one hole."""
        try:
            if self._block:
                fcntl.ioctl(self._descriptor, _BLKDISCARD, struct.pack("QQ", 0, self._size))
            else:
                self._punch()
            os.fsync(self._descriptor)
        except OSError as error:
            if self._block and error.errno in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EREMOTEIO):
                return False
            self._failed = True
            raise DiskFailed(f"cannot discard what is on {self._path}: {error.strerror}") from error
        return True

    def _punch(self) -> None:
        """Make an image one hole, or zeros where the file system has no holes. It is never shorter meanwhile, not even
        for who is killed: nobody would know the disk any more."""
        place, length = f"/proc/self/fd/{self._descriptor}", str(self._size)
        try:
            process.run(["fallocate", "--punch-hole", "--length", length, place], pass_fds=[self._descriptor])
        except DiskprepError:
            zeros = bytes(_ZEROS_BYTES)
            for offset, count in self.data_extents():
                for at in range(offset, offset + count, _ZEROS_BYTES):
                    self.pwrite(memoryview(zeros)[: min(_ZEROS_BYTES, offset + count - at)], at)

    def drop_cache(self) -> None:
        """Forget cached pages, so that the next reads come from the medium. Call after `sync`. Raises DiskFailed."""
        try:
            if self._block:
                fcntl.ioctl(self._descriptor, _BLKFLSBUF, 0)
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            raise DiskFailed(f"cannot drop the cached pages of {self._path}: {error.strerror}") from error

    @property
    def descriptor(self) -> int:
        """For a child process that works on an image in memory."""
        return self._descriptor

    def data_extents(self) -> Iterator[tuple[int, int]]:
        """(offset, length) in bytes of each part that was ever written; a file only. The rest reads as zeros."""
        end = 0
        while end < self._size:
            try:
                start = os.lseek(self._descriptor, end, os.SEEK_DATA)
                end = os.lseek(self._descriptor, start, os.SEEK_HOLE)
            except OSError as error:
                if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                    return
                raise DiskFailed(f"cannot find the data of {self._path}: {error.strerror}") from error
            yield start, end - start

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        if self._uncached >= 0:
            os.close(self._uncached)
            self._uncached = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_for_reading(path: Path) -> Device:
    """Open an image or block device read-only. Raises NotFound or DiskFailed."""
    try:
        return Device(path, os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
    except FileNotFoundError as error:
        raise durable.storage_error(error, f"open {path}") from error
    except OSError as error:
        raise DiskFailed(f"cannot open {path}: {error.strerror}") from error


def open_for_writing(path: Path) -> Device:
    """Open an image or block device for writing, exclusively. Raises NotFound, Locked or DiskFailed."""
    try:
        block = stat.S_ISBLK(path.stat().st_mode)
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_EXCL if block else os.O_NOFOLLOW))
    except FileNotFoundError as error:
        raise durable.storage_error(error, f"open {path}") from error
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise Locked(f"{path} is in use", hint="unmount it, and stop what holds it") from error
        raise DiskFailed(f"cannot open {path} for writing: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise Locked(f"{path} is in use by another diskprep", hint="wait for it to end") from error
    # The kernel tells an earlier writer's failure to the next one that syncs. It is not ours: what counts of what that
    # writer wrote was acknowledged by a sync of its own.
    with contextlib.suppress(OSError):
        os.fsync(descriptor)
    device = Device(path, descriptor)
    device.write_past_cache()
    return device


def create_image(path: Path, size_bytes: int) -> None:
    """Create an empty sparse image. It has its size from the moment it has its name.

    Raises StorageFull, StorageUnavailable, or Locked when `path` exists.
    """
    temporary = path.with_name(f"{durable.TEMPORARY_PREFIX}{uuid.uuid4().hex}")
    try:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, size_bytes)
            os.fsync(descriptor)
            _name(temporary, path)
        finally:
            os.close(descriptor)
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
        durable.fsync_directory(path.parent)
    except FileExistsError as error:
        raise Locked(f"{path} exists already", hint="choose another name, or remove it yourself") from error
    except OSError as error:
        raise durable.storage_error(error, f"create the image {path}") from error


def _name(temporary: Path, path: Path) -> None:
    """Give a file its name, which must be free. Raises OSError."""
    try:
        path.hardlink_to(temporary)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        if path.exists():  # a file system without hard links
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        temporary.rename(path)


def open_memory(size_bytes: int) -> Device:
    """A sparse image in memory, which no medium ever sees; it takes room only for what is written."""
    try:
        descriptor = os.memfd_create("diskprep-volume", os.MFD_CLOEXEC)
        try:
            os.ftruncate(descriptor, size_bytes)
        except OSError:
            os.close(descriptor)
            raise
    except OSError as error:
        raise durable.storage_error(error, "make an image in memory") from error
    return Device(Path(f"/proc/self/fd/{descriptor}"), descriptor)


def ata_identity(path: Path) -> bytes:
    """`Device.ata_identity` of the block device at `path`; none when it cannot be opened or is no ATA drive."""
    try:
        with open_for_reading(path) as opened:
            return opened.ata_identity()
    except (OSError, DiskprepError):
        return b""


def is_claimed(path: Path) -> bool:
    """Whether an exclusive open of a block device fails because something holds it: a mount that no table shows too."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError as error:
        return error.errno == errno.EBUSY
    return False


def is_locked(path: Path) -> bool:
    """Whether another diskprep, or a program that keeps to the same custom, holds the lock of a disk."""
    try:
        with open_for_reading(path) as opened:
            fcntl.flock(opened.descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (OSError, DiskprepError):
        return False
    return False


def _ata_identity(descriptor: int) -> bytes:
    """Ask the kernel's own ATA driver, else send the command through what the disk is attached to (SAT, 12.2)."""
    with contextlib.suppress(OSError):
        known = fcntl.ioctl(descriptor, _HDIO_GET_IDENTITY, bytes(_ATA_BYTES))
        if any(known):
            return _as_sent(known)
    # The structure holds addresses, so the buffers must stay where they are: arrays do.
    data, sense = array.array("B", bytes(_ATA_BYTES)), array.array("B", bytes(32))
    # ATA PASS-THROUGH (16): PIO data-in, one block from the device, IDENTIFY DEVICE.
    command = array.array("B", bytes([0x85, 0x08, 0x0E, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0xEC, 0]))
    header = struct.pack(
        _SG_HEADER,
        *(ord("S"), -3, len(command), len(sense), 0, _ATA_BYTES),
        *(data.buffer_info()[0], command.buffer_info()[0], sense.buffer_info()[0]),
        *(5000, 0, 0, 0),  # the time limit in ms, and what does not matter here
        *(0, 0, 0, 0, 0, 0, 0, 0, 0),  # the answer
    )
    try:
        answer = struct.unpack(_SG_HEADER, fcntl.ioctl(descriptor, _SG_IO, header))
    except OSError:
        return b""
    status, host, driver, left_bytes = answer[13], answer[17], answer[18], answer[19]
    return b"" if status or host or driver or left_bytes else data.tobytes()


def _as_sent(known: bytes) -> bytes:
    """The kernel puts the letters of serial, firmware and model in order; a drive sends those of each word swapped."""
    data = bytearray(known)
    for start, end in ((20, 40), (46, 54), (54, 94)):
        data[start:end:2], data[start + 1 : end : 2] = data[start + 1 : end : 2], data[start:end:2]
    return bytes(data)

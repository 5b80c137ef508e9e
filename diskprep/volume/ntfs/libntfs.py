"""The door to libntfs-3g: loaded once, silenced, and mounted on devices that are Python objects.

Invariants: an exception inside a callback is kept and raised after the library call that met it (the library swallows
some errors of its device), and from then on after every call; one thread uses a mount; no structure of the library is
touched but the table of device operations, whose layout is unchanged since 2006.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import stat
from collections.abc import Callable
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_int, c_int64, c_uint32, c_ulong, c_void_p
from types import TracebackType
from typing import Any, Final, Protocol, Self

from diskprep.errors import DataDamaged, DiskprepError, StorageFull, ToolMissing

#: Shared library names, the one that is known to work first; the others must pass a self test.
KNOWN_SONAME: Final = 89
_OTHER_SONAMES: Final = (90, 91, 92, 93, 88, 87, 86)

AT_DATA: Final = 0x80
HIDDEN_SYSTEM: Final = 0x06
_MOUNT_EXCLUSIVE = 0x08000000

_OPEN = CFUNCTYPE(c_int, c_void_p, c_int, use_errno=True)
_CLOSE = CFUNCTYPE(c_int, c_void_p, use_errno=True)
_SEEK_CALL = CFUNCTYPE(c_int64, c_void_p, c_int64, c_int, use_errno=True)
_TRANSFER = CFUNCTYPE(c_int64, c_void_p, c_void_p, c_int64, use_errno=True)
_TRANSFER_AT = CFUNCTYPE(c_int64, c_void_p, c_void_p, c_int64, c_int64, use_errno=True)
_STAT = CFUNCTYPE(c_int, c_void_p, c_void_p, use_errno=True)
_IOCTL = CFUNCTYPE(c_int, c_void_p, c_ulong, c_void_p, use_errno=True)


class _Operations(ctypes.Structure):
    """struct ntfs_device_operations."""

    _fields_ = (
        ("open", _OPEN),
        ("close", _CLOSE),
        ("seek", _SEEK_CALL),
        ("read", _TRANSFER),
        ("write", _TRANSFER),
        ("pread", _TRANSFER_AT),
        ("pwrite", _TRANSFER_AT),
        ("sync", _CLOSE),
        ("stat", _STAT),
        ("ioctl", _IOCTL),
    )


#: name -> (result, arguments)
_PROTOTYPES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "ntfs_log_set_handler": (None, (c_void_p,)),
    "ntfs_device_alloc": (c_void_p, (c_char_p, c_ulong, POINTER(_Operations), c_void_p)),
    "ntfs_device_free": (c_int, (c_void_p,)),
    "ntfs_device_mount": (c_void_p, (c_void_p, c_ulong)),
    "ntfs_umount": (c_int, (c_void_p, c_int)),
    "ntfs_pathname_to_inode": (c_void_p, (c_void_p, c_void_p, c_char_p)),
    "ntfs_create": (c_void_p, (c_void_p, c_uint32, c_void_p, ctypes.c_uint8, c_uint32)),
    "ntfs_delete": (c_int, (c_void_p, c_char_p, c_void_p, c_void_p, c_void_p, ctypes.c_uint8)),
    "ntfs_inode_close": (c_int, (c_void_p,)),
    "ntfs_inode_close_in_dir": (c_int, (c_void_p, c_void_p)),
    "ntfs_attr_open": (c_void_p, (c_void_p, c_uint32, c_void_p, c_uint32)),
    "ntfs_attr_close": (None, (c_void_p,)),
    "ntfs_attr_pwrite": (c_int64, (c_void_p, c_int64, c_int64, c_void_p)),
    "ntfs_attr_truncate": (c_int, (c_void_p, c_int64)),
    "ntfs_set_ntfs_attrib": (c_int, (c_void_p, c_char_p, ctypes.c_size_t, c_int)),
    "ntfs_set_ntfs_acl": (c_int, (c_void_p, c_void_p, c_char_p, ctypes.c_size_t, c_int)),
}


def load(number: int) -> ctypes.CDLL:
    """The library with this soname number, with prototypes set and its log silenced. Raises OSError."""
    library = ctypes.CDLL(f"libntfs-3g.so.{number}", use_errno=True)
    for name, (result, arguments) in _PROTOTYPES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    library.ntfs_log_set_handler(ctypes.cast(library.ntfs_log_handler_null, c_void_p))
    return library


@functools.cache
def library(self_test: Callable[[ctypes.CDLL], None]) -> ctypes.CDLL:
    """The library; `self_test` must pass for one of an unknown version. Raises ToolMissing."""
    hint = "apt-get install ntfs-3g"
    try:
        return load(KNOWN_SONAME)
    except (OSError, AttributeError):
        pass
    for number in _OTHER_SONAMES:
        try:
            found = load(number)
        except (OSError, AttributeError):
            continue
        try:
            self_test(found)
        except DiskprepError as error:
            raise ToolMissing(f"libntfs-3g.so.{number} does not work: {error.message}", hint=hint) from error
        return found
    raise ToolMissing("the library libntfs-3g is missing", hint=hint)


class Backend(Protocol):
    """What a mount reads and writes. Offsets in bytes; addresses are the library's buffers."""

    @property
    def size_bytes(self) -> int: ...

    def load(self, address: int, length: int, offset: int) -> None:
        """Copy `length` bytes at `offset` to `address`."""

    def store(self, address: int, length: int, offset: int) -> None:
        """Take `length` bytes at `address` for `offset`."""


class Mount:
    """An NTFS volume mounted for writing on a Backend. Use as a context manager; leaving it flushes the library.

    The main thread uses it within `interrupts.held`: an exception in the middle of a callback would be lost.
    """

    def __init__(self, library_: ctypes.CDLL, backend: Backend) -> None:
        self._lib, self._backend = library_, backend
        self._position = 0
        self._failure: BaseException | None = None
        self._operations = self._make_operations()  # must live as long as the mount
        device = library_.ntfs_device_alloc(b"diskprep", 0, ctypes.byref(self._operations), None)
        self._volume = library_.ntfs_device_mount(device, _MOUNT_EXCLUSIVE)
        if not self._volume:
            number = ctypes.get_errno()
            library_.ntfs_device_free(device)
            self._raise_failure()
            raise DataDamaged(f"the NTFS volume cannot be opened: {os.strerror(number)}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        failed = self._lib.ntfs_umount(self._volume, 0)  # this frees the device too
        if kind is None:
            self._raise_failure()
            if failed:
                raise DataDamaged(f"the NTFS volume cannot be closed: {os.strerror(ctypes.get_errno())}")

    def root(self) -> int:
        """The open inode of the root directory."""
        return self._pointer(self._lib.ntfs_pathname_to_inode(self._volume, None, b"/"), "open the root directory")

    def lookup(self, directory: int, name: str) -> int:
        """The open inode of what is called `name` in an open directory."""
        inode = self._lib.ntfs_pathname_to_inode(self._volume, directory, name.encode())
        return self._pointer(inode, f"open {name}")

    def create(self, directory: int, name: str, *, is_directory: bool) -> int:
        """A new open inode. Names are not checked here."""
        units = name.encode("utf-16-le")
        kind = stat.S_IFDIR if is_directory else stat.S_IFREG
        inode = self._lib.ntfs_create(directory, 0, units, len(units) // 2, kind)
        return self._pointer(inode, f"create {name}")

    def delete(self, directory: str, name: str) -> None:
        """Delete a file in a directory of the root that is not open."""
        root = self.root()
        parent = self.lookup(root, directory)
        self.close(root)
        inode, units = self.lookup(parent, name), name.encode("utf-16-le")
        done = self._lib.ntfs_delete(self._volume, None, inode, parent, units, len(units) // 2)  # closes both
        self._status(done, f"delete {name}")

    def close(self, inode: int, directory: int | None = None) -> None:
        """Close an inode; `directory` is its parent where that is open too."""
        if directory is None:
            self._status(self._lib.ntfs_inode_close(inode), "close a directory")
        else:
            self._status(self._lib.ntfs_inode_close_in_dir(inode, directory), "close a file")

    def write(self, inode: int, address: int, length: int, *, keep: int) -> None:
        """Write `length` bytes from `address` as the inode's data, and cut it to `keep` bytes. Raises StorageFull."""
        attribute = self._pointer(self._lib.ntfs_attr_open(inode, AT_DATA, None, 0), "open a file's data")
        try:
            if length:
                written = self._lib.ntfs_attr_pwrite(attribute, 0, length, address)
                self._status(0 if written == length else -1, "write a file", short=0 <= written < length)
            if keep != length:
                self._status(self._lib.ntfs_attr_truncate(attribute, keep), "set a file's size")
        finally:
            self._lib.ntfs_attr_close(attribute)

    def set_attributes(self, inode: int, attributes: int) -> None:
        """Set the file attribute bits (hidden, system)."""
        data = attributes.to_bytes(4, "little")
        self._status(self._lib.ntfs_set_ntfs_attrib(inode, data, len(data), 0), "set a file's attributes")

    def set_security(self, inode: int, descriptor: bytes) -> None:
        """Set a self-relative security descriptor."""
        context = (c_void_p * 8)(self._volume)  # struct SECURITY_CONTEXT: the volume, then what this call leaves alone
        done = self._lib.ntfs_set_ntfs_acl(context, inode, descriptor, len(descriptor), 0)
        self._status(done, "set a file's security descriptor")

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _status(self, result: int, doing: str, *, short: bool = False) -> None:
        number = ctypes.get_errno()
        self._raise_failure()
        if not result:
            return
        if short or number == errno.ENOSPC:
            raise StorageFull(f"the NTFS volume is full: cannot {doing}")
        raise DataDamaged(f"NTFS: cannot {doing}: {os.strerror(number)}")

    def _pointer(self, value: int | None, doing: str) -> int:
        self._status(0 if value else -1, doing)
        assert value
        return value

    def _guarded(self, action: Callable[[], int]) -> int:
        if self._failure is None:
            try:
                return action()
            except BaseException as failure:  # noqa: BLE001  it would be lost in the C code; it is raised after the call
                self._failure = failure
        ctypes.set_errno(errno.EIO)
        return -1

    def _transfer(self, call: Callable[[int, int, int], None], address: int, length: int, offset: int) -> int:
        def action() -> int:
            if offset < 0 or length < 0 or offset + length > self._backend.size_bytes:
                raise DataDamaged("the NTFS volume refers to clusters outside of it")
            call(address, length, offset)
            return length

        return self._guarded(action)

    def _advance(self, call: Callable[[int, int, int], None], address: int, length: int) -> int:
        done = self._transfer(call, address, length, self._position)
        self._position += max(done, 0)
        return done

    def _seek(self, offset: int, whence: int) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._backend.size_bytes}[whence]
        self._position = base + offset
        return self._position

    def _unsupported(self) -> int:
        ctypes.set_errno(errno.EOPNOTSUPP)
        return -1

    def _make_operations(self) -> _Operations:
        backend = self._backend
        return _Operations(
            open=_OPEN(lambda _device, _flags: 0),
            close=_CLOSE(lambda _device: 0),
            seek=_SEEK_CALL(lambda _device, offset, whence: self._guarded(lambda: self._seek(offset, whence))),
            read=_TRANSFER(lambda _device, buffer, count: self._advance(backend.load, buffer, count)),
            write=_TRANSFER(lambda _device, buffer, count: self._advance(backend.store, buffer, count)),
            pread=_TRANSFER_AT(lambda _device, buffer, count, at: self._transfer(backend.load, buffer, count, at)),
            pwrite=_TRANSFER_AT(lambda _device, buffer, count, at: self._transfer(backend.store, buffer, count, at)),
            sync=_CLOSE(lambda _device: 0),
            stat=_STAT(lambda _device, _status: self._unsupported()),
            ioctl=_IOCTL(lambda _device, _request, _argument: self._unsupported()),
        )

"""Reading one entry at a time, relative to its open directory, so that neither long paths nor a directory swapped for a
symlink under way lead astray.

Invariants: only what a directory lists as regular file or directory is opened, without following symlinks, without
blocking, and without touching access times where the kernel allows it. Metadata is that of the open descriptor, taken
before the first byte is read. A shortage of this process or computer (descriptors, memory) is no property of an entry:
it raises StorageUnavailable from all that opens and reads here.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from diskprep.errors import SourceIncomplete, StorageUnavailable

_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_CLOSED = -1
_OPEN_QUIETLY = _OPEN | os.O_NOATIME
_NAMES = sys.getfilesystemencoding()
_NOT_SUPPORTED = (errno.ENOTSUP, errno.ENOSYS)
_GONE = (errno.ENOENT, errno.ESTALE)
_SHORTAGE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)


class EntryUnreadable(SourceIncomplete):
    """An entry cannot be read; `message` is the reason only."""


class Item(NamedTuple):
    """An entry as its directory lists it."""

    name: bytes
    is_directory: bool
    is_regular: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Metadata of an entry. `xattrs` in the order the kernel lists them; `linktarget` of a symlink."""

    stat: os.stat_result
    xattrs: tuple[tuple[bytes, bytes], ...]
    linktarget: bytes = b""

    @property
    def user(self) -> str:
        return user_name(self.stat.st_uid)

    @property
    def group(self) -> str:
        return group_name(self.stat.st_gid)


class SmallFile(NamedTuple):
    """What `OpenDirectory.read_small` found. `data` is None when it is too long or was not wanted; `changed`: it
    was written to while it was read."""

    stat: os.stat_result
    xattrs: tuple[tuple[bytes, bytes], ...]
    data: bytes | None
    changed: bool


class OpenFile:
    """An open regular file. Used by one thread at a time."""

    __slots__ = ("_descriptor", "entry")

    def __init__(self, descriptor: int, entry: Entry) -> None:
        self._descriptor, self.entry = descriptor, entry

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fill `buffer` from `offset` on; less only at the file's end. Returns the number of bytes."""
        filled = 0
        with _TRANSLATION:
            while filled < len(buffer):
                count = os.preadv(self._descriptor, [buffer[filled:]], offset + filled)
                if not count:
                    break
                filled += count
        return filled

    @property
    def may_have_holes(self) -> bool:
        """Whether it takes less room than it is long."""
        return self.entry.stat.st_blocks * 512 < self.entry.stat.st_size

    def next_data(self, offset: int) -> int:
        """Where data begin at or after `offset`; the end of the file when there are none. A file system that knows no
        holes says that all is data."""
        return self._seek(offset, os.SEEK_DATA)

    def next_hole(self, offset: int) -> int:
        """Where a hole begins at or after `offset`; the end of the file when there is none."""
        return self._seek(offset, os.SEEK_HOLE)

    def _seek(self, offset: int, whence: int) -> int:
        try:
            return os.lseek(self._descriptor, offset, whence)
        except OSError as error:
            with _TRANSLATION:
                if error.errno == errno.ENXIO:
                    return max(offset, os.fstat(self._descriptor).st_size)
                if error.errno in (errno.EINVAL, *_NOT_SUPPORTED):
                    return offset if whence == os.SEEK_DATA else max(offset, os.fstat(self._descriptor).st_size)
                raise

    def changed(self) -> bool:
        """Whether size, content time or inode time moved since the file was opened."""
        with _TRANSLATION:
            return _moved(self.entry.stat, os.fstat(self._descriptor))

    def close(self) -> None:
        _close(self)


class OpenDirectory:
    """An open directory. Threads may share it until it is closed."""

    __slots__ = ("_descriptor", "entry")

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        try:
            self.entry = _entry_of(descriptor)
        except BaseException:
            os.close(descriptor)
            raise

    @classmethod
    def of(cls, descriptor: int) -> OpenDirectory:
        """The directory that `descriptor` has open; it belongs to the new object. Raises EntryUnreadable."""
        with _TRANSLATION:
            return cls(descriptor)

    @property
    def descriptor(self) -> int:
        """For another process; it stays this object's."""
        return self._descriptor

    @classmethod
    def at(cls, path: bytes, *, follow: bool = False) -> OpenDirectory:
        """Open the directory at an absolute path. Raises EntryUnreadable."""
        with _TRANSLATION:
            return cls(_open(path, os.O_DIRECTORY, None, follow=follow))

    def directory(self, name: bytes) -> OpenDirectory:
        """Open a directory in this one. Raises EntryUnreadable."""
        with _TRANSLATION:
            return OpenDirectory(_open(name, os.O_DIRECTORY, self._descriptor))

    def file(self, name: bytes) -> OpenFile:
        """Open a regular file in this directory. Raises EntryUnreadable."""
        with _TRANSLATION:
            descriptor = _open(name, 0, self._descriptor)
            try:
                entry = _entry_of(descriptor)
                if not stat.S_ISREG(entry.stat.st_mode):
                    raise EntryUnreadable("it was replaced while it was being opened")
            except BaseException:
                os.close(descriptor)
                raise
            return OpenFile(descriptor, entry)

    def read_small(
        self, name: bytes, limit_bytes: int, is_wanted: Callable[[os.stat_result], bool] | None = None
    ) -> SmallFile:
        """A regular file with its whole content, in as few calls to the kernel as that takes. The content is None when
        the file is longer than `limit_bytes`, or not wanted. Raises EntryUnreadable."""
        # Once for every file of a source, so nothing is called here that need not be.
        try:
            try:
                descriptor = os.open(name, _OPEN_QUIETLY, dir_fd=self._descriptor)
            except PermissionError:
                descriptor = _open(name, 0, self._descriptor)
            try:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode):
                    raise EntryUnreadable("it was replaced while it was being opened")
                xattrs = _xattrs(descriptor, follow=True)
                size_bytes = status.st_size
                if size_bytes > limit_bytes or (is_wanted is not None and not is_wanted(status)):
                    return SmallFile(status, xattrs, None, changed=False)
                data = os.read(descriptor, size_bytes + 1)
                if len(data) != size_bytes:  # grew, shrank, or a file system that reads in pieces
                    data = _read_on(descriptor, data, limit_bytes)
                    if len(data) > limit_bytes:
                        return SmallFile(status, xattrs, None, changed=False)
                now = os.fstat(descriptor)
                same = now.st_mtime_ns == status.st_mtime_ns and now.st_ctime_ns == status.st_ctime_ns
                return SmallFile(status, xattrs, data, not same or now.st_size != size_bytes)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise _translated(error) from None

    def list(self) -> list[Item]:
        """The entries, sorted by the bytes of their names. Raises EntryUnreadable."""
        with _TRANSLATION, os.scandir(self._descriptor) as entries:
            items = [
                Item(
                    entry.name.encode(_NAMES, "surrogateescape"),
                    entry.is_dir(follow_symlinks=False),
                    entry.is_file(follow_symlinks=False),
                )
                for entry in entries
            ]
        items.sort()
        return items

    def describe(self, name: bytes) -> Entry:
        """Metadata of an entry that must not be opened. Raises EntryUnreadable."""
        return _describe(name, self._descriptor, b"/proc/self/fd/%d/%s" % (self._descriptor, name))

    @property
    def identity(self) -> tuple[int, int]:
        """Device and inode: the same by whatever path the directory is reached."""
        return self.entry.stat.st_dev, self.entry.stat.st_ino

    def close(self) -> None:
        _close(self)


def _close(opened: OpenFile | OpenDirectory) -> None:
    """Close once: an interrupt may come when the kernel has closed, and before anybody has noted it. The number may be
    another file's by the next call."""
    descriptor, opened._descriptor = opened._descriptor, _CLOSED  # noqa: SLF001 - of this module's own classes
    if descriptor != _CLOSED:
        os.close(descriptor)


def describe(path: bytes) -> Entry:
    """Metadata of the entry at an absolute path, which is not opened. Raises EntryUnreadable."""
    return _describe(path, None, path)


def ancestor(path: bytes) -> Entry:
    """Metadata of a directory on the way to a source; symlinks are followed. Raises EntryUnreadable."""
    with _TRANSLATION:
        return Entry(stat=os.stat(path), xattrs=_xattrs(path, follow=True))  # noqa: PTH116 - bytes, and no Path object


@cache
def user_name(uid: int) -> str:
    """The user's name, empty when there is none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return ""


@cache
def group_name(gid: int) -> str:
    """The group's name, empty when there is none."""
    try:
        return grp.getgrgid(gid).gr_name
    except (KeyError, OverflowError):
        return ""


def _read_on(descriptor: int, data: bytes, limit_bytes: int) -> bytes:
    while len(data) <= limit_bytes:
        part = os.read(descriptor, limit_bytes + 1 - len(data))
        if not part:
            break
        data += part
    return data


def _moved(before: os.stat_result, now: os.stat_result) -> bool:
    return (now.st_size, now.st_mtime_ns, now.st_ctime_ns) != (before.st_size, before.st_mtime_ns, before.st_ctime_ns)


def _describe(name: bytes, directory: int | None, path: bytes) -> Entry:
    with _TRANSLATION:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        target = os.readlink(name, dir_fd=directory) if stat.S_ISLNK(status.st_mode) else b""
        return Entry(stat=status, xattrs=_xattrs(path, follow=False), linktarget=target)


def _entry_of(descriptor: int) -> Entry:
    return Entry(stat=os.fstat(descriptor), xattrs=_xattrs(descriptor, follow=True))


def _xattrs(target: int | bytes, *, follow: bool) -> tuple[tuple[bytes, bytes], ...]:
    """Names and values. A name that is not UTF-8 is left out: the repository format would change it into another."""
    try:
        # A descriptor refuses follow_symlinks; it has nothing to follow.
        names = os.listxattr(target) if follow else os.listxattr(target, follow_symlinks=False)
    except OSError as error:
        if error.errno in _NOT_SUPPORTED:
            return ()
        raise
    if not names:
        return ()
    found = []
    for name in names:
        if not name.isprintable() and any("\udc80" <= sign <= "\udcff" for sign in name):
            continue
        try:
            value = os.getxattr(target, name) if follow else os.getxattr(target, name, follow_symlinks=False)
        except OSError as error:
            if error.errno in (*_NOT_SUPPORTED, errno.ENODATA):  # removed since, or listed but not readable
                continue
            raise
        found.append((os.fsencode(name), value))
    return tuple(found)


def _open(name: bytes, flags: int, directory: int | None, *, follow: bool = False) -> int:
    flags |= _OPEN & ~os.O_NOFOLLOW if follow else _OPEN
    try:
        return os.open(name, flags | os.O_NOATIME, dir_fd=directory)
    except PermissionError:  # only the owner may leave the access time alone
        return os.open(name, flags, dir_fd=directory)


def _translated(error: OSError) -> EntryUnreadable | StorageUnavailable:
    if error.errno in _SHORTAGE:
        return StorageUnavailable(
            f"cannot go on reading the source: {error.strerror}",
            hint="raise the limit of open files (ulimit -n) or free memory, then give the same command again",
        )
    return EntryUnreadable("it vanished" if error.errno in _GONE else error.strerror or str(error))


class _Translation:
    """Turns OSError into EntryUnreadable or StorageUnavailable; a class, for it is entered several times a file."""

    __slots__ = ()

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise _translated(error) from None


_TRANSLATION = _Translation()

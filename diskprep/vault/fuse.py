"""What the kernel asks of a mounted vault, answered through libfuse3. Nothing here changes anything.

Importing this module loads libfuse: OSError when it is missing. mfusepy names the library's structures; its own way to
list directories tells no attributes, and the kernel would ask for each entry again, so that is done here.

Callbacks run in threads of libfuse. An error of ours is EIO to whoever asked, and to nobody else.
"""

from __future__ import annotations

import errno
import itertools
import stat
from collections.abc import Callable
from functools import wraps
from types import SimpleNamespace
from typing import Any, Concatenate, ParamSpec, TypeVar

import mfusepy

from diskprep.errors import DiskprepError
from diskprep.vault.browse import Browser, Directory, Entry, OpenFile
from diskprep.vault.folder import Status

_NEVER_CHANGES_S = 3600.0  # what the kernel knows of names and attributes needs no second look for so long
_BLOCK_BYTES = 512
_THREADS = 10  # libfuse's own default, of which 3.14 complains unless it is told
_TAKES_THREADS = 12  # libfuse 3.12 and later have the option
_GUESS_WHETHER_ATTRIBUTES = 1 << 14  # FUSE_CAP_READDIRPLUS_AUTO
_ASKED_FOR_ATTRIBUTES = 1  # FUSE_READDIR_PLUS
_WITH_ATTRIBUTES = 2  # FUSE_FILL_DIR_PLUS
_OWN_ENTRIES = 2  # a directory's first entries: itself and the one above

P = ParamSpec("P")
R = TypeVar("R")


def _answering(method: Callable[Concatenate[Bridge, P], R]) -> Callable[Concatenate[Bridge, P], R]:
    """`method`, with our errors as the one that the kernel knows."""

    @wraps(method)
    def answer(self: Bridge, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(self, *args, **kwargs)
        except DiskprepError:
            raise OSError(errno.EIO, "") from None

    return answer


class Bridge(mfusepy.FUSE):  # type: ignore[misc]  # it has no types
    """Serves `browser` at `mountpoint` until it is unmounted or a signal ends it: making one does all of that.

    `ready` is called when the kernel has accepted the mount. Raises RuntimeError with libfuse's number: below 7 it was
    not mounted, 7 or 8, by the version, is the end by a signal.
    """

    def __init__(
        self, browser: Browser, mountpoint: str, *, ready: Callable[[], None], options: dict[str, Any]
    ) -> None:
        self._browser, self._ready = browser, ready
        self._files: dict[int, OpenFile] = {}
        self._directories: dict[int, Directory] = {}
        self._handles = itertools.count(1)
        operations = SimpleNamespace(
            use_ns=True,
            getattr=True,
            readdir=True,
            opendir=self._open_directory,
            releasedir=self._release_directory,
            open=self._open,
            read=self._read,
            release=self._release,
            readlink=self._read_link,
            getxattr=self._get_xattr,
            listxattr=self._list_xattrs,
        )
        options = options | {"max_idle_threads": _THREADS}
        if mfusepy.fuse_version_minor >= _TAKES_THREADS:
            options["max_threads"] = _THREADS
        super().__init__(operations, mountpoint, foreground=True, **options)

    def init_fuse_3(self, connection: Any, configuration: Any) -> None:
        # The kernel guesses that nobody wants attributes, and then asks for those of each entry by itself, at ten times
        # the cost.
        connection.contents.want &= ~_GUESS_WHETHER_ATTRIBUTES
        settings = configuration.contents
        settings.use_ino = settings.kernel_cache = settings.nullpath_ok = 1
        settings.entry_timeout = settings.attr_timeout = _NEVER_CHANGES_S
        self._ready()

    @_answering
    def getattr_fuse_3(self, path: bytes | None, buffer: Any, info: Any) -> int:
        entry = self._entry(self._files[info.contents.fh].path if path is None else path)
        _Stat(buffer.contents).fill(entry.status, entry.inode)
        return 0

    # -- directories

    @_answering
    def _open_directory(self, path: str) -> int:
        directory = self._browser.directory(_bytes(path))
        if directory is None:
            raise OSError(errno.ENOENT, "")
        handle = next(self._handles)
        self._directories[handle] = directory
        return handle

    def _release_directory(self, _path: str | None, handle: int) -> int:
        del self._directories[handle]
        return 0

    @_answering
    def readdir_fuse_3(self, _path: bytes | None, buffer: Any, fill: Any, offset: int, info: Any, flags: int) -> int:
        directory = self._directories[info.contents.fh]
        listing = directory.listing
        given = _WITH_ATTRIBUTES if flags & _ASKED_FOR_ATTRIBUTES else 0
        status = mfusepy.c_stat()
        status.st_mode = stat.S_IFDIR
        for number in range(offset, _OWN_ENTRIES):
            if fill(buffer, (b".", b"..")[number], status, number + 1, 0):
                return 0
        told = _Stat(status)
        for number in range(max(0, offset - _OWN_ENTRIES), len(listing)):
            one = listing.status(number)
            told.fill(one, directory.child_inode(number, one))
            if fill(buffer, listing.names[number], status, number + _OWN_ENTRIES + 1, given):
                break
        return 0

    # -- files and links

    @_answering
    def _open(self, path: str, _flags: int) -> int:
        file = self._browser.open(_bytes(path))
        if file is None:
            raise OSError(errno.ENOENT, "")
        handle = next(self._handles)
        self._files[handle] = file
        return handle

    def _release(self, _path: str | None, handle: int) -> int:
        del self._files[handle]
        return 0

    @_answering
    def _read(self, _path: str | None, size: int, offset: int, handle: int) -> bytes:
        return self._browser.read(self._files[handle], size, offset)

    @_answering
    def _read_link(self, path: str) -> str:
        return self._entry(_bytes(path)).value.decode("utf-8", "surrogateescape")

    @_answering
    def _get_xattr(self, path: str, name: str) -> bytes:
        value = self._entry(_bytes(path)).xattrs.get(_bytes(name))
        if value is None:
            raise OSError(errno.ENODATA, "")
        return value

    @_answering
    def _list_xattrs(self, path: str) -> list[str]:
        return [name.decode("utf-8", "surrogateescape") for name in self._entry(_bytes(path)).xattrs]

    def _entry(self, path: bytes) -> Entry:
        entry = self._browser.entry(path)
        if entry is None:
            raise OSError(errno.ENOENT, "")
        return entry


class _Stat:
    """A struct stat that is filled again and again."""

    __slots__ = ("_atime", "_ctime", "_mtime", "_stat")

    def __init__(self, structure: Any) -> None:
        self._stat = structure
        self._mtime, self._atime, self._ctime = structure.st_mtimespec, structure.st_atimespec, structure.st_ctimespec

    def fill(self, status: Status, inode: int) -> None:
        target, mtime, atime, ctime = self._stat, self._mtime, self._atime, self._ctime
        target.st_ino = inode
        (
            target.st_mode,
            target.st_nlink,
            target.st_uid,
            target.st_gid,
            target.st_rdev,
            size,
            _,
            _,
            mtime.tv_sec,
            mtime.tv_nsec,
            atime.tv_sec,
            atime.tv_nsec,
            ctime.tv_sec,
            ctime.tv_nsec,
        ) = status
        target.st_size = size
        target.st_blocks = (size + _BLOCK_BYTES - 1) // _BLOCK_BYTES


def _bytes(text: str) -> bytes:
    """A path or name as mfusepy decoded it."""
    return text.encode("utf-8", "surrogateescape")

"""The directory a restore writes into: the one place that touches its files.

Invariants: nothing outside the directory is ever created or changed, whatever names and links a repository holds. Every
path is walked from an open descriptor of the root, one component after the other, following no link; everything is
created where nothing was before; a name has one component.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path

from diskprep import durable
from diskprep.errors import DataDamaged, UsageError
from diskprep.repository.tree import Node, NodeType

_OPEN_DIRECTORIES = 128
_WARNINGS_MAX = 1000
_ZEROS = bytes(64 << 10)
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Target:
    """Directories are numbered in the order of their creation; 0 is the root. Safe to use from several threads."""

    def __init__(self, root: Path) -> None:
        """Create `root`, or take an empty directory. Raises UsageError, StorageFull or StorageUnavailable."""
        durable.make_directory(root)
        self._root = root
        try:
            self._root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            with os.scandir(self._root_fd) as entries:
                empty = next(iter(entries), None) is None
        except OSError as error:
            raise durable.storage_error(error, f"open {root}") from error
        if not empty:
            os.close(self._root_fd)
            raise UsageError(f"{root} is not empty", hint="restore into a new directory; nothing was written")
        self._directories: list[tuple[int, bytes]] = [(0, b"")]
        self._open: OrderedDict[int, int] = OrderedDict()
        self._lock = threading.RLock()
        self._owners = os.geteuid() == 0
        self.warnings: list[str] = []

    def close(self) -> None:
        for descriptor in [*self._open.values(), self._root_fd]:
            os.close(descriptor)
        self._open.clear()

    def path(self, directory: int, name: bytes = b"") -> str:
        """For messages: the path below the root."""
        parts = [name] if name else []
        while directory:
            directory, part = self._directories[directory]
            parts.append(part)
        return _shown(b"/".join(reversed(parts)))

    def make_directory(self, parent: int, name: bytes) -> int:
        with self._lock:
            os.mkdir(_single(name), 0o700, dir_fd=self._descriptor(parent))
            self._directories.append((parent, name))
            return len(self._directories) - 1

    def create(self, directory: int, name: bytes) -> int:
        """A descriptor of a new, empty file."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with self._lock:
            return os.open(_single(name), flags, 0o600, dir_fd=self._descriptor(directory))

    def reopen(self, directory: int, name: bytes) -> int:
        """A descriptor of a file that `create` made."""
        with self._lock:
            return os.open(
                _single(name), os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._descriptor(directory)
            )

    def remove(self, directory: int, name: bytes) -> None:
        with self._lock, contextlib.suppress(FileNotFoundError):
            os.unlink(_single(name), dir_fd=self._descriptor(directory))

    def link(self, origin: tuple[int, bytes], directory: int, name: bytes) -> None:
        """A hard link to an entry that was made before."""
        with self._lock:
            source = os.dup(self._descriptor(origin[0]))
            try:
                os.link(
                    _single(origin[1]),
                    _single(name),
                    src_dir_fd=source,
                    dst_dir_fd=self._descriptor(directory),
                    follow_symlinks=False,
                )
            finally:
                os.close(source)

    def make_special(self, directory: int, node: Node) -> None:
        """A symbolic link, fifo or device with all its metadata."""
        with self._lock:
            parent = self._descriptor(directory)
            name = _single(node.name)
            where = partial(self.path, directory, name)
            if node.type is NodeType.SYMLINK:
                os.symlink(node.linktarget, name, dir_fd=parent)
            else:
                mode = stat.S_IFMT(node.unix_mode) | 0o600
                if not self._try(where, lambda: os.mknod(name, mode, node.device, dir_fd=parent)):
                    return
            handle = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            try:
                if self._owners:
                    self._try(where, lambda: os.chown(name, node.uid, node.gid, dir_fd=parent, follow_symlinks=False))
                if node.type is not NodeType.SYMLINK:  # through the handle: it cannot be another entry by now
                    self._try(where, lambda: Path(f"/proc/self/fd/{handle}").chmod(stat.S_IMODE(node.unix_mode)))
                self._set_xattrs(f"/proc/self/fd/{parent}/".encode() + name, node, where)
                times = (node.atime, node.mtime)
                self._try(where, lambda: os.utime(name, ns=times, dir_fd=parent, follow_symlinks=False))
            finally:
                os.close(handle)

    def finish_directory(self, directory: int, node: Node) -> None:
        """Give a directory its metadata; after everything inside it has its own."""
        with self._lock:
            self.finish(self._descriptor(directory), node, partial(self.path, directory))

    def finish(self, descriptor: int, node: Node, where: Callable[[], str]) -> None:
        """Give an open file or directory its owner, attributes, mode and times, in the order in which they last."""
        self._set_xattrs(descriptor, node, where, user=True)  # needs the right to write, which the mode may take
        if self._owners:
            self._try(where, lambda: os.fchown(descriptor, node.uid, node.gid))
        self._try(where, lambda: os.fchmod(descriptor, stat.S_IMODE(node.unix_mode)))
        self._set_xattrs(descriptor, node, where, user=False)  # a change of owner would drop capabilities
        self._try(where, lambda: os.utime(descriptor, ns=(node.atime, node.mtime)))

    def warn(self, line: str) -> None:
        if len(self.warnings) < _WARNINGS_MAX:
            self.warnings.append(line)

    def _set_xattrs(
        self, entry: int | bytes, node: Node, where: Callable[[], str], *, user: bool | None = None
    ) -> None:
        """Set attributes: those of users, all others, or (None) all."""
        for name, value in node.xattrs:
            if user is not None and name.startswith(b"user.") is not user:
                continue
            try:
                if isinstance(entry, int):
                    os.setxattr(entry, name, value)
                else:
                    os.setxattr(entry, name, value, follow_symlinks=False)
            except OSError as error:
                self.warn(f"{where()}: attribute {_shown(name)}: {error.strerror}")

    def _try(self, where: Callable[[], str], change: Callable[[], None]) -> bool:
        """Metadata that the file system or our rights do not allow are told, and do not end a restore."""
        try:
            change()
        except (OSError, OverflowError) as error:
            self.warn(f"{where()}: {getattr(error, 'strerror', None) or error}")
            return False
        return True

    def _descriptor(self, directory: int) -> int:
        """An open descriptor of a directory, valid while the lock is held."""
        chain = []
        while directory and directory not in self._open:
            chain.append(directory)
            directory = self._directories[directory][0]
        descriptor = self._open[directory] if directory else self._root_fd
        if directory:
            self._open.move_to_end(directory)
        for step in reversed(chain):
            descriptor = os.open(self._directories[step][1], _DIRECTORY, dir_fd=descriptor)
            self._open[step] = descriptor
            if len(self._open) > _OPEN_DIRECTORIES:
                os.close(self._open.popitem(last=False)[1])
        return descriptor


def write_sparse(descriptor: int, data: bytes, offset: int) -> bool:
    """Write `data` at `offset`, but leave long runs of zeros out; True when something was left out."""
    if len(data) < len(_ZEROS):
        _write(descriptor, memoryview(data), offset)
        return False
    step = len(_ZEROS)
    view = memoryview(data)
    begin = position = 0
    holes = False
    while position + step <= len(data):
        if data.startswith(_ZEROS, position):
            _write(descriptor, view[begin:position], offset + begin)
            begin = position + step
            holes = True
        position += step
    _write(descriptor, view[begin:], offset + begin)
    return holes


def _write(descriptor: int, view: memoryview, offset: int) -> None:
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count


def _single(name: bytes) -> bytes:
    if not name or b"/" in name or b"\0" in name or name in (b".", b".."):
        raise DataDamaged(f"a directory of the repository has an entry with the name {name!r}; nothing was made of it")
    return name


def _shown(path: bytes) -> str:
    """`path` for a person: bytes that are not text or not printable are escaped."""
    text = os.fsdecode(path) or "."
    return text if text.isprintable() else ascii(text)[1:-1]

"""Replicas: a faithful copy of a tree, and realistic changes to it, for rehearsing on something that may be changed.

`change_some` writes only below the root it is given, only into regular files and directories that it found there
without following a link.
"""

# Names need not be text, so paths are bytes here, which pathlib does not take.
# ruff: noqa: PTH101, PTH102, PTH104, PTH108, PTH115, PTH116, PTH118, PTH211

from __future__ import annotations

import contextlib
import errno
import os
import random
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from diskprep import durable
from diskprep.compare import display
from diskprep.errors import UsageError
from diskprep.reach import reachable

_COPY_BYTES = 1 << 26
_SHARE_CHANGED = 0.03
_CHANGES_MAX = 5000
_FATAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
_NO_REFLINK = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)


def copy_tree(source: Path, target: Path) -> list[str]:
    """Copy the tree at `source` to `target`, which must not exist or be an empty directory.

    Kept: all types but sockets, modes, times (ns), hard links, holes; owners when running as root; extended attributes
    as far as the target takes them. Returns a line for each entry that could not be copied. Raises StorageFull,
    StorageUnavailable or UsageError.
    """
    try:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise UsageError(f"{target} is not an empty directory")
        copier = _Copier(os.fsencode(source), os.fsencode(target))
        copier.directory(b"")
    except OSError as error:
        raise durable.storage_error(error, f"copy {source} to {target}") from error
    return copier.left_out


class _Copier:
    def __init__(self, source: bytes, target: bytes) -> None:
        self._source, self._target = source, target
        self._linked: dict[tuple[int, int], bytes] = {}
        self.left_out: list[str] = []

    def directory(self, path: bytes) -> None:
        """Copy a directory and what is below; its own mode and times last, since its entries change them."""
        pending: list[tuple[bytes, os.stat_result | None]] = [(path, None)]
        while pending:
            path, seen = pending.pop()
            try:
                with self._places(path) as (source, target):
                    if seen is not None:
                        _copy_metadata(source, target, seen)
                        continue
                    status = os.lstat(source) if path else os.stat(source)
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(target, 0o700)
                    pending.append((path, status))
                    with os.scandir(source) as found:
                        entries = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in found]
            except OSError as error:
                if not path or error.errno in _FATAL:
                    raise
                self._skip(path, error)
                continue
            for name, is_directory in sorted(entries):
                below = path + b"/" + name if path else name
                if is_directory:
                    pending.append((below, None))
                else:
                    self._other(below)

    def _other(self, path: bytes) -> None:
        try:
            with self._places(path) as (source, target):
                status = os.lstat(source)
                if stat.S_ISSOCK(status.st_mode):
                    return
                identity = (status.st_dev, status.st_ino)
                if status.st_nlink > 1 and identity in self._linked:
                    with reachable(self._target, self._linked[identity]) as first:
                        os.link(first, target, follow_symlinks=False)
                    return
                if stat.S_ISREG(status.st_mode):
                    _copy_file(source, target)
                elif stat.S_ISLNK(status.st_mode):
                    os.symlink(os.readlink(source), target)
                else:
                    os.mknod(target, stat.S_IFMT(status.st_mode) | 0o600, status.st_rdev)
                _copy_metadata(source, target, status)
                if status.st_nlink > 1:
                    self._linked[identity] = path
        except OSError as error:
            if error.errno in _FATAL:
                raise
            self._skip(path, error)

    @contextlib.contextmanager
    def _places(self, path: bytes) -> Iterator[tuple[bytes, bytes]]:
        with reachable(self._source, path) as source, reachable(self._target, path) as target:
            yield source, target

    def _skip(self, path: bytes, error: OSError) -> None:
        self.left_out.append(f"{display(path)}: {error.strerror}")


def _copy_file(source: bytes, target: bytes) -> None:
    """Copy the data of a file; its holes stay holes."""
    reader = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        writer = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            size_bytes = os.fstat(reader).st_size
            os.ftruncate(writer, size_bytes)
            for start, end in _data_ranges(reader, size_bytes):
                _copy_range(reader, writer, start, end)
        except OSError:
            os.unlink(target)
            raise
        finally:
            os.close(writer)
    finally:
        os.close(reader)


def _data_ranges(descriptor: int, size_bytes: int) -> Iterator[tuple[int, int]]:
    position = 0
    while position < size_bytes:
        try:
            start = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:  # ENXIO: only a hole is left
                raise
            return
        position = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, position


def _copy_range(reader: int, writer: int, start: int, end: int) -> None:
    while start < end:
        count = min(end - start, _COPY_BYTES)
        try:
            copied = os.copy_file_range(reader, writer, count, start, start)
        except OSError as error:
            if error.errno not in _NO_REFLINK:
                raise
            copied = os.pwrite(writer, os.pread(reader, min(count, 1 << 20), start), start)
        if not copied:
            return  # the file shrank while it was read
        start += copied


def _copy_metadata(source: bytes, target: bytes, status: os.stat_result) -> None:
    if os.geteuid() == 0:
        os.chown(target, status.st_uid, status.st_gid, follow_symlinks=False)
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(target, stat.S_IMODE(status.st_mode))
    with contextlib.suppress(OSError):
        for name in os.listxattr(source, follow_symlinks=False):
            with contextlib.suppress(OSError):
                os.setxattr(target, name, os.getxattr(source, name, follow_symlinks=False), follow_symlinks=False)
    os.utime(target, ns=(status.st_mtime_ns, status.st_mtime_ns), follow_symlinks=False)


def change_some(root: Path, seed: int) -> list[str]:
    """Change about three per cent of the files below `root`, as a day's work does; the same `seed`, the same changes.

    At least one change of each kind that the tree allows. Returns a line for each change. Raises StorageFull or
    StorageUnavailable when nothing can be written at all.
    """
    work = _DaysWork(os.fsencode(root), random.Random(seed))  # noqa: S311  (to repeat itself is what it is for)
    try:
        work.run()
    except OSError as error:
        raise durable.storage_error(error, f"change files below {root}") from error
    return work.done


class _DaysWork:
    def __init__(self, root: bytes, rng: random.Random) -> None:
        self._root, self._rng = root, rng
        self._directories, self._files = [b""], list[bytes]()
        for directory in self._directories:
            with contextlib.suppress(OSError), os.scandir(os.path.join(root, directory)) as found:
                for entry in sorted(found, key=lambda entry: entry.name):
                    path = os.path.join(directory, entry.name)
                    if entry.is_dir(follow_symlinks=False):
                        self._directories.append(path)
                    elif entry.is_file(follow_symlinks=False):
                        self._files.append(path)
        rng.shuffle(self._files)
        self._total, self._number = len(self._files), 0
        self.done: list[str] = []

    def run(self) -> None:
        on_files = (self._append, self._overwrite, self._truncate, self._chmod, self._rename, self._delete)
        anywhere = (self._new_file, self._new_directory, self._new_symlink)
        wanted = min(_CHANGES_MAX, int(self._total * _SHARE_CHANGED))
        rounds = max(1, wanted // (len(on_files) + len(anywhere)))
        for _ in range(rounds):
            for change in on_files:
                self._on_some_file(change)
            for create in anywhere:
                create()

    def _on_some_file(self, change: Callable[[bytes], str | None]) -> None:
        """Apply `change` to the first file that allows it; that one goes to the end, so others come first next time."""
        for index, path in enumerate(self._files[:100]):
            try:
                words = change(path)
            except PermissionError:
                continue
            if words is not None:
                self.done.append(f"{words}: {display(path)}")
                del self._files[index]
                if words != "delete":
                    self._files.append(self._renamed(path) if words == "rename" else path)
                return

    def _append(self, path: bytes) -> str | None:
        size = self._rng.randrange(1, 20_000)
        self._write(path, os.lstat(os.path.join(self._root, path)).st_size, size)
        return f"append {size} bytes"

    def _overwrite(self, path: bytes) -> str | None:
        length = os.lstat(os.path.join(self._root, path)).st_size
        if not length:
            return None
        size = self._rng.randrange(1, min(length, 8192) + 1)
        self._write(path, (length - size) // 2, size)
        return f"overwrite {size} bytes in the middle"

    def _write(self, path: bytes, offset: int, size: int) -> None:
        descriptor = os.open(os.path.join(self._root, path), os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.pwrite(descriptor, self._rng.randbytes(size), offset)
        finally:
            os.close(descriptor)

    def _truncate(self, path: bytes) -> str | None:
        descriptor = os.open(os.path.join(self._root, path), os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            length = os.fstat(descriptor).st_size
            if not length:
                return None
            os.ftruncate(descriptor, length * 2 // 3)
        finally:
            os.close(descriptor)
        return "truncate"

    def _chmod(self, path: bytes) -> str | None:
        full = os.path.join(self._root, path)
        os.chmod(full, stat.S_IMODE(os.lstat(full).st_mode) ^ 0o011)
        return "chmod"

    def _rename(self, path: bytes) -> str | None:
        target = os.path.join(self._root, self._renamed(path))
        if os.path.lexists(target):
            return None
        os.rename(os.path.join(self._root, path), target)
        return "rename"

    @staticmethod
    def _renamed(path: bytes) -> bytes:
        directory, name = os.path.split(path)
        return os.path.join(directory, name[:200] + b".renamed")

    def _delete(self, path: bytes) -> str | None:
        if len(self._files) < 2:
            return None
        os.unlink(os.path.join(self._root, path))
        return "delete"

    def _new_file(self) -> None:
        path = self._new_path("file")
        descriptor = os.open(os.path.join(self._root, path), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            size = self._rng.randrange(1, 50_000)
            os.write(descriptor, self._rng.randbytes(size))
        finally:
            os.close(descriptor)
        self.done.append(f"new file of {size} bytes: {display(path)}")

    def _new_directory(self) -> None:
        path = self._new_path("directory")
        os.mkdir(os.path.join(self._root, path), 0o755)
        self._directories.append(path)
        self.done.append(f"new directory: {display(path)}")

    def _new_symlink(self) -> None:
        path = self._new_path("link")
        os.symlink(self._new_path("target"), os.path.join(self._root, path))
        self.done.append(f"new symbolic link: {display(path)}")

    def _new_path(self, what: str) -> bytes:
        for directory in [*self._rng.sample(self._directories, min(20, len(self._directories))), b""]:
            if os.access(os.path.join(self._root, directory), os.W_OK | os.X_OK):
                break
        while True:
            self._number += 1
            path = os.path.join(directory, f"new-{what}-{self._number}".encode())
            if not os.path.lexists(os.path.join(self._root, path)):
                return path

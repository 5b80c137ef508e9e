"""The directory a restore writes into: the one place that touches its files.

Invariants: nothing outside the directory is ever created or changed, whatever names and links a repository holds, and
whatever lies in the directory already. Every path is walked from an open descriptor of the root, one component after
the other, following no link; a name has one component. Nothing that exists is ever written into, for it may have
another name outside: it is replaced, in one step, by what was made whole under a temporary name beside it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable
from enum import Enum, StrEnum
from functools import partial
from pathlib import Path

from diskprep import durable
from diskprep.durable import Buffer
from diskprep.errors import DataDamaged, UsageError
from diskprep.repository.tree import Node, NodeType
from diskprep.vault.metadata import Described, Metadata, has_default_acl, shown, umask, write_at

TEMPORARY_PREFIX = b".diskprep-restore-"
_OPEN_DIRECTORIES = 128
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

#: What is wrong with one entry only: its name, or what is there already. Anything else ends a restore.
OF_ONE_ENTRY = (
    errno.EACCES,
    errno.EPERM,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENOTEMPTY,
    errno.ENAMETOOLONG,
    errno.EINVAL,
    errno.EILSEQ,
    errno.EMLINK,
)


class Overwrite(StrEnum):
    """What becomes of an entry that is there already; the words are restic's. `ALWAYS`: it is replaced. `IF_CHANGED`:
    unless type, size and modification time are the recovery point's. `IF_NEWER`: when the recovery point's was modified
    later. `NEVER`: it stays."""

    ALWAYS = "always"
    IF_CHANGED = "if-changed"
    IF_NEWER = "if-newer"
    NEVER = "never"


class Entered(Enum):
    """What became of a directory: made, there already, or its name is another entry's, which stays."""

    MADE = "made"
    THERE = "there"
    KEPT = "kept"


class Target:
    """Directories have numbers, which `place` gives a meaning; 0 is the root. Threads may share it; a forked process or
    a thread of its own work takes a `twin`."""

    def __init__(self, root: Path, *, overwrite: Overwrite | None = None, dry_run: bool = False) -> None:
        """Create `root`, or take an empty directory; with `overwrite` any. `dry_run`: nothing is made or changed.

        Raises UsageError, StorageFull or StorageUnavailable.
        """
        self._root, self._overwrite, self.dry_run = root, overwrite, dry_run
        self._root_fd = -1
        if not dry_run:
            durable.make_directory(root)
        try:
            self._root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            with os.scandir(self._root_fd) as entries:
                empty = next(iter(entries), None) is None
        except FileNotFoundError:
            empty = True
        except OSError as error:
            raise durable.storage_error(error, f"open {root}") from error
        if not empty and overwrite is None:
            os.close(self._root_fd)
            raise UsageError(
                f"{root} is not empty",
                hint="restore into a new directory, or say what becomes of what is there: --overwrite never|if-newer|"
                "if-changed|always; nothing was written",
            )
        self._begin()

    def twin(self) -> Target:
        """The same directory, with descriptors of its own."""
        other = object.__new__(Target)
        other._root, other._overwrite, other.dry_run = self._root, self._overwrite, self.dry_run
        other._root_fd = os.dup(self._root_fd) if self._root_fd >= 0 else -1
        other._begin()
        return other

    def _begin(self) -> None:
        self._places: dict[int, tuple[int, bytes]] = {0: (0, b"")}
        self._open: OrderedDict[int, int] = OrderedDict()
        self._new: set[int] = set() if self._overwrite else {0}  # directories that held nothing before this restore
        self._lock = threading.RLock()
        self._umask = umask()
        self._groups: dict[int, int] = {}
        inherits = self._overwrite is not None or (self._root_fd >= 0 and has_default_acl(self._root_fd))
        self._metadata = Metadata(inherits=inherits)

    @property
    def warnings(self) -> list[str]:
        """Metadata that could not be given."""
        return self._metadata.warnings

    def warn(self, line: str) -> None:
        self._metadata.warn(line)

    def take_warnings(self) -> list[str]:
        """The warnings since the last time."""
        found, self._metadata.warnings = self._metadata.warnings, []
        return found

    def close(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()
        if self._root_fd >= 0:
            os.close(self._root_fd)
            self._root_fd = -1

    # -- directories

    def place(self, number: int, parent: int, name: bytes, *, new: bool = False) -> None:
        """Say which directory has the number. `new`: this restore has made it."""
        self._places[number] = parent, name
        if new or self._overwrite is None:
            self._new.add(number)

    def mark_new(self, directory: int) -> None:
        """This restore has made the directory, or would have."""
        self._new.add(directory)

    def forget_places(self) -> None:
        """Numbers keep their meaning, but have to be told again; for who is told of many directories."""
        self._places = {0: (0, b"")}
        self._groups = {}
        self._new.intersection_update({0})

    def path(self, directory: int, name: bytes = b"") -> str:
        """For messages: the path below the root."""
        parts = [name] if name else []
        while directory:
            directory, part = self._places[directory]
            parts.append(part)
        return shown(b"/".join(reversed(parts)))

    def enter(self, directory: int, mtime: int) -> Entered:
        """Have a directory, whose parent is there; `mtime` is the recovery point's. Raises OSError."""
        with self._lock:
            if directory in self._open:
                return Entered.THERE
            parent, name = self._places[directory]
            if self.dry_run:
                return self._look_into(directory, mtime)
            above = self._descriptor(parent)
            made = self._make(above, name)
            if not made and self._overwrite is not None and not _is_directory(above, name):
                if self._keeps(above, name, stat.S_IFDIR, 0, mtime):
                    return Entered.KEPT
                os.unlink(name, dir_fd=above)
                made = self._make(above, name)
            self._descriptor(directory)  # which refuses what is no directory
            if made:
                self._new.add(directory)
            return Entered.MADE if made else Entered.THERE

    def _make(self, above: int, name: bytes) -> bool:
        try:
            os.mkdir(single(name), 0o700, dir_fd=above)
        except FileExistsError:
            return False
        return True

    def _look_into(self, directory: int, mtime: int) -> Entered:
        parent, name = self._places[directory]
        if parent in self._new or self._root_fd < 0:
            self._new.add(directory)
            return Entered.MADE
        above = self._descriptor(parent)
        status = _status(above, single(name))
        if status is not None and not stat.S_ISDIR(status.st_mode) and self._keeps(above, name, stat.S_IFDIR, 0, mtime):
            return Entered.KEPT
        if status is None or not stat.S_ISDIR(status.st_mode):
            self._new.add(directory)
            return Entered.MADE
        return Entered.THERE

    def finish(self, descriptor: int, node: Described, where: Callable[[], str]) -> None:
        """Give an open file or directory its metadata."""
        self._metadata.finish(descriptor, node, where)

    def finish_directory(self, directory: int, node: Node) -> None:
        """Give a directory its metadata; after everything inside it has its own."""
        with self._lock:
            self.finish(self._descriptor(directory), node, partial(self.path, directory))

    # -- what is in them

    def has(self, directory: int, name: bytes) -> bool:
        """Whether the name is taken."""
        with self._lock:
            return directory not in self._new and _status(self._descriptor(directory), single(name)) is not None

    def keeps(self, directory: int, name: bytes, kind: int, size: int, mtime: int) -> bool:
        """Whether what has the name stays, by the rule; `kind` (of stat.S_IFMT), `size` and `mtime` are the recovery
        point's. False when nothing has it."""
        with self._lock:
            if directory in self._new:
                return False
            return self._keeps(self._descriptor(directory), single(name), kind, size, mtime)

    def _keeps(self, above: int, name: bytes, kind: int, size: int, mtime: int) -> bool:
        status = _status(above, name)
        if status is None or self._overwrite is None:
            return False
        if self._overwrite is Overwrite.IF_CHANGED:
            same_size = kind != stat.S_IFREG or status.st_size == size
            return stat.S_IFMT(status.st_mode) == kind and same_size and status.st_mtime_ns == mtime
        if self._overwrite is Overwrite.IF_NEWER:
            return status.st_mtime_ns >= mtime
        return self._overwrite is Overwrite.NEVER

    def spot(self, directory: int, name: bytes) -> bytes:
        """The name to make an entry under: its own, or a temporary one where something has that. Then `settle`."""
        if directory in self._new or not self.has(directory, name):
            return single(name)
        return TEMPORARY_PREFIX + os.urandom(8).hex().encode()

    def settle(self, directory: int, spot: bytes, name: bytes) -> None:
        """What was made at `spot` takes its name, and the place of what has it. Raises OSError when that is a directory
        with something in it; then nothing remains at `spot`."""
        if spot == name:
            return
        with self._lock:
            above = self._descriptor(directory)
            try:
                if _is_directory(above, name):
                    os.rmdir(name, dir_fd=above)
                os.rename(spot, name, src_dir_fd=above, dst_dir_fd=above)
            finally:  # a rename of one link of a file to another does nothing
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(spot, dir_fd=above)

    def create(self, directory: int, spot: bytes) -> int:
        """A descriptor of a new, empty file. Raises FileExistsError where there is one."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with self._lock:
            return os.open(single(spot), flags, 0o600, dir_fd=self._descriptor(directory))

    def is_new(self, directory: int) -> bool:
        """Whether this restore has made the directory, so that nothing can be in the way there."""
        return directory in self._new

    def make_small(self, directory: int, name: bytes, data: Buffer, node: Described) -> None:
        """A whole file without attributes, in a new directory; the usual one costs four calls. Raises OSError."""
        mode = node.unix_mode & 0o777
        exact = not (mode & self._umask or self._metadata.inherits)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(single(name), flags, mode if exact else 0o600, dir_fd=self._descriptor(directory))
        try:
            done = os.write(descriptor, data) if data else 0
            if done != len(data):
                write_at(descriptor, memoryview(data)[done:], done)
            if exact and self._creates_as(directory, node.uid, node.gid):
                os.utime(descriptor, ns=(node.atime, node.mtime))
            else:
                self.finish(descriptor, node, partial(self.path, directory, name))
        except BaseException:
            self.remove(directory, name)
            raise
        finally:
            os.close(descriptor)

    def _creates_as(self, directory: int, uid: int, gid: int) -> bool:
        """Whether a new file in the directory has this owner by itself, or we could not change it."""
        if not self._metadata.is_root:
            return True
        group = self._groups.get(directory)
        if group is None:
            status = os.fstat(self._descriptor(directory))
            # Those of a directory of another group may inherit it.
            group = self._groups[directory] = -1 if status.st_gid != os.getegid() else status.st_gid
        return uid == 0 and gid == group

    def reopen(self, directory: int, spot: bytes) -> int:
        """A descriptor to write to a file that `create` made."""
        with self._lock:
            return os.open(single(spot), os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._descriptor(directory))

    def read_back(self, directory: int, name: bytes) -> int:
        """A descriptor to read a file from."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with self._lock:
            return os.open(single(name), flags, dir_fd=self._descriptor(directory))

    def look(self, directory: int, name: bytes) -> tuple[os.stat_result, bytes] | None:
        """Status of an entry, and where it points if it is a symbolic link; None when there is none."""
        with self._lock:
            above = self._descriptor(directory)
            status = _status(above, single(name))
            if status is None:
                return None
            return status, os.readlink(name, dir_fd=above) if stat.S_ISLNK(status.st_mode) else b""

    def remove(self, directory: int, spot: bytes) -> None:
        with self._lock, contextlib.suppress(FileNotFoundError):
            os.unlink(single(spot), dir_fd=self._descriptor(directory))

    def link(self, origin: tuple[int, bytes], directory: int, name: bytes) -> None:
        """A hard link to an entry that was made before."""
        with self._lock:
            spot = self.spot(directory, name)
            source = os.dup(self._descriptor(origin[0]))
            try:
                os.link(
                    single(origin[1]),
                    spot,
                    src_dir_fd=source,
                    dst_dir_fd=self._descriptor(directory),
                    follow_symlinks=False,
                )
            finally:
                os.close(source)
            self.settle(directory, spot, name)

    def make_special(self, directory: int, node: Node) -> None:
        """A symbolic link, fifo or device with all its metadata."""
        with self._lock:
            name = self.spot(directory, node.name)
            parent = self._descriptor(directory)
            where = partial(self.path, directory, node.name)
            if node.type is NodeType.SYMLINK:
                os.symlink(node.linktarget, name, dir_fd=parent)
            else:
                mode = stat.S_IFMT(node.unix_mode) | 0o600
                if not self._metadata.attempt(where, lambda: os.mknod(name, mode, node.device, dir_fd=parent)):
                    return
            handle = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            try:
                if self._metadata.is_root:
                    self._metadata.attempt(
                        where, lambda: os.chown(name, node.uid, node.gid, dir_fd=parent, follow_symlinks=False)
                    )
                if self._metadata.inherits and node.type is not NodeType.SYMLINK:
                    self._metadata.drop_inherited(f"/proc/self/fd/{parent}/".encode() + name, node)
                if node.type is not NodeType.SYMLINK:  # through the handle: it cannot be another entry by now
                    self._metadata.attempt(
                        where, lambda: Path(f"/proc/self/fd/{handle}").chmod(stat.S_IMODE(node.unix_mode))
                    )
                self._metadata.set_xattrs(f"/proc/self/fd/{parent}/".encode() + name, node, where)
                times = (node.atime, node.mtime)
                self._metadata.attempt(where, lambda: os.utime(name, ns=times, dir_fd=parent, follow_symlinks=False))
            finally:
                os.close(handle)
            self.settle(directory, name, node.name)

    def _descriptor(self, directory: int) -> int:
        """An open descriptor of a directory, valid while the lock is held."""
        if directory in self._open:
            self._open.move_to_end(directory)
            return self._open[directory]
        if not directory:
            return self._root_fd
        chain = []
        while directory and directory not in self._open:
            chain.append(directory)
            directory = self._places[directory][0]
        descriptor = self._open[directory] if directory else self._root_fd
        for step in reversed(chain):
            descriptor = os.open(single(self._places[step][1]), _DIRECTORY, dir_fd=descriptor)
            self._open[step] = descriptor
            if len(self._open) > _OPEN_DIRECTORIES:
                os.close(self._open.popitem(last=False)[1])
        return descriptor


def single(name: bytes) -> bytes:
    """`name`, when it is one component of a path. Raises DataDamaged."""
    if not name or b"/" in name or b"\0" in name or name in (b".", b".."):
        raise DataDamaged(f"a directory of the repository has an entry with the name {name!r}; nothing was made of it")
    return name


def _status(above: int, name: bytes) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=above, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _is_directory(above: int, name: bytes) -> bool:
    status = _status(above, name)
    return status is not None and stat.S_ISDIR(status.st_mode)

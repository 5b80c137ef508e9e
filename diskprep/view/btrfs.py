"""btrfs: a read-only snapshot of every subvolume that holds source data, through the kernel's own calls.

A nested subvolume is an empty directory in the snapshot of the one around it, so it gets a snapshot too, which is laid
over that directory. Snapshots are made in the top-level subvolume, mounted privately: there every subvolume has one
path, and no source's directory changes, unless the top level is the source itself. It is then the first to be taken, so
that the others do not show up in it.

No call takes snapshots of several subvolumes at once, and a frozen btrfs takes none: each is of a moment of its own.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from diskprep.durable import storage_error
from diskprep.errors import DiskprepError
from diskprep.source import display
from diskprep.view import owner
from diskprep.view.model import Place, Setting, Shown, is_directory, join
from diskprep.view.mounts import inside, mount_id, read_mounts, relative

# linux/btrfs.h, as most processors encode the direction of a call
_SNAP_DESTROY = 0x5000940F
_SNAP_CREATE_V2 = 0x50009417
_TREE_SEARCH = 0xD0009411
_INO_LOOKUP = 0xD0009412
_ARGUMENT_BYTES = 4096
_READ_ONLY = 1 << 1
_ROOT_TREE = 1
_ROOT_REF = 156
_FIRST_INODE = 256
_KEY = struct.Struct("<7Q4L4Q")
_ITEM = struct.Struct("<3Q2L")
_REF = struct.Struct("<2QH")
_NO_LIMIT = 2**64 - 1
_TOP_OPTIONS = "subvolid=5,nodev,nosuid,noexec,noatime"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True, kw_only=True)
class Subvolume:
    """A subvolume to be taken. `path`: from the top level; `root`: the same in the private mount."""

    number: str
    tree: int
    path: bytes
    root: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """At `at` of a place: the entry `rest` of a subvolume."""

    place: Place
    at: bytes
    subvolume: Subvolume
    rest: bytes


class BtrfsSnapshots:
    """Snapshots of all subvolumes behind some places."""

    def __init__(self, places: Sequence[Place], setting: Setting) -> None:
        self._places, self._setting = places, setting
        self._tops: dict[str, bytes] = {}
        self._parts: list[_Part] = []
        self._names: dict[tuple[str, int], bytes] = {}

    @property
    def count(self) -> int:
        return len({(part.subvolume.number, part.subvolume.tree) for part in self._parts})

    @property
    def one_moment(self) -> bool:
        return self.count == 1

    def prepare(self) -> None:
        with _Translation("look at the subvolumes"):
            for place in self._places:
                self._parts += self._parts_of(place, self._top(place))

    def take(self) -> None:
        wanted = {(part.subvolume.number, part.subvolume.tree): part.subvolume for part in self._parts}
        for number, (key, subvolume) in enumerate(sorted(wanted.items())):
            name = os.fsencode(f"{self._setting.token}-{number}")
            with _Translation(f"take a snapshot of the subvolume {display(subvolume.path)}"):
                self._create(self._tops[subvolume.number], name, subvolume.root)
            self._names[key] = name

    def show(self) -> list[Shown]:
        found = []
        for part in self._parts:
            key = (part.subvolume.number, part.subvolume.tree)
            location = join(self._tops[part.subvolume.number], self._names[key], part.rest)
            found.append(Shown(place=part.place, at=part.at, location=location))
        return found

    def check(self) -> None:
        """A btrfs snapshot lasts until it is deleted."""

    def _top(self, place: Place) -> bytes:
        """The private mount of the top-level subvolume of the place's file system, free of dead runs' snapshots."""
        number = place.mount.number
        if number not in self._tops:
            name = f"btrfs-{len(self._tops)}"
            device = place.mount.device
            self._tops[number] = self._setting.room.mount(
                name, fstype="btrfs", device=device, options=_TOP_OPTIONS, lasting=True
            )
            _clear(self._tops[number], self._setting)
        return self._tops[number]

    def _create(self, top: bytes, name: bytes, root: bytes) -> None:
        """Take it; its removal is entered before, for the call may have done its work when it is broken into."""
        self._setting.cleanup.callback(_destroy_if_there, top, name)
        with _opened(top) as folder, _opened(root) as origin:
            argument = struct.pack("<qQQ4Q", origin, 0, _READ_ONLY, 0, 0, 0, 0) + name
            fcntl.ioctl(folder, _SNAP_CREATE_V2, bytearray(argument.ljust(_ARGUMENT_BYTES, b"\0")))

    def _parts_of(self, place: Place, top: bytes) -> Iterator[_Part]:
        """The subvolume that holds `place.at`, and those nested below it."""
        inner = place.inner
        path = join(top, inner)
        if is_directory(path):
            folder, name = path, b""
        else:
            folder, name = os.path.split(path)
        with _opened(folder) as descriptor:
            tree = _tree_of(descriptor)
            rest = join(b"/", _path_of(descriptor, tree, os.fstat(descriptor).st_ino), name)
        own = inner if rest == b"/" else inner.removesuffix(rest) or b"/"
        subvolume = Subvolume(number=place.mount.number, tree=tree, path=own, root=join(top, own))
        yield _Part(place=place, at=place.at, subvolume=subvolume, rest=rest)
        if not name and not place.one_file_system:
            yield from self._nested(place, top, subvolume, rest, place.at)

    def _nested(self, place: Place, top: bytes, around: Subvolume, rest: bytes, at: bytes) -> Iterator[_Part]:
        """Subvolumes below the directory `rest` of `around`, which is seen at `at`."""
        with _opened(around.root) as descriptor:
            children = list(_children(descriptor, around.tree))
        for tree, where in sorted(children, key=lambda child: child[1]):
            if not inside(where, rest):
                continue
            seen = join(at, relative(where, rest))
            name = os.path.basename(where)  # noqa: PTH119  bytes
            # Where something is mounted over it, the mount is a place of its own.
            if place.is_excluded(seen) or owner.is_ours(os.fsdecode(name)) or mount_id(seen) != place.mount.id:
                continue
            path = join(around.path, where)
            child = Subvolume(number=around.number, tree=tree, path=path, root=join(top, path))
            yield _Part(place=place, at=seen, subvolume=child, rest=b"/")
            yield from self._nested(place, top, child, b"/", seen)


def leftovers(top: bytes) -> list[bytes]:
    """Names of dead runs' snapshots in a top-level subvolume."""
    with _Translation("list the top-level subvolume"):
        names = os.listdir(top)  # noqa: PTH208  bytes
    return sorted(name for name in names if owner.is_dead(os.fsdecode(name)))


def clear_room(room: bytes, setting: Setting) -> None:
    """Delete dead runs' snapshots through what a dead run has mounted in its room: perhaps no source of this run is on
    those file systems."""
    for mount in read_mounts().values():
        if mount.fstype == "btrfs" and mount.root == b"/" and os.path.dirname(mount.point) == room:  # noqa: PTH120
            _clear(mount.point, setting)


def _clear(top: bytes, setting: Setting) -> None:
    with contextlib.suppress(DiskprepError):
        for name in leftovers(top):
            setting.clear(display(name), partial(destroy, top, name))


def destroy(top: bytes, name: bytes) -> None:
    """Delete the snapshot `name` in `top`. Raises DiskprepError."""
    with _Translation(f"delete the snapshot {display(name)}"), _opened(top) as folder:
        argument = struct.pack("<q", 0) + name
        fcntl.ioctl(folder, _SNAP_DESTROY, bytearray(argument.ljust(_ARGUMENT_BYTES, b"\0")))


def _destroy_if_there(top: bytes, name: bytes) -> None:
    if is_directory(join(top, name)):
        destroy(top, name)


def _tree_of(descriptor: int) -> int:
    """The id of the subvolume that an open directory is in."""
    argument = bytearray(struct.pack("<2Q", 0, _FIRST_INODE).ljust(_ARGUMENT_BYTES, b"\0"))
    fcntl.ioctl(descriptor, _INO_LOOKUP, argument)
    return int(struct.unpack_from("<Q", argument)[0])


def _path_of(descriptor: int, tree: int, inode: int) -> bytes:
    """The path of a directory from the root of its subvolume; empty for that root."""
    argument = bytearray(struct.pack("<2Q", tree, inode).ljust(_ARGUMENT_BYTES, b"\0"))
    fcntl.ioctl(descriptor, _INO_LOOKUP, argument)
    return bytes(argument[16:]).partition(b"\0")[0].rstrip(b"/")


def _children(descriptor: int, parent: int) -> Iterator[tuple[int, bytes]]:
    """The subvolumes directly in subvolume `parent`: id, and path from its root."""
    start = 0
    while True:
        key = (_ROOT_TREE, parent, parent, start, _NO_LIMIT, 0, _NO_LIMIT, _ROOT_REF, _ROOT_REF, 64, 0, 0, 0, 0, 0)
        argument = bytearray(_KEY.pack(*key).ljust(_ARGUMENT_BYTES, b"\0"))
        fcntl.ioctl(descriptor, _TREE_SEARCH, argument)
        count = _KEY.unpack_from(argument)[9]
        if not count:
            return
        position = _KEY.size
        for _ in range(count):
            _, objectid, offset, kind, length = _ITEM.unpack_from(argument, position)
            position += _ITEM.size
            if (objectid, kind) == (parent, _ROOT_REF):
                folder, _, name_bytes = _REF.unpack_from(argument, position)
                begin = position + _REF.size
                name = bytes(argument[begin : begin + name_bytes])
                yield offset, join(b"/", _path_of(descriptor, parent, folder), name)
            position += length
            start = offset + 1


@contextlib.contextmanager
def _opened(path: bytes) -> Iterator[int]:
    descriptor = os.open(path, _FOLDER)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


class _Translation:
    """Turns OSError into one of ours; `doing` completes the sentence "cannot ..."."""

    def __init__(self, doing: str) -> None:
        self._doing = doing

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise _translated(error, self._doing) from error


def _translated(error: OSError, doing: str) -> DiskprepError:
    found = storage_error(error, doing)
    if error.errno in (errno.EPERM, errno.EACCES):
        found.hint = "run as root, or use --snapshot none"
    return found

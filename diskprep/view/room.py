"""Room: the private directory of one run in which its view is put together.

A small tmpfs of its own, named with the run's token and private to propagation: what is mounted in it is seen in no
other namespace, is recognized when its owner is dead, and goes with one recursive umount.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from diskprep import clock, durable, process
from diskprep.errors import DiskprepError, StorageUnavailable
from diskprep.view import owner
from diskprep.view.mounts import inside, read_mounts

_TRIES = 5
_WAIT_S = 0.3


def run_directory() -> Path:
    """Where rooms are made: below /run, else below the directory for temporary files."""
    if os.access("/run", os.W_OK):
        return Path("/run/diskprep")
    return Path(tempfile.gettempdir()) / f"diskprep-{os.geteuid()}"


class Room:
    """Open from `open` to `close`."""

    def __init__(self, token: str, parent: Path) -> None:
        self.path = os.fsencode(parent / token)
        self._token = token
        self._lasting: set[bytes] = set()

    def open(self) -> None:
        """Make the directory. Raises StorageUnavailable when its parent is not ours alone, and what mount says."""
        parent = Path(os.fsdecode(self.path)).parent
        durable.make_directory(parent)
        try:
            status = parent.lstat()
            if status.st_uid != os.geteuid() or not stat.S_ISDIR(status.st_mode) or status.st_mode & 0o022:
                raise StorageUnavailable(
                    f"{parent} can be written by others", hint=f"remove it, or: chown root {parent}; chmod 700 {parent}"
                )
            os.mkdir(self.path, 0o700)  # noqa: PTH102  bytes
        except OSError as error:
            raise durable.storage_error(error, f"create a directory in {parent}") from error
        _mount("--types", "tmpfs", "--options", "mode=0700,size=4m,nodev,nosuid,noexec", self._token, self.path)
        run_apart("mount", "--make-private", self.path)

    def mount(self, name: str, *, fstype: str, device: bytes, options: str, lasting: bool = False) -> bytes:
        """Mount a file system below the room; returns the mount point. `lasting`: until `close`, not `clear`."""
        point = self._directory(name)
        if lasting:
            self._lasting.add(point)
        _mount("--types", fstype, "--options", options, device, point)
        return point

    def bind_source(self, number: int, location: bytes) -> bytes:
        """A place at which the directory `location` is shown, and over which others can be laid."""
        point = self._directory(f"source-{number}")
        _mount("--bind", location, point)
        return point

    def lay(self, location: bytes, point: bytes) -> None:
        """Show `location` at `point`, which lies in this room."""
        assert inside(point, self.path)
        _mount("--bind", location, point)

    def clear(self) -> None:
        """Unmount what uses the snapshots, sources before that which they show. Raises DiskprepError."""
        points = [m.point for m in read_mounts().values() if os.path.dirname(m.point) == self.path]  # noqa: PTH120
        for point in reversed(points):
            if point not in self._lasting:
                unmount(point)

    def close(self) -> None:
        """Unmount everything and remove the directory; nothing happens when there is none. Raises DiskprepError."""
        close_room(self.path)

    def _directory(self, name: str) -> bytes:
        point = self.path + b"/" + os.fsencode(name)
        try:
            os.mkdir(point, 0o700)  # noqa: PTH102  bytes
        except OSError as error:
            raise durable.storage_error(error, f"create {os.fsdecode(point)}") from error
        return point


def dead_rooms(parent: Path) -> list[bytes]:
    """Rooms whose owners are gone: those that are mounted anywhere, and empty directories in `parent`."""
    mounts = read_mounts().values()
    mounted = {m.point for m in mounts if m.fstype == "tmpfs" and owner.is_dead(os.fsdecode(m.device))}
    try:
        empty = {os.fsencode(path) for path in parent.iterdir() if owner.is_dead(path.name)}
    except OSError:
        empty = set()
    return sorted(mounted | empty)


def close_room(path: bytes) -> None:
    """Unmount everything at and below `path`, and remove the empty directory. Raises DiskprepError."""
    unmount(path)
    try:
        os.rmdir(path)  # noqa: PTH106  bytes
    except FileNotFoundError:
        pass
    except OSError as error:
        raise durable.storage_error(error, f"remove {os.fsdecode(path)}") from error


def unmount(path: bytes) -> None:
    """Unmount what is mounted at and below `path`. What stays busy is detached: it goes when its last user does."""
    for attempt in range(_TRIES + 1):
        if not any(inside(mount.point, path) for mount in read_mounts().values()):
            return
        try:
            run_apart("umount", "--recursive", *(["--lazy"] if attempt == _TRIES else []), path)
        except DiskprepError:
            if attempt == _TRIES:
                raise
            clock.sleep(_WAIT_S)


def run_apart(*argv: str | bytes) -> str:
    """Run a program that Ctrl-C at the terminal does not reach: half of what it does would stay."""
    return process.run([os.fsdecode(part) for part in argv], own_session=True)


def _mount(*argv: str | bytes) -> None:
    run_apart("mount", *argv)

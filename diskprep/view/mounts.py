"""Mounts: what the kernel says is mounted where (/proc/self/mountinfo), and on which mount a path lies.

Paths are bytes. A mount below a later one is hidden; only asking for the mount of an opened path tells.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from diskprep.durable import storage_error
from diskprep.errors import DiskprepError, StorageUnavailable

_ESCAPE = re.compile(rb"\\([0-7]{3})")
_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC

#: File systems that are the kernel's memory or a window into it: there is nothing on a disk to take a snapshot of.
IN_MEMORY = frozenset(
    (
        *("autofs", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts", "devtmpfs", "efivarfs"),
        *("fusectl", "hugetlbfs", "mqueue", "nfsd", "nsfs", "proc", "pstore", "ramfs", "rpc_pipefs", "securityfs"),
        *("selinuxfs", "sockfs", "sysfs", "tmpfs", "tracefs"),
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A line of mountinfo. `number`: the file system's device as major:minor; `root`: the directory of it that is
    mounted; `read_only`: the file system itself, not just this mount of it."""

    id: int
    number: str
    root: bytes
    point: bytes
    fstype: str
    device: bytes
    read_only: bool

    @property
    def is_in_memory(self) -> bool:
        return self.fstype in IN_MEMORY

    @property
    def is_fixed(self) -> bool:
        """Nobody can write to it: a snapshot would show nothing else."""
        return self.read_only and self.device.startswith(b"/dev/")


def parse_mountinfo(text: bytes) -> tuple[Mount, ...]:
    """The mounts in the kernel's order. Lines that are cut short are left out."""
    found = []
    for line in text.split(b"\n"):
        fields = line.split(b" ")
        with contextlib.suppress(ValueError, IndexError):
            end = fields.index(b"-", 6)
            found.append(
                Mount(
                    id=int(fields[0]),
                    number=fields[2].decode("ascii"),
                    root=_unescape(fields[3]),
                    point=_unescape(fields[4]),
                    fstype=fields[end + 1].decode("ascii", "replace"),
                    device=_unescape(fields[end + 2]),
                    read_only=b"ro" in fields[end + 3].split(b","),
                )
            )
    return tuple(found)


def read_mounts() -> dict[int, Mount]:
    """All mounts this process sees, by id. Raises StorageUnavailable."""
    try:
        text = Path("/proc/self/mountinfo").read_bytes()
    except OSError as error:
        raise storage_error(error, "read /proc/self/mountinfo") from error
    return {mount.id: mount for mount in parse_mountinfo(text)}


def mount_id(path: bytes) -> int | None:
    """The mount on which `path` itself lies; None when it cannot be reached."""
    try:
        descriptor = os.open(path, _LOOK)
    except OSError:
        return None
    try:
        return descriptor_mount_id(descriptor)
    finally:
        os.close(descriptor)


def descriptor_mount_id(descriptor: int) -> int | None:
    """The mount of an open file; None when it is on none, or closed."""
    try:
        text = Path(f"/proc/self/fdinfo/{descriptor}").read_bytes()
    except OSError:
        return None
    match = re.search(rb"^mnt_id:\s*(\d+)$", text, re.MULTILINE)
    return int(match[1]) if match else None


def mount_of(path: bytes, mounts: dict[int, Mount]) -> Mount:
    """The mount on which `path` lies. Raises NotFound or StorageUnavailable."""
    number = mount_id(path)
    if number is None or number not in mounts:
        raise _unreachable(path)
    return mounts[number]


def resolve(path: bytes) -> bytes:
    """`path` without symlinks on the way to it; what lies there may be one."""
    folder, name = os.path.split(path)
    return os.path.join(os.path.realpath(folder), name) if name else folder  # noqa: PTH118  bytes


def inside(path: bytes, folder: bytes) -> bool:
    """Whether `path` is `folder` or lies below it."""
    return path == folder or path.startswith(folder.rstrip(b"/") + b"/")


def relative(path: bytes, folder: bytes) -> bytes:
    """`path`, which is inside `folder`, from there; empty when it is the folder."""
    return path[len(folder.rstrip(b"/")) :].strip(b"/")


def _unescape(field: bytes) -> bytes:
    """The kernel writes blanks, newlines and backslashes as three octal digits."""
    return _ESCAPE.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), field)


def _unreachable(path: bytes) -> DiskprepError:
    try:
        os.lstat(path)
    except OSError as error:
        return storage_error(error, f"read {os.fsdecode(path)!r}")
    return StorageUnavailable(f"cannot tell which file system {os.fsdecode(path)!r} is on")

"""What a restored entry gets besides its content: owner, attributes, mode and times; and how content is written.

Metadata that the file system or our rights do not allow are told as warnings, and do not end a restore.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from diskprep.durable import Buffer

SPARSE_BYTES = 64 << 10  # shorter runs of zeros are written
_ZEROS = bytes(SPARSE_BYTES)
_WARNINGS_MAX = 1000
_ACCESS_ACL, _DEFAULT_ACL = b"system.posix_acl_access", b"system.posix_acl_default"


class Described(Protocol):
    """What is asked of an entry's metadata. `unix_mode`: permission, set-id and sticky bits at least."""

    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...
    @property
    def unix_mode(self) -> int: ...
    @property
    def mtime(self) -> int: ...
    @property
    def atime(self) -> int: ...
    @property
    def xattrs(self) -> tuple[tuple[bytes, bytes], ...]: ...


class Metadata:
    """`inherits`: what is made gets ACLs from the directory it is in, though the recovery point may have none."""

    def __init__(self, *, inherits: bool) -> None:
        self.inherits = inherits
        self.is_root = os.geteuid() == 0
        self.warnings: list[str] = []

    def finish(self, descriptor: int, node: Described, where: Callable[[], str]) -> None:
        """Give an open file or directory its owner, attributes, mode and times, in the order in which they last."""
        if self.inherits:
            self.drop_inherited(descriptor, node)
        if node.xattrs:  # needs the right to write, which the mode may take
            self.set_xattrs(descriptor, node, where, user=True)
        try:
            if self.is_root:
                os.fchown(descriptor, node.uid, node.gid)
            os.fchmod(descriptor, node.unix_mode & 0o7777)
            if node.xattrs:  # a change of owner would drop capabilities
                self.set_xattrs(descriptor, node, where, user=False)
            os.utime(descriptor, ns=(node.atime, node.mtime))
        except (OSError, OverflowError):  # again, step by step
            if self.is_root:
                self.attempt(where, lambda: os.fchown(descriptor, node.uid, node.gid))
            self.attempt(where, lambda: os.fchmod(descriptor, node.unix_mode & 0o7777))
            self.set_xattrs(descriptor, node, where, user=False)
            self.attempt(where, lambda: os.utime(descriptor, ns=(node.atime, node.mtime)))

    def warn(self, line: str) -> None:
        if len(self.warnings) < _WARNINGS_MAX:
            self.warnings.append(line)

    def drop_inherited(self, entry: int | bytes, node: Described) -> None:
        kept = {name for name, _ in node.xattrs}
        for name in (_ACCESS_ACL, _DEFAULT_ACL):
            if name not in kept:
                with contextlib.suppress(OSError):
                    if isinstance(entry, int):
                        os.removexattr(entry, name)
                    else:
                        os.removexattr(entry, name, follow_symlinks=False)

    def set_xattrs(
        self, entry: int | bytes, node: Described, where: Callable[[], str], *, user: bool | None = None
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
            except (OSError, ValueError) as error:
                self.warn(f"{where()}: attribute {shown(name)}: {getattr(error, 'strerror', None) or error}")

    def attempt(self, where: Callable[[], str], change: Callable[[], None]) -> bool:
        """Metadata that the file system or our rights do not allow are told, and do not end a restore."""
        try:
            change()
        except (OSError, OverflowError) as error:
            self.warn(f"{where()}: {getattr(error, 'strerror', None) or error}")
            return False
        return True


def has_default_acl(directory: int) -> bool:
    """Whether what is made in an open directory inherits an ACL."""
    try:
        return _DEFAULT_ACL in map(os.fsencode, os.listxattr(directory))
    except OSError:
        return False


def umask() -> int:
    """This process's umask, which the kernel tells elsewhere than by setting it; all bits when it does not."""
    with contextlib.suppress(OSError, ValueError), Path("/proc/self/status").open() as status:
        for line in status:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    return 0o777


def write_sparse(descriptor: int, data: Buffer, offset: int) -> bool:
    """Write `data` at `offset`, but leave long runs of zeros out; True when something was left out."""
    if len(data) < len(_ZEROS):
        write_at(descriptor, memoryview(data), offset)
        return False
    step = len(_ZEROS)
    view = memoryview(data)
    begin = position = 0
    holes = False
    while position + step <= len(data):
        if not view[position] and not view[position + step - 1] and bytes(view[position : position + step]) == _ZEROS:
            write_at(descriptor, view[begin:position], offset + begin)
            begin = position + step
            holes = True
        position += step
    write_at(descriptor, view[begin:], offset + begin)
    return holes


def write_at(descriptor: int, view: memoryview, offset: int) -> None:
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count


def shown(path: bytes) -> str:
    """`path` for a person: bytes that are not text or not printable are escaped."""
    text = os.fsdecode(path) or "."
    return text if text.isprintable() else ascii(text)[1:-1]

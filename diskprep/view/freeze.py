"""Freezing: file systems that stand still, so that nobody can write to them until they are thawed.

Whoever writes to a frozen file system waits, and this process must never be among them. So nothing is frozen that it
may write to: the root, temporary files, its own program, what its caller names, what its open descriptors point to, and
whatever of these lies on a loop device whose file is on the frozen one. The watchdog freezes and thaws; this process
keeps descriptors of its own and thaws when the watchdog was killed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import site
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from diskprep import process
from diskprep.durable import storage_error
from diskprep.errors import DiskprepError, Locked, StorageUnavailable, UsageError
from diskprep.source import display
from diskprep.view import watchdog
from diskprep.view.mounts import Mount, descriptor_mount_id, mount_id, read_mounts

_FREEZE_TIMEOUT_S = 120.0
_THAW_TIMEOUT_S = 30.0
_FLUSH_TIMEOUT_S = 3600.0
_SYS_DEV = Path("/sys/dev/block")


class Frozen:
    """File systems that stand still. `lasted` is True until the watchdog thawed them by itself."""

    def __init__(self, companion: process.Companion) -> None:
        self._companion = companion
        self.lasted = True
        self.ended = False

    def thaw(self) -> bool:
        """Ask the watchdog to thaw, and wait for it. Returns whether it did."""
        self._companion.tell("thaw")
        line = self._companion.line(_THAW_TIMEOUT_S)
        while line == "frozen":
            line = self._companion.line(_THAW_TIMEOUT_S)
        self.ended = line is not None and line.startswith(("thawed", "failed"))
        self.lasted = line == "thawed asked"
        return self.ended


@contextmanager
def frozen(points: Sequence[bytes], *, limit_s: float) -> Iterator[Frozen]:
    """Freeze the file systems that hold `points`, one point each, in this order; thaw them at the end, or after
    `limit_s` seconds. Nothing is checked: see `refuse`.

    Raises UsageError when a file system cannot be frozen, Locked when it already is, StorageUnavailable when freezing
    takes too long.
    """
    for point in points:  # what is already on the disk need not be written while everybody waits
        process.run(["sync", "--file-system", os.fsdecode(point)], timeout_s=_FLUSH_TIMEOUT_S)
    descriptors: list[int] = []
    try:
        for point in points:
            descriptors.append(_open(point))  # noqa: PERF401  those that were opened are closed when one cannot be
        arguments = [str(os.getpid()), str(limit_s), *map(str, descriptors)]
        program = [sys.executable, "-I", "-S", "-B", os.path.abspath(watchdog.__file__)]  # noqa: PTH100
        companion = process.Companion([*program, *arguments], pass_fds=descriptors)
        held = Frozen(companion)
        announced = 0
        try:
            for point in points:
                line = companion.line(_FREEZE_TIMEOUT_S)
                if line != "frozen":
                    held.ended = line is not None and line.startswith("failed")  # what it had frozen, it thawed
                    raise _failure(point, line)
                announced += 1
            yield held
        finally:
            if not held.ended and not held.thaw():
                held.lasted = False
                _thaw(descriptors[: announced + 1])
            companion.end(_THAW_TIMEOUT_S)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def refuse(frozen_mounts: Sequence[Mount], writes_to: Sequence[bytes]) -> None:
    """Raise UsageError when freezing these would make this process wait for itself. `writes_to`: absolute paths,
    existing or not."""
    mounts = read_mounts()
    numbers = {mount.number: mount for mount in frozen_mounts}
    for why, needed in _needed(mounts, writes_to):
        for number in [needed, *_below(needed, mounts)]:
            if number in numbers:
                raise UsageError(
                    f"the file system at {display(numbers[number].point)} cannot be frozen: {why} is on it",
                    hint="use another kind of --snapshot, or keep this on another file system",
                )


def freezing_order(frozen_mounts: Sequence[Mount]) -> list[Mount]:
    """One mount a file system; those whose blocks are in files of others first, for freezing writes them out."""
    mounts = read_mounts()
    single = list({mount.number: mount for mount in frozen_mounts}.values())
    return sorted(single, key=lambda mount: -len(_below(mount.number, mounts)))


def _failure(point: bytes, line: str | None) -> DiskprepError:
    where = f"the file system at {display(point)}"
    if not line:
        return StorageUnavailable(f"{where} did not stand still within {_FREEZE_TIMEOUT_S:.0f} s")
    code = int(line.split()[-1]) if line.startswith("failed") else errno.EIO
    if code == errno.EBUSY:
        return Locked(f"{where} is already frozen", hint=f"wait, or thaw it: fsfreeze -u {display(point)}")
    if code == errno.EOPNOTSUPP:
        return UsageError(f"{where} cannot be frozen: its kind does not allow it", hint="use --snapshot none")
    if code == errno.EPERM:
        return UsageError("freezing a file system needs root", hint="run as root, or use --snapshot none")
    return StorageUnavailable(f"{where} cannot be frozen: {os.strerror(code)}")


def _thaw(descriptors: Sequence[int]) -> None:
    """Thaw what a watchdog that was killed had frozen."""
    for descriptor in reversed(descriptors):
        with contextlib.suppress(OSError):
            fcntl.ioctl(descriptor, watchdog.THAW, 0)


def _open(point: bytes) -> int:
    try:
        return os.open(point, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise storage_error(error, f"open {display(point)}") from error


def _needed(mounts: dict[int, Mount], writes_to: Sequence[bytes]) -> Iterator[tuple[str, str]]:
    """What this process may write to, and the number of the file system that it is on."""
    places = [("the system", b"/"), ("the directory for temporary files", os.fsencode(tempfile.gettempdir()))]
    places += [("the run directory", b"/run"), ("the directory for temporary files", b"/var/tmp")]
    own = (sys.prefix, str(Path(__file__).parent), site.getuserbase(), str(Path.home() / ".cache"))
    places += [("diskprep itself", os.fsencode(path)) for path in own]
    places += [(f"{display(path)}, which is written to,", path) for path in writes_to]
    for why, path in places:
        number = mount_id(_existing(path))
        if number in mounts:
            yield why, mounts[number].number
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if fcntl.fcntl(int(link.name), fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY:
                number = descriptor_mount_id(int(link.name))
                if number in mounts:
                    yield (
                        f"a file that is open for writing, {link.readlink()},",
                        mounts[number].number,
                    )


def _existing(path: bytes) -> bytes:
    """`path` without symlinks, or what there is on the way to it."""
    path = os.path.realpath(path)
    while path != b"/" and not os.path.exists(path):  # noqa: PTH110
        path = os.path.dirname(path)  # noqa: PTH120
    return path


def _below(number: str, mounts: dict[int, Mount]) -> list[str]:
    """Numbers of the file systems in whose files the blocks of file system `number` lie, from the top down."""
    devices = [number]
    for mount in mounts.values():
        if mount.number == number and mount.device.startswith(b"/dev/"):  # btrfs has a number of its own
            with contextlib.suppress(OSError):
                status = os.stat(mount.device)  # noqa: PTH116  bytes
                devices.append(f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}")
    found: list[str] = []
    pending, seen = devices, set[str]()
    while pending:
        device = pending.pop()
        if device in seen:
            continue
        seen.add(device)
        base = (_SYS_DEV / device).resolve()
        for disk in (base, base.parent):  # a partition's loop device is above it
            with contextlib.suppress(OSError):
                backing = (disk / "loop/backing_file").read_bytes().rstrip(b"\n")
                holder = mounts.get(mount_id(backing) or -1)
                if holder is not None and holder.number not in found:
                    found += [holder.number, *_below(holder.number, mounts)]
        with contextlib.suppress(OSError):
            pending += [(slave / "dev").read_text().strip() for slave in (base / "slaves").iterdir()]
    return found

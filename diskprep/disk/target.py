"""A DISK on the command line: a block device or an image file, opened for erasing only after its identity is checked.

`PATH[,serial=NUMBER]`: an image's serial is its file name without suffix unless given; a real disk's is its own, and a
given one must equal it. A loop device has none of its own, so there it must be given.
"""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass
from pathlib import Path

from diskprep.disk import guard, inventory
from diskprep.disk.keys import check_serial
from diskprep.disk.plan import Offer
from diskprep.errors import DiskRefused, NotFound, UsageError
from diskprep.volume import device

_OPTION = re.compile(r"(?P<path>.+?)(?:,serial=(?P<serial>[^,]*))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A disk that may be written: where it is, who it is. `facts` is None for an image."""

    path: Path
    serial: str
    size_bytes: int
    facts: inventory.DiskFacts | None = None

    @property
    def offer(self) -> Offer:
        return Offer(serial=self.serial, size_bytes=self.size_bytes)


def parse(argument: str, *, image_bytes: int | None = None, protected: tuple[Path, ...] = ()) -> Target:
    """The target an argument names. An image that does not exist is created when `image_bytes` is given.

    `protected` are paths whose disks must not be erased. Raises UsageError, NotFound or DiskRefused.
    """
    match = _OPTION.fullmatch(argument)
    if match is None:
        raise UsageError(f"{argument!r} names no disk")
    path, given = Path(match["path"]), match["serial"]
    if path.exists() and stat.S_ISBLK(path.stat().st_mode):
        return _block_device(path, given, protected)
    serial = check_serial(given or path.name.removesuffix(path.suffix))
    if not path.exists():
        if image_bytes is None:
            raise NotFound(f"there is no disk or image {path}", hint="add --image-size to create an image")
        device.create_image(path, image_bytes)
    if not path.is_file():
        raise DiskRefused(f"{path} is neither a block device nor an image file")
    return Target(path=path, serial=serial, size_bytes=path.stat().st_size)


def identify(path: Path, given: str | None = None) -> str:
    """The serial of a disk or image that is only read. Raises NotFound or UsageError."""
    if not path.exists():
        raise NotFound(f"there is no disk or image {path}")
    facts = inventory.facts_of(path) if path.is_block_device() else None
    own = facts.serial if facts else path.name.removesuffix(path.suffix)
    return check_serial(given or own)


def is_blank(target: Target) -> bool:
    """Whether a target is an image without a partition table or volume: its first MiB is zero."""
    if target.facts is not None:
        return False
    with device.open_for_reading(target.path) as opened:
        return not any(opened.pread(min(1 << 20, opened.size_bytes), 0))


def open_claimed(target: Target) -> device.Device:
    """Open a target for erasing and read its identity again through the open descriptor, before any write."""
    opened = device.open_for_writing(target.path)
    try:
        if opened.size_bytes != target.size_bytes or opened.is_block_device != (target.facts is not None):
            raise DiskRefused(f"{target.path} is not the disk it was a moment ago; nothing was written")
        if target.facts is not None:
            again = inventory.facts_of_number(opened.number)
            if (again.serial, again.size_bytes, again.name) != (
                target.facts.serial,
                target.facts.size_bytes,
                target.facts.name,
            ):
                raise DiskRefused(f"{target.path} is not the disk it was a moment ago; nothing was written")
            guard.refuse_if(guard.refusals(again, all_disks=inventory.list_disks()), again)
    except BaseException:
        opened.close()
        raise
    return opened


def _block_device(path: Path, given: str | None, protected: tuple[Path, ...]) -> Target:
    facts = inventory.facts_of(path)
    under = tuple(name for place in protected if (name := inventory.disk_under(place)))
    guard.refuse_if(guard.refusals(facts, all_disks=inventory.list_disks(), protected=under), facts)
    if facts.serial and given and given != facts.serial:
        raise DiskRefused(f"{path} reports the serial {facts.serial}, not {given}")
    if not facts.serial and facts.bus != "loop":
        raise DiskRefused(
            f"{path} reports no serial number",
            hint="attach it to a SATA port; a bridge may hide the serial",
        )
    serial = facts.serial or given
    if not serial:
        raise UsageError(f"{path} is a loop device and has no serial", hint=f"give it as {path},serial=NUMBER")
    return Target(path=path, serial=check_serial(serial), size_bytes=facts.size_bytes, facts=facts)

"""A DISK on the command line: a block device or an image file, opened for erasing only after its identity is checked.

`PATH[,serial=NUMBER]`: an image's serial is its file name without suffix unless given; a real disk's is its own, and a
given one must equal it. A loop device has none of its own, so there it must be given.

Invariants: a target is one physical thing, known by more than its path; what was confirmed is what is opened.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diskprep import durable
from diskprep.disk import guard, inventory
from diskprep.disk.keys import check_serial
from diskprep.disk.plan import Offer
from diskprep.errors import DiskRefused, NotFound, UsageError
from diskprep.volume import device

_OPTION = re.compile(r"(?P<path>.+?)(?:,serial=(?P<serial>[^,]*))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A disk that may be written: where it is, who it is. `facts` is None for an image.

    `identity` is Device.identity; `blank` says that it is an image that holds nothing at all.
    """

    path: Path
    serial: str
    size_bytes: int
    identity: tuple[int, int, int]
    facts: inventory.DiskFacts | None = None
    blank: bool = False

    @property
    def offer(self) -> Offer:
        return Offer(serial=self.serial, size_bytes=self.size_bytes)


def parse(argument: str, *, image_bytes: int | None = None, protected: Sequence[Path] = ()) -> Target:
    """The target an argument names. An image that does not exist is created when `image_bytes` is given.

    `protected` are paths that must not be erased, nor the disks they are on. Raises UsageError, NotFound, DiskRefused.
    """
    path, given = split(argument)
    try:
        if path.is_symlink() and not path.is_block_device():
            raise DiskRefused(f"{path} is a symbolic link", hint=f"name the image itself: {path.resolve()}")
        if path.is_block_device():
            return _block_device(path, given, protected)
        if not path.exists():
            if image_bytes is None:
                raise NotFound(f"there is no disk or image {path}", hint="add --image-size to create an image")
            device.create_image(path, image_bytes)
        if not path.is_file():
            raise DiskRefused(f"{path} is neither a block device nor an image file")
        return _image(path, given, protected)
    except OSError as error:
        raise durable.storage_error(error, f"look at {path}") from error


def parse_all(arguments: Sequence[str], *, image_bytes: int | None, protected: Sequence[Path]) -> dict[str, Target]:
    """The targets by serial. Raises UsageError when two arguments are one disk, or two disks have one serial."""
    targets: dict[str, Target] = {}
    for argument in arguments:
        found = parse(argument, image_bytes=image_bytes, protected=protected)
        if found.serial in targets:
            raise UsageError(f"two of the disks have the serial {found.serial}")
        if twin := next((t for t in targets.values() if t.identity == found.identity), None):
            raise UsageError(f"{found.path} and {twin.path} are one disk", hint="give it once")
        targets[found.serial] = found
    return targets


def split(argument: str) -> tuple[Path, str | None]:
    """Path and given serial of an argument. Raises UsageError."""
    match = _OPTION.fullmatch(argument)
    if match is None:
        raise UsageError(f"{argument!r} names no disk")
    return Path(match["path"]), match["serial"]


def identify(argument: str) -> tuple[Path, str]:
    """Path and serial of a disk or image that is only read. Raises NotFound, DiskRefused or UsageError."""
    path, given = split(argument)
    if path.is_block_device():
        own = inventory.facts_of(path).serial
    elif path.is_file():
        own = path.name.removesuffix(path.suffix)
    else:
        raise NotFound(f"there is no disk or image {path}")
    return path, check_serial(given or own)


def open_claimed(target: Target) -> device.Device:
    """Open a target for erasing and read its identity again through the open descriptor, before any write."""
    opened = device.open_for_writing(target.path)
    try:
        same = opened.identity == target.identity and opened.size_bytes == target.size_bytes
        if same and target.facts is not None:
            again = inventory.facts_of_number(opened.number)
            same = (again.serial, again.name) == (target.facts.serial, target.facts.name)
            guard.refuse_if(guard.refusals(again, all_disks=inventory.list_disks()), again)
        if not same:
            raise DiskRefused(f"{target.path} is not the disk it was a moment ago; nothing was written")
    except BaseException:
        opened.close()
        raise
    return opened


def _image(path: Path, given: str | None, protected: Sequence[Path]) -> Target:
    status = path.stat()
    loops = [name for name, file in inventory.loop_files().items() if file == (status.st_dev, status.st_ino)]
    if loops:
        raise DiskRefused(
            f"the image {path} is attached as /dev/{loops[0]}",
            hint=f"use that device, or detach it: losetup -d /dev/{loops[0]}",
        )
    _refuse_inside(path, protected)
    serial = check_serial(given or path.name.removesuffix(path.suffix))
    with device.open_for_reading(path) as opened:
        return Target(
            path=path,
            serial=serial,
            size_bytes=opened.size_bytes,
            identity=opened.identity,
            blank=next(opened.data_extents(), None) is None,
        )


def _block_device(path: Path, given: str | None, protected: Sequence[Path]) -> Target:
    facts = inventory.facts_of(path)
    under = tuple(name for place in protected if (name := inventory.disk_under(place)))
    guard.refuse_if(guard.refusals(facts, all_disks=inventory.list_disks(), protected=under), facts)
    file = inventory.loop_file(facts.name)
    if file is not None:
        files = inventory.loop_files()
        twins = [name for name, behind in files.items() if behind == files.get(facts.name) and name != facts.name]
        if twins:
            raise DiskRefused(f"{path} and /dev/{twins[0]} are attached to one file", hint="detach one of them")
        _refuse_inside(file, protected)
    if facts.serial and given and given != facts.serial:
        raise DiskRefused(f"{path} reports the serial {facts.serial}, not {given}")
    if not facts.serial and file is None:
        raise DiskRefused(
            f"{path} reports no serial number",
            hint="attach it to a SATA port; a bridge may hide the serial",
        )
    serial = facts.serial or given
    if not serial:
        raise UsageError(f"{path} is a loop device and has no serial", hint=f"give it as {path},serial=NUMBER")
    with device.open_for_reading(path) as opened:
        return Target(
            path=path,
            serial=check_serial(serial),
            size_bytes=opened.size_bytes,
            identity=opened.identity,
            facts=facts,
        )


def _refuse_inside(path: Path, protected: Sequence[Path]) -> None:
    place = path.resolve()
    for root in protected:
        if place.is_relative_to(root.resolve()):
            raise DiskRefused(f"{path} is inside {root}, which is to be kept", hint="put images somewhere else")

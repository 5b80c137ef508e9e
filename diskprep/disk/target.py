"""A DISK on the command line: a block device or an image file, opened for erasing only after its identity is checked.

`DISK[,serial=NUMBER]`, where DISK is a serial number, a name of /dev/disk/by-id, a device node or an image file. An
image's serial is its file name without suffix unless given; a real disk's is its own, and a given one must equal it. A
loop device has none of its own, so there it must be given.

Invariants: a target is one physical thing, known by more than its path; what was confirmed is what is opened.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diskprep import clock, durable
from diskprep.disk import guard, identity, inventory
from diskprep.disk.keys import SERIAL, check_serial
from diskprep.disk.machine import Machine
from diskprep.disk.plan import Offer
from diskprep.errors import DiskRefused, Locked, NotFound, UsageError
from diskprep.volume import device

_BY_ID = Path("/dev/disk/by-id")
_TRIES = 5
_WAIT_S = 0.1
_OPTION = re.compile(r"(?P<path>.+?)(?:,serial=(?P<serial>[^,]*))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A disk that may be written: where it is, who it is. `facts` is None for an image.

    `identity` is Device.identity; `blank` says that it is an image that holds nothing at all; `protected` are the paths
    that it must not be under.
    """

    path: Path
    serial: str
    size_bytes: int
    identity: tuple[int, int, int]
    facts: inventory.DiskFacts | None = None
    blank: bool = False
    protected: tuple[Path, ...] = ()

    @property
    def offer(self) -> Offer:
        return Offer(serial=self.serial, size_bytes=self.size_bytes)


def parse(
    argument: str,
    *,
    image_bytes: int | None = None,
    protected: Sequence[Path] = (),
    create: bool = True,
    machine: Machine | None = None,
) -> Target:
    """The target an argument names. An image that does not exist is created when `image_bytes` is given.

    Without `create` such an image is only told of, to plan with: no file has that target's identity.
    `protected` are paths that must not be erased, nor the disks they are on. Raises UsageError, NotFound, DiskRefused,
    or Locked when another diskprep works on it.
    """
    machine = machine or Machine()
    path, given = locate(argument, machine)
    try:
        if machine.device_name(str(path)):
            return _block_device(path, given, protected, machine)
        if path.is_symlink():
            raise DiskRefused(f"{path} is a symbolic link", hint=f"name the image itself: {path.resolve()}")
        if not path.exists():
            if image_bytes is None:
                raise NotFound(
                    f"there is no disk or image {path}",
                    hint="`diskprep disk list` shows the disks; add --image-size to create an image",
                )
            if path.is_relative_to("/dev"):
                raise NotFound(f"there is no device {path}", hint="`diskprep disk list` shows the disks")
            if not create:
                return _future_image(path, given, image_bytes, protected)
            device.create_image(path, image_bytes)
        if not path.is_file():
            raise DiskRefused(f"{path} is neither a block device nor an image file")
        return _image(path, given, protected)
    except OSError as error:
        raise durable.storage_error(error, f"look at {path}") from error


def parse_all(
    arguments: Sequence[str], *, image_bytes: int | None, protected: Sequence[Path], create: bool = True
) -> dict[str, Target]:
    """The targets by serial. Raises UsageError when two arguments are one disk, or two disks have one serial."""
    targets: dict[str, Target] = {}
    for argument in arguments:
        found = parse(argument, image_bytes=image_bytes, protected=protected, create=create)
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
    path, given = locate(argument)
    if path.is_block_device():
        own = inventory.facts_of(path).serial
    elif path.is_file():
        own = path.name.removesuffix(path.suffix)
    else:
        raise NotFound(f"there is no disk or image {path}", hint="`diskprep disk list` shows the disks")
    return path, check_serial(given or own)


def open_claimed(target: Target) -> device.Device:
    """Open a target for erasing and read its identity again through the open descriptor, before any write.

    Raises DiskRefused when it is another disk by now or in use, Locked when another diskprep has it.
    """
    opened = _open_alone(target.path)
    try:
        same = opened.identity == target.identity and opened.size_bytes == target.size_bytes
        if same and target.facts is not None:
            same = _is_still(target.facts, target.protected, opened)
        if not same:
            raise DiskRefused(f"{target.path} is not the disk it was a moment ago; nothing was written")
    except BaseException:
        opened.close()
        raise
    return opened


def _is_still(facts: inventory.DiskFacts, protected: Sequence[Path], opened: device.Device) -> bool:
    """Whether an open device is the disk of `facts`. Raises DiskRefused when it must not be erased any more."""
    told = identity.parse_identify(opened.ata_identity())
    if told is not None and told.serial != facts.serial:
        return False
    machine = Machine()
    again = inventory.facts_of_number(opened.number, machine, ours=[facts.name])
    if (again.serial, again.attachment) != (facts.serial, facts.attachment):
        return False
    everything = inventory.list_disks(machine, ours=machine.names)
    guard.refuse_if(guard.refusals(again, all_disks=everything, protected=_devices_under(protected, machine)), again)
    return True


def _open_alone(path: Path) -> device.Device:
    """Somebody who only looks whether the disk is in use holds it for a moment."""
    for _ in range(_TRIES):
        try:
            return device.open_for_writing(path)
        except Locked:
            clock.sleep(_WAIT_S)
    return device.open_for_writing(path)


def locate(argument: str, machine: Machine | None = None) -> tuple[Path, str | None]:
    """Path and given serial of an argument, which may also be a serial or a name of /dev/disk/by-id.

    Raises UsageError when it means two things, and DiskRefused when two disks have that serial.
    """
    machine = machine or Machine()
    path, given = split(argument)
    name = str(path)
    if "/" in argument:
        return path, given
    if durable.exists(path):
        meant = [disk for disk in _attached(name, machine) if machine.device_name(str(path)) != disk.name]
        if meant:
            raise UsageError(
                f"{name} is a file here and the serial of {meant[0].node}", hint=f"write ./{name} or {meant[0].node}"
            )
        return path, given
    if machine.device_name(str(_BY_ID / name)):
        return _BY_ID / name, given
    meant = _attached(name, machine)
    if len(meant) > 1:
        raise DiskRefused(
            f"{meant[0].node} and {meant[1].node} have the same serial number {name}", hint="detach one of them"
        )
    return (meant[0].node if meant else path), given


def _attached(serial: str, machine: Machine) -> list[inventory.DiskFacts]:
    disks = inventory.list_disks(machine, ours=machine.names) if SERIAL.fullmatch(serial) else []
    return [disk for disk in disks if disk.serial == serial]


def _devices_under(places: Sequence[Path], machine: Machine) -> frozenset[str]:
    return frozenset(name for place in places for name in inventory.disks_under(place, machine))


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


def _future_image(path: Path, given: str | None, size_bytes: int, protected: Sequence[Path]) -> Target:
    """An image that is not there yet."""
    _refuse_inside(path, protected)
    return Target(
        path=path,
        serial=check_serial(given or path.name.removesuffix(path.suffix)),
        size_bytes=size_bytes,
        identity=(-1, -1, hash(path.resolve())),
        blank=True,
    )


def _block_device(path: Path, given: str | None, protected: Sequence[Path], machine: Machine) -> Target:
    facts = inventory.facts_of(path, machine)
    if machine.locked(facts.name):
        raise Locked(f"{path} is in use by another diskprep", hint="wait for it to end")
    everything = inventory.list_disks(machine, ours=machine.names)
    under = _devices_under(protected, machine)
    guard.refuse_if(guard.refusals(facts, all_disks=everything, protected=under), facts)
    file = inventory.loop_file(facts.name, machine)
    if file is not None:
        files = inventory.loop_files(machine)
        twins = [name for name, behind in files.items() if behind == files.get(facts.name) and name != facts.name]
        if twins:
            raise DiskRefused(f"{path} and /dev/{twins[0]} are attached to one file", hint="detach one of them")
        _refuse_inside(file, protected)
    if facts.serial and given and given != facts.serial:
        raise DiskRefused(f"{path} reports the serial {facts.serial}, not {given}")
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
            protected=tuple(protected),
        )


def _refuse_inside(path: Path, protected: Sequence[Path]) -> None:
    place = path.resolve()
    for root in protected:
        if place.is_relative_to(root.resolve()):
            raise DiskRefused(f"{path} is inside {root}, which is to be kept", hint="put images somewhere else")

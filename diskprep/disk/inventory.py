"""Found: what the computer knows of its disks, read from sysfs and /proc, so that it works without udev.

A disk's identity is its serial as the drive reports it, without padding. Values only; no judgement (guard.py judges
whether a disk may be erased, service.py whether the Import/Export service takes it).
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from diskprep import durable
from diskprep.disk import identity
from diskprep.disk.identity import AtaIdentity, Claim
from diskprep.disk.machine import Machine
from diskprep.disk.usage import Usage
from diskprep.errors import DiskRefused, NotFound

#: What is no disk: memory, stacked devices, optical and floppy drives, the boot areas of a memory card.
_NO_DISK = re.compile(r"(ram|zram|dm-|md|sr|fd|bcache|drbd)\d.*|mmcblk\d+(boot\d+|rpmb|gp\d+)")
_STACKED = re.compile(r"(dm-|md|bcache|drbd|zram|ram)\d.*")

#: part of the path in /sys/devices -> bus; the first that fits
_BUSES = (
    ("/usb", "usb"),
    ("/ata", "sata"),
    ("/nvme", "nvme"),
    ("/mmc", "mmc"),
    ("/end_device-", "sas"),
    ("/session", "iscsi"),
    ("/rport-", "fc"),
    ("/virtio", "virtio"),
    ("/vbd-", "xen"),
    ("/loop", "loop"),
    ("/nbd", "network"),
    ("/rbd", "network"),
    ("/host", "scsi"),
)
_USB_DEVICE = re.compile(r"\d+-\d+(\.\d+)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskFacts:
    """One disk. `uses` says in words what the computer does with it or with a part of it; empty means nothing.

    `serial` is the drive's own, empty when only a bridge tells one; `claims` is every number told, and by whom.
    `bridge` names the USB device it is attached through. `rotation_rpm`: 0 without turning parts, None when unknown.
    `sata_generation`: 1 to 3, 0 for no SATA drive, None when unknown. `sequence` is the kernel's count of attachments.
    """

    name: str
    node: Path
    serial: str
    model: str
    size_bytes: int
    sector_bytes: int
    read_only: bool
    removable: bool
    rotational: bool
    bus: str
    is_partition: bool
    uses: tuple[str, ...]
    firmware: str = ""
    wwn: str = ""
    physical_sector_bytes: int = 512
    rotation_rpm: int | None = None
    form_factor: str = ""
    sata_generation: int | None = None
    is_ata: bool = False
    is_stacked: bool = False
    bridge: str = ""
    sequence: int = 0
    claims: tuple[Claim, ...] = ()
    aliases: tuple[str, ...] = ()

    @property
    def attachment(self) -> tuple[str, int]:
        """What stays the same as long as the disk stays attached."""
        return self.name, self.sequence


def list_disks(machine: Machine | None = None, *, ours: Collection[str] = ()) -> list[DiskFacts]:
    """All disks with a medium that are no partitions, RAM disks or stacked devices, by name.

    Each is opened alone for a moment to see whether anything holds it; not those named in `ours`, which we hold.
    """
    machine = machine or Machine()
    usage, aliases = Usage(machine), _aliases(machine)
    return [
        _facts(machine, name, usage, aliases.get(name, ()), ours=ours)
        for name in machine.names
        if is_disk(machine, name) and size_bytes(machine, name)
    ]


def is_disk(machine: Machine, name: str) -> bool:
    """Whether a kernel name is a whole disk's: no partition, no stacked or memory device, no hidden path."""
    whole = not _NO_DISK.fullmatch(name) and not machine.is_partition(name)
    return whole and machine.attribute(name, "hidden") != "1"


def size_bytes(machine: Machine, name: str) -> int:
    return _number(machine.attribute(name, "size")) * 512


def facts_of(node: Path, machine: Machine | None = None) -> DiskFacts:
    """What is known of the block device `node`. Raises NotFound or DiskRefused when it is not one."""
    machine = machine or Machine()
    if machine.is_this:
        try:
            status = node.stat()
        except OSError as error:
            raise durable.storage_error(error, f"look at {node}") from error
        if not stat.S_ISBLK(status.st_mode):
            raise DiskRefused(f"{node} is not a block device")
        return facts_of_number(status.st_rdev, machine)
    name = machine.device_name(str(node))
    if not name:
        raise NotFound(f"there is no block device {node}")
    return facts_of_name(name, machine)


def facts_of_number(number: int, machine: Machine | None = None, *, ours: Collection[str] = ()) -> DiskFacts:
    """What is known of the block device with this device number. Raises NotFound."""
    machine = machine or Machine()
    name = machine.numbers.get(f"{os.major(number)}:{os.minor(number)}")
    if name is None:
        raise NotFound(f"the kernel knows no block device {os.major(number)}:{os.minor(number)}")
    return facts_of_name(name, machine, ours=ours)


def facts_of_name(name: str, machine: Machine, *, ours: Collection[str] = ()) -> DiskFacts:
    """What is known of the block device with this kernel name."""
    return _facts(machine, name, Usage(machine), _aliases(machine).get(name, ()), ours=ours)


def disks_under(path: Path, machine: Machine | None = None) -> frozenset[str]:
    """Names of all block devices, disks and what is stacked on them, that the file system of `path` is on."""
    machine = machine or Machine()
    usage = Usage(machine)
    found = usage.under(str(path))
    if machine.is_this:
        place = path
        while not place.exists() and place != place.parent:
            place = place.parent
        with contextlib.suppress(OSError):
            status = place.stat()
            found |= usage.under(str(place.resolve()))
            found |= usage.below(
                name for name in (machine.numbers.get(f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"),) if name
            )
    return found


def loop_files(machine: Machine | None = None) -> dict[str, tuple[int, int]]:
    """Name of each loop device in use -> device and inode of the file behind it."""
    machine = machine or Machine()
    found = {}
    for name in machine.names:
        if (path := _backing(machine, name)) is not None:
            with contextlib.suppress(OSError):
                status = path.stat()
                found[name] = (status.st_dev, status.st_ino)
    return found


def loop_file(name: str, machine: Machine | None = None) -> Path | None:
    """The file behind a loop device, or None."""
    return _backing(machine or Machine(), name)


def _backing(machine: Machine, name: str) -> Path | None:
    path = machine.attribute(name, "loop/backing_file") if name.startswith("loop") else ""
    return Path(path.removesuffix(" (deleted)")) if path else None


def _facts(machine: Machine, name: str, usage: Usage, aliases: tuple[str, ...], *, ours: Collection[str]) -> DiskFacts:
    def attribute(path: str) -> str:
        return machine.attribute(name, path)

    bus, udev = _bus(machine, name), machine.udev(name)
    ata = _ata(machine, name, bus)
    claims = tuple(_claims(machine, name, bus, udev, ata))
    rotational = attribute("queue/rotational") == "1"
    uses = usage.of(name)
    if name not in ours:
        if machine.locked(name):
            uses.append("another diskprep is working on it")
        elif not uses and machine.claimed(name):
            uses.append("something that no table shows holds it: it cannot be opened alone")
    return DiskFacts(
        name=name,
        node=machine.node(name),
        serial=identity.drive_serial(claims),
        model=ata.model if ata and ata.model else attribute("device/model"),
        size_bytes=size_bytes(machine, name),
        sector_bytes=_number(attribute("queue/logical_block_size")) or 512,
        read_only=attribute("ro") == "1",
        removable=attribute("removable") == "1",
        rotational=rotational,
        bus=bus,
        is_partition=machine.is_partition(name),
        uses=tuple(uses),
        firmware=ata.firmware if ata else attribute("device/firmware_rev") or attribute("device/rev"),
        wwn=_wwn(attribute("device/wwid") or attribute("wwid") or udev.get("ID_WWN", ""), ata),
        physical_sector_bytes=_number(attribute("queue/physical_block_size")) or 512,
        rotation_rpm=_rotation(ata, udev, rotational=rotational),
        form_factor=ata.form_factor if ata else "",
        sata_generation=ata.sata_generation if ata else _generation(udev),
        is_ata=ata is not None or attribute("device/vendor") == "ATA" or udev.get("ID_ATA") == "1",
        is_stacked=_is_stacked(machine, name),
        bridge=_bridge(machine, name) if bus == "usb" else "",
        sequence=_number(attribute("diskseq")),
        claims=claims,
        aliases=aliases,
    )


def _is_stacked(machine: Machine, name: str) -> bool:
    behind = machine.attribute(name, "loop/backing_file")
    on_device = behind.startswith("/dev/") and bool(machine.device_name(behind))
    return bool(_STACKED.fullmatch(name)) or bool(machine.children(name, "slaves")) or on_device


def _ata(machine: Machine, name: str, bus: str) -> AtaIdentity | None:
    """What the drive says of itself: as sysfs keeps it, else asked through the open device.

    Not asked of removable media: some memory sticks hang on a command that is not theirs.
    """
    if known := identity.parse_vpd_ata(machine.attribute_data(name, "device/vpd_pg89")):
        return known
    if bus not in {"sata", "sas", "usb"} or machine.attribute(name, "removable") == "1":
        return None
    if machine.is_partition(name):
        return None
    return identity.parse_identify(machine.ata_identity(name))


def _claims(machine: Machine, name: str, bus: str, udev: dict[str, str], ata: AtaIdentity | None) -> list[Claim]:
    """Everybody who tells a serial number, the drive itself first."""
    by_bridge = bus == "usb"
    found = [Claim(source="ATA IDENTIFY", serial=ata.serial)] if ata else []
    # Of other SCSI disks udev's short serial is the name of the unit, not a number on the label.
    if udev.get("ID_ATA") == "1" or udev.get("ID_BUS") == "ata" or bus == "nvme":
        found.append(Claim(source="udev", serial=udev.get("ID_SERIAL_SHORT", "")))
    for path in ("serial", "device/serial"):
        told = identity.clean(machine.attribute(name, path))
        found += [Claim(source="sysfs", serial=told)] if told else []
    page = identity.parse_vpd_serial(machine.attribute_data(name, "device/vpd_pg80"))
    found.append(Claim(source="SCSI page 0x80", serial=page, by_bridge=by_bridge))
    found.append(Claim(source="udev (SCSI)", serial=udev.get("ID_SCSI_SERIAL", ""), by_bridge=by_bridge))
    if by_bridge:
        usb = _usb_device(machine, name)
        found.append(Claim(source="USB bridge", serial=identity.clean(machine.text(f"{usb}/serial")), by_bridge=True))
        told = identity.clean(udev.get("ID_USB_SERIAL_SHORT", ""))
        found.append(Claim(source="udev (USB)", serial=told, by_bridge=True))
    return [claim for claim in found if claim.serial]


def _usb_device(machine: Machine, name: str) -> str:
    """Where the USB device that a disk hangs on stands in sysfs, or empty."""
    parents = machine.place(name).parents
    return next((str(place).lstrip("/") for place in parents if _USB_DEVICE.fullmatch(place.name)), "")


def _bridge(machine: Machine, name: str) -> str:
    usb = _usb_device(machine, name)
    maker, product, *ids = (
        machine.text(f"{usb}/{part}") for part in ("manufacturer", "product", "idVendor", "idProduct")
    )
    return " ".join(part for part in (maker, product, ":".join(ids)) if part)


def _bus(machine: Machine, name: str) -> str:
    place = str(machine.place(machine.disk_of(name) if machine.is_partition(name) else name))
    bus = next((bus for mark, bus in _BUSES if mark in place), "")
    # A SATA drive at a SAS controller: the controller translates, and names the drive's kind as its maker.
    return "sata" if bus in {"sas", "scsi"} and machine.attribute(name, "device/vendor") == "ATA" else bus


def _wwn(known: str, ata: AtaIdentity | None) -> str:
    """As 16 hexadecimal digits, or as NVMe and others write it."""
    plain = known.removeprefix("naa.").removeprefix("0x")
    return ata.wwn if ata and ata.wwn else "" if plain.startswith("t10.") else plain


def _rotation(ata: AtaIdentity | None, udev: dict[str, str], *, rotational: bool) -> int | None:
    if ata and ata.rotation_rpm is not None:
        return ata.rotation_rpm
    told = udev.get("ID_ATA_ROTATION_RATE_RPM", "")
    return int(told) if told.isdigit() else None if rotational else 0


def _generation(udev: dict[str, str]) -> int | None:
    return next((speed for speed in (2, 1) if udev.get(f"ID_ATA_SATA_SIGNAL_RATE_GEN{speed}") == "1"), None)


def _aliases(machine: Machine) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for alias, name in machine.by_id().items():
        found[name] = (*found.get(name, ()), alias)
    return found


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0

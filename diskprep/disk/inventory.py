"""Found: what the computer knows of its disks, read from sysfs and /proc, so that it works without udev.

A disk's identity is its serial as the drive reports it, without padding. Values only; no judgement (guard.py judges).
"""

from __future__ import annotations

import contextlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from diskprep import durable
from diskprep.errors import DiskRefused, NotFound

_SYS_BLOCK = Path("/sys/class/block")


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskFacts:
    """One disk. `uses` says in words what the computer does with it or with a part of it; empty means nothing."""

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


def list_disks() -> list[DiskFacts]:
    """All disks with a medium that are no partitions, RAM disks or stacked devices, by name."""
    found, usage = [], _look()
    for entry in sorted(_SYS_BLOCK.iterdir()):
        if entry.name.startswith(("ram", "zram", "dm-", "md", "sr", "fd")) or (entry / "partition").exists():
            continue
        facts = _facts(entry.name, usage)
        if facts.size_bytes:
            found.append(facts)
    return found


def facts_of(node: Path) -> DiskFacts:
    """What is known of the block device `node`. Raises NotFound or DiskRefused when it is not one."""
    try:
        status = node.stat()
    except OSError as error:
        raise durable.storage_error(error, f"look at {node}") from error
    if not stat.S_ISBLK(status.st_mode):
        raise DiskRefused(f"{node} is not a block device")
    return facts_of_number(status.st_rdev)


def facts_of_number(number: int) -> DiskFacts:
    """What is known of the block device with this device number. Raises NotFound."""
    link = Path("/sys/dev/block") / f"{os.major(number)}:{os.minor(number)}"
    if not link.exists():
        raise NotFound(f"the kernel knows no block device {link.name}")
    return _facts(link.resolve().name, _look())


def disk_under(path: Path) -> str:
    """Name of the whole disk that the file system of `path` is directly on, or empty when it is on none."""
    place = path
    while not place.exists():
        place = place.parent
    number = place.stat().st_dev
    link = Path("/sys/dev/block") / f"{os.major(number)}:{os.minor(number)}"
    if not link.exists():
        return ""
    device = link.resolve()
    return device.parent.name if (device / "partition").exists() else device.name


def loop_files() -> dict[str, tuple[int, int]]:
    """Name of each loop device in use -> device and inode of the file behind it."""
    found = {}
    for backing in _SYS_BLOCK.glob("loop*/loop/backing_file"):
        path = _text(backing).removesuffix(" (deleted)")
        with contextlib.suppress(OSError):
            status = Path(path).stat()
            found[backing.parent.parent.name] = (status.st_dev, status.st_ino)
    return found


def loop_file(name: str) -> Path | None:
    """The file behind a loop device, or None."""
    path = _text(_SYS_BLOCK / name / "loop/backing_file")
    return Path(path.removesuffix(" (deleted)")) if path else None


def _facts(name: str, usage: _Usage) -> DiskFacts:
    base = _SYS_BLOCK / name
    is_partition = (base / "partition").exists()
    return DiskFacts(
        name=name,
        node=Path("/dev") / name.replace("!", "/"),
        serial=_serial(base),
        model=_text(base / "device/model"),
        size_bytes=int(_text(base / "size") or 0) * 512,
        sector_bytes=int(_text(base / "queue/logical_block_size") or 512),
        read_only=_text(base / "ro") == "1",
        removable=_text(base / "removable") == "1",
        rotational=_text(base / "queue/rotational") == "1",
        bus=_bus(base),
        is_partition=is_partition,
        uses=tuple(_uses(name, usage)),
    )


def _serial(base: Path) -> str:
    """The drive's own serial: virtio and NVMe have a file; SCSI and SATA the page 0x80 of their vital product data."""
    for attribute in ("serial", "device/serial"):
        if value := _text(base / attribute):
            return value.replace(" ", "")
    try:
        page = (base / "device/vpd_pg80").read_bytes()
    except OSError:
        return ""
    return page[4:].decode("ascii", "replace").strip("\0 ").replace(" ", "")


def _bus(base: Path) -> str:
    path = str(base.resolve())
    for mark, bus in (("/usb", "usb"), ("/ata", "sata"), ("/nvme", "nvme"), ("/virtio", "virtio"), ("/loop", "loop")):
        if mark in path:
            return bus
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Usage:
    """What the computer uses at one moment: (major:minor, mount point), names of swap devices, the disk under `/`."""

    mounts: frozenset[tuple[str, str]]
    swaps: frozenset[str]
    system: str


def _look() -> _Usage:
    """Read it once for all disks: there is a file to read for each process."""
    return _Usage(mounts=_mounts(), swaps=_swaps(), system=disk_under(Path("/")))


def _uses(name: str, usage: _Usage) -> list[str]:
    """Everything that makes writing to `name` harm somebody: on the device itself and on each of its partitions."""
    base = _SYS_BLOCK / name
    members = [name, *(child.name for child in base.resolve().iterdir() if (child / "partition").exists())]
    numbers = {_text(_SYS_BLOCK / member / "dev"): member for member in members}
    uses = ["the system is on it"] if usage.system == name else []
    uses += [f"{member} is held by {holder.name}" for member in members for holder in _children(base, name, member)]
    uses += [f"{numbers[number]} is mounted at {point}" for number, point in usage.mounts if number in numbers]
    uses += [f"{member} is swap space" for member in members if member in usage.swaps]
    return uses


def _children(base: Path, name: str, member: str) -> list[Path]:
    holders = (base if member == name else base / member) / "holders"
    return sorted(holders.iterdir()) if holders.is_dir() else []


def _mounts() -> frozenset[tuple[str, str]]:
    """(major:minor, mount point) of every mount in every mount namespace that can be read.

    btrfs and overlay report an anonymous device; their source field names the real one, so both are returned.
    """
    found: set[tuple[str, str]] = set()
    seen: set[tuple[str, str]] = set()
    for process in [Path("/proc/self"), *(p for p in Path("/proc").iterdir() if p.name.isdigit())]:
        try:
            # A process in a chroot sees only the mounts below its root.
            view = str((process / "ns/mnt").readlink()), str((process / "root").readlink())
            if view in seen:
                continue
            text = (process / "mountinfo").read_text(errors="surrogateescape")
        except OSError:
            continue
        seen.add(view)
        for line in text.splitlines():
            fields = line.split(" ")
            source = fields[fields.index("-") + 2]
            found.add((fields[2], fields[4]))
            if source.startswith("/dev/"):
                try:
                    status = Path(source).stat()
                except OSError:
                    continue
                found.add((f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}", fields[4]))
    return frozenset(found)


def _swaps() -> frozenset[str]:
    lines = _text(Path("/proc/swaps")).splitlines()[1:]
    return frozenset(Path(line.split()[0]).resolve().name for line in lines if line)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""

"""The computer as the kernel and udev describe it: sysfs, /proc, /dev and udev's database below one root.

With another root a folder of fixtures stands for a computer. What only an open device can tell (its ATA IDENTIFY data,
whether it can be opened alone) is asked through two functions, which a fixture replaces. Nothing is ever written.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from functools import cached_property
from pathlib import Path, PurePosixPath

from diskprep.volume import device

_OCTAL = re.compile(r"\\([0-7]{3})")
_BLOCK = "sys/class/block"


class Machine:
    """One computer at one moment: what was read once of devices' names, numbers and links is not read again."""

    def __init__(
        self,
        root: Path = Path("/"),
        *,
        identify: Callable[[Path], bytes] | None = None,
        claimed: Callable[[Path], bool] | None = None,
        locked: Callable[[Path], bool] | None = None,
    ) -> None:
        """`identify` returns 512 bytes of IDENTIFY data or none, `claimed` whether an exclusive open fails, `locked`
        whether another diskprep has the device's lock."""
        self.root = root
        self.is_this = root == Path("/")
        self._identify = identify or (device.ata_identity if self.is_this else lambda _: b"")
        self._claimed = claimed or (device.is_claimed if self.is_this else lambda _: False)
        self._locked = locked or (device.is_locked if self.is_this else lambda _: False)

    def text(self, path: str) -> str:
        """The file's text without white space around it, or empty."""
        return self.data(path).decode("utf-8", "replace").strip()

    def data(self, path: str) -> bytes:
        try:
            return (self.root / path).read_bytes()
        except OSError:
            return b""

    def entries(self, path: str) -> list[str]:
        """Names in a folder, sorted; none where there is no such folder."""
        try:
            return sorted(os.listdir(self.root / path))  # noqa: PTH208  names, not paths
        except OSError:
            return []

    def has(self, path: str) -> bool:
        return (self.root / path).exists()

    def link(self, path: str) -> str:
        """Where a symbolic link points, as it is written, or empty."""
        try:
            return str((self.root / path).readlink())
        except OSError:
            return ""

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Kernel names of all block devices, partitions too."""
        return tuple(self.entries(_BLOCK))

    @cached_property
    def numbers(self) -> dict[str, str]:
        """major:minor -> kernel name."""
        return {number: name for name in self.names if (number := self.attribute(name, "dev"))}

    @cached_property
    def labels(self) -> dict[str, str]:
        """Kernel name of each device-mapper device -> the name it was given (of LVM, LUKS, multipath)."""
        return {name: label for name in self.names if (label := self.attribute(name, "dm/name"))}

    def attribute(self, name: str, attribute: str) -> str:
        """An attribute of a block device, as text without white space around it, or empty."""
        return self.text(f"{_BLOCK}/{name}/{attribute}")

    def attribute_data(self, name: str, attribute: str) -> bytes:
        return self.data(f"{_BLOCK}/{name}/{attribute}")

    def children(self, name: str, folder: str) -> list[str]:
        """Names in a folder of a block device: `holders`, `slaves`."""
        return self.entries(f"{_BLOCK}/{name}/{folder}")

    def place(self, name: str, below: str = "") -> PurePosixPath:
        """Where a block device (or what it links to as `below`) hangs in the tree of devices, as /sys/devices/..."""
        try:
            found = (self.root / _BLOCK / name / below).resolve().relative_to(self.root.resolve())
        except (OSError, ValueError):
            return PurePosixPath("/")
        return PurePosixPath("/") / found

    def is_partition(self, name: str) -> bool:
        return self.has(f"{_BLOCK}/{name}/partition")

    def disk_of(self, partition: str) -> str:
        """Kernel name of the whole device that a partition is a part of."""
        return self.place(partition).parent.name

    @cached_property
    def _partitions(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name in self.names:
            if self.is_partition(name):
                found.setdefault(self.disk_of(name), []).append(name)
        return found

    def partitions(self, name: str) -> list[str]:
        return self._partitions.get(name, [])

    def node(self, name: str) -> Path:
        return Path("/dev") / name.replace("!", "/")

    def called(self, name: str) -> str:
        """The name for people: dm-0 (vg-root)."""
        label = self.labels.get(name)
        return f"{name} ({label})" if label else name

    def device_name(self, path: str) -> str:
        """Kernel name of the block device that a path in /dev means, or empty when it means none."""
        if self.is_this:
            try:
                status = os.stat(path)  # noqa: PTH116  a name that is no path, too
            except (OSError, ValueError):
                return self._name_without_node(path)
            if not stat.S_ISBLK(status.st_mode):
                return ""
            return self.numbers.get(f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}", "")
        return self._name_without_node(path)

    def _name_without_node(self, path: str) -> str:
        """By links in /dev and by the names that device-mapper gave: in a fixture there are no nodes."""
        place = path
        for _ in range(8):
            target = self.link(place.lstrip("/"))
            if not target:
                break
            place = os.path.normpath(PurePosixPath(place).parent / target)
        if not place.startswith("/dev/"):
            return ""
        name = place.removeprefix("/dev/")
        if (kernel := name.replace("/", "!")) in self.names:
            return kernel
        wanted = {name.removeprefix("mapper/")}
        group, slash, volume = name.partition("/")
        if slash:  # LVM doubles the hyphens of both names and joins them with one
            wanted.add(f"{group.replace('-', '--')}-{volume.replace('-', '--')}")
        return next((device for device, label in self.labels.items() if label in wanted), "")

    def by_id(self) -> dict[str, str]:
        """Names in /dev/disk/by-id -> kernel name."""
        names = self.entries("dev/disk/by-id")
        return {name: device for name in names if (device := self.device_name(f"/dev/disk/by-id/{name}"))}

    @cached_property
    def has_udev(self) -> bool:
        """Whether udev runs here and has looked at the devices."""
        return self.has("run/udev/control")

    def udev(self, name: str) -> dict[str, str]:
        """What udev found out about a block device; empty without udev."""
        if not self.has_udev:
            return {}
        if self.is_this:
            return _ask_udev(name)
        lines = self.text(f"run/udev/data/b{self.attribute(name, 'dev')}").splitlines()
        return dict(line[2:].split("=", 1) for line in lines if line.startswith("E:") and "=" in line)

    def ata_identity(self, name: str) -> bytes:
        """IDENTIFY data read through the opened device, 512 bytes, or none when it cannot be had."""
        return self._identify(self.node(name))

    def claimed(self, name: str) -> bool:
        """Whether the device cannot be opened exclusively, because the kernel or a program holds it."""
        return self._claimed(self.node(name))

    def locked(self, name: str) -> bool:
        return self._locked(self.node(name))


def _ask_udev(name: str) -> dict[str, str]:
    import pyudev  # type: ignore[import-untyped]  # noqa: PLC0415  it loads libudev, which a computer without udev may lack

    try:
        return dict(pyudev.Devices.from_name(pyudev.Context(), "block", name).properties)
    except (ImportError, OSError, ValueError, pyudev.DeviceNotFoundError):
        return {}


def unescape(text: str) -> str:
    """A field of mountinfo or swaps, where space, tab, line feed and backslash stand as octal numbers."""
    return _OCTAL.sub(lambda found: chr(int(found[1], 8)), text)

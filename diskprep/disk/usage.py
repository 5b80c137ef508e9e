"""What a computer does with its disks: every use that erasing a disk would harm, on whatever it stands.

A use is found at a block device (a mount at dm-2, swap at md0) and told of every disk below it: through partitions,
LVM, LUKS, RAID and multipath (`slaves`), images behind loop devices, zram's backing store, and all members of a btrfs.
What several sources show is told once.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath

from diskprep.disk.machine import Machine, unescape

_MAX_POINTS = 3
_DEEP = 16  # stacks that are deeper are a circle
_LAYERS = re.compile(r"(?:^|,)(?:lowerdir\+?|upperdir|workdir|datadir\+)=([^,]*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mount:
    number: str
    point: str
    fstype: str
    source: str
    options: str


class Usage:
    """All uses at one moment. It reads a file of each process, so it is made once for all disks."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._tables = dict(_mount_tables(machine))
        self._views = list(self._tables.values())
        self._stacks: dict[str, frozenset[str]] = {}

    def of(self, disk: str) -> list[str]:
        """Everything that makes writing to `disk` harm somebody, in words."""
        machine = self._machine
        members = [disk, *machine.partitions(disk)]
        found = ["the system is on it"] if disk in self.system else []
        for member in members:
            found += [
                f"{member} is held by {machine.called(holder)}"
                for holder in machine.children(member, "holders")
                if holder not in members
            ]
        for device, says in self._uses:
            if device in members or disk in self._stack(device):
                found.append(says)
        return list(dict.fromkeys(found))

    @cached_property
    def system(self) -> frozenset[str]:
        """The disks and devices that the running system's root is on."""
        tables = [self._tables.get(process, []) for process in ("self", "1")]
        return self.below(name for table in tables for name in self._under(table, "/"))

    def under(self, path: str) -> frozenset[str]:
        """Names of all block devices that the file system of a path, as this process sees it, is on."""
        return self.below(self._under(self._tables.get("self", []), path))

    def below(self, names: Iterable[str]) -> frozenset[str]:
        """These devices and all that they stand on."""
        pending, found = list(names), set[str]()
        while pending:
            name = pending.pop()
            if name not in found:
                found.add(name)
                pending += self._lower(name)
        return frozenset(found)

    def _stack(self, device: str) -> frozenset[str]:
        if device not in self._stacks:
            self._stacks[device] = self.below([device])
        return self._stacks[device]

    def _lower(self, name: str) -> list[str]:
        machine = self._machine
        lower = [*machine.children(name, "slaves"), *self._siblings.get(name, ())]
        if machine.is_partition(name):
            lower.append(machine.disk_of(name))
        for attribute in ("loop/backing_file", "backing_dev"):
            if path := machine.attribute(name, attribute):
                lower += self._under_anywhere(path)
        return lower

    @cached_property
    def _siblings(self) -> dict[str, list[str]]:
        """Members of file systems that are active on several devices."""
        found: dict[str, list[str]] = {}
        for members in self._active.values():
            for name in members:
                found.setdefault(name, []).extend(members)
        return found

    @cached_property
    def _active(self) -> dict[str, list[str]]:
        """Name in words -> devices of each file system that the kernel has open; for some kinds it tells.

        A mount that was detached (`umount --lazy`) or is in a namespace without processes stands in no table.
        """
        machine, found = self._machine, dict[str, list[str]]()
        for kind in machine.entries("sys/fs"):
            for entry in machine.entries(f"sys/fs/{kind}"):
                folder = f"sys/fs/{kind}/{entry}"
                if entry in machine.names:
                    found[f"{kind} on {entry}"] = [entry]
                elif kind == "btrfs":
                    found[f"btrfs {entry}"] = [n for n in machine.entries(f"{folder}/devices") if n in machine.names]
                elif kind == "bcachefs":
                    links = [machine.link(f"{folder}/{member}/block") for member in machine.entries(folder)]
                    found[f"bcachefs {entry}"] = [PurePosixPath(link).name for link in links if link]
        return found

    @cached_property
    def _uses(self) -> list[tuple[str, str]]:
        """(device, use in words)."""
        found = [*self._mounted(), *self._swap()]
        known = {device for device, _ in found}
        for what, members in self._active.items():
            if not known.intersection(members):
                kind, _, uuid = what.partition(" ")
                called = f" {uuid}, on {len(members)} devices" if len(members) > 1 else ""
                found += [(name, f"a file system on {name} is in use ({kind}{called})") for name in members]
        return [*found, *self._behind(), *self._pools(), *self._opened()]

    def _mounted(self) -> Iterator[tuple[str, str]]:
        points: dict[str, set[str]] = {}
        for view in self._views:
            for mount in view:
                for name in self._devices(mount):
                    points.setdefault(name, set()).add(mount.point)
        for name, mounted in points.items():
            order = sorted(mounted, key=lambda point: (len(point), point))
            more = f" and {len(order) - _MAX_POINTS} more places" if len(order) > _MAX_POINTS else ""
            yield name, f"{self._machine.called(name)} is mounted at {', '.join(order[:_MAX_POINTS])}{more}"

    def _swap(self) -> Iterator[tuple[str, str]]:
        for line in self._machine.text("proc/swaps").splitlines()[1:]:
            path = unescape(line.split()[0]).removesuffix(" (deleted)") if line else ""
            if name := self._machine.device_name(path):
                yield name, f"{self._machine.called(name)} is swap space"
            else:
                for under in self._under_anywhere(path):
                    yield under, f"the swap file {path} is on it"

    def _behind(self) -> Iterator[tuple[str, str]]:
        """A disk as the store of another device, which need not hold it alone."""
        for name in self._machine.names:
            for attribute in ("loop/backing_file", "backing_dev"):
                path = self._machine.attribute(name, attribute)
                if path.startswith("/dev/") and (behind := self._machine.device_name(path)):
                    yield behind, f"{behind} is behind {name}"

    def _pools(self) -> Iterator[tuple[str, str]]:
        """ZFS shows its devices to nobody; udev knows whose they are."""
        active = set(self._machine.entries("proc/spl/kstat/zfs"))
        for name in self._machine.names if active else ():
            known = self._machine.udev(name)
            if known.get("ID_FS_TYPE") == "zfs_member" and (pool := known.get("ID_FS_LABEL", "")) in active:
                yield name, f"{name} belongs to the ZFS pool {pool}, which is in use"

    def _opened(self) -> Iterator[tuple[str, str]]:
        """Programs that write to a device without holding it alone: a virtual machine on a raw disk, dd, dislocker."""
        machine, own = self._machine, str(os.getpid()) if self._machine.is_this else ""
        for process in machine.entries("proc"):
            if not process.isdigit() or process == own:
                continue
            for number in machine.entries(f"proc/{process}/fd"):
                path = machine.link(f"proc/{process}/fd/{number}")
                name = machine.device_name(path) if path.startswith("/dev/") else ""
                if name and _may_write(machine.text(f"proc/{process}/fdinfo/{number}")):
                    program = machine.text(f"proc/{process}/comm") or "a program"
                    yield name, f"{program} (process {process}) has {machine.called(name)} open for writing"

    def _devices(self, mount: _Mount) -> list[str]:
        """The devices that a mounted file system is directly on.

        btrfs, FUSE and others have a device number of their own; their source names the real one.
        """
        if name := self._machine.numbers.get(mount.number):
            return [name]
        name = self._machine.device_name(mount.source) if mount.source.startswith("/dev/") else ""
        return [name] if name else []

    def _under(self, view: list[_Mount], path: str, depth: int = 0) -> list[str]:
        """The devices of the file system that a path is on, in one process's view of the mounts."""
        holding = [mount for mount in view if _is_inside(path, mount.point)]
        if not holding or depth > _DEEP:
            return []
        # Of mounts at one place the last hides the others.
        mount = max(enumerate(holding), key=lambda item: (len(item[1].point.rstrip("/")), item[0]))[1]
        found = self._devices(mount)
        if mount.fstype in {"overlay", "aufs"}:
            below = [other for other in view if other is not mount]
            layers = (unescape(folders).split(":") for folders in _LAYERS.findall(mount.options))
            for layer in itertools.chain.from_iterable(layers):
                if layer.startswith("/"):
                    found += self._under(below, layer, depth + 1)
        return found

    def _under_anywhere(self, path: str) -> list[str]:
        """As `_under` in every view, for who made a loop device or a swap file is not known; and a device itself."""
        plain = path.removesuffix(" (deleted)")
        if plain.startswith("/dev/") and (name := self._machine.device_name(plain)):
            return [name]
        if not plain.startswith("/"):
            return []
        return list(dict.fromkeys(name for view in self._views for name in self._under(view, plain)))


def _mount_tables(machine: Machine) -> Iterator[tuple[str, list[_Mount]]]:
    """(process, mounts in the kernel's order) for every namespace and root that can be read, our own first."""
    seen: set[tuple[str, str]] = set()
    others = sorted((name for name in machine.entries("proc") if name.isdigit()), key=int)
    for process in ("self", *others):
        # A process in a chroot sees only the mounts below its root.
        view = machine.link(f"proc/{process}/ns/mnt"), machine.link(f"proc/{process}/root")
        if view in seen and any(view):
            continue
        table = list(_parse(machine.data(f"proc/{process}/mountinfo").decode("utf-8", "surrogateescape")))
        if table:
            seen.add(view)
            yield process, table


def _parse(mountinfo: str) -> Iterator[_Mount]:
    for line in mountinfo.split("\n"):
        fields = line.split(" ")
        with contextlib.suppress(ValueError, IndexError):
            end = fields.index("-", 6)
            yield _Mount(
                number=fields[2],
                point=unescape(fields[4]),
                fstype=fields[end + 1],
                source=unescape(fields[end + 2]),
                options=fields[end + 3],
            )


def _is_inside(path: str, point: str) -> bool:
    return path == point or path.startswith(point.rstrip("/") + "/")


def _may_write(fdinfo: str) -> bool:
    """By the flags of an open descriptor, an octal number; what cannot be read may."""
    flags = re.search(r"^flags:\s*([0-7]+)", fdinfo, re.MULTILINE)
    return flags is None or int(flags[1], 8) & os.O_ACCMODE != os.O_RDONLY

"""LVM: a snapshot of every logical volume that holds source data, mounted read-only.

A thin volume's snapshot shares its pool. A thick one's gets free extents of the volume group, up to the size of the
volume itself; when what is written meanwhile outgrows them, the kernel drops the snapshot: `check` tells.

LVM makes each file system stand still for its own snapshot. Several are not frozen together before that, which would
make all of one moment: LVM would freeze a frozen file system again. Old kernels refuse that; a new one (tried: 6.18)
keeps counting the device as frozen after all was thawed, so that it cannot be mounted any more.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diskprep import clock, process
from diskprep.errors import DataDamaged, DiskprepError, StorageFull, UsageError
from diskprep.view import owner
from diskprep.view.model import Place, Setting, Shown, join
from diskprep.view.mounts import Mount

_FIELDS = (
    "vg_name,lv_name,lv_attr,lv_size,pool_lv,origin,lv_kernel_major,lv_kernel_minor,vg_extent_size,vg_free_count,"
    "lv_snapshot_invalid"
)
_TAG = "diskprep"
_MIN_PART = 100  # of the volume's size: with less room for changes a snapshot is not begun
_TRIES = 10
_WAIT_S = 0.5
#: first letter of lv_attr -> what a snapshot cannot be taken of
_NO_ORIGIN = {"s": "a snapshot", "S": "a snapshot", "t": "a thin pool", "v": "a virtual volume", "p": "being moved"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """A logical volume as `lvs` reports it. `number`: major:minor, empty when it is not active."""

    group: str
    name: str
    attributes: str
    size_bytes: int
    pool: str
    origin: str
    number: str
    extent_bytes: int
    free_extents: int
    invalid: bool

    @property
    def full_name(self) -> str:
        return f"{self.group}/{self.name}"

    @property
    def is_thin(self) -> bool:
        return bool(self.pool) and self.attributes.startswith("V")


def is_volume(mount: Mount) -> bool:
    """Whether the file system lies on a logical volume itself, with nothing such as encryption between."""
    try:
        uuid = Path(f"/sys/dev/block/{mount.number}/dm/uuid").read_text(errors="replace")
    except OSError:
        return False
    return uuid.startswith("LVM-")


def list_command() -> list[str]:
    return ["lvs", "--all", "--reportformat", "json", "--units", "b", "--nosuffix", "--options", _FIELDS]


def create_command(volume: Volume, name: str, *, extents: int) -> list[str]:
    """`extents`: room for changes of a thick volume's snapshot; a thin one's takes it from its pool."""
    command = ["lvcreate", "--yes", "--snapshot", "--name", name, "--addtag", _TAG]
    # Thin snapshots are not activated unless they are told to.
    command += ["--setactivationskip", "n"] if volume.is_thin else ["--extents", str(extents)]
    return [*command, volume.full_name]


def remove_command(group: str, name: str) -> list[str]:
    """Only ever of a snapshot that some run of diskprep named."""
    assert owner.is_ours(name)
    return ["lvremove", "--yes", "--force", f"{group}/{name}"]


def mount_options(fstype: str) -> str:
    """An XFS refuses a second file system with its identity, and a snapshot has the same."""
    return "ro,nodev,nosuid,noexec" + (",nouuid" if fstype == "xfs" else "")


def parse_list(text: str) -> tuple[Volume, ...]:
    """What `list_command` printed. Raises DataDamaged."""
    try:
        rows = [row for report in json.loads(text)["report"] for row in report["lv"]]
        return tuple(_volume(row) for row in rows)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataDamaged("lvs printed what is not a list of volumes") from None


def extents_for(volume: Volume, *, shares: int) -> int:
    """Extents for a thick snapshot when `shares` volumes of the group need some: three quarters of what is free,
    shared evenly, and no more than the volume has itself and what the bookkeeping takes. Raises StorageFull."""
    own = -(-volume.size_bytes // volume.extent_bytes)
    found = min(own + own // 50 + 1, volume.free_extents * 3 // 4 // shares)
    if found * _MIN_PART < own or not found:
        raise StorageFull(
            f"the volume group {volume.group} has {volume.free_extents * volume.extent_bytes} bytes free: too little "
            f"for a snapshot of {volume.full_name}",
            hint="extend the volume group, or use --snapshot none",
        )
    return found


class LvmSnapshots:
    """Snapshots of all logical volumes behind some places."""

    def __init__(self, places: Sequence[Place], setting: Setting) -> None:
        self._places, self._setting = places, setting
        self._origins: dict[str, Volume] = {}
        self._extents: dict[str, int] = {}
        self._names: dict[str, str] = {}

    @property
    def count(self) -> int:
        return len({place.mount.number for place in self._places})

    @property
    def one_moment(self) -> bool:
        return self.count == 1

    def prepare(self) -> None:
        self._remove_leftovers()
        volumes = {volume.number: volume for volume in _list() if volume.number}
        for place in self._places:
            number = place.mount.number
            if number not in volumes:
                raise UsageError(f"lvs knows no volume {number}", hint="use --snapshot none")
            origin = self._origins[number] = volumes[number]
            if reason := _NO_ORIGIN.get(origin.attributes[:1]):
                raise UsageError(f"{origin.full_name} is {reason}", hint="use --snapshot none")
        thick = {number: volume for number, volume in self._origins.items() if not volume.is_thin}
        shares = Counter(volume.group for volume in thick.values())
        for number, volume in self._origins.items():
            self._extents[number] = extents_for(volume, shares=shares[volume.group]) if number in thick else 0

    def take(self) -> None:
        for index, (number, volume) in enumerate(self._origins.items()):
            name = self._names[number] = f"{self._setting.token}-{index}"
            self._setting.cleanup.callback(_remove_if_there, volume.group, name)
            command = create_command(volume, name, extents=self._extents[number])
            process.run(command, own_session=True)

    def show(self) -> list[Shown]:
        points: dict[str, bytes] = {}
        for place in self._places:
            mount = place.mount
            if mount.number not in points:
                volume, name = self._origins[mount.number], self._names[mount.number]
                points[mount.number] = self._setting.room.mount(
                    f"lvm-{len(points)}",
                    fstype=mount.fstype,
                    device=os.fsencode(f"/dev/{volume.group}/{name}"),
                    options=mount_options(mount.fstype),
                )
        return [
            Shown(place=place, at=place.at, location=join(points[place.mount.number], place.inner))
            for place in self._places
        ]

    def check(self) -> None:
        names = {(volume.group, self._names[number]) for number, volume in self._origins.items()}
        found = {(volume.group, volume.name): volume for volume in _list()}
        for group, name in sorted(names):
            snapshot = found.get((group, name))
            if snapshot is None or snapshot.invalid:
                raise StorageFull(
                    f"the snapshot {group}/{name} did not last: more was written to its volume than it has room for",
                    hint="extend the volume group, or back up when less is written, then give the same command again",
                )

    def _remove_leftovers(self) -> None:
        for volume in _list():
            if volume.origin and owner.is_dead(volume.name):
                self._setting.clear(volume.full_name, remove_command(volume.group, volume.name))


def _list() -> tuple[Volume, ...]:
    return parse_list(process.run(list_command(), own_session=True, errors_apart=True))


def _remove_if_there(group: str, name: str) -> None:
    """Remove a snapshot. Others look into new devices for a moment, and keep them busy."""
    for attempt in range(_TRIES):
        if not any((volume.group, volume.name) == (group, name) for volume in _list()):
            return
        try:
            process.run(remove_command(group, name), own_session=True)
        except DiskprepError:
            if attempt == _TRIES - 1:
                raise
            clock.sleep(_WAIT_S)


def _volume(row: dict[str, str]) -> Volume:
    major, minor = int(row["lv_kernel_major"]), int(row["lv_kernel_minor"])
    return Volume(
        group=row["vg_name"],
        name=row["lv_name"].strip("[]"),
        attributes=row["lv_attr"],
        size_bytes=int(row["lv_size"]),
        pool=row["pool_lv"].strip("[]"),
        origin=row["origin"].strip("[]"),
        number="" if major < 0 else f"{major}:{minor}",
        extent_bytes=int(row["vg_extent_size"]),
        free_extents=int(row["vg_free_count"]),
        invalid=row["lv_snapshot_invalid"] == "snapshot invalid" or row["lv_attr"][4:5] in ("I", "S"),
    )

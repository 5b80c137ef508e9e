"""Choice: which file systems hold the sources, and by which kind of snapshot each can be kept still."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from diskprep.errors import UsageError
from diskprep.source import Source, display
from diskprep.view import lvm, owner
from diskprep.view.model import Place, ViewKind, join, listing
from diskprep.view.mounts import Mount, inside, mount_id, mount_of, read_mounts, relative, resolve

_SNAPSHOT_KINDS: dict[ViewKind, Callable[[Mount], bool]] = {
    ViewKind.BTRFS: lambda mount: mount.fstype == "btrfs",
    ViewKind.ZFS: lambda mount: mount.fstype == "zfs",
    ViewKind.LVM: lvm.is_volume,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """`by_kind`: what is to be done; `as_they_are`: places that no snapshot is needed for, or possible of, because
    they cannot change or are the kernel's memory. `refused`: why there is no snapshot; then nothing is to be done."""

    kind: ViewKind
    sources: tuple[Source, ...]
    places: tuple[Place, ...] = ()
    by_kind: dict[ViewKind, tuple[Place, ...]] = field(default_factory=dict)
    as_they_are: tuple[Place, ...] = ()
    refused: str = ""


def find_places(sources: Sequence[Source], *, exclude: Collection[bytes], one_file_system: bool) -> tuple[Place, ...]:
    """The file systems that hold the sources and, unless `one_file_system`, those mounted below them and not inside
    `exclude` (absolute original paths). Sources must exist. Raises NotFound or StorageUnavailable."""
    mounts = read_mounts()
    views = [mount.point for mount in mounts.values() if owner.is_ours(os.fsdecode(mount.device))]
    found = []
    for source in sources:
        top = resolve(source.location)
        own = mount_of(top, mounts)
        place = Place(
            source=source,
            top=top,
            at=top,
            mount=own,
            excluded=frozenset(exclude),
            one_file_system=one_file_system,
        )
        found.append(place)
        if one_file_system:
            continue
        for mount in sorted(mounts.values(), key=lambda mount: mount.point):
            if mount.point == top or not inside(mount.point, top) or place.is_excluded(mount.point):
                continue
            if any(inside(mount.point, view) for view in views) or mount_id(mount.point) != mount.id:
                continue
            found.append(Place(source=source, top=top, at=mount.point, mount=mount, excluded=frozenset(exclude)))
    return tuple(found)


def choose(kind: ViewKind, places: Sequence[Place]) -> Choice:
    """What `kind` means for these places. Raises UsageError when it is not possible; AUTO then becomes NONE."""
    sources = tuple(dict.fromkeys(place.source for place in places))
    if kind is ViewKind.FREEZE:
        return Choice(kind=kind, sources=sources, places=tuple(places))
    allowed = tuple(_SNAPSHOT_KINDS) if kind is ViewKind.AUTO else (kind,)
    by_kind: dict[ViewKind, tuple[Place, ...]] = {}
    as_they_are: list[Place] = []
    impossible: list[str] = []
    for place in places:
        mount = place.mount
        suited = next((name for name in allowed if _SNAPSHOT_KINDS[name](mount)), None)
        if mount.is_fixed or (mount.is_in_memory and not place.is_source):
            as_they_are.append(place)
        elif suited is None:
            impossible.append(f"{display(place.at)} is {mount.fstype} on {display(mount.device)}")
        else:
            by_kind[suited] = (*by_kind.get(suited, ()), place)
    refused = f"no snapshot is possible: {listing(impossible)}" if impossible else ""
    if not refused and by_kind and os.geteuid() != 0:
        refused = "taking a snapshot needs root"
    if refused and kind is not ViewKind.AUTO:
        raise UsageError(
            f"--snapshot {kind}: {refused}",
            hint="leave these out of the backup, or use --snapshot auto or none" if impossible else "run as root",
        )
    if refused:
        return Choice(kind=ViewKind.NONE, sources=sources, places=tuple(places), refused=refused)
    return Choice(kind=kind, sources=sources, places=tuple(places), by_kind=by_kind, as_they_are=tuple(as_they_are))


def original(place: Place, at: bytes) -> bytes:
    """What the user calls the path `at` of a place."""
    return join(place.source.path, relative(at, place.top))

"""Guarded: whether a disk may be erased. Pure judgement over facts; nothing overrides a refusal."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from diskprep.disk import identity
from diskprep.disk.inventory import DiskFacts
from diskprep.disk.keys import SERIAL
from diskprep.disk.plan import MIN_DISK_BYTES
from diskprep.errors import DiskRefused


def refusals(disk: DiskFacts, *, all_disks: Sequence[DiskFacts], protected: Collection[str] = ()) -> list[str]:
    """Why `disk` must not be erased, in words; empty when it may. `protected` are device names under our own data."""
    reasons = list(disk.uses)
    if disk.is_partition:
        reasons.append(f"{disk.name} is a partition; a whole disk is needed")
    elif disk.is_stacked:
        reasons.append(f"{disk.name} is made of other devices; a whole disk is needed")
    if disk.read_only:
        reasons.append("it is read-only")
    if disk.sector_bytes != 512:
        reasons.append(f"its logical sectors have {disk.sector_bytes} bytes; the Import/Export service takes 512")
    if disk.size_bytes < MIN_DISK_BYTES:
        reasons.append(f"it is smaller than {MIN_DISK_BYTES >> 20} MiB")
    if disk.name in protected:
        reasons.append("the source or the staging is on it")
    reasons += _about_serial(disk)
    twins = [other for other in all_disks if other.serial and other.serial == disk.serial and other.name != disk.name]
    if twins:
        reasons.append(f"{twins[0].name} has the same serial number")
    return reasons


def refuse_if(reasons: Sequence[str], disk: DiskFacts) -> None:
    """Raise DiskRefused when there are reasons."""
    if reasons:
        raise DiskRefused(
            f"{disk.node} (serial {disk.serial or 'none'}) must not be erased: {'; '.join(reasons)}",
            hint="detach what uses it, or take another disk",
        )


def _about_serial(disk: DiskFacts) -> list[str]:
    """A disk without a name cannot be confirmed; one with two names would be another disk to the datacenter."""
    if disk.bus == "loop" and not disk.serial:  # a file: its serial is given with it
        return []
    if not disk.serial:
        bridges = [claim.serial for claim in disk.claims if claim.by_bridge]
        told = f"; the bridge it is attached through tells one of its own, {bridges[0]!r}" if bridges else ""
        return [f"it reports no serial number{told}: attach it to a SATA port"]
    reasons = []
    if not SERIAL.fullmatch(disk.serial):
        reasons.append(f"{disk.serial!r} cannot be a disk's serial number")
    elif identity.is_placeholder(disk.serial):
        reasons.append(f"its serial number {disk.serial} is one that many disks have")
    for one, other in identity.contradictions(disk.claims)[:1]:
        reasons.append(
            f"its serial number is {one.serial!r} by {one.source} and {other.serial!r} by {other.source}: "
            "attach it to a SATA port"
        )
    return reasons

"""The plan: which data pack travels on which disk. Pure arithmetic over the seal and the disks' sizes.

Invariants: no pack is on two disks, and none is split; each disk has the index files that name its packs, and no other;
a disk is never planned fuller than `usable_bytes` allows; the same seal and disks give the same plan. A plan may be
incomplete: then `left` has found no room, and goes on disks that are attached later.
"""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diskprep import durable
from diskprep.disk import placing
from diskprep.disk.placing import (
    BLOCK_BYTES,
    CLUSTER_BYTES,
    MIN_DISK_BYTES,
    footprint_bytes,
    size_for,
    takes,
    usable_bytes,
)
from diskprep.errors import DataDamaged, DisksInsufficient, FormatTooNew, NotFound, UsageError
from diskprep.seal import FileKind, PackList, Seal, SealedFile

__all__ = [
    "BLOCK_BYTES",
    "CLUSTER_BYTES",
    "MAX_DRIVES",
    "MIN_DISK_BYTES",
    "DiskPlan",
    "Offer",
    "Plan",
    "footprint_bytes",
    "jobs_needed",
    "load_plan",
    "make_plan",
    "require_complete",
    "require_one_job",
    "save_plan",
    "size_for",
    "takes",
    "usable_bytes",
]

FORMAT = "diskprep-plan"
VERSION = 1

MAX_DRIVES = 10  # of one import job


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A disk that may be used: its serial and its whole size."""

    serial: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskPlan:
    """One disk's share, in the order in which it is written: the packs, then the index files that name them."""

    serial: str
    size_bytes: int
    packs: PackList
    indexes: tuple[SealedFile, ...] = ()

    @property
    def files(self) -> Iterator[SealedFile]:
        """All of the share, in order."""
        return itertools.chain(self.packs, self.indexes)

    @property
    def payload_bytes(self) -> int:
        return self.packs.size_bytes + sum(index.size_bytes for index in self.indexes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All disks of one seed. Disks that would stay empty are not in it.

    `left`: the packs that are on no disk, in the seal's order. `missing_bytes`: the whole size of the smallest further
    disk that takes them, with their index files; 0 when nothing is left.
    """

    job_name: str
    seal_digest: str
    disks: tuple[DiskPlan, ...]
    left: PackList = field(default_factory=PackList)
    missing_bytes: int = 0

    @property
    def is_complete(self) -> bool:
        return not self.left

    @property
    def payload_bytes(self) -> int:
        return sum(disk.payload_bytes for disk in self.disks)

    def placement(self) -> dict[str, str]:
        """Object name of each pack -> serial of the disk it travels on. Packs that are left are not in it."""
        return {pack.name: disk.serial for disk in self.disks for pack in disk.packs}


def make_plan(seal: Seal, offers: Sequence[Offer], *, spread: bool = False, kept: Sequence[DiskPlan] = ()) -> Plan:
    """Put the seal's data packs on the offered disks, as few of them as suffice, and on all when they do not.

    Of several sets of that number the one with the smallest last disk is taken. With `spread` each pack goes to the
    disk with the most room, so that all of them travel. The shares `kept` stay as they are; an offer of such a disk
    counts for nothing. Raises UsageError for disks that cannot be told apart or are too small, and DataDamaged when
    `kept` does not fit the seal.
    """
    order = sorted(_free(offers, kept), key=lambda offer: (-offer.size_bytes, offer.serial))
    sizes = [offer.size_bytes for offer in order]
    load = placing.load_of(seal, itertools.chain.from_iterable(share.packs for share in kept))
    everywhere = list(range(len(order)))
    found = (everywhere, placing.spread(load, sizes)) if spread else None
    if found is None or not placing.holds_all(load, found[1]):  # an even spread wastes a little room
        found = placing.fewest(load, sizes) or (everywhere, placing.fill(load, sizes))
    shares = [_share(load, order[number], bin_) for number, bin_ in zip(*found, strict=True) if bin_.packs]
    return _plan(seal, (*kept, *shares))


def jobs_needed(disks: int) -> int:
    """How many import jobs so many disks take."""
    return -(-disks // MAX_DRIVES)


def require_complete(plan: Plan) -> None:
    """Raise DisksInsufficient, naming the disk that is missing, when the plan leaves something over."""
    if plan.is_complete:
        return
    count = len(plan.disks)
    held = f"the {count} disks hold all but" if count > 1 else "the disk holds all but" if count else "no disk holds"
    raise DisksInsufficient(
        f"{held} {_gigabytes(plan.left.size_bytes)} of the seed; a further disk of {_gigabytes(plan.missing_bytes)} "
        "takes that",
        hint="attach one, or several smaller ones, and give them to `diskprep disk prepare` too",
    )


def require_one_job(plan: Plan) -> None:
    """Raise DisksInsufficient when the plan has more disks than an import job takes."""
    if jobs_needed(len(plan.disks)) > 1:
        raise DisksInsufficient(
            f"the seed needs {len(plan.disks)} of these disks; an import job takes {MAX_DRIVES}",
            hint="use larger disks",
        )


def _free(offers: Sequence[Offer], kept: Sequence[DiskPlan]) -> list[Offer]:
    """The offers that are not kept. Raises UsageError for twins and for disks that are too small."""
    sizes = {share.serial: share.size_bytes for share in kept}
    free = [offer for offer in offers if sizes.get(offer.serial) != offer.size_bytes]
    serials = [*sizes, *(offer.serial for offer in free)]
    if len(set(serials)) != len(kept) + len(free):
        raise UsageError("two of the disks have the same serial number", hint="detach one of them, or give it alone")
    for offer in free:
        if offer.size_bytes < MIN_DISK_BYTES:
            raise UsageError(f"disk {offer.serial} is smaller than {MIN_DISK_BYTES >> 20} MiB")
    return free


def _share(load: placing.Load, offer: Offer, bin_: placing.Bin) -> DiskPlan:
    return DiskPlan(
        serial=offer.serial,
        size_bytes=offer.size_bytes,
        packs=PackList(load.packs[pack] for pack in sorted(bin_.packs)),
        indexes=tuple(load.indexes[index] for index in sorted(bin_.indexes)),
    )


def _plan(seal: Seal, disks: tuple[DiskPlan, ...]) -> Plan:
    """The plan of these disks, and what is left."""
    left = placing.load_of(seal, itertools.chain.from_iterable(disk.packs for disk in disks))
    names = {pack.name for pack in left.packs}
    return Plan(
        job_name=seal.job_name,
        seal_digest=seal.digest,
        disks=disks,
        left=PackList(pack for pack in seal.data_packs if pack.name in names),
        missing_bytes=placing.size_holding(left) if names else 0,
    )


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.3f} GB"


def save_plan(path: Path, plan: Plan) -> None:
    """Write the plan durably, for the stages that come after and for people. What is left follows from the seal."""
    durable.write_json(path, {"format": FORMAT, "version": VERSION, **_document(plan)})


def load_plan(path: Path, seal: Seal) -> Plan:
    """Read a plan that belongs to `seal`. Raises NotFound, FormatTooNew or DataDamaged."""
    if not durable.exists(path):
        staging = shlex.quote(str(path.parent))
        raise NotFound(
            f"no disks are planned yet: there is no {path}",
            hint=f"prepare them first: diskprep disk prepare {staging} DISK... --container-sas-file FILE",
        )
    document = durable.read_json(path)
    if document.get("format") != FORMAT:
        raise DataDamaged(f"{path} is not a plan")
    if document.get("version") != VERSION:
        raise FormatTooNew(f"{path} was written by a newer diskprep", hint="upgrade diskprep on this computer")
    packs = {pack.name: pack for pack in seal.data_packs}
    indexes = {file.name: file for file in seal.of_kind(FileKind.INDEX)}
    try:
        disks = tuple(
            DiskPlan(
                serial=str(disk["serial"]),
                size_bytes=int(disk["size_bytes"]),
                packs=PackList(packs[name] for name in disk["packs"]),
                indexes=tuple(indexes[name] for name in disk.get("indexes", ())),
            )
            for disk in document["disks"]
        )
        named = (str(document["job_name"]), str(document["seal_digest"]))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataDamaged(f"{path} does not fit the seal: {error}") from None
    if named != (seal.job_name, seal.digest):
        raise DataDamaged(f"{path} was made for another seal", hint="prepare the disks again")
    return _plan(seal, disks)


def _document(plan: Plan) -> dict[str, Any]:
    return {
        "job_name": plan.job_name,
        "seal_digest": plan.seal_digest,
        "disks": [
            {
                "serial": disk.serial,
                "size_bytes": disk.size_bytes,
                "packs": [pack.name for pack in disk.packs],
                "indexes": [index.name for index in disk.indexes],
            }
            for disk in plan.disks
        ],
    }

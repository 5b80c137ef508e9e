"""The plan: which data pack travels on which disk. Pure arithmetic over the seal and the disks' sizes.

Invariants: every data pack of the seal is on exactly one disk; no pack is split; a disk is never planned fuller than
`usable_bytes` allows; the same seal and disks give the same plan.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diskprep import durable
from diskprep.errors import DataDamaged, DisksInsufficient, FormatTooNew, UsageError
from diskprep.seal import Seal, SealedFile

FORMAT = "diskprep-plan"
VERSION = 1

MIN_DISK_BYTES = 96 << 20
CLUSTER_BYTES = 4096
BLOCK_BYTES = 4 << 20
_SMALL_DISK_BYTES = 1 << 30
MAX_DRIVES = 10  # of one import job

_GPT_BYTES = 2 << 20
_FILE_OVERHEAD_BYTES = 1024 + 512 + 512  # MFT record, share of the folder's index, the manifest's <Blob>
_BLOCK_OVERHEAD_BYTES = 160  # one <Block> of the manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A disk that may be used: its serial and its whole size."""

    serial: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskPlan:
    """One disk's share. `packs` are in the order in which they are written."""

    serial: str
    size_bytes: int
    packs: tuple[SealedFile, ...]

    @property
    def payload_bytes(self) -> int:
        return sum(pack.size_bytes for pack in self.packs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All disks of one seed. Disks that would stay empty are not in it."""

    job_name: str
    seal_digest: str
    disks: tuple[DiskPlan, ...]

    @property
    def payload_bytes(self) -> int:
        return sum(disk.payload_bytes for disk in self.disks)

    def placement(self) -> dict[str, str]:
        """Object name of each pack -> serial of the disk it travels on."""
        return {pack.name: disk.serial for disk in self.disks for pack in disk.packs}


def footprint_bytes(pack: SealedFile) -> int:
    """What a pack takes of a disk: its clusters, its records in NTFS, its lines in the manifest."""
    blocks = -(-pack.size_bytes // BLOCK_BYTES)
    clusters = -(-pack.size_bytes // CLUSTER_BYTES) * CLUSTER_BYTES
    return clusters + _FILE_OVERHEAD_BYTES + blocks * _BLOCK_OVERHEAD_BYTES


def usable_bytes(size_bytes: int) -> int:
    """What footprints of a disk of this size may add up to.

    mkntfs takes up to 64 MiB for its log and 1/32768 for the cluster bitmap; BitLocker's regions, folders and slack
    are covered by 12 MiB, and half a percent is left free because a file system filled to the brim fragments.
    """
    log_bytes = min(64 << 20, max(2 << 20, size_bytes // 100))
    return max(0, size_bytes - _GPT_BYTES - log_bytes - size_bytes // 32768 - size_bytes // 200 - (12 << 20))


def takes(size_bytes: int, need_bytes: int) -> bool:
    """Whether one file of this footprint goes on a disk of this size, when nothing else is on it.

    libntfs-3g finds no place for a single file of more than about half of a small volume.
    """
    return need_bytes <= usable_bytes(size_bytes) // (2 if size_bytes < _SMALL_DISK_BYTES else 1)


def size_for(payload: Iterable[SealedFile], disks: int) -> int:
    """A size, in whole MiB and hardly larger than needed, of which `disks` equal disks hold the packs spread evenly."""
    packs = tuple(payload)
    total = sum(footprint_bytes(pack) for pack in packs)
    size = max(MIN_DISK_BYTES, (total // disks) >> 20 << 20)
    while _place(packs, [size] * disks, spread=True)[1]:
        size += 1 << 20
    return size


def make_plan(seal: Seal, offers: Sequence[Offer], *, spread: bool = False) -> Plan:
    """Put the seal's data packs on the offered disks, largest packs first.

    Larger disks are filled first, so that as few as possible travel; with `spread` each pack goes to the disk with the
    most room, so that all of them do. Raises UsageError for disks that cannot be told apart or are too small, and
    DisksInsufficient with the bytes that are missing.
    """
    serials = [offer.serial for offer in offers]
    if len(set(serials)) != len(serials):
        raise UsageError("two of the disks have the same serial number", hint="detach one of them, or give it alone")
    for offer in offers:
        if offer.size_bytes < MIN_DISK_BYTES:
            raise UsageError(f"disk {offer.serial} is smaller than {MIN_DISK_BYTES >> 20} MiB")
    order = sorted(offers, key=lambda offer: (-offer.size_bytes, offer.serial))
    sizes = [offer.size_bytes for offer in order]
    shares, left_over = _place(seal.data_packs, sizes, spread=spread)
    if left_over and spread:  # an even spread wastes a little room; filling up may still do
        shares, left_over = _place(seal.data_packs, sizes, spread=False)
    if left_over:
        raise DisksInsufficient(
            f"the {len(offers)} disks given hold all but {left_over / 1e9:.3f} GB of the seed",
            hint="attach one more disk, or larger ones, and give all of them",
        )
    used = [
        DiskPlan(serial=offer.serial, size_bytes=offer.size_bytes, packs=tuple(share))
        for offer, share in zip(order, shares, strict=True)
        if share
    ]
    if len(used) > MAX_DRIVES:
        raise DisksInsufficient(
            f"the seed needs {len(used)} of these disks; an import job takes {MAX_DRIVES}", hint="use larger disks"
        )
    return Plan(job_name=seal.job_name, seal_digest=seal.digest, disks=tuple(used))


def _place(packs: Iterable[SealedFile], sizes: Sequence[int], *, spread: bool) -> tuple[list[list[SealedFile]], int]:
    """The packs of each disk, and the footprint in bytes of those that found no room."""
    room = [usable_bytes(size) for size in sizes]
    shares: list[list[SealedFile]] = [[] for _ in sizes]
    left_over = 0
    for pack in sorted(packs, key=lambda pack: (-pack.size_bytes, pack.name)):
        need = footprint_bytes(pack)
        fits = [index for index, free in enumerate(room) if free >= need and takes(sizes[index], need)]
        slot = max(fits, key=lambda index: room[index], default=None) if spread else next(iter(fits), None)
        if slot is None:
            left_over += need
        else:
            room[slot] -= need
            shares[slot].append(pack)
    return shares, left_over


def save_plan(path: Path, plan: Plan) -> None:
    """Write the plan durably, for the stages that come after and for people."""
    durable.write_json(path, {"format": FORMAT, "version": VERSION, **_document(plan)})


def load_plan(path: Path, seal: Seal) -> Plan:
    """Read a plan that belongs to `seal`. Raises NotFound, FormatTooNew or DataDamaged."""
    document = durable.read_json(path)
    if document.get("format") != FORMAT:
        raise DataDamaged(f"{path} is not a plan")
    if document.get("version") != VERSION:
        raise FormatTooNew(f"{path} was written by a newer diskprep", hint="upgrade diskprep on this computer")
    packs = {pack.name: pack for pack in seal.data_packs}
    try:
        disks = tuple(
            DiskPlan(
                serial=str(disk["serial"]),
                size_bytes=int(disk["size_bytes"]),
                packs=tuple(packs[name] for name in disk["packs"]),
            )
            for disk in document["disks"]
        )
        plan = Plan(job_name=str(document["job_name"]), seal_digest=str(document["seal_digest"]), disks=disks)
    except (KeyError, TypeError, ValueError) as error:
        raise DataDamaged(f"{path} does not fit the seal: {error}") from None
    if plan.seal_digest != seal.digest:
        raise DataDamaged(f"{path} was made for another seal", hint="prepare the disks again")
    return plan


def _document(plan: Plan) -> dict[str, Any]:
    return {
        "job_name": plan.job_name,
        "seal_digest": plan.seal_digest,
        "disks": [
            {"serial": d.serial, "size_bytes": d.size_bytes, "packs": [pack.name for pack in d.packs]}
            for d in plan.disks
        ],
    }

"""The disks of a rehearsal: planned and prepared as image files, for the first trip and for a repair alike."""

from __future__ import annotations

from datetime import timedelta

from diskprep import clock, durable
from diskprep.disk import plan as disk_plan
from diskprep.disk import target, together
from diskprep.disk.record import PreparedDisk
from diskprep.disk.work import Order
from diskprep.rehearsal.summary import DiskFigures
from diskprep.rehearsal.trip import CONTAINER, Options, Trip, shown
from diskprep.seal import Seal, load_seal
from diskprep.seed import Staging, load_seed

FIRST, REPAIR = "REHEARSAL", "REPAIR"


def prepare(trip: Trip, staging: Staging, *, name: str = FIRST) -> list[PreparedDisk]:
    """Prepare the disks of a staging. `name`: how their serial numbers begin, and the figures' stage is called."""
    seed, seal = load_seed(staging), load_seal(staging.seal_file)
    folder = trip.root / "disks"
    durable.make_directory(folder)
    plan = _plan(trip.options, seal) if name == FIRST else _smallest(seal, name)
    disk_plan.save_plan(staging.plan_file, plan)
    trip.account.container(CONTAINER)  # a signature opens a container, it cannot make one
    sas = trip.account.container_sas(CONTAINER, clock.now() + timedelta(days=1))
    orders = [
        Order(
            target=target.parse(str(folder / f"{share.serial}.img"), image_bytes=share.size_bytes),
            share=share,
            staging=staging,
            seed=seed,
            seal_digest=seal.digest,
            container_sas=sas,
            journal_path=trip.root / "journals" / f"{share.serial}.journal",
            method=trip.options.method,
        )
        for share in plan.disks
    ]
    with trip.summary.stage("disks" if name == FIRST else "repair disks") as meter:
        prepared = together.check(together.prepare_disks(orders, trip.emit))
        meter.bytes = sum(disk.payload_bytes for disk in prepared)
    for disk in prepared:
        trip.say(
            "disks",
            f"{disk.serial}: {disk.files} files, {disk.payload_bytes / 1e6:.1f} MB, BitLocker {trip.options.method}, "
            "read back and sealed",
        )
        trip.summary.disks.append(DiskFigures(serial=disk.serial, image=shown(disk.path), bytes=disk.payload_bytes))
    return prepared


def _plan(options: Options, seal: Seal) -> disk_plan.Plan:
    """As many disks as the data needs, of the size asked for; all of them are used."""
    count = options.disks or 2
    if options.disk_bytes is None:
        packs = seal.data_packs
        size = disk_plan.size_for(packs, count, indexes=seal.indexes_of(packs))
    else:
        size = options.disk_bytes
        if options.disks is None:
            fewest = disk_plan.make_plan(seal, _offers(FIRST, disk_plan.MAX_DRIVES, size))
            disk_plan.require_complete(fewest)
            count = len(fewest.disks)
    return _checked(disk_plan.make_plan(seal, _offers(FIRST, count, size), spread=True))


def _smallest(seal: Seal, name: str) -> disk_plan.Plan:
    """One disk, just big enough."""
    packs = seal.data_packs
    size = disk_plan.size_for(packs, 1, indexes=seal.indexes_of(packs))
    return _checked(disk_plan.make_plan(seal, _offers(name, 1, size)))


def _checked(plan: disk_plan.Plan) -> disk_plan.Plan:
    disk_plan.require_complete(plan)
    disk_plan.require_one_job(plan)
    return plan


def _offers(name: str, count: int, size_bytes: int) -> list[disk_plan.Offer]:
    return [disk_plan.Offer(serial=f"{name}-{n:02}", size_bytes=size_bytes) for n in range(1, count + 1)]

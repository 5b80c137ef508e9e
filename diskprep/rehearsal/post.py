"""The disks' way: the import job, the package, the datacenter; and a second trip for what did not arrive.

A fault that was ordered strikes the last disk. What is then told is what an operator would be told: the outcome of the
job in words, what has to be sent again, and a repair with a job of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple
from urllib.parse import urlsplit

from diskprep import clock
from diskprep import repair as repairs
from diskprep.datacenter.faults import DriveFault, DriveFaults
from diskprep.datacenter.server import Datacenter
from diskprep.disk.record import PreparedDisk
from diskprep.errors import DataDamaged, DiskprepError
from diskprep.exchange.copylog import read_log
from diskprep.exchange.logsummary import LogSummary
from diskprep.importjob import job as import_job
from diskprep.importjob import outcome
from diskprep.importjob.model import Drive, Job, JobState
from diskprep.importjob.service import ImportService
from diskprep.importjob.shipping import Destination
from diskprep.rehearsal import making
from diskprep.rehearsal.trip import CARRIER, RETURN_ADDRESS, TRACKING_NUMBER, Trip
from diskprep.secrets import Secret
from diskprep.seed import Staging, load_seed
from diskprep.store import Account


def send(trip: Trip, service: ImportService, staging: Staging, disks: Sequence[PreparedDisk]) -> None:
    """Create the import job of these disks and enter the tracking number of their package."""
    seed = load_seed(staging)
    drives = [
        Drive(
            drive_id=disk.serial,
            recovery_password=_password_of(disk),
            manifest_file=disk.manifest_file,
            manifest_hash=disk.manifest_hash,
            opened=disk.was_opened_by(_password_of(disk)),
        )
        for disk in disks
    ]
    with trip.summary.stage("import job"):
        job = import_job.create_job(service, staging, seed, drives, return_address=RETURN_ADDRESS)
        destination = import_job.shipping_address(service, seed.location)
    trip.say("import job", f"disks prepared: {', '.join(disk.serial for disk in disks)}")
    trip.say("import job", f"import job created: {job.name}")
    trip.say("import job", f"ship to: {_one_line(destination)}")
    number = TRACKING_NUMBER if staging.whole is None else f"{TRACKING_NUMBER}-1"
    with trip.summary.stage("shipping"):
        job = import_job.enter_shipping(
            service,
            staging,
            carrier=CARRIER,
            tracking_number=number,
            drive_count=len(disks),
            ship_date=clock.now().date(),
            serials=[disk.serial for disk in disks],
        )
    trip.say("shipping", f"shipped with {CARRIER}, tracking number {number}; the job is {job.state}")
    trip.summary.job = {"name": job.name, "shipping_address": _one_line(destination)}


def deliver(
    trip: Trip,
    service: ImportService,
    datacenter: Datacenter,
    staging: Staging,
    disks: Sequence[PreparedDisk],
) -> None:
    """Let the datacenter copy the package; what did not arrive is sent again, once. Raises DataDamaged after that."""
    fault = trip.options.fault if staging.whole is None else None
    job = _copied(trip, service, datacenter, staging, disks, fault=fault)
    trip.summary.job |= {
        "name": job.name,
        "state": str(job.state),
        "drives": {drive.drive_id: str(drive.state) for drive in job.drives},
    }
    trip.say("datacenter", f"import job {job.name}: {job.state}")
    if job.state == JobState.COMPLETED:
        return
    result = outcome.report(job, dict(_logs(trip.account, job)))
    for line in result.lines(shown=3):
        trip.say("report", line)
    plan = outcome.plan_repair(result, repairs.placements(staging))
    if staging.whole is not None or not plan.packs:
        raise DataDamaged(f"import job {job.name} ended as {job.state}", hint="the report above says why")
    repair = repairs.make_repair(staging, plan.packs, drives=plan.drives)
    trip.say("repair", f"{len(plan.packs)} packs are sent again, as import job {repair.job_name}")
    again = making.prepare(trip, repair.staging, name=making.REPAIR)
    send(trip, service, repair.staging, again)
    deliver(trip, service, datacenter, repair.staging, again)


def _copied(
    trip: Trip,
    service: ImportService,
    datacenter: Datacenter,
    staging: Staging,
    disks: Sequence[PreparedDisk],
    *,
    fault: DriveFault | None,
) -> Job:
    """The job once the package was opened, copied and sent back."""
    name, package = load_seed(staging).job_name, {disk.serial: disk.path for disk in disks}
    struck = {} if fault is None else {disks[-1].serial: DriveFaults(faults=frozenset({fault}))}
    with trip.summary.stage("datacenter") as meter:
        if fault is DriveFault.LOST:
            package.pop(disks[-1].serial)
        datacenter.receive(name, package, trip.emit, faults=struck)
        if datacenter.process(name, trip.emit).late:
            datacenter.receive(name, {disk.serial: disk.path for disk in disks}, trip.emit)
            datacenter.process(name, trip.emit)
        datacenter.ship_back(name)
        meter.bytes = sum(disk.payload_bytes for disk in disks)
    return import_job.refresh_job(service, staging)


def _logs(account: Account, job: Job) -> list[tuple[str, LogSummary]]:
    """The copy log of each drive that has one: the errors alone where there are any.

    A drive whose manifest was not read has its log in the job's own container for diagnostics.
    """
    found = []
    for drive in job.drives:
        uri = drive.error_log_uri or drive.verbose_log_uri
        if uri:
            container, name = urlsplit(uri).path.lstrip("/").split("/", 1)
            try:
                found.append((drive.drive_id, read_log([account.container(container).read(name)])))
            except DiskprepError as error:
                raise DataDamaged(f"the copy log {name} cannot be read: {error.message}") from error
    return found


def _one_line(destination: Destination) -> str:
    return ", ".join(line for line in astuple(destination.address) if line)


def _password_of(disk: PreparedDisk) -> Secret[str]:
    assert disk.recovery_password is not None, "a rehearsal prepares every disk itself"
    return disk.recovery_password

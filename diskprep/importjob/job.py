"""A seed's import job: create it once, find out where to ship, enter the tracking number.

Invariants: creating twice is one job; a serial number is in one open job only; a tracking number belongs to one job;
`job.json` never holds a secret.
Write order: the service first, `job.json` after it. A crash between the two is healed by creating again, which finds
the job under its name and adopts it when it has the same drives.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date, datetime
from typing import Any

from diskprep import clock, durable
from diskprep.errors import DataDamaged, FormatTooNew, JobConflict, NotFound, ServiceError, UsageError
from diskprep.exchange.manifest import check_drive_id, check_file_path
from diskprep.importjob import states
from diskprep.importjob.model import (
    DRIVES_LIMIT,
    Address,
    Drive,
    DriveState,
    DriveStatus,
    Job,
    JobRequest,
    JobState,
    LogLevel,
    Package,
    ReturnAddress,
    ReturnShipping,
    known,
)
from diskprep.importjob.service import ImportService
from diskprep.seed import Seed, Staging
from diskprep.volume.bitlocker import parse_recovery_password

FORMAT = "diskprep-job"
VERSION = 1
_HASH = re.compile(r"[0-9A-F]{32}")
_TRACKING = re.compile(r"[A-Za-z0-9][A-Za-z0-9 -]{2,48}[A-Za-z0-9]")
_REDIRECTS_LIMIT = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedJob:
    """What `job.json` holds: the job as last seen, and when it was created (the service does not tell)."""

    job: Job
    created: datetime

    @property
    def ship_until(self) -> datetime:
        """When the service deletes the job unless it has a tracking number; counted from creation, to be safe."""
        return self.created + states.SHIPPING_DEADLINE


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """Where the package goes: the address of `region`, which may not be the job's, and the carriers it takes."""

    address: Address
    carriers: tuple[str, ...]
    region: str


def storage_account_id(seed: Seed) -> str:
    """The seed's storage account as ARM names it, when it is in the seed's resource group."""
    return (
        f"/subscriptions/{seed.subscription_id}/resourceGroups/{seed.resource_group}"
        f"/providers/Microsoft.Storage/storageAccounts/{seed.storage_account}"
    )


def create_job(
    service: ImportService,
    staging: Staging,
    seed: Seed,
    drives: Sequence[Drive],
    *,
    return_address: ReturnAddress | None = None,
    return_shipping: ReturnShipping | None = None,
    account_id: str | None = None,
    diagnostics_path: str = "waimportexport",
    log_level: LogLevel = LogLevel.VERBOSE,
) -> Job:
    """The seed's import job over these drives: created, or adopted when it exists with exactly these drives.

    Raises UsageError for drives the service or its staff would refuse, JobConflict when the name is taken by another
    job or a drive is in another open job, and what the service raises.
    """
    _check_drives(drives)
    request = JobRequest(
        name=seed.job_name,
        location=seed.location,
        storage_account_id=account_id or storage_account_id(seed),
        drives=tuple(drives),
        return_address=return_address,
        return_shipping=return_shipping,
        diagnostics_path=diagnostics_path,
        log_level=log_level,
    )
    job, created = _existing(service, seed.job_name), None
    if job is None:
        _check_free(service, request)
        created = clock.now()
        job = service.create(request)
    _check_same(job, request)
    save_job(staging, job, created=created)
    return job


def refresh_job(service: ImportService, staging: Staging) -> Job:
    """The job of a staging as the service has it now. Raises NotFound with the reason when the service deleted it."""
    saved = load_job(staging)
    job = _existing(service, saved.job.name)
    if job is None:
        raise NotFound(
            f"import job {saved.job.name} is gone: a job without a tracking number is deleted after two weeks",
            hint="create it again with `diskprep job create`; the disks stay as they are",
        )
    save_job(staging, job)
    return job


def shipping_address(service: ImportService, location: str) -> Destination:
    """Where packages for a region go now; a region that is closed names others.

    Raises ServiceError when the service's address is blank or garbled: it must not be printed on a label.
    """
    region, seen = service.location(location), []
    while region.alternates and region.name.lower() not in (name.lower() for name in region.alternates):
        seen.append(region.name)
        if len(seen) > _REDIRECTS_LIMIT:
            raise ServiceError(f"the datacenters refer to each other: {', '.join(seen)}")
        region = service.location(region.alternates[0])
    _check_address(region.address, region.display_name)
    return Destination(address=region.address, carriers=region.carriers, region=region.name)


def enter_shipping(
    service: ImportService,
    staging: Staging,
    *,
    carrier: str,
    tracking_number: str,
    drive_count: int,
    ship_date: date,
    return_address: ReturnAddress | None = None,
    return_shipping: ReturnShipping | None = None,
) -> Job:
    """Tell the service that the package is on its way; the two-week clock stops. Doing it again changes nothing.

    Raises UsageError, JobConflict (the tracking number is another job's, the drives are not all in the package, the
    state does not allow it), and what the service raises.
    """
    package = Package(
        carrier=carrier.strip(), tracking_number=tracking_number.strip(), drive_count=drive_count, ship_date=ship_date
    )
    if not package.carrier.isprintable() or not package.carrier:
        raise UsageError("the carrier's name is missing or has strange characters")
    if not _TRACKING.fullmatch(package.tracking_number):
        raise UsageError(f"{tracking_number!r} does not look like a tracking number")
    job = refresh_job(service, staging)
    if job.state == JobState.SHIPPING and job.package == package:
        return job
    states.check(job, states.Action.SHIP)
    if drive_count != len(job.drives):
        raise JobConflict(
            f"the package holds {drive_count} drives, import job {job.name} has {len(job.drives)}",
            hint="all drives of a job travel in one package, and no drive of another job with them",
        )
    if job.return_address is None and return_address is None:
        raise UsageError("the return address is missing", hint="the service needs it before the package is sent")
    _check_tracking(service, job, package)
    job = service.ship(job.name, package, return_address=return_address, return_shipping=return_shipping)
    save_job(staging, job)
    return job


def save_job(staging: Staging, job: Job, *, created: datetime | None = None) -> None:
    """Write job.json durably. Without `created` an earlier file of the same job tells when it was, else it is now."""
    if created is None:
        created = clock.now()
        try:
            saved = load_job(staging)
        except NotFound:
            pass
        else:
            if saved.job.name == job.name:
                created = saved.created
    document = {"format": FORMAT, "version": VERSION, "created": clock.rfc3339(created), "job": asdict(job)}
    for package in ("package", "return_package"):
        if (value := document["job"][package]) is not None and value["ship_date"] is not None:  # type: ignore[index]
            value["ship_date"] = value["ship_date"].isoformat()
    durable.write_json(staging.job_file, document)


def load_job(staging: Staging) -> SavedJob:
    """The job of a staging as last seen. Raises NotFound, DataDamaged or FormatTooNew."""
    path = staging.job_file
    try:
        document = durable.read_json(path, limit_bytes=1 << 20)
    except NotFound:
        raise NotFound("this staging has no import job", hint="create it with `diskprep job create`") from None
    if document.get("format") != FORMAT:
        raise DataDamaged(f"{path} is not a job file")
    if document.get("version") != VERSION:
        raise FormatTooNew(f"{path} was written by a newer diskprep", hint="upgrade diskprep on this computer")
    try:
        return SavedJob(job=_job(dict(document["job"])), created=clock.parse_rfc3339(document["created"]))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise DataDamaged(f"{path} is damaged: {error}", hint="`diskprep job create` writes it again") from None


def _job(fields: dict[str, Any]) -> Job:
    def value(name: str, make: Callable[..., Any]) -> None:
        if fields.get(name) is not None:
            fields[name] = make(**fields[name])

    def package(*, ship_date: str | None, **rest: Any) -> Package:
        return Package(ship_date=None if ship_date is None else date.fromisoformat(ship_date), **rest)

    fields["drives"] = tuple(
        DriveStatus(**{**drive, "state": known(DriveState, drive["state"])}) for drive in fields["drives"]
    )
    fields["state"] = known(JobState, fields["state"])
    fields["log_level"] = known(LogLevel, fields["log_level"])
    value("shipping_address", Address)
    value("return_address", ReturnAddress)
    value("return_shipping", ReturnShipping)
    value("package", package)
    value("return_package", package)
    return Job(**fields)


def _existing(service: ImportService, name: str) -> Job | None:
    try:
        return service.get(name)
    except NotFound:
        return None


def _check_drives(drives: Sequence[Drive]) -> None:
    if not 1 <= len(drives) <= DRIVES_LIMIT:
        raise UsageError(
            f"{len(drives)} drives; an import job takes 1 to {DRIVES_LIMIT}", hint="split the seed over several jobs"
        )
    serials = [drive.drive_id.lower() for drive in drives]
    if doubled := sorted({serial for serial in serials if serials.count(serial) > 1}):
        raise UsageError(f"the same serial number twice: {', '.join(doubled)}")
    for drive in drives:
        try:
            check_drive_id(drive.drive_id)
            check_file_path(drive.manifest_file)
        except DataDamaged as error:
            raise UsageError(f"drive {drive.drive_id!a}: {error.message}") from None
        if not _HASH.fullmatch(drive.manifest_hash):
            raise UsageError(f"drive {drive.drive_id}: {drive.manifest_hash!a} is not the hash of a manifest")
        parse_recovery_password(drive.recovery_password)


def _check_same(job: Job, request: JobRequest) -> None:
    """`job` must be the one that `request` describes."""
    theirs = {(drive.drive_id, drive.manifest_file, drive.manifest_hash.upper()) for drive in job.drives}
    ours = {(drive.drive_id, drive.manifest_file, drive.manifest_hash) for drive in request.drives}
    hint = "choose another job name, or delete that job if it is yours and not shipped"
    if theirs != ours:
        raise JobConflict(f"there is an import job {job.name} with other drives or manifests", hint=hint)
    if job.storage_account_id.lower() != request.storage_account_id.lower():
        raise JobConflict(f"import job {job.name} imports into another storage account", hint=hint)
    if job.cancel_requested:
        raise JobConflict(f"import job {job.name} was cancelled", hint=hint)


def _check_free(service: ImportService, request: JobRequest) -> None:
    """No drive may be in another open job: the datacenter could not tell whose it is."""
    wanted = {drive.drive_id.lower() for drive in request.drives}
    for job in service.list():
        taken = wanted & {drive.drive_id.lower() for drive in job.drives}
        if taken and job.name.lower() != request.name.lower() and states.is_open(job):
            raise JobConflict(
                f"drive {', '.join(sorted(taken))} is in import job {job.name}, which is {job.state}",
                hint="delete or cancel that job first",
            )


def _check_tracking(service: ImportService, mine: Job, package: Package) -> None:
    number = package.tracking_number.lower()
    for job in service.list():
        if job.name.lower() != mine.name.lower() and job.package and job.package.tracking_number.lower() == number:
            raise JobConflict(
                f"tracking number {package.tracking_number} belongs to import job {job.name}",
                hint="every job needs a package and a tracking number of its own",
            )


def _check_address(address: Address, region: str) -> None:
    """The service's records are known to have blank fields and fields in the wrong place."""
    lines = asdict(address)
    wanted = ("recipient_name", "street_address1", "city", "postal_code", "country_or_region")
    wrong = [name for name in wanted if not lines[name].strip()]
    wrong += [name for name, line in lines.items() if not line.isprintable()]
    wrong += [name for name in ("city", "country_or_region") if not any(sign.isalpha() for sign in lines[name])]
    wrong += [name for name in ("country_or_region",) if any(sign.isdigit() for sign in lines[name])]
    wrong += [name for name in ("postal_code",) if not any(sign.isdigit() for sign in lines[name])]
    if wrong:
        fields = ", ".join(dict.fromkeys(name.replace("_", " ") for name in wrong))
        said = "".join(sign if sign.isprintable() else " " for sign in address.recipient_name)
        raise ServiceError(
            f"the service's address for {region} cannot be used: {fields}" + (f"; it says: {said}" if said else ""),
            hint="ask Azure support where to ship; do not send the package to this address",
        )

"""Creating a seed's import job, once.

Write order: the ledger, the service, `job.json`. A crash before the last is healed by creating again, which finds the
job under its name and adopts it when it has the same drives.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from diskprep.errors import DataDamaged, DiskprepError, JobConflict, NotFound, NotSignedIn, ServiceError, UsageError
from diskprep.exchange.manifest import check_drive_id, check_file_path
from diskprep.importjob import states
from diskprep.importjob.booking import written_down
from diskprep.importjob.ledger import Ledger, key_of
from diskprep.importjob.lookup import existing, is_same
from diskprep.importjob.model import (
    DRIVES_LIMIT,
    Drive,
    Job,
    JobRequest,
    JobState,
    LogLevel,
    ReturnAddress,
    ReturnShipping,
)
from diskprep.importjob.saved import SavedJob, load_job, save_job
from diskprep.importjob.service import ImportService
from diskprep.importjob.shipping import check_return, is_same_region
from diskprep.seed import Seed, Staging
from diskprep.volume.bitlocker import parse_recovery_password

_HASH = re.compile(r"[0-9A-F]{32}")


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
    ledger: Ledger | None = None,
) -> Job:
    """The seed's import job over these drives: created, or adopted when it exists with exactly these drives.

    A job whose age is not known (it was adopted, and no job.json tells) is kept alive, so that its end is known.
    Raises UsageError for drives the service or its staff would refuse, JobConflict when the name is taken by another
    job or a drive is in another open job, and what the service and the ledger raise.
    """
    _check_drives(drives)
    check_return(return_address, return_shipping)
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
    saved, serials = _saved(staging, seed), tuple(drive.drive_id for drive in drives)
    job, before = existing(service, seed.job_name), service.server_time()
    if job is not None:
        _check_same(job, request)
    else:
        _check_free(service, request, seed)
    over = job is not None and not states.is_open(job)
    with written_down(
        service,
        None if over else ledger,
        key_of(seed),
        lambda book, key: book.record_job(key, serials),
        undone=lambda: existing(service, seed.job_name) is None,
    ):
        if job is None:
            job, saved = _create(service, request), None
            _check_same(job, request)
        elif saved is None and job.state == JobState.CREATING:
            job = service.keep_alive(job.name)
    if ledger is not None and over:
        ledger.close(key_of(seed))
    save_job(staging, job, at=service.server_time(), created=before if saved is None else None)
    if job.state == JobState.CREATING:
        _check_passwords(service, request)
    return job


def _saved(staging: Staging, seed: Seed) -> SavedJob | None:
    """What job.json knows of the seed's job. A damaged file is written anew; raises FormatTooNew."""
    try:
        saved = load_job(staging)
    except (NotFound, DataDamaged):
        return None
    return saved if saved.job.name == seed.job_name and not saved.gone else None


def _create(service: ImportService, request: JobRequest) -> Job:
    """Create; where no answer came, what is there now under the name decides."""
    try:
        return service.create(request)
    except ServiceError:
        try:
            job = existing(service, request.name)
        except DiskprepError:
            job = None
        if job is None:
            raise
        return job


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
        if not drive.opened:
            raise UsageError(
                f"drive {drive.drive_id} was not opened with its recovery password since it was finished",
                hint=f"`diskprep disk verify {drive.drive_id}` opens it and reads it back",
            )


def _check_same(job: Job, request: JobRequest) -> None:
    """`job` must be the one that `request` describes."""
    theirs = {(drive.drive_id, drive.manifest_file, drive.manifest_hash.upper()) for drive in job.drives}
    ours = {(drive.drive_id, drive.manifest_file, drive.manifest_hash) for drive in request.drives}
    hint = "`diskprep job delete` takes it back if it is this staging's and was not sent; else stage under another name"
    if theirs != ours:
        raise JobConflict(f"there is an import job {job.name} with other drives or manifests", hint=hint)
    if job.storage_account_id.lower() != request.storage_account_id.lower():
        raise JobConflict(f"import job {job.name} imports into another storage account", hint=hint)
    if not is_same_region(job.location, request.location):
        raise JobConflict(f"import job {job.name} is one of {job.location!a}, not {request.location!a}", hint=hint)
    if job.cancel_requested:
        raise JobConflict(f"import job {job.name} was cancelled", hint=hint)


def _check_passwords(service: ImportService, request: JobRequest) -> None:
    """The service must hold the passwords that open the disks. A role that may not ask for them is no reason to stop.

    Raises JobConflict.
    """
    try:
        theirs = service.recovery_passwords(request.name)
    except NotSignedIn:
        return
    if wrong := [
        d.drive_id for d in request.drives if theirs.get(d.drive_id, d.recovery_password) != d.recovery_password
    ]:
        raise JobConflict(
            f"import job {request.name} has another recovery password for drive {', '.join(wrong)}",
            hint="the datacenter could not open it: `diskprep job delete`, then create it again",
        )


def _check_free(service: ImportService, request: JobRequest, seed: Seed) -> None:
    """No drive may be in another open job: the datacenter could not tell whose it is."""
    wanted = {drive.drive_id.lower() for drive in request.drives}
    for job in service.list():
        taken = wanted & {drive.drive_id.lower() for drive in job.drives}
        if taken and not is_same(job, seed.job_name, seed.resource_group) and states.is_open(job):
            raise JobConflict(
                f"drive {', '.join(sorted(taken))} is in import job {job.name}, which is {job.state}",
                hint="`diskprep job delete` of its staging takes it back while it is not sent",
            )

"""A look at the import job at the service, and what it means for this computer's files.

Write order: `job.json` first, then the ledger. Both only say less than is true after a crash between them: a drive
stays taken a little longer.
"""

from __future__ import annotations

from dataclasses import replace

from diskprep import clock
from diskprep.errors import JobConflict, NotFound
from diskprep.importjob import states
from diskprep.importjob.advice import advise
from diskprep.importjob.ledger import Ledger, key_of
from diskprep.importjob.model import Job
from diskprep.importjob.saved import load_job, save_job, write_saved
from diskprep.importjob.service import ImportService
from diskprep.seed import Staging, load_seed


def existing(service: ImportService, name: str) -> Job | None:
    """The job of that name, None when the service has none."""
    try:
        return service.get(name)
    except NotFound:
        return None


def refresh_job(service: ImportService, staging: Staging, *, ledger: Ledger | None = None) -> Job:
    """The job of a staging as the service has it now; when it is over, the ledger gives its drives free.

    Raises NotFound with the reason when the service deleted it; job.json says so from then on.
    """
    saved = load_job(staging)
    job = existing(service, saved.job.name)
    if job is None:
        saved = replace(saved, gone=True, seen=service.server_time())
        write_saved(staging, saved)
        _close(staging, ledger)
        advice = advise(saved, clock.now())
        raise NotFound(advice.error.message, hint=advice.error.hint) if advice.error else NotFound(advice.text)
    if saved.gone and ledger is not None and states.is_open(job):  # it was looked for in the wrong place
        ledger.record_job(key_of(load_seed(staging)), [drive.drive_id for drive in job.drives])
    save_job(staging, job, at=service.server_time())
    if not states.is_open(job):
        _close(staging, ledger)
    return job


def is_same(job: Job, name: str, resource_group: str) -> bool:
    """Whether `job` has this name and group; a group that is not known is taken for the same."""
    groups = {job.resource_group.lower(), resource_group.lower()} - {""}
    return job.name.lower() == name.lower() and len(groups) < 2


def check_not_cancelled(job: Job) -> None:
    """Raise JobConflict when cancelling the job was asked for."""
    if job.cancel_requested:
        raise JobConflict(
            f"import job {job.name} is being cancelled",
            hint="keep the disks here; when it is over, `diskprep job delete` takes it back, and its name is free",
        )


def _close(staging: Staging, ledger: Ledger | None) -> None:
    if ledger is not None:
        ledger.close(key_of(load_seed(staging)))

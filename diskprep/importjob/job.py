"""A seed's import job: created once, kept alive, shipped, cancelled. What the rest of the program calls.

Invariants: creating twice is one job; a serial number is in one open job only; a tracking number belongs to one job;
`job.json` never holds a secret.

    creation   the job at the service          sending    the tracking number of its package
    lookup     the job as it is now            shipping   where the package goes
    saved      job.json                        ledger     what all jobs of this computer have
"""

from __future__ import annotations

from diskprep.errors import JobConflict, NotFound
from diskprep.importjob import states
from diskprep.importjob.creation import create_job, storage_account_id
from diskprep.importjob.ledger import Ledger, key_of
from diskprep.importjob.lookup import check_not_cancelled, refresh_job
from diskprep.importjob.model import Job, JobState
from diskprep.importjob.saved import SavedJob, load_job, remove_saved, save_job
from diskprep.importjob.sending import enter_shipping
from diskprep.importjob.service import ImportService
from diskprep.importjob.shipping import Destination, shipping_address
from diskprep.seed import Staging, load_seed

__all__ = [
    "Destination",
    "SavedJob",
    "cancel_job",
    "create_job",
    "delete_job",
    "enter_shipping",
    "keep_alive",
    "load_job",
    "refresh_job",
    "save_job",
    "shipping_address",
    "storage_account_id",
]


def keep_alive(service: ImportService, staging: Staging, *, ledger: Ledger | None = None) -> Job:
    """Restart the job's two weeks. A job that is shipped has none to restart, and is returned as it is.

    Raises JobConflict when the job is over or being cancelled, NotFound when it is gone, and what the service raises.
    """
    job = refresh_job(service, staging, ledger=ledger)
    if job.state != JobState.CREATING and states.is_open(job):
        return job
    states.check(job, states.Action.KEEP_ALIVE)
    check_not_cancelled(job)
    before = service.server_time()
    job = service.keep_alive(job.name)
    save_job(staging, job, at=service.server_time(), touched=before)
    return job


def cancel_job(service: ImportService, staging: Staging, *, force: bool = False, ledger: Ledger | None = None) -> Job:
    """Ask the service to cancel the job, and return the job as it really is afterwards.

    Before the package is sent freely; from then until the copying ends only with `force`: the published texts do not
    agree on whether the service still does it. Raises JobConflict, NotFound, and what the service raises.
    """
    job = refresh_job(service, staging, ledger=ledger)
    if job.cancel_requested:
        return job
    states.check(job, states.Action.CANCEL)
    if job.state != JobState.CREATING and not force:
        raise JobConflict(
            f"import job {job.name} is {job.state}: {states.describe(job.state)}; the service may not cancel it any "
            "more, and the drives come back only once they have arrived",
            hint="give --force to ask all the same",
        )
    answered = service.cancel(job.name)
    save_job(staging, answered, at=service.server_time())
    try:
        return refresh_job(service, staging, ledger=ledger)
    except NotFound:  # cancelled and deleted at once: what it was answers the question
        return answered


def delete_job(service: ImportService, staging: Staging, *, ledger: Ledger | None = None) -> Job:
    """Take a job back that was never sent, or was cancelled, so that its name is free; return it as it was.

    Write order: the service, the ledger, `job.json`, which goes. A crash before the last leaves a job that is gone.
    Raises JobConflict for a job that was sent or copied, NotFound when there is none, and what the service raises.
    """
    job = refresh_job(service, staging, ledger=ledger)
    states.check(job, states.Action.DELETE)
    if job.state != JobState.CREATING and not job.cancel_requested:
        raise JobConflict(
            f"import job {job.name} is {job.state}: {states.describe(job.state)}; what became of its drives would be "
            "forgotten",
            hint="the service itself deletes it 90 days after its end",
        )
    service.delete(job.name)
    if ledger is not None:
        ledger.close(key_of(load_seed(staging)))
    remove_saved(staging)
    return job

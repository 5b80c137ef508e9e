"""What an operator should do next with an import job. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from diskprep.errors import DeadlineNear, DiskprepError, DrivesFailed, NotFound
from diskprep.exchange.copylog import DriveStatus as CopyStatus
from diskprep.importjob import states
from diskprep.importjob.deadline import deadline_of
from diskprep.importjob.model import DriveState, Job, JobState
from diskprep.importjob.saved import SavedJob

#: A package is late after this long, and the datacenter's operators are told (published state descriptions).
PACKAGE_LATE = timedelta(days=14)
#: Published copy statuses of a drive that is no trouble; other words are, once the job has ended with errors.
_FINE = ("", "Completed", "CompletedWithWarnings", "InProgress", "NotStarted")
_FAILED = frozenset(CopyStatus) - {CopyStatus.COMPLETED, CopyStatus.COMPLETED_WITH_WARNINGS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """`text` says how things stand and what to do; `command` is what to type after `diskprep`, if anything.

    `error`: what a command that shows the job should end with. `waits`: nothing happens before the service goes on.
    """

    text: str
    command: str = ""
    error: DiskprepError | None = None
    waits: bool = False


def failed_drives(job: Job) -> tuple[str, ...]:
    """Serials of drives that never arrived or were not copied without an error, as far as the service tells."""
    whole = (CopyStatus.COMPLETED, CopyStatus.COMPLETED_WITH_WARNINGS)
    return tuple(
        drive.drive_id
        for drive in job.drives
        if drive.state == DriveState.NEVER_RECEIVED
        or (drive.state == DriveState.COMPLETED_MORE_INFO and drive.copy_status not in whole)
        or drive.copy_status in _FAILED
        or (job.state == JobState.CLOSED and drive.copy_status not in _FINE)
    )


def advise(saved: SavedJob, now: datetime) -> Advice:
    """What to do next, as of `now` of this computer's clock."""
    if saved.gone:
        return _gone(saved)
    job = saved.job
    if not isinstance(job.state, JobState):
        return Advice(
            text=f"import job {job.name} is {states.describe(job.state)}, which this version does not know; "
            "`diskprep job show` tells what the service says",
            waits=True,
        )
    if job.cancel_requested and states.is_open(job):
        return Advice(
            text=f"import job {job.name} is {job.state}, and cancelling it was asked for; "
            "drives that are there already are sent back",
            waits=True,
        )
    return _BY_STATE[job.state](saved, now)


def _gone(saved: SavedJob) -> Advice:
    job = saved.job
    if job.cancel_requested:
        return Advice(text=f"import job {job.name} was cancelled, and the service does not have it any more")
    if job.state == JobState.CREATING:
        message = f"import job {job.name} is gone: a job without a tracking number is deleted after two weeks"
        hint = "create it again with `diskprep job create`; the disks stay as they are. Do not send them before"
        return Advice(
            text=f"{message}; {hint}", command="job create", error=DeadlineNear(message, hint=hint), waits=False
        )
    if not states.is_open(job):
        text = f"import job {job.name} was {job.state}; the service keeps ended jobs for 90 days, and it is gone now"
        return Advice(text=text)
    message = f"import job {job.name} is gone, and it was {job.state} when it was last seen"
    hint = "somebody deleted it, or the account or region changed: ask Azure support where the drives are"
    return Advice(text=f"{message}; {hint}", error=NotFound(message, hint=hint))


def _creating(saved: SavedJob, now: datetime) -> Advice:
    deadline = deadline_of(saved, now)
    assert deadline is not None, "the clock runs while a job is Creating"
    message = (
        f"import job {saved.job.name} has no tracking number, and the service deletes it on "
        f"{deadline.until:%Y-%m-%d at %H:%M} UTC (time left: {deadline.words})"
    )
    hint = "send the package and enter its tracking number with `diskprep job ship`"
    if deadline.alarm is None:
        return Advice(text=f"{message}: {hint}", command="job ship")
    hint += ", or gain two weeks with `diskprep job keep-alive`"
    return Advice(text=f"{message}: {hint}", command="job ship", error=DeadlineNear(message, hint=hint))


def _shipping(saved: SavedJob, now: datetime) -> Advice:
    job = saved.job
    missing = [drive.drive_id for drive in job.drives if drive.state == DriveState.NEVER_RECEIVED]
    if missing:
        message = f"drive {', '.join(missing)} of import job {job.name} did not arrive"
        hint = (
            f"ask the carrier about {_package(job)}, and tell Azure support; "
            "the service closes the job 30 days after the shipping date"
        )
        return Advice(text=f"{message}: {hint}", error=DrivesFailed(message, hint=hint), waits=True)
    if job.package and job.package.ship_date:
        days = (saved.service_time(now).date() - job.package.ship_date).days
        if days > PACKAGE_LATE.days:
            return Advice(
                text=f"{_package(job)} of import job {job.name} was sent {days} days ago and has not arrived: "
                "ask the carrier; after 30 days the service closes the job",
                waits=True,
            )
    return Advice(
        text=f"{_package(job)} of import job {job.name} is on its way; the service may take one to three days to "
        "enter what the carrier has delivered. Nothing is to be done until it arrives",
        waits=True,
    )


def _working(saved: SavedJob, _now: datetime) -> Advice:
    job = saved.job
    text = f"import job {job.name} is {job.state}: {states.describe(job.state)}"
    missing = [drive.drive_id for drive in job.drives if drive.state == DriveState.NEVER_RECEIVED]
    error = None
    if missing:
        lacks = f"rive {', '.join(missing)} was not in the package"
        text += f". D{lacks}: ask the carrier about it"
        hint = (
            f"ask the carrier about it; import job {job.name} is {job.state}, else nothing is to be done until it ends"
        )
        error = DrivesFailed(f"d{lacks}", hint=hint)
    if failed := [serial for serial in failed_drives(job) if serial not in missing]:
        text += f". Drive {', '.join(failed)} had trouble; `diskprep job report` tells once the job has ended"
    text += f". {'Else nothing' if missing else 'Nothing'} is to be done until it has ended"
    return Advice(text=text, error=error, waits=True)


def _faulted(saved: SavedJob, _now: datetime) -> Advice:
    return Advice(
        text=f"import job {saved.job.name} is stuck; the datacenter's operators write to the address given for the "
        "return. Look there, and ask Azure support",
        waits=True,
    )


def _ended(saved: SavedJob, _now: datetime) -> Advice:
    job = saved.job
    failed = failed_drives(job)
    if job.cancel_requested:
        return Advice(
            text=f"import job {job.name} was cancelled; what was not copied before is not in the container, "
            "and drives that were sent come back. Before a new job is created under its name, `diskprep job delete` "
            "takes it back"
        )
    if job.state == JobState.COMPLETED and not failed:
        return Advice(
            text=f"import job {job.name} is done: all drives were copied without an error, and are on their way back",
            command="vault ingest",
        )
    which = f"drive {', '.join(failed)}" if failed else "at least one drive"
    was = "were" if len(failed) > 1 else "was"
    message = f"import job {job.name} ended, and {which} {was} not copied whole"
    hint = "`diskprep job report` tells which files and why, `diskprep job repair` prepares what is missing again"
    return Advice(text=f"{message}: {hint}", command="job report", error=DrivesFailed(message, hint=hint))


def _package(job: Job) -> str:
    if job.package is None:
        return "the package"
    return f"the package ({_plain(job.package.carrier)} {_plain(job.package.tracking_number)})"


def _plain(text: str) -> str:
    return "".join(sign if sign.isprintable() else " " for sign in text)


_BY_STATE: Mapping[JobState, Callable[[SavedJob, datetime], Advice]] = {
    JobState.CREATING: _creating,
    JobState.SHIPPING: _shipping,
    JobState.RECEIVED: _working,
    JobState.TRANSFERRING: _working,
    JobState.PACKAGING: _working,
    JobState.COMPLETED: _ended,
    JobState.CLOSED: _ended,
    JobState.FAULTED: _faulted,
}


def fresh_trouble(before: Job, after: Job) -> Sequence[str]:
    """What a person should look at although the service goes on: drives that have just been missed, a stuck job."""
    was = troubles(before)
    return [text for mark, text in troubles(after).items() if mark not in was]


def troubles(job: Job) -> Mapping[str, str]:
    """The same for a job at one moment: what is in trouble (a serial, or the job's state) -> a sentence."""
    found = {
        drive.drive_id: f"drive {drive.drive_id} did not arrive"
        for drive in job.drives
        if drive.state == DriveState.NEVER_RECEIVED
    }
    if job.state == JobState.FAULTED:
        found[JobState.FAULTED] = f"import job {job.name} is stuck"
    return found

"""`job.json`: a staging's import job as last seen, and what the service does not tell.

    version 2   job, created, touched, seen, skew, alarms told, changes seen, gone
    version 1   job, created

Invariants: no secret is in it; times are the service's. `touched` is never later than the service's own clock was
restarted, so that a deadline counted from it is never too late.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import date, datetime, timedelta
from typing import Any, TypeVar

from diskprep import clock, durable
from diskprep.errors import DataDamaged, FormatTooNew, NotFound
from diskprep.importjob import states
from diskprep.importjob.model import (
    Address,
    DriveState,
    DriveStatus,
    Job,
    JobState,
    LogLevel,
    Package,
    ReturnAddress,
    ReturnShipping,
    known,
)
from diskprep.seed import Staging

FORMAT = "diskprep-job"
VERSION = 2
PAST_LIMIT = 200
_LIMIT_BYTES = 1 << 20
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Something was seen in another state than before. `item` is a drive's serial, empty for the job itself."""

    at: datetime
    item: str
    before: str
    after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedJob:
    """The job as last seen, and when.

    `created` and `touched` (when this computer last restarted the two weeks) are the service's time, as is `seen`;
    `skew` is that time less this computer's at `seen`. `told`: the alarms, in days, that were told since `touched`.
    `passed_on`: the troubles (serials, a state) that a hook was told of. `past`: the last changes, oldest first.
    `gone`: the service does not have the job any more.
    """

    job: Job
    created: datetime
    touched: datetime
    seen: datetime
    skew: timedelta = timedelta()
    told: tuple[int, ...] = ()
    passed_on: tuple[str, ...] = ()
    past: tuple[Change, ...] = ()
    gone: bool = False

    @property
    def ship_until(self) -> datetime:
        """When the service deletes the job unless it has a tracking number."""
        return self.touched + states.SHIPPING_DEADLINE

    def service_time(self, now: datetime) -> datetime:
        """`now` of this computer's clock as the service's, by the difference seen last; never before `seen`."""
        return max(now + self.skew, self.seen)


def save_job(
    staging: Staging,
    job: Job,
    *,
    at: datetime | None = None,
    created: datetime | None = None,
    touched: datetime | None = None,
) -> SavedJob:
    """Write what was seen of `job` at `at` (the service's time; now without it), durably, and return it.

    `touched`: the two weeks were restarted then. `created`: the file begins anew; without it, what is not given comes
    from an earlier file of the same job.
    """
    at = at or clock.now()
    saved = None if created else _earlier(staging, job.name)
    if saved is None:
        created = created or touched or at
        saved = SavedJob(job=job, created=created, touched=created, seen=at)
    now = replace(
        saved,
        job=job,
        seen=at,
        skew=timedelta(seconds=round((at - clock.now()).total_seconds())),
        past=(*saved.past, *changes(saved.job, job, at))[-PAST_LIMIT:],
        gone=False,
    )
    if touched is not None:
        now = replace(now, touched=touched, told=())
    write_saved(staging, now)
    return now


def changes(before: Job, after: Job, at: datetime) -> tuple[Change, ...]:
    """What differs between two looks at a job: its state, and those of its drives."""
    seen = []
    if before.state != after.state:
        seen.append(Change(at=at, item="", before=str(before.state), after=str(after.state)))
    states_before = {drive.drive_id: drive.state for drive in before.drives}
    seen += [
        Change(at=at, item=drive.drive_id, before=str(was), after=str(drive.state))
        for drive in after.drives
        if (was := states_before.get(drive.drive_id, drive.state)) != drive.state
    ]
    return tuple(seen)


def write_saved(staging: Staging, saved: SavedJob) -> None:
    """Write job.json as it is given, durably."""
    document = {
        "format": FORMAT,
        "version": VERSION,
        "job": asdict(saved.job),
        "created": clock.rfc3339(saved.created),
        "touched": clock.rfc3339(saved.touched),
        "seen": clock.rfc3339(saved.seen),
        "skew_s": int(saved.skew.total_seconds()),
        "told": list(saved.told),
        "passed_on": list(saved.passed_on),
        "past": [{**asdict(change), "at": clock.rfc3339(change.at)} for change in saved.past],
        "gone": saved.gone,
    }
    for package in ("package", "return_package"):
        if (value := document["job"][package]) is not None and value["ship_date"] is not None:  # type: ignore[index]
            value["ship_date"] = value["ship_date"].isoformat()
    durable.write_json(staging.job_file, document)


def remove_saved(staging: Staging) -> None:
    """Remove job.json, durably: the staging has no job."""
    try:
        staging.job_file.unlink(missing_ok=True)
    except OSError as error:
        raise durable.storage_error(error, f"remove {staging.job_file}") from error
    durable.fsync_directory(staging.root)


def load_job(staging: Staging) -> SavedJob:
    """The job of a staging as last seen. Raises NotFound, DataDamaged or FormatTooNew."""
    path = staging.job_file
    try:
        document = durable.read_json(path, limit_bytes=_LIMIT_BYTES)
    except NotFound:
        raise NotFound("this staging has no import job", hint="create it with `diskprep job create`") from None
    except DataDamaged as error:
        raise DataDamaged(error.message, hint=_REWRITTEN) from None
    if document.get("format") != FORMAT:
        raise DataDamaged(f"{path} is not a job file", hint=_REWRITTEN)
    version = document.get("version")
    if version not in (1, VERSION):
        raise FormatTooNew(f"{path} was written by a newer diskprep", hint="upgrade diskprep on this computer")
    try:
        job, created = _job(dict(document["job"])), clock.parse_rfc3339(document["created"])
        if version == 1:
            return SavedJob(job=job, created=created, touched=created, seen=created)
        return SavedJob(
            job=job,
            created=created,
            touched=clock.parse_rfc3339(document["touched"]),
            seen=clock.parse_rfc3339(document["seen"]),
            skew=timedelta(seconds=document["skew_s"]),
            told=tuple(_of(int, days) for days in document["told"]),
            passed_on=tuple(_of(str, mark) for mark in document.get("passed_on", ())),
            past=tuple(_change(change) for change in document["past"]),
            gone=_of(bool, document["gone"]),
        )
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise DataDamaged(f"{path} is damaged: {error}", hint=_REWRITTEN) from None


_REWRITTEN = "`diskprep job create` finds the job under its name and writes the file again"


def _earlier(staging: Staging, name: str) -> SavedJob | None:
    try:
        saved = load_job(staging)
    except NotFound:
        return None
    return saved if saved.job.name == name else None


def _of(kind: type[_Value], value: Any) -> _Value:
    if type(value) is not kind:
        raise TypeError(f"{value!a} is not of type {kind.__name__}")
    return value


def _change(fields: dict[str, Any]) -> Change:
    texts = {name: _of(str, fields[name]) for name in ("item", "before", "after")}
    return Change(at=clock.parse_rfc3339(fields["at"]), **texts)


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

"""An import job from a staging's sealed disks: what `job create` does, and `disk prepare --create-job` at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, astuple, dataclass
from datetime import datetime
from typing import Any

from diskprep import clock
from diskprep.cli import output
from diskprep.cli.advising import end, ship_command
from diskprep.cli.recovery import recovery_password
from diskprep.disk.plan import load_plan, require_complete, require_one_job
from diskprep.disk.record import recorded
from diskprep.errors import DiskprepError, NotFound
from diskprep.importjob import job as jobs
from diskprep.importjob.advice import advise
from diskprep.importjob.deadline import deadline_of, skew_words
from diskprep.importjob.ledger import Ledger
from diskprep.importjob.lookup import existing
from diskprep.importjob.model import Drive, Job, JobState, ReturnAddress, ReturnShipping
from diskprep.importjob.saved import SavedJob, load_job
from diskprep.importjob.service import ImportService
from diskprep.importjob.shipping import Destination, checklist, shipping_address
from diskprep.seal import load_seal
from diskprep.secrets import Secret
from diskprep.seed import Seed, Staging


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A job that exists now, the disks in it, and where they go; no destination: the service names none to use.

    `was_there`: it was created before.
    """

    saved: SavedJob
    serials: tuple[str, ...]
    destination: Destination | None
    was_there: bool = False
    trouble: DiskprepError | None = None


def make_job(
    place: Staging,
    seed: Seed,
    service: ImportService,
    passphrase: Callable[[], Secret[str]],
    ledger: Ledger,
    *,
    return_address: ReturnAddress | None = None,
    return_shipping: ReturnShipping | None = None,
) -> Made:
    """Create the job, or find it, and look up where to ship.

    The passphrase is asked for once the disks are known to be ready. An address that cannot be used is told in the
    result: the job exists all the same.
    """
    seal = load_seal(place.seal_file)
    plan = load_plan(place.plan_file, seal)
    require_complete(plan)
    require_one_job(plan)
    drives = []
    sealed = [recorded(place, share, seal.digest) for share in plan.disks]
    secret = passphrase()
    for disk in sealed:
        password = recovery_password(place, disk.serial, secret)
        drives.append(
            Drive(
                drive_id=disk.serial,
                recovery_password=password,
                manifest_file=disk.manifest_file,
                manifest_hash=disk.manifest_hash,
                opened=disk.was_opened_by(password),
            )
        )
    was_there = existing(service, seed.job_name) is not None
    jobs.create_job(
        service, place, seed, drives, return_address=return_address, return_shipping=return_shipping, ledger=ledger
    )
    destination, trouble = None, None
    try:
        destination = shipping_address(service, seed.location)
    except DiskprepError as error:
        trouble = error
    return Made(
        saved=load_job(place),
        serials=tuple(drive.drive_id for drive in drives),
        destination=destination,
        was_there=was_there,
        trouble=trouble,
    )


def tell_made(place: Staging, seed: Seed, made: Made, *, as_json: bool) -> None:
    """The original's end: disks prepared, job created, shipping address. Raises what stands in the way of shipping.

    A job that was there and is further on is told as it stands.
    """
    if made.saved.job.state != JobState.CREATING:
        tell(made.saved, as_json=as_json)
        end(place, made.saved)
        return
    if as_json:
        where = made.destination
        output.print_json(
            {
                **document(made.saved),
                "ship_to": asdict(where.address) if where else None,
                "carriers": where.carriers if where else (),
                "checklist": checklist(seed.location, where) if where else (),
            }
        )
    else:
        print(f"disks prepared: {', '.join(made.serials)}")
        told = "is there already" if made.was_there else "created"
        print(f"import job {told}: {output.escape(made.saved.job.name)}")
        if made.destination is not None:
            print(f"ship to: {output.escape(address_line(made.destination))}")
            print(f"carriers: {output.escape(', '.join(made.destination.carriers))}")
        print(f"enter the tracking number before {made.saved.ship_until:%Y-%m-%d}, or the job is deleted")
    if made.trouble is not None:
        raise made.trouble
    output.next_step(f"diskprep job slip {output.word(place.root)} ..., then: {ship_command(place)}")


def address_line(destination: Destination) -> str:
    return ", ".join(line for line in astuple(destination.address) if line)


def document(saved: SavedJob, now: datetime | None = None) -> dict[str, Any]:
    """A job as JSON: the service's fields, the deadline, what was seen to change, and what to do next."""
    now = now or clock.now()
    deadline, advice = deadline_of(saved, now), advise(saved, now)
    return {
        **job_document(saved.job),
        "created": clock.rfc3339(saved.created),
        "seen": clock.rfc3339(saved.seen),
        "gone": saved.gone,
        "deadline": deadline
        and {
            "until": clock.rfc3339(deadline.until),
            "left_seconds": int(deadline.left.total_seconds()),
            "alarm_days": deadline.alarm,
        },
        "changes": [{**asdict(change), "at": clock.rfc3339(change.at)} for change in saved.past],
        "next": {"text": advice.text, "command": advice.command, "exit_code": _code(advice.error)},
    }


def job_document(job: Job) -> dict[str, Any]:
    """The service's fields of a job as JSON."""
    made = asdict(job)
    for package in ("package", "return_package"):
        if made[package] and made[package]["ship_date"]:
            made[package]["ship_date"] = made[package]["ship_date"].isoformat()
    return made


def tell(saved: SavedJob, *, as_json: bool) -> None:
    """A job on stdout, for people or programs."""
    if as_json:
        output.print_json(document(saved))
    else:
        print("\n".join(lines(saved)))


def follow(service: ImportService, place: Staging, ledger: Ledger) -> SavedJob:
    """The staging's job as the service has it now; one that is gone is noted as that. Raises NotFound without a job."""
    try:
        jobs.refresh_job(service, place, ledger=ledger)
    except NotFound:
        saved = load_job(place)
        if not saved.gone:
            raise
        return saved
    return load_job(place)


def lines(saved: SavedJob, now: datetime | None = None) -> Iterator[str]:
    """A job for people: its state, its drives, its package, how long there is time."""
    now = now or clock.now()
    job = saved.job
    yield f"import job {output.escape(job.name)}: {output.escape(str(job.state))}, {job.percent_complete} %"
    yield output.table(
        ("drive", "state", "done", "bytes", "copy"),
        [
            (
                output.escape(drive.drive_id),
                output.escape(str(drive.state)),
                f"{drive.percent_complete} %",
                output.size(drive.bytes_succeeded),
                output.escape(drive.copy_status),
            )
            for drive in job.drives
        ],
    )
    for what, package in (("package", job.package), ("on its way back", job.return_package)):
        if package is not None:
            sent = f", sent {package.ship_date:%Y-%m-%d}" if package.ship_date else ""
            yield output.escape(
                f"{what}: {package.carrier} {package.tracking_number}, {package.drive_count} disks{sent}"
            )
    deadline = deadline_of(saved, now)
    if deadline is not None:
        yield f"time left to enter the tracking number: {deadline.words}, until {deadline.until:%Y-%m-%d %H:%M} UTC"
    if skew := skew_words(saved):
        yield skew


def _code(error: DiskprepError | None) -> int:
    return 0 if error is None else error.exit_code

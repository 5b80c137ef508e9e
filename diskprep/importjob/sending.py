"""Entering the tracking number of a package, for the one job whose drives are in it.

Write order: the ledger, the service, `job.json`. The same command again finds the same package and changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import astuple, replace
from datetime import date, timedelta

from diskprep import clock
from diskprep.errors import DiskprepError, JobConflict, ServiceError, UsageError
from diskprep.importjob import states
from diskprep.importjob.booking import written_down
from diskprep.importjob.ledger import JobKey, Ledger, key_of, one_package_hint, same_number
from diskprep.importjob.lookup import check_not_cancelled, is_same, refresh_job
from diskprep.importjob.model import Job, JobState, Package, ReturnAddress, ReturnShipping
from diskprep.importjob.saved import save_job
from diskprep.importjob.service import ImportService
from diskprep.importjob.shipping import check_return, serves, shipping_address
from diskprep.seed import Staging, load_seed

#: Days off the service's today that a shipping date may lie: it closes jobs 30 days after that date.
_SHIPPED_BEFORE, _SHIPPED_AFTER = timedelta(days=30), timedelta(days=14)
_TRACKING = re.compile(r"[A-Za-z0-9][A-Za-z0-9 -]{2,48}[A-Za-z0-9]")


def enter_shipping(
    service: ImportService,
    staging: Staging,
    *,
    carrier: str,
    tracking_number: str,
    drive_count: int,
    ship_date: date | None = None,
    return_address: ReturnAddress | None = None,
    return_shipping: ReturnShipping | None = None,
    serials: Sequence[str] | None = None,
    ledger: Ledger | None = None,
) -> Job:
    """Tell the service that the package is on its way; the two-week clock stops. Doing it again changes nothing.

    `ship_date`: None is today, or what was entered before. `serials`: what was put into the package, compared with the
    job. Another way back than the job has (`return_address`, `return_shipping`) is entered also when the package is the
    same. Raises UsageError, JobConflict (the tracking number is another job's, the package holds other drives than the
    job's, the state does not allow it), and what the service and the ledger raise.
    """
    package = Package(
        carrier=carrier.strip(),
        tracking_number=tracking_number.strip(),
        drive_count=drive_count,
        ship_date=ship_date or clock.now().date(),
    )
    if not package.carrier.isprintable() or not package.carrier:
        raise UsageError("the carrier's name is missing or has strange characters")
    if not _TRACKING.fullmatch(package.tracking_number):
        raise UsageError(
            f"{tracking_number!r} does not look like a tracking number",
            hint="give it as the carrier's receipt has it: 4 to 50 letters, digits, blanks and hyphens",
        )
    check_return(return_address, return_shipping)
    job = refresh_job(service, staging, ledger=ledger)
    key = key_of(load_seed(staging)) if ledger is not None else None
    in_job = [drive.drive_id for drive in job.drives]
    entered = job.state != JobState.CREATING and _is_entered(job, package, dated=ship_date is not None)
    if entered and ship_date is None and job.package is not None and job.package.ship_date is not None:
        package = replace(package, ship_date=job.package.ship_date)
    done = entered and not _is_other_way_back(job, return_address, return_shipping)
    if not done:
        if ship_date is not None:
            _check_date(ship_date, service.server_time().date())
        states.check(job, states.Action.SHIP)
        check_not_cancelled(job)
    if serials is not None:
        _check_package(service, job, serials, ledger, key)
    if drive_count != len(in_job) or (serials is not None and drive_count != len(serials)):
        raise JobConflict(
            f"the package holds {drive_count} drives, import job {job.name} has {len(in_job)}",
            hint="all drives of a job travel in one package, and no drive of another job with them",
        )
    if job.return_address is None and return_address is None:
        raise UsageError("the return address is missing", hint="the service needs it before the package is sent")
    if done:
        if ledger is not None and key is not None:
            ledger.record_shipping(key, package, in_job)
        return job
    _check_tracking(service, job, package)
    with written_down(
        service,
        ledger,
        key,
        lambda book, own: book.record_shipping(own, package, in_job),
        undone=lambda: not _is_entered(service.get(job.name), package),
    ):
        try:
            job = service.ship(job.name, package, return_address=return_address, return_shipping=return_shipping)
        except ServiceError as error:
            raise _with_carriers(service, load_seed(staging).location, package.carrier, error) from None
    save_job(staging, job, at=service.server_time())
    return job


def _check_date(given: date, today: date) -> None:
    """Raise UsageError for a day on which this package was not sent; `today` is the service's."""
    if not today - _SHIPPED_BEFORE <= given <= today + _SHIPPED_AFTER:
        raise UsageError(
            f"the package was not sent on {given:%Y-%m-%d}: today is {today:%Y-%m-%d}",
            hint="the service closes a job 30 days after this date; give the day on which the carrier gets the package",
        )


def _is_other_way_back(job: Job, address: ReturnAddress | None, shipping: ReturnShipping | None) -> bool:
    """Whether the job has another way back than is wanted; the service may set blanks and capitals its own way."""

    def plain(value: ReturnAddress | ReturnShipping | None) -> list[str]:
        return [] if value is None else ["".join(text.split()).casefold() for text in astuple(value)]

    return (address is not None and plain(address) != plain(job.return_address)) or (
        shipping is not None and plain(shipping) != plain(job.return_shipping)
    )


def _with_carriers(service: ImportService, location: str, carrier: str, error: ServiceError) -> ServiceError:
    """`error`, with the carriers as its hint when that is what may have been wrong."""
    try:
        if error.hint or serves(carrier, known := shipping_address(service, location).carriers):
            return error
    except DiskprepError:
        return error
    return ServiceError(error.message, hint=f"carriers that the service names: {', '.join(known)}")


def _is_entered(job: Job, package: Package, *, dated: bool = False) -> bool:
    """Whether the job has this package; with `dated`, sent that day: the service may have that in words of its own."""
    theirs = job.package
    return (
        theirs is not None
        and same_number(theirs.tracking_number, package.tracking_number)
        and theirs.carrier.lower() == package.carrier.lower()
        and (not dated or theirs.ship_date in (None, package.ship_date))
    )


def _check_package(
    service: ImportService, mine: Job, serials: Sequence[str], ledger: Ledger | None, key: JobKey | None
) -> None:
    """What is in the package must be the job's drives, all of them and each once."""
    in_job = {drive.drive_id.lower(): drive.drive_id for drive in mine.drives}
    put_in = [serial.strip().lower() for serial in serials]
    if doubled := sorted({serial for serial in serials if put_in.count(serial.strip().lower()) > 1}):
        raise UsageError(f"the same serial number twice: {', '.join(doubled)}")
    if strange := [serial.strip() for serial in serials if serial.strip().lower() not in in_job]:
        raise JobConflict(
            f"drive {strange[0]!a} is not in import job {mine.name}" + _whose(service, mine, strange[0], ledger, key),
            hint="take it out of the package: drives of two jobs in one package are lost",
        )
    if missing := [drive for serial, drive in in_job.items() if serial not in put_in]:
        raise JobConflict(
            f"drive {', '.join(missing)} of import job {mine.name} is not in the package",
            hint="all drives of a job travel in one package",
        )


def _whose(service: ImportService, mine: Job, serial: str, ledger: Ledger | None, key: JobKey | None) -> str:
    for job in service.list():
        if not is_same(job, mine.name, mine.resource_group) and serial.lower() in {
            d.drive_id.lower() for d in job.drives
        }:
            return f", but in {job.name}"
    if ledger is not None and key is not None:
        for holder in ledger.holders(key, [serial]).values():
            return f", but in {holder.rpartition('/')[2]}"
    return ""


def _check_tracking(service: ImportService, mine: Job, package: Package) -> None:
    taken = {}
    for job in service.list():
        if not is_same(job, mine.name, mine.resource_group) and job.package and job.package.tracking_number:
            taken[job.package.tracking_number] = job.name
    for number, name in taken.items():
        if same_number(number, package.tracking_number):
            raise JobConflict(
                f"tracking number {package.tracking_number} belongs to import job {name}",
                hint=one_package_hint(package.tracking_number, taken),
            )

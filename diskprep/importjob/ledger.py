"""The ledger: tracking numbers and drives of all import jobs that were made on this computer, whatever their staging.

The service sees one subscription; the ledger sees what this computer has sent, also into others. A number or a drive
is written down before the service is asked, so that two commands at the same moment cannot both have it.
Invariants: a tracking number belongs to one job, for ever; a drive is in one open job. A ledger that is damaged is an
error, never an empty ledger. One process at a time (flock on `NAME.lock` beside it).

    {"format": "diskprep-ledger", "version": 1, "jobs": {"SUBSCRIPTION/GROUP/NAME": the fields of Entry, ...}}
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from diskprep import clock, durable
from diskprep.errors import DataDamaged, FormatTooNew, JobConflict, NotFound
from diskprep.importjob.model import Package
from diskprep.seed import Seed

FORMAT = "diskprep-ledger"
VERSION = 1
_LIMIT_BYTES = 64 << 20
_LOCK_WAIT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class JobKey:
    """A job among all jobs. Names are compared without regard to case, as the service compares them."""

    subscription_id: str
    resource_group: str
    job_name: str

    def __str__(self) -> str:
        return f"{self.subscription_id}/{self.resource_group}/{self.job_name}".lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What the ledger holds of a job. Times are RFC 3339 by this computer's clock, empty when it did not happen.

    `earlier`: tracking numbers of packages that jobs of this name had before it was made again.
    """

    drives: tuple[str, ...]
    open: bool = True
    carrier: str = ""
    tracking_number: str = ""
    created: str = ""
    shipped: str = ""
    closed: str = ""
    earlier: tuple[str, ...] = ()

    @property
    def numbers(self) -> tuple[str, ...]:
        """All its tracking numbers."""
        return (*self.earlier, *filter(None, (self.tracking_number,)))


def key_of(seed: Seed) -> JobKey:
    """The key of a seed's import job."""
    return JobKey(subscription_id=seed.subscription_id, resource_group=seed.resource_group, job_name=seed.job_name)


def same_number(one: str, other: str) -> bool:
    """Whether two tracking numbers are one: case and blanks do not count, hyphens do (they set suffixes apart)."""
    return _number(one) == _number(other)


def suggest_number(number: str, taken: Collection[str]) -> str:
    """`number` with the first suffix -1, -2, ... that none of `taken` has."""
    seen = {_number(other) for other in taken}
    return next(name for n in range(1, len(seen) + 2) if _number(name := f"{number}-{n}") not in seen)


class Ledger:
    """The ledger at `path`. A path where nothing is, is a ledger that nothing was written in yet.

    All calls raise Locked, DataDamaged, FormatTooNew, StorageFull and StorageUnavailable.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def path(self) -> Path:
        return self._path

    def jobs(self) -> Mapping[str, Entry]:
        """All jobs, by str(JobKey)."""
        return self._read()

    def holders(self, key: JobKey, serials: Collection[str]) -> Mapping[str, str]:
        """The other open jobs that `serials` are in: serial -> str(JobKey)."""
        return _holders(self._read(), key, serials)

    def record_job(self, key: JobKey, serials: Collection[str]) -> None:
        """Write down an open job and its drives. Raises JobConflict when one is in another open job; then nothing is
        written."""
        with self._changing() as jobs:
            if holders := _holders(jobs, key, serials):
                self._refuse_drives(holders)
            entry = jobs.get(str(key))
            if entry is None or not entry.open:
                used = entry.numbers if entry is not None else ()
                entry = Entry(drives=(), created=clock.rfc3339(clock.now()), earlier=used)
            jobs[str(key)] = replace(entry, drives=tuple(serials))

    def record_shipping(self, key: JobKey, package: Package, serials: Collection[str]) -> None:
        """Write down a job's package, in the place of an earlier one. Raises JobConflict when the tracking number
        belongs to another job, open or ended; then nothing is written."""
        with self._changing() as jobs:
            self._refuse_number(jobs, key, package.tracking_number)
            now = clock.rfc3339(clock.now())
            entry = jobs.get(str(key), Entry(drives=tuple(serials), created=now))
            jobs[str(key)] = replace(
                entry,
                drives=tuple(serials),
                carrier=package.carrier,
                tracking_number=package.tracking_number,
                shipped=now,
            )

    def restore(self, key: JobKey, entry: Entry | None) -> None:
        """Bring a job's entry back to what it was (None: there was none), after the service refused what was asked."""
        with self._changing() as jobs:
            if entry is None:
                jobs.pop(str(key), None)
            else:
                jobs[str(key)] = entry

    def close(self, key: JobKey) -> None:
        """The job has ended or is gone: its drives are free. Its tracking number stays taken."""
        entry = self._read().get(str(key))
        if entry is not None and entry.open:
            with self._changing() as jobs:
                jobs[str(key)] = replace(jobs[str(key)], open=False, closed=clock.rfc3339(clock.now()))

    def _refuse_drives(self, holders: Mapping[str, str]) -> None:
        serial, holder = next(iter(sorted(holders.items())))
        raise JobConflict(
            f"drive {serial} is in import job {holder.rpartition('/')[2]}, which is not over",
            hint="`job delete` or `job cancel` of its staging first; when it is over, `job show` there notes it "
            f"(subscription/group/job: {holder}, in {self._path})",
        )

    def _refuse_number(self, jobs: Mapping[str, Entry], key: JobKey, number: str) -> None:
        taken = {number: name for name, entry in jobs.items() for number in entry.numbers}
        for other, name in taken.items():
            if name != str(key) and same_number(other, number):
                raise JobConflict(
                    f"tracking number {number} belongs to import job {name.rpartition('/')[2]}",
                    hint=one_package_hint(number, taken),
                )

    def _read(self) -> dict[str, Entry]:
        try:
            document = durable.read_json(self._path, limit_bytes=_LIMIT_BYTES)
        except NotFound:
            return {}
        except DataDamaged:
            raise self._damaged("it is not a JSON object") from None
        if document.get("format") != FORMAT:
            raise self._damaged("it is no ledger")
        if document.get("version") != VERSION:
            raise FormatTooNew(f"{self._path} was written by a newer diskprep", hint="upgrade diskprep here")
        try:
            return {name: _entry(fields) for name, fields in document["jobs"].items()}
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise self._damaged(str(error)) from None

    def _damaged(self, why: str) -> DataDamaged:
        return DataDamaged(
            f"the ledger of tracking numbers and drives, {self._path}, is damaged: {why}",
            hint="restore it from a copy. Without one, move it away: jobs of other subscriptions are then not "
            "known any more, so compare the tracking number and the serials by hand",
        )

    @contextlib.contextmanager
    def _changing(self) -> Iterator[dict[str, Entry]]:
        """The jobs, alone; what the block leaves is written durably, and nothing when it raises."""
        durable.make_directory(self._path.parent)
        lock = self._path.with_name(f"{self._path.name}.lock")
        hint = "wait until it has ended, or stop it"
        with durable.only_process(lock, busy=f"another process holds {lock}", hint=hint, wait_s=_LOCK_WAIT_S):
            jobs = self._read()
            yield jobs
            document = {"format": FORMAT, "version": VERSION, "jobs": {k: asdict(v) for k, v in jobs.items()}}
            durable.write_json(self._path, document)


def one_package_hint(number: str, taken: Collection[str]) -> str:
    """What to do about a tracking number that another job has."""
    return (
        "every job needs a package and a tracking number of its own; where the carrier gave several packages one "
        f"number, enter it as {suggest_number(number, taken)}"
    )


def _holders(jobs: Mapping[str, Entry], key: JobKey, serials: Collection[str]) -> dict[str, str]:
    wanted = {serial.lower(): serial for serial in serials}
    return {
        wanted[drive.lower()]: name
        for name, entry in jobs.items()
        if entry.open and name != str(key)
        for drive in entry.drives
        if drive.lower() in wanted
    }


def _number(number: str) -> str:
    return "".join(number.split()).lower()


def _entry(fields: dict[str, Any]) -> Entry:
    lists = {"drives": fields["drives"], "earlier": fields.get("earlier", [])}
    entry = Entry(**{**fields, **{name: tuple(texts) for name, texts in lists.items()}})
    texts = (entry.carrier, entry.tracking_number, entry.created, entry.shipped, entry.closed)
    if not all(isinstance(found, list) for found in lists.values()):
        raise TypeError("a field is of the wrong kind")
    if not isinstance(entry.open, bool) or not all(
        isinstance(text, str) for text in (*texts, *entry.drives, *entry.earlier)
    ):
        raise TypeError("a field is of the wrong kind")
    return entry


def parse_moment(text: str) -> datetime | None:
    """A time of an Entry, None when it did not happen."""
    return clock.parse_rfc3339(text) if text else None

"""What the stand-in remembers: its jobs, the drives that came, its clock, and faults that were ordered.

Invariant: every change is one transaction, synced before the call returns, so a killed stand-in comes back as it was.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from diskprep import clock
from diskprep.datacenter import lifecycle
from diskprep.datacenter.clockwork import Clockwork
from diskprep.datacenter.database import Database
from diskprep.datacenter.faults import DriveFault, DriveFaults
from diskprep.datacenter.lifecycle import StoredJob
from diskprep.datacenter.orders import Orders
from diskprep.datacenter.refusal import Refusal
from diskprep.secrets import Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedDrive:
    """A drive that was expected: where its image or device is (None: it did not come), and what is wrong with it.

    `started` is when it was first read, None before.
    """

    path: Path | None
    faults: DriveFaults
    started: datetime | None = None


def job_key(subscription: str, group: str, name: str) -> str:
    return f"{subscription}/{group}/{name}".lower()


class State:
    """The stand-in's memory. All methods may be called from several threads. `now` is the computer's clock."""

    def __init__(self, path: Path, now: Callable[[], datetime]) -> None:
        self._database = Database(path)
        self.clock = Clockwork(self._database, now)
        self.orders = Orders(self._database)

    def close(self) -> None:
        self._database.close()

    def get(self, key: str) -> StoredJob:
        """The job; raises Refusal (ResourceNotFound) when there is none, or no more."""
        with self._database.transaction() as db:
            return self._get(db, key)

    def find(self, name: str) -> str:
        """The key of the only job of this name, for those who see the label on a package."""
        with self._database.transaction() as db:
            self._sweep(db)
            keys = [str(row[0]) for row in db.execute("SELECT key FROM jobs")]
        found = [key for key in keys if key.rpartition("/")[2] == name.lower()]
        if len(found) != 1:
            raise (
                _not_found(name) if not found else Refusal("AmbiguousJob", f"{len(found)} jobs are called {name}", 409)
            )
        return found[0]

    def jobs(self, subscription: str, group: str | None = None) -> list[tuple[str, StoredJob]]:
        """All jobs of a subscription, or of one of its resource groups, with their keys and in the keys' order."""
        with self._database.transaction() as db:
            self._sweep(db)
            rows = db.execute(
                "SELECT * FROM jobs WHERE lower(subscription) = ?1 AND (?2 IS NULL OR lower(resource_group) = ?2) "
                "ORDER BY key",
                (subscription.lower(), group.lower() if group else None),
            ).fetchall()
        return [(row[0], _job(row)) for row in rows]

    def put(
        self, subscription: str, group: str, name: str, make: Callable[[StoredJob | None], StoredJob]
    ) -> tuple[StoredJob, bool]:
        """Store what `make` makes of the present job (None: there is none). True when it is new."""
        with self._database.transaction() as db:
            self._sweep(db)
            row = _row(db, job_key(subscription, group, name))
            job = make(None if row is None else _job(row))
            _store(db, job)
        return job, row is None

    def change(self, key: str, make: Callable[[StoredJob], StoredJob]) -> StoredJob:
        """Replace a job by what `make` makes of it."""
        with self._database.transaction() as db:
            job = make(self._get(db, key))
            _store(db, job)
        return job

    def delete(self, key: str) -> None:
        with self._database.transaction() as db:
            lifecycle.check_deletable(self._get(db, key))
            db.execute("DELETE FROM jobs WHERE key = ?", (key,))

    def update(self, key: str, make: Callable[[StoredJob, Collection[str]], StoredJob]) -> StoredJob:
        """As `change`; `make` is given the tracking numbers of all other jobs, in lower case."""
        with self._database.transaction() as db:
            others = [_job(row) for row in db.execute("SELECT * FROM jobs WHERE key != ?", (key,))]
            packages = [job.properties.get("deliveryPackage") for job in others]
            numbers = frozenset(package["trackingNumber"].lower() for package in packages if package)
            return self.change(key, lambda job: make(job, numbers))

    def receive(
        self, key: str, drives: Mapping[str, ReceivedDrive], make: Callable[[StoredJob], StoredJob]
    ) -> StoredJob:
        """A package was opened: where its drives stand is kept together with what that makes of the job."""
        with self._database.transaction() as db:
            job = self.change(key, make)
            db.executemany(
                "INSERT INTO drives VALUES (?, ?, ?, NULL, ?, ?, ?) ON CONFLICT (key, serial) DO UPDATE SET "
                "path = excluded.path, faults = excluded.faults, blocks = excluded.blocks, files = excluded.files",
                [
                    (
                        key,
                        serial,
                        None if drive.path is None else str(drive.path),
                        json.dumps(sorted(drive.faults.faults)),
                        drive.faults.blocks,
                        drive.faults.files,
                    )
                    for serial, drive in drives.items()
                ],
            )
        return job

    def start_drive(self, key: str, serial: str) -> tuple[StoredJob, datetime, bool]:
        """A drive is read: the job, when it was first read, and whether somebody began before and did not finish."""
        with self._database.transaction() as db:
            now = self.clock()
            job = self._get(db, key)
            drive = job.drive(serial)
            again = drive is not None and drive["state"] == "Transferring"
            if not again:
                job = lifecycle.start_drive(job, serial, now)
                _store(db, job)
            db.execute(
                "UPDATE drives SET started = coalesce(started, ?) WHERE key = ? AND serial = ?",
                (clock.rfc3339(now), key, serial),
            )
            kept = self.drives(key).get(serial)
            return job, kept.started if kept is not None and kept.started is not None else now, again

    def drives(self, key: str) -> dict[str, ReceivedDrive]:
        """By serial number, what came of the drives that were expected."""
        rows = self._database.rows("SELECT serial, path, started, faults, blocks, files FROM drives WHERE key = ?", key)
        return {
            serial: ReceivedDrive(
                path=None if path is None else Path(path),
                started=None if started is None else clock.parse_rfc3339(started),
                faults=DriveFaults(
                    faults=frozenset(DriveFault(fault) for fault in json.loads(faults)), blocks=blocks, files=files
                ),
            )
            for serial, path, started, faults, blocks, files in rows
        }

    def _get(self, db: sqlite3.Connection, key: str) -> StoredJob:
        self._sweep(db)
        row = _row(db, key)
        if row is None:
            raise _not_found(key.rpartition("/")[2])
        return _job(row)

    def _sweep(self, db: sqlite3.Connection) -> None:
        """Let time pass over all jobs."""
        now = self.clock()
        for row in db.execute("SELECT * FROM jobs").fetchall():
            job = _job(row)
            aged = lifecycle.age(job, now)
            if aged is None:
                db.execute("DELETE FROM jobs WHERE key = ?", (row[0],))
            elif aged is not job:
                _store(db, aged)


def _row(db: sqlite3.Connection, key: str) -> tuple[str, ...] | None:
    row: tuple[str, ...] | None = db.execute("SELECT * FROM jobs WHERE key = ?", (key,)).fetchone()
    return row


def _store(db: sqlite3.Connection, job: StoredJob) -> None:
    values = (
        job_key(job.subscription, job.group, job.name),
        job.subscription,
        job.group,
        json.dumps(job.resource),
        json.dumps({drive_id: key.reveal() for drive_id, key in job.keys.items()}),
        clock.rfc3339(job.touched),
    )
    db.execute(
        "INSERT INTO jobs VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET "
        "resource = excluded.resource, keys = excluded.keys, touched = excluded.touched",
        values,
    )


def _not_found(name: str) -> Refusal:
    return Refusal("ResourceNotFound", f"the job {name!a} was not found", 404)


def _job(row: tuple[str, ...]) -> StoredJob:
    _, subscription, group, resource, keys, touched = row
    return StoredJob(
        subscription=subscription,
        group=group,
        resource=json.loads(resource),
        keys={drive_id: Secret(key) for drive_id, key in json.loads(keys).items()},
        touched=clock.parse_rfc3339(touched),
    )

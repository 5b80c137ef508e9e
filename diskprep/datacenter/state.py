"""What the stand-in remembers: its jobs and which image stands for which received drive, in one SQLite file.

Invariants: every change is one transaction, synced before the call returns, so a killed stand-in comes back as it was;
the file holds BitLocker keys and is for its owner only.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from diskprep import clock, durable
from diskprep.datacenter import lifecycle
from diskprep.datacenter.lifecycle import Refusal, StoredJob
from diskprep.errors import DataDamaged, FormatTooNew, StorageUnavailable
from diskprep.secrets import Secret

_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    key TEXT PRIMARY KEY,       -- subscription/group/name in lower case
    subscription TEXT NOT NULL, resource_group TEXT NOT NULL,
    resource TEXT NOT NULL,     -- the answer to a GET, JSON
    keys TEXT NOT NULL,         -- recovery passwords by drive id, JSON
    touched TEXT NOT NULL       -- RFC 3339
) STRICT;
CREATE TABLE IF NOT EXISTS received (
    key TEXT NOT NULL REFERENCES jobs (key) ON DELETE CASCADE,
    serial TEXT NOT NULL, path TEXT NOT NULL,
    PRIMARY KEY (key, serial)
) STRICT;
"""


def job_key(subscription: str, group: str, name: str) -> str:
    return f"{subscription}/{group}/{name}".lower()


class State:
    """The stand-in's memory. All methods may be called from several threads."""

    def __init__(self, path: Path, now: Callable[[], datetime]) -> None:
        self._path, self._now = path, now
        self._lock = threading.RLock()
        with self._translated():
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON;")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version > _VERSION:
                raise FormatTooNew(f"{path} was written by a newer diskprep")
            self._db.executescript(f"{_SCHEMA} PRAGMA user_version = {_VERSION};")

    def close(self) -> None:
        with self._lock, self._translated():
            self._db.close()

    def get(self, key: str) -> StoredJob:
        """The job; raises Refusal (ResourceNotFound) when there is none, or no more."""
        with self._transaction():
            return self._get(key)

    def find(self, name: str) -> str:
        """The key of the only job of this name, for those who see the label on a package."""
        with self._transaction():
            self._sweep()
            keys = [str(row[0]) for row in self._db.execute("SELECT key FROM jobs")]
        found = [key for key in keys if key.rpartition("/")[2] == name.lower()]
        if len(found) != 1:
            raise (
                _not_found(name) if not found else Refusal("AmbiguousJob", f"{len(found)} jobs are called {name}", 409)
            )
        return found[0]

    def jobs(self, subscription: str, group: str | None = None) -> list[StoredJob]:
        """All jobs of a subscription, or of one of its resource groups, by name."""
        with self._transaction():
            self._sweep()
            rows = self._db.execute(
                "SELECT * FROM jobs WHERE lower(subscription) = ?1 AND (?2 IS NULL OR lower(resource_group) = ?2) "
                "ORDER BY key",
                (subscription.lower(), group.lower() if group else None),
            ).fetchall()
        return [_job(row) for row in rows]

    def put(self, subscription: str, group: str, name: str, make: Callable[[StoredJob | None], StoredJob]) -> bool:
        """Store what `make` makes of the present job (None: there is none). True when it is new."""
        with self._transaction():
            self._sweep()
            row = self._row(job_key(subscription, group, name))
            self._store(make(None if row is None else _job(row)))
        return row is None

    def change(self, key: str, make: Callable[[StoredJob], StoredJob]) -> StoredJob:
        """Replace a job by what `make` makes of it."""
        with self._transaction():
            job = make(self._get(key))
            self._store(job)
        return job

    def delete(self, key: str) -> None:
        with self._transaction():
            lifecycle.check_deletable(self._get(key))
            self._db.execute("DELETE FROM jobs WHERE key = ?", (key,))

    def tracking_in_use(self, except_key: str) -> frozenset[str]:
        """The tracking numbers of all other jobs, in lower case."""
        with self._transaction():
            jobs = [_job(row) for row in self._db.execute("SELECT * FROM jobs WHERE key != ?", (except_key,))]
        packages = [job.properties.get("deliveryPackage") for job in jobs]
        return frozenset(package["trackingNumber"].lower() for package in packages if package)

    def remember_drives(self, key: str, paths: dict[str, Path]) -> None:
        """Where the drives of a package stand in the datacenter."""
        with self._transaction():
            self._db.executemany(
                "INSERT OR REPLACE INTO received VALUES (?, ?, ?)",
                [(key, serial, str(path)) for serial, path in paths.items()],
            )

    def drives(self, key: str) -> dict[str, Path]:
        with self._transaction():
            rows = self._db.execute("SELECT serial, path FROM received WHERE key = ?", (key,)).fetchall()
        return {serial: Path(path) for serial, path in rows}

    def _get(self, key: str) -> StoredJob:
        self._sweep()
        row = self._row(key)
        if row is None:
            raise _not_found(key.rpartition("/")[2])
        return _job(row)

    def _row(self, key: str) -> tuple[str, ...] | None:
        row: tuple[str, ...] | None = self._db.execute("SELECT * FROM jobs WHERE key = ?", (key,)).fetchone()
        return row

    def _sweep(self) -> None:
        """Let time pass over all jobs."""
        for row in self._db.execute("SELECT * FROM jobs").fetchall():
            job = _job(row)
            aged = lifecycle.age(job, self._now())
            if aged is None:
                self._db.execute("DELETE FROM jobs WHERE key = ?", (row[0],))
            elif aged is not job:
                self._store(aged)

    def _store(self, job: StoredJob) -> None:
        values = (
            job_key(job.subscription, job.group, job.name),
            job.subscription,
            job.group,
            json.dumps(job.resource),
            json.dumps({drive_id: key.reveal() for drive_id, key in job.keys.items()}),
            clock.rfc3339(job.touched),
        )
        self._db.execute(
            "INSERT INTO jobs VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET "
            "resource = excluded.resource, keys = excluded.keys, touched = excluded.touched",
            values,
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock, self._translated():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise durable.storage_error(error, f"open the stand-in's memory {self._path}") from error
        except sqlite3.OperationalError as error:
            raise StorageUnavailable(f"the stand-in's memory {self._path}: {error}") from None
        except sqlite3.Error as error:
            raise DataDamaged(f"the stand-in's memory {self._path}: {error}") from None


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

"""The stand-in's one SQLite file: how it is opened, its tables, and transactions in it.

Invariants: every change is one transaction, synced before the call returns; the file holds BitLocker keys and is for
its owner only; several processes may have it open, and wait for each other.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diskprep import clock, durable
from diskprep.errors import DataDamaged, FormatTooNew, StorageUnavailable

VERSION = 2
_WAIT_S = 30.0  # for another process that writes
_RETRY_S = 0.01
#: What each version added. A file of an older one is brought up in the transaction that finds it.
_SCHEMA: dict[int, tuple[str, ...]] = {
    1: (
        """CREATE TABLE jobs (
            key TEXT PRIMARY KEY,       -- subscription/group/name in lower case
            subscription TEXT NOT NULL, resource_group TEXT NOT NULL,
            resource TEXT NOT NULL,     -- the answer to a GET, JSON
            keys TEXT NOT NULL,         -- recovery passwords by drive id, JSON
            touched TEXT NOT NULL       -- RFC 3339
        ) STRICT""",
        """CREATE TABLE received (
            key TEXT NOT NULL REFERENCES jobs (key) ON DELETE CASCADE,
            serial TEXT NOT NULL, path TEXT NOT NULL,
            PRIMARY KEY (key, serial)
        ) STRICT""",
    ),
    2: (
        """CREATE TABLE drives (
            key TEXT NOT NULL REFERENCES jobs (key) ON DELETE CASCADE,
            serial TEXT NOT NULL,
            path TEXT,                  -- the image or device; NULL: it did not come
            started TEXT,               -- RFC 3339: when it was first read
            faults TEXT NOT NULL,       -- JSON list of what was ordered to go wrong
            blocks INTEGER NOT NULL, files INTEGER NOT NULL,
            PRIMARY KEY (key, serial)
        ) STRICT""",
        "INSERT INTO drives SELECT key, serial, path, NULL, '[]', 1, 1 FROM received",
        "DROP TABLE received",
        """CREATE TABLE orders (
            number INTEGER PRIMARY KEY, -- the oldest comes first
            fault TEXT NOT NULL, method TEXT NOT NULL,
            times INTEGER NOT NULL, retry_after_s INTEGER NOT NULL
        ) STRICT""",
        "CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT",
    ),
}


class Database:
    """An open file. All methods may be called from several threads.

    Raises StorageUnavailable, DataDamaged when the file is none of ours, FormatTooNew.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.RLock()
        self._depth = 0
        with self._translated():
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
            self._db = sqlite3.connect(path, timeout=_WAIT_S, isolation_level=None, check_same_thread=False)
            try:
                self._open()
            except BaseException:
                self._db.close()
                raise

    def _open(self) -> None:
        self._db.execute("PRAGMA foreign_keys=ON")
        self._db.execute("PRAGMA synchronous=FULL")
        self._turn_to_wal()
        with self.transaction() as db:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version > VERSION:
                raise FormatTooNew(f"{self._path} was written by a newer diskprep")
            for number in range(version + 1, VERSION + 1):
                for statement in _SCHEMA[number]:
                    db.execute(statement)
            if version < VERSION:
                db.execute(f"PRAGMA user_version = {VERSION}")

    def _turn_to_wal(self) -> None:
        """Readers and a writer side by side. Here alone SQLite does not wait for another who does the same."""
        until_s = clock.monotonic_s() + _WAIT_S
        while True:
            try:
                self._db.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or clock.monotonic_s() > until_s:
                    raise
                clock.sleep(_RETRY_S)

    def close(self) -> None:
        with self._lock, self._translated():
            self._db.close()

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """What a query finds, without waiting for writers."""
        with self._lock, self._translated():
            return self._db.execute(query, values).fetchall()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Everything in it or nothing. One inside another is part of it."""
        with self._lock, self._translated():
            if self._depth:
                yield self._db
                return
            self._db.execute("BEGIN IMMEDIATE")
            self._depth = 1
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            finally:
                self._depth = 0

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise durable.storage_error(error, f"open the stand-in's memory {self._path}") from error
        except (sqlite3.OperationalError, sqlite3.ProgrammingError) as error:
            raise StorageUnavailable(f"the stand-in's memory {self._path}: {error}") from None
        except sqlite3.Error as error:
            raise DataDamaged(f"the stand-in's memory {self._path}: {error}") from None

"""The stand-in's own clock: the computer's, plus all it was moved by. It is moved forward only, and a restart keeps it.

The computer's clock is never touched; every process on the same state file sees the same time.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from diskprep.datacenter.database import Database
from diskprep.errors import UsageError

_SETTING = "clock moved by, microseconds"
_LIMIT = timedelta(days=3650)


class Clockwork:
    """Called, it tells the time."""

    def __init__(self, database: Database, base: Callable[[], datetime]) -> None:
        self._database, self._base = database, base

    def __call__(self) -> datetime:
        return self._base() + self.moved_by

    @property
    def moved_by(self) -> timedelta:
        """How far it is ahead of the computer's clock."""
        found = self._database.rows("SELECT value FROM settings WHERE name = ?", _SETTING)
        return timedelta(microseconds=int(found[0][0])) if found else timedelta()

    def advance(self, step: timedelta) -> datetime:
        """Move it forward; return the new time. Raises UsageError."""
        if step < timedelta():
            raise UsageError("the clock only goes forward")
        with self._database.transaction() as db:
            moved_by = self.moved_by + step
            if moved_by > _LIMIT:
                raise UsageError(f"the clock would be more than {_LIMIT.days} days ahead")
            db.execute(
                "INSERT OR REPLACE INTO settings VALUES (?, ?)",
                (_SETTING, str(moved_by // timedelta(microseconds=1))),
            )
        return self()

"""Writing a job down in the ledger around a call to the service."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta

from diskprep import clock
from diskprep.errors import DiskprepError, JobConflict, NotFound, NotSignedIn, ServiceError, UsageError
from diskprep.importjob import states
from diskprep.importjob.ledger import Entry, JobKey, Ledger, parse_moment
from diskprep.importjob.lookup import existing
from diskprep.importjob.service import ImportService

#: An entry younger than this may be of a command that has not asked the service yet.
_SETTLED = timedelta(minutes=15)


@contextmanager
def written_down(
    service: ImportService,
    ledger: Ledger | None,
    key: JobKey | None,
    write: Callable[[Ledger, JobKey], None],
    *,
    undone: Callable[[], bool],
) -> Iterator[None]:
    """`write` into the ledger, do what the block does, and take it back when the service refused.

    After a ServiceError `undone` looks whether nothing was done; what may have been done all the same stays written.
    Entries of other jobs that the service, asked, does not have open any more are closed before `write` is given up.
    Without a ledger the block is all.
    """
    if ledger is None or key is None:
        yield
        return
    entry = ledger.jobs().get(str(key))
    try:
        write(ledger, key)
    except JobConflict:
        if not _close_ended(service, ledger, key):
            raise
        write(ledger, key)
    try:
        yield
    except (JobConflict, UsageError, NotFound, NotSignedIn):
        ledger.restore(key, entry)
        raise
    except ServiceError:
        if _surely(undone):
            ledger.restore(key, entry)
        raise


def _surely(undone: Callable[[], bool]) -> bool:
    try:
        return undone()
    except DiskprepError:
        return False


def _close_ended(service: ImportService, ledger: Ledger, key: JobKey) -> bool:
    """Close the ledger's open jobs of this subscription and group that are over. Whether there was one."""
    closed = False
    mine = str(replace(key, job_name=""))
    for name, entry in ledger.jobs().items():
        if entry.open and name.startswith(mine) and name != str(key) and _is_settled(entry):
            job = existing(service, name.removeprefix(mine))
            if job is None or not states.is_open(job):
                ledger.close(replace(key, job_name=name.removeprefix(mine)))
                closed = True
    return closed


def _is_settled(entry: Entry) -> bool:
    created = parse_moment(entry.created)
    return created is None or abs(clock.now() - created) > _SETTLED

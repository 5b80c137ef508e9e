"""Watching an import job until there is something to do.

The clock of the two weeks is looked at in every round, also while the service is silent. An alarm is told first and
remembered after: a crash between the two tells it twice, never not at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from diskprep import clock
from diskprep.errors import DiskprepError, NotFound, NotSignedIn, ServiceError
from diskprep.events import Emit, Note, Progress
from diskprep.importjob import states
from diskprep.importjob.advice import Advice, advise, fresh_trouble, troubles
from diskprep.importjob.deadline import Deadline, told_with, untold_alarm
from diskprep.importjob.ledger import Ledger
from diskprep.importjob.lookup import refresh_job
from diskprep.importjob.model import DriveState, JobState
from diskprep.importjob.saved import SavedJob, changes, load_job, write_saved
from diskprep.importjob.service import ImportService
from diskprep.seed import Staging

STAGE = "import job"
#: How long the service may be silent before the watch gives up.
PATIENCE = timedelta(hours=24)
_NO_PERCENT = (DriveState.SPECIFIED, DriveState.RECEIVED, DriveState.NEVER_RECEIVED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """What a person should hear of. The two weeks end soon: `days_left` is 5, 2, 1 or 0 (over, or the job is gone),
    `until` the end by the service's clock. Or a drive did not arrive or the job is stuck: `days_left` is None, `until`
    when it was seen."""

    job_name: str
    days_left: int | None
    until: datetime
    text: str


def watch(
    service: ImportService,
    staging: Staging,
    *,
    every: timedelta,
    emit: Emit,
    wait: Callable[[float], None],
    hook: Callable[[Alarm], None] | None = None,
    stands: Callable[[str], None] | None = None,
    once: bool = False,
    patience: timedelta = PATIENCE,
    ledger: Ledger | None = None,
    now: Callable[[], datetime] = clock.now,
) -> Advice:
    """Look at the job every `every` until there is something to do, and return what.

    Emits a Progress per drive (percent, of 100) and a Note for every change of a state, and tells alarms to `hook`
    and as Notes, each once; without a hook nothing is written down as told, so that one look by hand does not silence
    a timer. `stands` gets a line on the job before each wait. `wait` gets seconds. A job that is gone is advice, too. A
    new trouble that has no command (a drive did not arrive) ends the watch once; the next watch goes on. A `hook` that
    fails is told and tried again in the next round. With `once` there is one round.

    Raises NotFound (no job), NotSignedIn, and ServiceError when the service gives no good answer for `patience`
    (with `once` at once).
    """
    watching = _Watch(service, staging, emit, hook=hook, stands=stands, ledger=ledger, now=now)
    return watching.run(every, wait, once=once, patience=patience)


class _Watch:
    def __init__(
        self,
        service: ImportService,
        staging: Staging,
        emit: Emit,
        *,
        hook: Callable[[Alarm], None] | None,
        stands: Callable[[str], None] | None,
        ledger: Ledger | None,
        now: Callable[[], datetime],
    ) -> None:
        self._service, self._staging, self._ledger = service, staging, ledger
        self._emit, self._hook, self._now = emit, hook, now
        self._stands = stands
        self._silences: set[str] = set()
        self._alarms: set[object] = set()

    def run(self, every: timedelta, wait: Callable[[float], None], *, once: bool, patience: timedelta) -> Advice:
        silent_s, every_s = 0.0, max(every.total_seconds(), 1.0)
        shown = load_job(self._staging)
        while True:
            try:
                saved = self._look()
            except (ServiceError, NotSignedIn) as error:
                self._alarm(load_job(self._staging))
                if once or isinstance(error, NotSignedIn) or silent_s >= patience.total_seconds():
                    raise
                self._tell_once(self._silences, f"{error.message}; trying again every {_span(every_s)}")
                silent_s += every_s
            else:
                silent_s = 0.0
                self._silences.clear()
                self._show(shown, saved)
                fresh, shown = bool(fresh_trouble(shown.job, saved.job)), saved
                fresh = self._trouble(saved) or fresh
                advice = advise(self._alarm(saved), self._now())
                if once or fresh or not advice.waits:
                    return advice
            if self._stands is not None:
                self._stands(_standing(shown, self._now() + timedelta(seconds=every_s)))
            wait(every_s)

    def _look(self) -> SavedJob:
        try:
            refresh_job(self._service, self._staging, ledger=self._ledger)
        except NotFound:
            saved = load_job(self._staging)
            if not saved.gone:
                raise
            return saved
        return load_job(self._staging)

    def _show(self, before: SavedJob, saved: SavedJob) -> None:
        for change in changes(before.job, saved.job, saved.seen):
            what = f"drive {change.item}" if change.item else f"import job {saved.job.name}"
            self._note(f"{what}: {_words(change.after, job=not change.item)}", change.item)
        if saved.gone and not before.gone:
            self._note(f"import job {saved.job.name}: gone")
        for drive in saved.job.drives:
            if drive.state not in _NO_PERCENT:
                done = min(max(drive.percent_complete, 0), 100)
                self._emit(Progress(stage=STAGE, item=drive.drive_id, done_bytes=done, total_bytes=100, unit="%"))

    def _alarm(self, saved: SavedJob) -> SavedJob:
        """Tell the alarm that is due, if it was not told yet, and remember it. Returns `saved`."""
        deadline = untold_alarm(saved, self._now())
        if deadline is None or deadline.alarm is None:
            return saved
        alarm = _alarm(saved, deadline)
        self._tell_once(self._alarms, alarm.text, mark=(deadline.until, deadline.alarm))
        if not self._passed_on(alarm):
            return saved
        now = load_job(self._staging)  # the hook took its time, and another command may have been at the job
        if now.touched == saved.touched:
            write_saved(self._staging, replace(now, told=told_with(now, deadline.alarm)))
        return saved

    def _trouble(self, saved: SavedJob) -> bool:
        """Tell the hook of drives that did not arrive and of a stuck job, and remember them; whether it was told."""
        found = troubles(saved.job)
        new = [text for mark, text in found.items() if mark not in saved.passed_on]
        if self._hook is None or not new:
            return False
        alarm = Alarm(job_name=saved.job.name, days_left=None, until=saved.seen, text="; ".join(new))
        if not self._passed_on(alarm):
            return False
        write_saved(self._staging, replace(load_job(self._staging), passed_on=tuple(found)))
        return True

    def _passed_on(self, alarm: Alarm) -> bool:
        """Whether the hook was told. Without one nobody was."""
        if self._hook is None:
            return False
        try:
            self._hook(alarm)
        except DiskprepError as error:
            self._tell_once(self._alarms, f"the alarm could not be passed on: {error.message}")
            return False
        return True

    def _tell_once(self, told: set[Any], text: str, *, mark: object = None) -> None:
        """`mark`: what makes it the same although its words change."""
        mark = mark or text
        if mark not in told:
            told.add(mark)
            self._note(text)

    def _note(self, text: str, item: str = "") -> None:
        self._emit(Note(stage=STAGE, item=item, text=text))


def _words(state: str, *, job: bool) -> str:
    if job and state in list(JobState):
        return f"{state}, {states.describe(JobState(state))}"
    return state


def _standing(saved: SavedJob, then: datetime) -> str:
    job = saved.job
    percent = f", {job.percent_complete} %" if job.percent_complete else ""
    return (
        f"import job {job.name}: {_words(str(job.state), job=True)}{percent}; "
        f"looks again on {then:%Y-%m-%d at %H:%M} UTC"
    )


def _span(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"


def _alarm(saved: SavedJob, deadline: Deadline) -> Alarm:
    assert deadline.alarm is not None, "an alarm is due"
    left = "is over" if deadline.expired else f"ends in {deadline.words}"
    text = (
        f"the time to enter the tracking number of import job {saved.job.name} {left}: "
        f"the service deletes the job on {deadline.until:%Y-%m-%d at %H:%M} UTC"
    )
    if saved.gone:
        text = f"import job {saved.job.name} is gone: it had no tracking number. Do not send its disks"
    return Alarm(job_name=saved.job.name, days_left=deadline.alarm, until=deadline.until, text=text)

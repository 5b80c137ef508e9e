"""The two weeks after which the service deletes a job that has no tracking number. Pure.

The clock runs while a job is Creating, and every update of the job restarts it (published REST reference). Days are
counted by the service's clock, which this computer's may differ from.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from diskprep.importjob.model import JobState
from diskprep.importjob.saved import SavedJob

#: Days before the end at which an alarm is given; 0 is the end itself.
ALARM_DAYS = (5, 2, 1, 0)
#: A difference between this computer's clock and the service's that is worth telling.
SKEW_TOLD = timedelta(minutes=5)
_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadline:
    """The job is deleted at `until`, `left` from now (zero when it is over).

    `alarm` is the smallest of ALARM_DAYS that `left` does not exceed, None while more than five days are left.
    """

    until: datetime
    left: timedelta
    alarm: int | None

    @property
    def expired(self) -> bool:
        return self.alarm == 0

    @property
    def words(self) -> str:
        """How much is left, for a person: "9 days", "31 hours", "none"."""
        hours = self.left // timedelta(hours=1)
        if self.expired:
            return "none"
        if self.left >= 2 * _DAY:
            return f"{self.left // _DAY} days"
        return f"{hours} hours" if hours > 1 else "less than 2 hours"


def deadline_of(saved: SavedJob, now: datetime) -> Deadline | None:
    """The deadline as of `now` of this computer's clock. None when none runs: the job is shipped, cancelled or over."""
    if saved.gone or saved.job.state != JobState.CREATING or saved.job.cancel_requested:
        return None
    left = max(saved.ship_until - saved.service_time(now), timedelta())
    alarm = min((days for days in ALARM_DAYS if left <= days * _DAY), default=None)
    return Deadline(until=saved.ship_until, left=left, alarm=alarm)


def untold_alarm(saved: SavedJob, now: datetime) -> Deadline | None:
    """The deadline when its alarm was not told since the two weeks began; also when the job was deleted for it."""
    deadline = _missed(saved) if saved.gone else deadline_of(saved, now)
    if deadline is None or deadline.alarm is None or deadline.alarm in saved.told:
        return None
    return deadline


def _missed(saved: SavedJob) -> Deadline | None:
    """What a job that is gone was deleted for; None when it was not for want of a tracking number."""
    if saved.job.state != JobState.CREATING or saved.job.cancel_requested:
        return None
    return Deadline(until=saved.ship_until, left=timedelta(), alarm=0)


def told_with(saved: SavedJob, alarm: int) -> tuple[int, ...]:
    """`saved.told` once `alarm` is told: with it, the earlier ones are."""
    return tuple(days for days in ALARM_DAYS if days >= alarm or days in saved.told)


def skew_words(saved: SavedJob) -> str:
    """A sentence when this computer's clock was more than five minutes off at the last look; else empty."""
    skew = saved.skew
    if abs(skew) <= SKEW_TOLD:
        return ""
    off = abs(skew)
    amount = f"{off // _DAY} days" if off >= 2 * _DAY else f"{off // timedelta(minutes=1)} minutes"
    way = "behind" if skew > timedelta() else "ahead of"
    return f"this computer's clock is {amount} {way} the service's; days are counted by the service's"

"""The two weeks: counted by the service's clock, never too long, told in time."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diskprep.importjob.deadline import ALARM_DAYS, deadline_of, skew_words, told_with, untold_alarm
from diskprep.importjob.model import Job, JobState
from diskprep.importjob.saved import SavedJob

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
JOB = Job(name="first-backup", location="westeurope", storage_account_id="x", state=JobState.CREATING, drives=())
SAVED = SavedJob(job=JOB, created=START, touched=START, seen=START)


@pytest.mark.parametrize(
    ("after", "left", "alarm", "words"),
    [
        ({"days": 0}, {"days": 14}, None, "14 days"),
        ({"days": 8, "hours": 23, "minutes": 59}, {"days": 5, "minutes": 1}, None, "5 days"),
        ({"days": 9}, {"days": 5}, 5, "5 days"),
        ({"days": 11, "hours": 12}, {"days": 2, "hours": 12}, 5, "2 days"),
        ({"days": 12}, {"days": 2}, 2, "2 days"),
        ({"days": 12, "minutes": 1}, {"days": 1, "hours": 23, "minutes": 59}, 2, "47 hours"),
        ({"days": 13}, {"days": 1}, 1, "24 hours"),
        ({"days": 13, "hours": 23}, {"hours": 1}, 1, "less than 2 hours"),
        ({"days": 14}, {}, 0, "none"),
        ({"days": 400}, {}, 0, "none"),
    ],
)
def test_days_are_counted_and_alarms_given(
    after: dict[str, float], left: dict[str, float], alarm: int | None, words: str
) -> None:
    deadline = deadline_of(SAVED, START + timedelta(**after))
    assert deadline is not None
    assert (deadline.until, deadline.left) == (START + timedelta(days=14), timedelta(**left))
    assert (deadline.alarm, deadline.expired, deadline.words) == (alarm, alarm == 0, words)


@pytest.mark.parametrize("state", [*(state for state in JobState if state != JobState.CREATING), "Teleporting"])
def test_no_clock_runs_for_a_job_that_is_shipped_or_over(state: JobState | str) -> None:
    assert deadline_of(replace(SAVED, job=replace(JOB, state=state)), START + timedelta(days=30)) is None


def test_no_clock_runs_for_a_job_that_is_cancelled_or_gone() -> None:
    assert deadline_of(replace(SAVED, job=replace(JOB, cancel_requested=True)), START) is None
    assert deadline_of(replace(SAVED, gone=True), START) is None


def test_an_update_of_the_job_restarts_the_clock() -> None:
    saved = replace(SAVED, touched=START + timedelta(days=10), told=(5,))
    deadline = deadline_of(saved, START + timedelta(days=10))
    assert deadline is not None
    assert (deadline.left, deadline.alarm) == (timedelta(days=14), None)


@given(
    st.timedeltas(min_value=timedelta(days=-7300), max_value=timedelta(days=7300)),
    st.timedeltas(min_value=timedelta(), max_value=timedelta(days=20)),
)
def test_a_wrong_clock_of_this_computer_changes_nothing(skew: timedelta, passed: timedelta) -> None:
    """It was off by `skew` at the last look, and is still: what is left is as the service sees it."""
    saved = replace(SAVED, skew=skew)
    deadline = deadline_of(saved, START - skew + passed)
    assert deadline is not None
    assert deadline.left == max(timedelta(days=14) - passed, timedelta())


@given(st.datetimes(timezones=st.just(UTC)), st.timedeltas(timedelta(days=-365), timedelta(days=365)))
def test_a_clock_that_jumps_never_gives_more_than_the_two_weeks(now: datetime, skew: timedelta) -> None:
    saved = replace(SAVED, skew=skew)
    try:
        deadline = deadline_of(saved, now)
    except OverflowError:  # the first and last year of the calendar
        return
    assert deadline is not None
    assert timedelta() <= deadline.left <= timedelta(days=14)


def test_each_alarm_is_due_once_and_a_later_one_covers_the_earlier() -> None:
    told: list[int] = []
    saved = SAVED
    for hours in range(0, 15 * 24, 7):
        if deadline := untold_alarm(saved, START + timedelta(hours=hours)):
            assert deadline.alarm is not None
            told.append(deadline.alarm)
            saved = replace(saved, told=told_with(saved, deadline.alarm))
    assert tuple(told) == ALARM_DAYS == saved.told
    late = untold_alarm(SAVED, START + timedelta(days=13, hours=1))
    assert late is not None
    assert late.alarm == 1
    assert told_with(SAVED, 1) == (5, 2, 1)


@pytest.mark.parametrize(
    ("skew", "words"),
    [
        (timedelta(minutes=5), ""),
        (timedelta(minutes=-5), ""),
        (timedelta(minutes=6), "6 minutes behind"),
        (timedelta(minutes=-90), "90 minutes ahead of"),
        (timedelta(days=400), "400 days behind"),
    ],
)
def test_a_clock_that_is_off_is_told(skew: timedelta, words: str) -> None:
    assert words in skew_words(replace(SAVED, skew=skew))
    assert bool(skew_words(replace(SAVED, skew=skew))) == bool(words)

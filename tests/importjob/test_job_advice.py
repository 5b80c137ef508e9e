"""What an operator is told in each state: a sentence, a command, an exit code."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from diskprep.errors import DeadlineNear, DiskprepError, DrivesFailed, NotFound
from diskprep.importjob.advice import advise, failed_drives, fresh_trouble
from diskprep.importjob.model import DriveState, DriveStatus, Job, JobState, Package
from diskprep.importjob.saved import SavedJob

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
PACKAGE = Package(carrier="DHL", tracking_number="JD0001", drive_count=2, ship_date=date(2026, 3, 2))


def saved(state: JobState | str, *drives: tuple[DriveState | str, str], **changes: Any) -> SavedJob:
    job = Job(
        name="first-backup",
        location="westeurope",
        storage_account_id="x",
        state=state,
        package=None if state == JobState.CREATING else PACKAGE,
        drives=tuple(
            DriveStatus(drive_id=f"WD-{number}", state=state, copy_status=status)
            for number, (state, status) in enumerate(drives, 1)
        ),
    )
    return SavedJob(job=replace(job, **changes), created=START, touched=START, seen=START)


FINE = (DriveState.SHIPPED_BACK, "Completed")
BAD = (DriveState.SHIPPED_BACK, "CompletedWithErrors")
WARNED = (DriveState.SHIPPED_BACK, "CompletedWithWarnings")
SEEN = (DriveState.COMPLETED_MORE_INFO, "CompletedWithWarnings")
MORE = (DriveState.COMPLETED_MORE_INFO, "")
MISSED = (DriveState.NEVER_RECEIVED, "")
AWAY = (DriveState.SPECIFIED, "")


@pytest.mark.parametrize(
    ("at", "command", "error", "waits", "says"),
    [
        (saved(JobState.CREATING, AWAY), "job ship", None, False, "has no tracking number"),
        (saved(JobState.CREATING, cancel_requested=True), "", None, True, "cancelling it was asked for"),
        (saved(JobState.SHIPPING, AWAY), "", None, True, "DHL JD0001"),
        (saved(JobState.SHIPPING, AWAY, MISSED), "", DrivesFailed, True, "drive WD-2 of import job"),
        (saved(JobState.SHIPPING, AWAY, package=None), "", None, True, "the package of import job"),
        (saved(JobState.RECEIVED, AWAY), "", None, True, "in the datacenter"),
        (saved(JobState.TRANSFERRING, AWAY), "", None, True, "being copied"),
        (saved(JobState.TRANSFERRING, AWAY, MORE), "", None, True, "WD-2 had trouble"),
        (saved(JobState.TRANSFERRING, cancel_requested=True), "", None, True, "cancelling"),
        (saved(JobState.PACKAGING, FINE), "", None, True, "packed"),
        (saved(JobState.FAULTED), "", None, True, "stuck"),
        (saved("Teleporting"), "", None, True, "'Teleporting'"),
        (saved(JobState.COMPLETED, FINE, FINE), "vault ingest", None, False, "without an error"),
        (saved(JobState.COMPLETED, FINE, SEEN), "vault ingest", None, False, "without an error"),
        (saved(JobState.COMPLETED, FINE, WARNED), "vault ingest", None, False, "without an error"),
        (saved(JobState.COMPLETED, FINE, MISSED), "job report", DrivesFailed, False, "drive WD-2"),
        (saved(JobState.COMPLETED, FINE, cancel_requested=True), "", None, False, "was cancelled"),
        (saved(JobState.CLOSED, FINE, BAD), "job report", DrivesFailed, False, "drive WD-2"),
        (saved(JobState.CLOSED, FINE, (DriveState.SHIPPED_BACK, "BitLockerKeyInvalid")), "job report", DrivesFailed,
         False, "job repair"),
        (saved(JobState.CLOSED), "job report", DrivesFailed, False, "at least one drive"),
        (replace(saved(JobState.CREATING), gone=True), "job create", DeadlineNear, False, "two weeks"),
        (replace(saved(JobState.CREATING, cancel_requested=True), gone=True), "", None, False, "was cancelled"),
        (replace(saved(JobState.COMPLETED), gone=True), "", None, False, "90 days"),
        (replace(saved(JobState.SHIPPING), gone=True), "", NotFound, False, "where the drives are"),
    ],
)  # fmt: skip
def test_each_state_has_its_own_advice(
    at: SavedJob, command: str, error: type[DiskprepError] | None, waits: bool, says: str
) -> None:
    advice = advise(at, START)
    assert (advice.command, advice.waits) == (command, waits)
    assert (type(advice.error) if advice.error else None) == error
    assert says in advice.text
    assert advice.text.isprintable()
    if advice.error:
        assert advice.error.hint


@pytest.mark.parametrize(("days", "near"), [(0, False), (8.9, False), (9, True), (13, True), (15, True)])
def test_the_exit_code_tells_of_the_end_from_five_days_on(days: float, near: bool) -> None:
    advice = advise(saved(JobState.CREATING), START + timedelta(days=days))
    assert isinstance(advice.error, DeadlineNear) == near
    assert ("keep-alive" in advice.text) == near
    assert "2026-03-15 at 12:00 UTC" in advice.text


@pytest.mark.parametrize(("days", "late"), [(3, False), (15, False), (16, True), (29, True)])
def test_a_package_that_does_not_arrive_is_asked_about(days: int, late: bool) -> None:
    advice = advise(saved(JobState.SHIPPING, AWAY), START + timedelta(days=days))
    assert ("has not arrived" in advice.text) == late


def test_text_of_the_service_cannot_write_on_the_terminal() -> None:
    package = Package(carrier="D\x1b[31mHL", tracking_number="J\nD", drive_count=1)
    for at in (saved(JobState.SHIPPING, AWAY, package=package), saved("Tele\x1b[2J")):
        assert advise(at, START).text.isprintable()


def test_drives_fail_by_their_state_or_by_how_they_were_copied() -> None:
    job = saved(JobState.CLOSED, FINE, BAD, WARNED, MORE, MISSED, AWAY, (DriveState.TRANSFERRING, "InProgress")).job
    assert failed_drives(job) == ("WD-2", "WD-4", "WD-5")
    new_word = (DriveState.SHIPPED_BACK, "HardwareMelted")
    assert failed_drives(saved(JobState.CLOSED, FINE, new_word).job) == ("WD-2",)
    assert failed_drives(saved(JobState.COMPLETED, FINE, new_word).job) == ()


def test_trouble_is_fresh_once() -> None:
    before, after = saved(JobState.SHIPPING, AWAY, AWAY).job, saved(JobState.SHIPPING, AWAY, MISSED).job
    assert fresh_trouble(before, after) == ["drive WD-2 did not arrive"]
    assert fresh_trouble(after, after) == []
    assert fresh_trouble(before, before) == []
    stuck = saved(JobState.FAULTED, AWAY, AWAY).job
    assert fresh_trouble(before, stuck) == ["import job first-backup is stuck"]
    assert fresh_trouble(stuck, stuck) == []

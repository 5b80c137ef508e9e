"""What commands of an import job print: nothing that steers the terminal, no noise, hints that can be typed."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from diskprep import clock
from diskprep.cli import outcome, output, places
from diskprep.cli.jobmaking import next_command
from diskprep.events import Note, Progress
from diskprep.importjob.advice import advise
from diskprep.importjob.model import DriveStatus, Job, JobState
from diskprep.importjob.outcome import RepairPlan, report
from diskprep.importjob.saved import SavedJob
from diskprep.seed import Staging

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
JOB = Job(
    name="first-backup",
    location="westeurope",
    storage_account_id="x",
    state=JobState.COMPLETED,
    drives=(DriveStatus(drive_id="WD-1", copy_status="Completed"),),
)
SAVED = SavedJob(job=JOB, created=START, touched=START, seen=START)


def test_ingestion_is_of_the_first_staging_with_all_options_that_it_needs() -> None:
    repair = Staging(Path("/seed/repairs/first-backup-r1"), Path("/seed"))
    hint = next_command(repair, advise(SAVED, START))
    assert hint == "diskprep vault ingest /seed --container STORE --vault STORE"


def test_a_serial_number_from_the_service_does_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    plan = RepairPlan(packs={}, waiting=("WD\x1b[31m",), drives={"D\x07": "failed"})
    seal: Any = None
    outcome._tell_repair(
        outcome._Found(place=Staging(Path("/seed")), seal=seal, outcome=report(JOB, {}), plan=plan, repairs=()), None
    )
    told = capsys.readouterr().out
    assert "WD\\x1b[31m" in told
    assert told.replace("\n", "").isprintable()


def test_off_a_terminal_percentages_are_no_lines_of_their_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    moment_s = 0.0
    monkeypatch.setattr(clock, "monotonic_s", lambda: moment_s)
    screen = output.Screen()
    for percent in (10, 20, 30):
        moment_s += 900
        screen.emit(Progress(stage="import job", item="WD-1", done_bytes=percent, total_bytes=100, unit="%"))
    screen.emit(Note(stage="import job", item="WD-1", text="drive WD-1: Completed"))
    assert capsys.readouterr().err.splitlines() == ["    import job  drive WD-1: Completed"]


def test_one_option_moves_the_ledger_and_the_journals() -> None:
    state = Path("/elsewhere")
    assert places.journal_folder(state).parent == places.ledger(state).path.parent == state


def test_what_waits_is_told_in_words() -> None:
    shipping = Job(
        name="j", location="w", storage_account_id="x", state=JobState.SHIPPING, drives=(DriveStatus(drive_id="WD-1"),)
    )
    assert "drive WD-1 has not arrived in the datacenter yet" in list(report(shipping, {}).lines())

"""What commands of an import job print: nothing that steers the terminal, no noise, hints that can be typed."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from diskprep import clock
from diskprep.cli import outcome, output, places, returning, trips
from diskprep.cli.advising import next_command
from diskprep.cli.jobmaking import Made, tell_made
from diskprep.events import Note, Progress
from diskprep.importjob.advice import advise
from diskprep.importjob.ledger import JobKey, Ledger
from diskprep.importjob.model import DriveStatus, Job, JobState, ReturnShipping
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


def test_names_of_jobs_of_the_same_group_are_taken(tmp_path: Path) -> None:
    seed: Any = SimpleNamespace(subscription_id="S", resource_group="Group", job_name="mine")
    mine, other = replace(JOB, name="One", resource_group="group"), replace(JOB, name="two", resource_group="else")
    assert trips.names_of([mine, other, replace(JOB, name="three")], seed) == {"one", "three"}
    ledger = Ledger(tmp_path / "ledger.json")
    for group, name in (("group", "open"), ("else", "elsewhere"), ("group", "closed")):
        ledger.record_job(JobKey(subscription_id="s", resource_group=group, job_name=name), [f"WD-{name}"])
    ledger.close(JobKey(subscription_id="s", resource_group="group", job_name="closed"))
    assert trips.open_names(ledger, seed) == {"open"}


def test_what_a_repair_that_is_over_did_not_bring_is_repaired_from_there() -> None:
    place, packs = Staging(Path("/seed")), ("data/00/a", "data/00/b")
    seal: Any = SimpleNamespace(data_packs=[SimpleNamespace(name=name, size_bytes=1) for name in packs])
    made: Any = [
        SimpleNamespace(job_name=f"j-r{n}", staging=Staging(Path(f"/seed/repairs/j-r{n}")), seal=seal) for n in (1, 2)
    ]
    plan = RepairPlan(packs=dict.fromkeys(packs, "failed"))
    found = outcome._Found(
        place=place, seal=seal, outcome=report(JOB, {}), plan=plan, repairs=(made[0],), ended=frozenset({"j-r1"})
    )
    assert (found.sent_by, found.not_brought_by) == ((), made[0])
    found = replace(found, repairs=tuple(made))
    assert (found.sent_by, found.not_brought_by) == ((made[1],), None)
    assert replace(found, ended=frozenset({"j-r1", "j-r2"})).not_brought_by == made[1]


def test_a_carrier_for_the_way_back_that_the_service_does_not_name_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    for carrier, told in (("Pigeon", True), ("fedex", False)):
        returning.warn_of_carrier(ReturnShipping(carrier=carrier, account_number="7"), ("DHL", "FedEx"))
        assert ("DHL, FedEx" in capsys.readouterr().err) is told


def test_a_job_that_was_there_is_not_said_to_be_created(capsys: pytest.CaptureFixture[str]) -> None:
    saved = replace(SAVED, job=replace(JOB, state=JobState.CREATING))
    made = Made(saved=saved, serials=("WD-1",), destination=None, was_there=True)
    seed: Any = None
    tell_made(Staging(Path("/seed of mine")), seed, made, as_json=False)
    told = capsys.readouterr()
    assert "import job is there already: first-backup" in told.out
    assert "diskprep job slip '/seed of mine' " in told.err


def test_the_standing_of_a_job_is_one_line_and_what_a_signal_is_answered(capfd: pytest.CaptureFixture[str]) -> None:
    screen = output.Screen()
    screen.emit(Progress(stage="import job", item="WD-1", done_bytes=10, total_bytes=100, unit="%"))
    screen.standing = "import job j: Shipping"
    screen.tell_status()
    assert capfd.readouterr().err == "import job j: Shipping\n"

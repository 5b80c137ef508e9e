"""job.json: comes back as it was, reads what older versions wrote, refuses what is damaged."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from diskprep import clock, durable
from diskprep.errors import DataDamaged, DiskprepError, FormatTooNew
from diskprep.importjob import saved as saving
from diskprep.importjob.model import DriveState, DriveStatus, Job, JobState
from diskprep.importjob.saved import Change, SavedJob, changes, load_job, save_job, write_saved
from diskprep.seed import Staging

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
JOB = Job(
    name="first-backup",
    location="westeurope",
    storage_account_id="x",
    state=JobState.CREATING,
    drives=(DriveStatus(drive_id="WD-1"), DriveStatus(drive_id="WD-2")),
)


def moved(state: JobState | str, *drives: DriveState | str) -> Job:
    old = JOB.drives
    return replace(JOB, state=state, drives=tuple(replace(d, state=s) for d, s in zip(old, drives, strict=True)))


def test_all_that_is_saved_comes_back(staging: Staging) -> None:
    saved = SavedJob(
        job=JOB,
        created=START,
        touched=START + timedelta(days=3, microseconds=7),
        seen=START + timedelta(days=4),
        skew=timedelta(seconds=-4000),
        told=(5, 2),
        past=(Change(at=START, item="WD-1", before="Specified", after="Vanished"),),
        gone=True,
    )
    write_saved(staging, saved)
    assert load_job(staging) == saved


def test_a_file_of_the_first_version_is_read(staging: Staging) -> None:
    write_saved(staging, SavedJob(job=JOB, created=START, touched=START, seen=START))
    document = json.loads(staging.job_file.read_text())
    old_job = {name: value for name, value in document["job"].items() if name != "resource_group"}
    old = {"format": "diskprep-job", "version": 1, "created": document["created"], "job": old_job}
    durable.write_json(staging.job_file, old)
    assert load_job(staging) == SavedJob(job=JOB, created=START, touched=START, seen=START)
    assert load_job(staging).ship_until == START + timedelta(days=14)
    save_job(staging, moved(JobState.SHIPPING, "Specified", "Specified"), at=START + timedelta(days=1))
    again = load_job(staging)
    assert (again.created, again.touched) == (START, START)
    assert [change.after for change in again.past] == ["Shipping"]
    assert json.loads(staging.job_file.read_text())["version"] == 2


def test_changes_are_kept_with_their_times_and_bounded_in_number(
    staging: Staging, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_job(staging, JOB, at=START, created=START)
    save_job(staging, moved(JobState.RECEIVED, DriveState.RECEIVED, DriveState.NEVER_RECEIVED), at=START)
    later = START + timedelta(days=1)
    save_job(staging, moved("Teleporting", DriveState.RECEIVED, "Lost"), at=later)
    past = load_job(staging).past
    assert [(c.item, c.before, c.after) for c in past] == [
        ("", "Creating", "Received"),
        ("WD-1", "Specified", "Received"),
        ("WD-2", "Specified", "NeverReceived"),
        ("", "Received", "Teleporting"),
        ("WD-2", "NeverReceived", "Lost"),
    ]
    assert {c.at for c in past[3:]} == {later}
    monkeypatch.setattr(saving, "PAST_LIMIT", 20)
    for number in range(20):
        save_job(staging, moved(JobState.RECEIVED, "A" if number % 2 else "B", "C"), at=later)
    kept = load_job(staging).past
    assert len(kept) == 20
    assert kept[-1].after == "A"


def test_the_same_look_twice_is_no_change_and_a_drive_that_is_new_is_none() -> None:
    assert changes(JOB, JOB, START) == ()
    assert changes(replace(JOB, drives=JOB.drives[:1]), JOB, START) == ()


def test_restarting_the_clock_forgets_the_alarms_and_looking_does_not(staging: Staging) -> None:
    write_saved(staging, SavedJob(job=JOB, created=START, touched=START, seen=START, told=(5, 2)))
    assert save_job(staging, JOB, at=START + timedelta(days=12)).told == (5, 2)
    restarted = save_job(staging, JOB, at=START + timedelta(days=13), touched=START + timedelta(days=12))
    assert (restarted.told, restarted.ship_until) == ((), START + timedelta(days=26))
    assert restarted.created == START
    assert load_job(staging) == restarted


def test_the_file_of_another_job_is_begun_anew(staging: Staging) -> None:
    write_saved(staging, SavedJob(job=JOB, created=START, touched=START, seen=START, told=(5,), gone=True))
    other = save_job(staging, replace(JOB, name="second"), at=START + timedelta(days=3))
    assert (other.created, other.touched, other.told, other.gone) == (
        START + timedelta(days=3),
        START + timedelta(days=3),
        (),
        False,
    )


def test_the_difference_of_the_clocks_is_kept(staging: Staging) -> None:
    ahead = save_job(staging, JOB, at=clock.now() + timedelta(hours=3))
    assert abs(ahead.skew - timedelta(hours=3)) < timedelta(seconds=5)
    assert abs(ahead.service_time(clock.now()) - clock.now() - timedelta(hours=3)) < timedelta(seconds=5)
    assert ahead.service_time(clock.now() - timedelta(days=99)) == ahead.seen


def _replaced(name: str, value: Any) -> Any:
    return lambda document: {**document, name: value}


@pytest.mark.parametrize(
    "damage",
    [
        _replaced("told", "no"),
        _replaced("told", ["5"]),
        _replaced("told", 7),
        _replaced("touched", "yesterday"),
        _replaced("touched", None),
        _replaced("seen", "2026-03-01T00:00:00"),
        _replaced("skew_s", "x"),
        _replaced("skew_s", 10**30),
        _replaced("gone", 1),
        _replaced("past", [{"at": "2026-03-01T00:00:00Z"}]),
        _replaced("past", [{"at": "2026-03-01T00:00:00Z", "item": "", "before": 1, "after": ""}]),
        _replaced("past", [7]),
        _replaced("job", []),
        _replaced("job", {}),
        _replaced("format", "diskprep-seed"),
        lambda document: {name: value for name, value in document.items() if name != "touched"},
    ],
)
def test_a_field_of_the_wrong_kind_is_damage_and_the_hint_says_what_to_do(staging: Staging, damage: Any) -> None:
    write_saved(staging, SavedJob(job=JOB, created=START, touched=START, seen=START))
    staging.job_file.write_text(json.dumps(damage(json.loads(staging.job_file.read_text()))))
    with pytest.raises(DataDamaged) as caught:
        load_job(staging)
    assert "job create" in caught.value.hint


@pytest.mark.parametrize("version", [0, 3, "2", None])
def test_another_version_is_not_read(staging: Staging, version: Any) -> None:
    write_saved(staging, SavedJob(job=JOB, created=START, touched=START, seen=START))
    document = json.loads(staging.job_file.read_text())
    staging.job_file.write_text(json.dumps({**document, "version": version}))
    with pytest.raises(FormatTooNew):
        load_job(staging)


def test_a_flipped_bit_is_the_same_job_or_an_error_of_ours(staging: Staging) -> None:
    """Text may change unseen (nothing signs it), but nothing else than our errors comes out."""
    write_saved(staging, SavedJob(job=JOB, created=START, touched=START, seen=START, told=(5,)))
    whole = staging.job_file.read_bytes()
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 7
        staging.job_file.write_bytes(damaged)
        try:
            assert isinstance(load_job(staging), SavedJob)
        except DiskprepError:
            continue

"""The import job: created once, shipped once, never over the wrong drives, without secrets in its file."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta
from typing import Any

import pytest

from diskprep.errors import DataDamaged, FormatTooNew, JobConflict, NotFound, UsageError
from diskprep.importjob import job as jobs
from diskprep.importjob import states
from diskprep.importjob.client import AzureImportService
from diskprep.importjob.model import Drive, DriveState, Job, JobState, LogLevel, Package, ReturnAddress, ReturnShipping
from diskprep.secrets import Secret
from diskprep.seed import Seed, Staging

DAY = date(2026, 3, 2)


@pytest.fixture
def created(service: AzureImportService, staging: Staging, seed: Seed, drives: list[Drive]) -> Job:
    return jobs.create_job(service, staging, seed, drives)


def ship(service: AzureImportService, staging: Staging, address: ReturnAddress | None, **kwargs: object) -> Job:
    values = {"carrier": "DHL", "tracking_number": "JD 0001", "drive_count": 2, "ship_date": DAY, **kwargs}
    return jobs.enter_shipping(service, staging, return_address=address, **values)  # type: ignore[arg-type]


def test_a_job_is_created_as_asked(
    service: AzureImportService, staging: Staging, seed: Seed, drives: list[Drive], return_address: ReturnAddress
) -> None:
    job = jobs.create_job(
        service,
        staging,
        seed,
        drives,
        return_address=return_address,
        return_shipping=ReturnShipping(carrier="DHL", account_number="77"),
    )
    assert (job.name, job.state, job.log_level) == ("first-backup", JobState.CREATING, LogLevel.VERBOSE)
    assert job.storage_account_id.endswith("/storageAccounts/backups")
    assert [(drive.drive_id, drive.state) for drive in job.drives] == [
        ("WD-1", DriveState.SPECIFIED),
        ("WD-2", DriveState.SPECIFIED),
    ]
    assert job.return_address == return_address
    assert job.shipping_address is not None
    assert service.recovery_passwords("first-backup") == {drive.drive_id: drive.recovery_password for drive in drives}


def test_creating_twice_is_one_job(
    service: AzureImportService, staging: Staging, seed: Seed, drives: list[Drive]
) -> None:
    first = jobs.create_job(service, staging, seed, drives)
    created = jobs.load_job(staging).created
    again = jobs.create_job(service, staging, seed, list(reversed(drives)))
    assert replace(again, location=first.location) == first  # created it is echoed, later it has its display name
    assert len(service.list()) == 1
    assert jobs.load_job(staging).created == created


def test_a_job_whose_file_was_lost_is_adopted(
    service: AzureImportService, staging: Staging, seed: Seed, drives: list[Drive]
) -> None:
    jobs.create_job(service, staging, seed, drives)
    staging.job_file.unlink()
    jobs.create_job(service, staging, seed, drives)
    assert jobs.load_job(staging).job.name == "first-backup"
    assert len(service.list()) == 1


def test_the_same_name_with_other_drives_is_a_conflict(
    service: AzureImportService, staging: Staging, seed: Seed, drives: list[Drive]
) -> None:
    jobs.create_job(service, staging, seed, drives)
    other_hash = replace(drives[0], manifest_hash="0" * 32)
    for others in (drives[:1], [drives[0], replace(drives[1], drive_id="WD-3")], [other_hash, drives[1]]):
        with pytest.raises(JobConflict, match="other drives"):
            jobs.create_job(service, staging, seed, others)
    with pytest.raises(JobConflict, match="another storage account"):
        jobs.create_job(service, staging, replace(seed, storage_account="elsewhere"), drives)
    service.cancel("first-backup")
    with pytest.raises(JobConflict, match="cancelled"):
        jobs.create_job(service, staging, seed, drives)


def test_a_drive_is_in_one_open_job_only(
    service: AzureImportService, staging: Staging, seed: Seed, drives: list[Drive]
) -> None:
    other_seed = replace(seed, job_name="second-backup")
    jobs.create_job(service, staging, seed, drives)
    with pytest.raises(JobConflict, match=r"wd-2 is in import job first-backup"):
        jobs.create_job(service, staging, other_seed, drives[1:])
    service.delete("first-backup")
    jobs.create_job(service, staging, other_seed, drives[1:])


@pytest.mark.parametrize("count", [0, 11])
def test_a_job_takes_one_to_ten_drives(
    service: AzureImportService, staging: Staging, seed: Seed, drives: list[Drive], count: int
) -> None:
    with pytest.raises(UsageError, match="1 to 10"):
        jobs.create_job(service, staging, seed, [replace(drives[0], drive_id=f"D{i}") for i in range(count)])


@pytest.mark.parametrize(
    "change",
    [
        {"drive_id": "wd-2"},
        {"drive_id": "WD 1"},
        {"drive_id": ""},
        {"manifest_file": "DriveManifest.xml"},
        {"manifest_hash": "d863fe44"},
        {"recovery_password": Secret("439675-460165-128202-118124-247014-424226-132649-198803")},  # not divisible by 11
        {"recovery_password": Secret("secret")},
    ],
)
def test_what_would_be_sent_back_is_refused_before_a_job_exists(
    service: AzureImportService, staging: Staging, seed: Seed, drives: list[Drive], change: dict[str, object]
) -> None:
    with pytest.raises(UsageError) as caught:
        jobs.create_job(service, staging, seed, [replace(drives[0], **change), drives[1]])
    assert "439675" not in str(caught.value)
    assert service.list() == ()
    assert not staging.job_file.exists()


def test_the_file_holds_no_secret_and_comes_back(
    service: AzureImportService, staging: Staging, seed: Seed, drives: list[Drive], return_address: ReturnAddress
) -> None:
    jobs.create_job(service, staging, seed, drives, return_address=return_address)
    job = ship(service, staging, None)
    text = staging.job_file.read_text()
    assert "238810" not in text
    assert "238810" not in repr(drives) + repr(job)
    assert jobs.load_job(staging).job == job
    job = replace(job, state="Teleporting", return_package=Package(carrier="x", tracking_number="y"))
    jobs.save_job(staging, job)
    assert jobs.load_job(staging).job == job


def test_a_damaged_or_newer_file_is_refused(
    service: AzureImportService, staging: Staging, seed: Seed, drives: list[Drive]
) -> None:
    with pytest.raises(NotFound):
        jobs.load_job(staging)
    jobs.create_job(service, staging, seed, drives)
    text = staging.job_file.read_text()
    for old, new in (
        ('"drives"', '"drive"'),
        ('"created": "2', '"created": "x2'),
        ("diskprep-job", "other"),
        ("{", "["),
    ):
        assert old in text
        staging.job_file.write_text(text.replace(old, new))
        with pytest.raises(DataDamaged):
            jobs.load_job(staging)
    staging.job_file.write_text(text.replace('"version": 2', '"version": 3'))
    with pytest.raises(FormatTooNew):
        jobs.load_job(staging)


def test_shipping_stops_the_two_week_clock(
    service: AzureImportService, staging: Staging, created: Job, return_address: ReturnAddress, test_clock: Any
) -> None:
    job = ship(service, staging, return_address)
    assert (created.state, job.state) == (JobState.CREATING, JobState.SHIPPING)
    assert job.package == Package(carrier="DHL", tracking_number="JD 0001", drive_count=2, ship_date=DAY)
    assert ship(service, staging, None) == job
    test_clock.advance(days=13)
    assert jobs.refresh_job(service, staging).state == JobState.SHIPPING
    changed = ship(service, staging, None, tracking_number="JD 0002")
    assert changed.package is not None
    assert changed.package.tracking_number == "JD 0002"
    test_clock.advance(days=7)
    assert {drive.state for drive in jobs.refresh_job(service, staging).drives} == {DriveState.NEVER_RECEIVED}
    test_clock.advance(days=20)
    assert jobs.refresh_job(service, staging).state == JobState.CLOSED


def test_a_job_without_tracking_number_expires_and_the_error_says_so(
    service: AzureImportService, staging: Staging, seed: Seed, drives: list[Drive], test_clock: Any
) -> None:
    jobs.create_job(service, staging, seed, drives)
    saved = jobs.load_job(staging)
    assert saved.ship_until - saved.created == timedelta(days=14)
    assert abs(saved.created - test_clock()) < timedelta(minutes=1)
    test_clock.advance(days=13, hours=23)
    jobs.refresh_job(service, staging)
    test_clock.advance(days=2)
    with pytest.raises(NotFound, match="two weeks"):
        jobs.refresh_job(service, staging)
    jobs.create_job(service, staging, seed, drives)
    assert jobs.load_job(staging).created > saved.created


def test_what_must_not_be_shipped_is_refused(
    service: AzureImportService, staging: Staging, seed: Seed, drives: list[Drive], return_address: ReturnAddress
) -> None:
    with pytest.raises(NotFound):
        ship(service, staging, return_address)
    jobs.create_job(service, staging, seed, drives)
    with pytest.raises(UsageError, match="return address"):
        ship(service, staging, None)
    with pytest.raises(JobConflict, match="3 drives"):
        ship(service, staging, return_address, drive_count=3)
    for tracking in ("", "x", "a\x1bb cd", "-123456"):
        with pytest.raises(UsageError):
            ship(service, staging, return_address, tracking_number=tracking)
    with pytest.raises(UsageError):
        ship(service, staging, return_address, carrier=" ")
    ship(service, staging, return_address)
    other = Staging(staging.root / "other")
    other.root.mkdir()
    other_seed = replace(seed, job_name="second-backup")
    jobs.create_job(service, other, other_seed, [replace(drives[0], drive_id="WD-9")])
    with pytest.raises(JobConflict, match="belongs to import job first-backup"):
        ship(service, other, return_address, drive_count=1, tracking_number="jd 0001")


def test_every_state_has_a_meaning() -> None:
    assert set(states.STATES) == set(JobState)
    assert all(meaning.says for meaning in states.STATES.values())


def test_an_unknown_state_is_shown_and_left_to_the_service() -> None:
    job = Job(name="a", location="b", storage_account_id="c", state="Teleporting", drives=())
    states.check(job, states.Action.SHIP)
    assert "Teleporting" in states.describe(job.state)
    assert states.is_open(job)
    with pytest.raises(JobConflict):
        states.check(replace(job, state=JobState.PACKAGING), states.Action.CANCEL)

"""Nothing goes while a disk is outstanding, of the first trip or of a repair."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from trip import JOB, SERIALS, Trip, write_plan

from diskprep import cleanup
from diskprep.cleanup import Outstanding
from diskprep.cli.cleanup import outstanding_disks
from diskprep.errors import CleanupRefused
from diskprep.importjob.model import DriveStatus, Job, JobState
from diskprep.importjob.saved import load_job, save_job, write_saved
from diskprep.repair import make_repair

ONE = Outstanding(serial="DISK-A", job=JOB, state="is Shipping as last seen")


@pytest.fixture
def planned(trip: Trip) -> Trip:
    """A staging whose plan has two disks."""
    trip.write_papers()
    return trip


def job(state: JobState, *serials: str, name: str = JOB) -> Job:
    drives = tuple(DriveStatus(drive_id=serial) for serial in serials)
    return Job(name=name, location="westeurope", storage_account_id="x", state=state, drives=drives)


def told(trip: Trip) -> set[tuple[str, str]]:
    return {(disk.serial, disk.job) for disk in outstanding_disks(trip.staging)}


def test_a_plan_without_a_job_has_all_its_disks_outstanding(planned: Trip) -> None:
    assert told(planned) == {(serial, JOB) for serial in SERIALS}


def test_a_staging_without_a_plan_has_none(planned: Trip) -> None:
    planned.staging.plan_file.unlink()
    assert told(planned) == set()


@pytest.mark.parametrize("state", list(JobState))
def test_disks_are_outstanding_until_their_job_has_ended(planned: Trip, state: JobState) -> None:
    save_job(planned.staging, job(state, *SERIALS))
    ended = state in (JobState.COMPLETED, JobState.CLOSED)
    assert told(planned) == (set() if ended else {(serial, JOB) for serial in SERIALS})


def test_a_disk_that_the_job_does_not_have_is_outstanding(planned: Trip) -> None:
    save_job(planned.staging, job(JobState.COMPLETED, SERIALS[0].lower()))
    assert told(planned) == {(SERIALS[1], JOB)}


def test_a_job_that_is_gone_before_it_ended_leaves_its_disks_outstanding(planned: Trip) -> None:
    save_job(planned.staging, job(JobState.CREATING, *SERIALS))
    write_saved(planned.staging, replace(load_job(planned.staging), gone=True))
    assert [disk.state for disk in outstanding_disks(planned.staging)] == [
        "the service does not have any more; it was Creating when last seen"
    ] * 2


def test_a_repairs_disks_count_too(planned: Trip) -> None:
    save_job(planned.staging, job(JobState.CLOSED, *SERIALS))
    assert told(planned) == set()
    planned.staging.escrow.mkdir()
    (planned.staging.escrow / "key").write_bytes(b"sealed")
    packs = [planned.seal.data_packs[0].name]
    made = make_repair(planned.staging, packs)
    assert told(planned) == set()
    write_plan(made.staging, made.seal, {"DISK-C": packs})
    assert told(planned) == {("DISK-C", made.job_name)}
    save_job(made.staging, job(JobState.SHIPPING, "DISK-C", name=made.job_name))
    assert told(planned) == {("DISK-C", made.job_name)}
    save_job(made.staging, job(JobState.COMPLETED, "DISK-C", name=made.job_name))
    assert told(planned) == set()


def test_with_a_disk_outstanding_nothing_is_planned_or_removed(trip: Trip) -> None:
    trip.publish()
    trip.deliver()
    certificate = trip.ingest()
    stores: dict[str, Any] = {"container": trip.container, "vault": trip.vault}
    plan = cleanup.plan(trip.staging, trip.seal, certificate, **stores)
    before = _everything(trip.folder)
    with pytest.raises(CleanupRefused, match="DISK-A of job test-job, which is Shipping"):
        cleanup.plan(trip.staging, trip.seal, certificate, outstanding=[ONE], **stores)
    with pytest.raises(CleanupRefused, match="1 disks are outstanding"):
        cleanup.run(plan, trip.staging, trip.seal, certificate, outstanding=[ONE], **stores)
    assert _everything(trip.folder) == before


def _everything(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*") if path.is_file()}

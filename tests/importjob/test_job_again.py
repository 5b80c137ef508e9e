"""The same once more: a package entered on another day, a job of another region, one taken back and made again."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from copysite import Crash, Site
from support import TurnedClock

from diskprep.datacenter.server import Datacenter
from diskprep.errors import DataDamaged, JobConflict, NotFound, ServiceError
from diskprep.importjob import job as jobs
from diskprep.importjob.client import AzureImportService
from diskprep.importjob.ledger import Ledger
from diskprep.importjob.model import Job, JobState, Package


class Silent:
    """A service that takes the package, gives its date in words of its own, and whose answer never comes."""

    def __init__(self, real: AzureImportService) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def get(self, name: str) -> Job:
        job = self._real.get(name)
        return job if job.package is None else replace(job, package=replace(job.package, ship_date=None))

    def ship(self, name: str, package: Package, **more: Any) -> Job:
        self._real.ship(name, package, **more)
        raise ServiceError("no answer")


def test_a_number_that_was_taken_stays_written_down_whatever_the_service_makes_of_the_date(site: Site) -> None:
    site.create()
    quiet: Any = Silent(site.service)
    with pytest.raises(ServiceError):
        replace(site, service=quiet).ship()
    assert site.entry.tracking_number == "JD0001"
    assert replace(site, service=quiet).ship().state == JobState.SHIPPING


def test_the_same_command_on_another_day_changes_nothing(
    site: Site, test_clock: TurnedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ship() -> Job:
        return jobs.enter_shipping(
            site.service,
            site.place,
            carrier="DHL",
            tracking_number="JD0001",
            drive_count=2,
            return_address=site.address,
            ledger=site.ledger,
        )

    site.create()
    first = ship().package
    monkeypatch.setattr("diskprep.importjob.sending.clock.now", lambda: test_clock() + timedelta(days=3))
    assert ship().package == first


def test_a_job_of_another_region_is_not_taken_for_ours(site: Site) -> None:
    site.create()
    site.place.job_file.unlink()
    with pytest.raises(JobConflict, match="is one of 'West Europe', not 'eastus'"):
        replace(site, seed=replace(site.seed, location="eastus")).create()


def test_a_job_that_was_never_sent_is_taken_back_and_made_again_under_its_name(site: Site, second: Site) -> None:
    site.create()
    jobs.delete_job(site.service, site.place, ledger=site.ledger)
    assert (site.service.list(), site.place.job_file.exists(), site.entry.open) == ((), False, False)
    with pytest.raises(NotFound, match="no import job"):
        jobs.delete_job(site.service, site.place, ledger=site.ledger)
    second.create()
    jobs.delete_job(second.service, second.place, ledger=second.ledger)
    assert site.create().state == JobState.CREATING


def test_a_cancelled_job_gives_its_name_free_and_a_sent_one_does_not(site: Site) -> None:
    site.create()
    jobs.cancel_job(site.service, site.place, ledger=site.ledger)
    with pytest.raises(JobConflict, match="was cancelled") as caught:
        site.create()
    assert "job delete" in caught.value.hint
    jobs.delete_job(site.service, site.place, ledger=site.ledger)
    site.create()
    site.ship()
    with pytest.raises(JobConflict, match="cannot be deleted now"):
        jobs.delete_job(site.service, site.place, ledger=site.ledger)


def test_the_outcome_of_a_job_is_not_deleted(site: Site, datacenter: Datacenter, tmp_path: Path) -> None:
    site.create()
    site.ship()
    for serial in ("WD-1", "WD-2"):
        (tmp_path / serial).write_bytes(b"")
    datacenter.receive("first-backup", {serial: tmp_path / serial for serial in ("WD-1", "WD-2")})
    datacenter.process("first-backup")
    datacenter.ship_back("first-backup")
    with pytest.raises(JobConflict, match="would be forgotten"):
        jobs.delete_job(site.service, site.place, ledger=site.ledger)
    assert len(site.service.list()) == 1


def test_a_crash_after_deleting_leaves_a_job_that_is_gone(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: Any) -> None:
        raise Crash

    site.create()
    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "close", die)
        with pytest.raises(Crash):
            jobs.delete_job(site.service, site.place, ledger=site.ledger)
    with pytest.raises(NotFound):
        jobs.delete_job(site.service, site.place, ledger=site.ledger)
    assert not site.entry.open
    site.create()


@pytest.mark.parametrize("text", ["{", "[]", '{"format": "x"}', '{"format": "diskprep-job", "version": 2}'])
def test_whatever_is_wrong_with_the_file_creating_again_writes_it(site: Site, text: str) -> None:
    site.create()
    site.place.job_file.write_text(text)
    with pytest.raises(DataDamaged) as caught:
        jobs.load_job(site.place)
    assert "diskprep job create" in caught.value.hint
    site.create()
    assert site.saved.job.name == "first-backup"

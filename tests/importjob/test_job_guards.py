"""What goes wrong in real life: lost answers, crashes at every step, numbers and drives used twice, jobs that end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from copysite import Crash, Site
from support import TurnedClock

from diskprep.datacenter.faults import ServiceFault
from diskprep.datacenter.server import Datacenter
from diskprep.errors import DataDamaged, JobConflict, NotFound, NotSignedIn, ServiceError, UsageError
from diskprep.importjob import booking, creation, lookup, sending
from diskprep.importjob import job as jobs
from diskprep.importjob.client import AzureImportService
from diskprep.importjob.ledger import Ledger, key_of
from diskprep.importjob.model import Job, JobState, Package, ReturnShipping
from diskprep.secrets import Secret
from diskprep.seed import Staging, save_seed

OTHER_PASSWORD = "000000-000011-000022-000033-000044-000055-000066-000077"


def test_a_disk_that_was_not_opened_gets_no_job(site: Site) -> None:
    with pytest.raises(UsageError, match="WD-2 was not opened") as caught:
        site.create([site.drives[0], replace(site.drives[1], opened=False)])
    assert "disk verify WD-2" in caught.value.hint
    assert (site.service.list(), dict(site.ledger.jobs())) == ((), {})


@pytest.mark.parametrize("times", [1, 2])
def test_a_lost_answer_to_creating_leads_to_one_job(site: Site, datacenter: Datacenter, times: int) -> None:
    datacenter.order_fault(ServiceFault.ANSWER_LOST, times=times, method="PUT")
    job = site.create()
    assert [found.name for found in site.service.list()] == [job.name]
    assert site.saved.job.name == "first-backup"
    assert site.entry.open


def test_where_nothing_answers_nothing_is_recorded_and_the_same_command_heals_it(
    site: Site, datacenter: Datacenter
) -> None:
    datacenter.order_fault(ServiceFault.UNAVAILABLE, times=5, method="PUT")
    with pytest.raises(ServiceError):
        site.create()
    assert not site.place.job_file.exists()
    datacenter.clear_faults()
    site.create()
    assert len(site.service.list()) == 1


def test_what_the_service_refuses_is_not_in_the_ledger(site: Site) -> None:
    with pytest.raises((JobConflict, ServiceError, UsageError, NotFound)):
        replace(site, seed=replace(site.seed, location="atlantis")).create()
    assert (dict(site.ledger.jobs()), site.service.list()) == ({}, ())
    assert not site.place.job_file.exists()


def _crashing(original: Callable[..., Any], after: bool) -> Callable[..., Any]:
    def crash(*args: Any, **kwargs: Any) -> Any:
        if after:
            original(*args, **kwargs)
        raise Crash

    return crash


CREATE_BOUNDARIES: list[tuple[object, str]] = [
    (Ledger, "record_job"),
    (AzureImportService, "create"),
    (creation, "save_job"),
    (creation, "_check_passwords"),
]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(("where", "name"), CREATE_BOUNDARIES, ids=[name for _, name in CREATE_BOUNDARIES])
def test_killed_at_any_step_creating_again_makes_one_job(
    site: Site, monkeypatch: pytest.MonkeyPatch, where: object, name: str, after: bool
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(where, name, _crashing(getattr(where, name), after))
        with pytest.raises(Crash):
            site.create()
    site.create()
    assert len(site.service.list()) == 1
    assert site.saved.job.state == JobState.CREATING
    assert list(site.ledger.jobs()) == [str(key_of(site.seed))]


SHIP_BOUNDARIES: list[tuple[object, str]] = [
    (Ledger, "record_shipping"),
    (AzureImportService, "ship"),
    (sending, "save_job"),
]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(("where", "name"), SHIP_BOUNDARIES, ids=[name for _, name in SHIP_BOUNDARIES])
def test_killed_at_any_step_shipping_again_is_one_package(
    site: Site, monkeypatch: pytest.MonkeyPatch, where: object, name: str, after: bool
) -> None:
    site.create()
    with monkeypatch.context() as patched:
        patched.setattr(where, name, _crashing(getattr(where, name), after))
        with pytest.raises(Crash):
            site.ship()
    job = site.ship()
    assert job.state == JobState.SHIPPING
    assert site.saved.job == job
    assert site.entry.tracking_number == "JD0001"


def test_an_adopted_job_of_unknown_age_gets_its_two_weeks_anew(site: Site, test_clock: TurnedClock) -> None:
    site.create()
    test_clock.advance(days=13)
    site.place.job_file.unlink()
    site.create()
    test_clock.advance(days=13)
    assert site.refresh().state == JobState.CREATING
    assert abs(site.saved.ship_until - test_clock() - timedelta(days=1)) < timedelta(minutes=1)


def test_creating_again_does_not_restart_the_clock_that_is_known(site: Site, test_clock: TurnedClock) -> None:
    site.create()
    until = site.saved.ship_until
    test_clock.advance(days=3)
    site.create()
    assert site.saved.ship_until == until


def test_a_damaged_job_file_is_written_anew_by_creating(site: Site) -> None:
    site.create()
    site.place.job_file.write_text("{")
    with pytest.raises(DataDamaged):
        site.refresh()
    site.create()
    assert site.refresh().name == "first-backup"


def test_a_job_with_other_recovery_passwords_is_told_before_anything_is_sent(site: Site) -> None:
    site.create()
    wrong = [site.drives[0], replace(site.drives[1], recovery_password=Secret(OTHER_PASSWORD))]
    with pytest.raises(JobConflict, match="another recovery password for drive WD-2") as caught:
        site.create(wrong)
    assert "000077" not in f"{caught.value!r}{caught.value.hint}"


def test_a_role_that_may_not_see_passwords_creates_jobs_all_the_same(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: AzureImportService, name: str) -> None:
        raise NotSignedIn("403")

    monkeypatch.setattr(AzureImportService, "recovery_passwords", refuse)
    assert site.create().state == JobState.CREATING


def test_keeping_alive_restarts_the_two_weeks_and_the_alarms(site: Site, test_clock: TurnedClock) -> None:
    site.create()
    for _ in range(3):
        test_clock.advance(days=13)
        jobs.keep_alive(site.service, site.place)
        left = site.saved.ship_until - test_clock()  # this clock stands still between its turns
        assert abs(left - timedelta(days=14)) < timedelta(minutes=1)
    test_clock.advance(days=13, hours=23)
    assert site.refresh().state == JobState.CREATING
    test_clock.advance(days=2)
    with pytest.raises(NotFound, match="two weeks"):
        jobs.keep_alive(site.service, site.place)
    assert site.saved.gone


def test_a_job_that_is_shipped_needs_no_keeping_alive_and_one_that_is_cancelled_gets_none(
    site: Site, second: Site
) -> None:
    site.create()
    site.ship()
    assert jobs.keep_alive(site.service, site.place).state == JobState.SHIPPING
    second.create([replace(site.drives[0], drive_id="WD-9")])
    jobs.cancel_job(site.service, second.place)
    with pytest.raises(JobConflict):
        jobs.keep_alive(site.service, second.place)


def test_cancelling_is_free_before_the_package_is_sent_and_forced_after(site: Site, second: Site) -> None:
    site.create()
    cancelled = jobs.cancel_job(site.service, site.place, ledger=site.ledger)
    assert cancelled.cancel_requested
    assert site.saved.job == cancelled
    assert jobs.cancel_job(site.service, site.place, ledger=site.ledger).cancel_requested
    second.create([replace(drive, drive_id=f"{drive.drive_id}X") for drive in site.drives])
    second.ship()
    with pytest.raises(JobConflict, match="may not cancel it") as caught:
        jobs.cancel_job(site.service, second.place)
    assert "--force" in caught.value.hint
    assert not site.service.get("second-backup").cancel_requested
    assert jobs.cancel_job(site.service, second.place, force=True).cancel_requested


def test_a_job_that_is_over_frees_its_drives_but_not_its_number(
    site: Site, second: Site, test_clock: TurnedClock
) -> None:
    site.create()
    site.ship()
    with pytest.raises(JobConflict, match="first-backup"):
        second.create()
    test_clock.advance(days=31)  # nothing arrived: the service closes the job
    assert site.refresh().state == JobState.CLOSED
    assert not site.entry.open
    test_clock.advance(days=91)  # and forgets it
    second.create()
    day = test_clock().date()
    with pytest.raises(JobConflict, match="JD0001 belongs to import job first-backup"):
        second.ship(ship_date=day)
    assert second.ship("JD0001-1", ship_date=day).state == JobState.SHIPPING


def test_creating_a_job_that_is_over_takes_no_drives_from_the_job_that_has_them_now(
    site: Site, second: Site, test_clock: TurnedClock
) -> None:
    site.create()
    site.ship()
    test_clock.advance(days=31)
    assert site.refresh().state == JobState.CLOSED
    second.create()
    site.place.job_file.unlink()
    assert site.create().state == JobState.CLOSED
    assert (site.entry.open, second.entry.open) == (False, True)


def test_shipping_again_what_has_arrived_changes_nothing(site: Site, datacenter: Datacenter, tmp_path: Path) -> None:
    site.create()
    site.ship()
    datacenter.receive("first-backup", {"WD-1": tmp_path / "1.img", "WD-2": tmp_path / "2.img"})
    assert site.ship().state == JobState.RECEIVED
    with pytest.raises(JobConflict, match="cannot be shipped now"):
        site.ship("JD0002")


def test_the_ledger_sees_what_the_service_of_this_subscription_cannot(site: Site) -> None:
    elsewhere = replace(site.seed, subscription_id="00000000-0000-4000-8000-000000000009", job_name="elsewhere")
    site.ledger.record_job(key_of(elsewhere), ["WD-2"])
    with pytest.raises(JobConflict, match="WD-2 is in import job elsewhere"):
        site.create()
    assert site.service.list() == ()
    site.ledger.close(key_of(elsewhere))
    site.create()
    site.ledger.record_shipping(
        key_of(elsewhere), Package(carrier="x", tracking_number="jd 0001", drive_count=1), ["WD-2"]
    )
    with pytest.raises(JobConflict, match="belongs to import job elsewhere"):
        site.ship()
    assert site.service.get("first-backup").state == JobState.CREATING


def test_a_job_that_vanished_unseen_does_not_hold_its_drives_for_ever(
    site: Site, second: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.create()
    site.service.delete("first-backup")
    with pytest.raises(JobConflict, match="first-backup"):  # it may be of a command that goes on at this moment
        second.create()
    monkeypatch.setattr(booking, "_SETTLED", timedelta(0))
    second.create()
    assert not site.entry.open


def test_a_job_that_was_looked_for_in_the_wrong_place_takes_its_drives_back(site: Site, datacenter: Datacenter) -> None:
    site.create()
    subscription = site.seed.subscription_id
    wrong = AzureImportService(datacenter.base_url, Secret("the-token"), subscription, "other-group", retries=0)
    with pytest.raises(NotFound):
        jobs.refresh_job(wrong, site.place, ledger=site.ledger)
    assert site.saved.gone
    assert not site.entry.open
    site.refresh()
    assert not site.saved.gone
    assert site.entry.open


def test_a_damaged_ledger_stops_everything_before_the_service_is_asked_to_change(site: Site) -> None:
    site.ledger.path.parent.mkdir()
    site.ledger.path.write_bytes(b"")
    with pytest.raises(DataDamaged, match="ledger"):
        site.create()
    assert site.service.list() == ()
    jobs.create_job(site.service, site.place, site.seed, site.drives)
    with pytest.raises(DataDamaged, match="ledger"):
        site.ship()
    assert site.service.get("first-backup").state == JobState.CREATING


def test_the_package_holds_the_jobs_drives_and_no_other(site: Site, second: Site) -> None:
    site.create()
    second.create([replace(site.drives[0], drive_id="WD-9")])
    site.ledger.record_job(replace(key_of(site.seed), subscription_id="other", job_name="far-away"), ["WD-7"])
    for serials, says in (
        (["WD-1"], "drive WD-2 of import job first-backup is not in the package"),
        (["WD-1", "WD-9"], "'WD-9' is not in import job first-backup, but in second-backup"),
        (["WD-1", "WD-7"], "'WD-7' is not in import job first-backup, but in far-away"),
        (["WD-1", "WD-2", "WD-5"], "'WD-5' is not in import job first-backup"),
    ):
        with pytest.raises(JobConflict, match=says):
            site.ship(serials=serials, count=len(serials))
    with pytest.raises(UsageError, match="twice"):
        site.ship(serials=["WD-1", "wd-1"])
    with pytest.raises(JobConflict, match="holds 3 drives"):
        site.ship(serials=["WD-1", "WD-2"], count=3)
    assert site.service.get("first-backup").state == JobState.CREATING
    assert site.ship(serials=["wd-2 ", "WD-1"]).state == JobState.SHIPPING


@pytest.mark.parametrize("times", [1, 2])
def test_a_lost_answer_to_shipping_is_healed_by_the_same_command(
    site: Site, datacenter: Datacenter, times: int
) -> None:
    site.create()
    datacenter.order_fault(ServiceFault.ANSWER_LOST, times=times, method="PATCH")
    for _ in range(times):
        try:
            site.ship()
        except ServiceError:
            continue
    job = site.ship()
    assert (job.state, site.service.get("first-backup").state) == (JobState.SHIPPING, JobState.SHIPPING)
    assert site.entry.tracking_number == "JD0001"


@pytest.mark.parametrize("refusal", [JobConflict("the service says no"), ServiceError("the service says no")])
def test_a_number_that_the_service_refused_is_taken_back(
    site: Site, monkeypatch: pytest.MonkeyPatch, refusal: Exception
) -> None:
    def refuse(*_args: Any, **_kwargs: Any) -> Job:
        raise refusal

    site.create()
    before = site.entry
    monkeypatch.setattr(AzureImportService, "ship", refuse)
    with pytest.raises(type(refusal), match="says no"):
        site.ship()
    assert site.entry == before


def test_a_number_that_may_have_arrived_stays_taken(site: Site, second: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def lose(self: AzureImportService, name: str, *_args: Any, **_kwargs: Any) -> Job:
        monkeypatch.setattr(AzureImportService, "get", refuse)
        raise ServiceError("no answer")

    def refuse(*_args: Any) -> Job:
        raise ServiceError("no answer")

    site.create()
    with monkeypatch.context() as patched:
        patched.setattr(AzureImportService, "ship", lose)
        patched.setattr(AzureImportService, "get", AzureImportService.get)
        with pytest.raises(ServiceError):
            site.ship()
    assert site.entry.tracking_number == "JD0001"


def test_a_number_or_drive_of_a_job_in_another_group_is_seen_at_the_service(
    site: Site, datacenter: Datacenter, tmp_path: Path
) -> None:
    """It has the same name, was made on another computer, and so is in no ledger here."""
    place = Staging(tmp_path / "elsewhere")
    place.root.mkdir()
    seed = replace(site.seed, resource_group="other-group")
    save_seed(place, seed)
    service = AzureImportService(datacenter.base_url, Secret("the-token"), seed.subscription_id, "other-group")
    other = replace(site, service=service, place=place, seed=seed, ledger=Ledger(tmp_path / "theirs.json"))
    other.create([replace(drive, drive_id=f"{drive.drive_id}X") for drive in site.drives])
    other.ship()
    with pytest.raises(JobConflict, match="wd-1x is in import job first-backup"):
        site.create([replace(site.drives[0], drive_id="WD-1X")])
    site.create()
    with pytest.raises(JobConflict, match="JD0001 belongs to import job first-backup"):
        site.ship()
    assert site.ship("JD0001-1").state == JobState.SHIPPING


def test_a_job_of_the_same_name_in_another_group_is_another_job() -> None:
    job = Job(name="Backup", location="x", storage_account_id="y", state=JobState.CREATING, drives=())
    assert lookup.is_same(job, "backup", "seeding")
    assert lookup.is_same(replace(job, resource_group="Seeding"), "backup", "seeding")
    assert not lookup.is_same(replace(job, resource_group="other"), "backup", "seeding")
    assert not lookup.is_same(job, "backup2", "seeding")


def test_nothing_of_a_password_is_in_the_files(site: Site) -> None:
    site.create()
    site.ship()
    written = (
        site.place.job_file.read_text() + site.ledger.path.read_text() + repr(site.ledger.jobs()) + repr(site.drives)
    )
    assert not any(group in written for group in site.drives[0].recovery_password.reveal().split("-"))
    assert site.ledger.path.stat().st_mode & 0o077 == 0


def test_another_way_back_is_entered_also_when_the_package_is_the_same(site: Site) -> None:
    site.create()
    site.ship()
    moved = replace(site, address=replace(site.address, street_address1="2 Street"))
    job = moved.ship()
    assert job.return_address is not None
    assert job.return_address.street_address1 == "2 Street"
    back = ReturnShipping(carrier="DHL", account_number="7")
    job = jobs.enter_shipping(
        site.service, site.place, carrier="DHL", tracking_number="JD0001", drive_count=2, return_shipping=back
    )
    assert job.return_shipping == back
    assert job.package is not None
    assert job.package.ship_date == date(2026, 3, 2)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"email": "nobody"}, "not an e-mail address"),
        ({"city": "To\nwn"}, "line end"),
        ({"recipient_name": "\x1b[31mOperator"}, "line end"),
        ({"street_address2": "x" * 201}, "longer than 200"),
    ],
)
def test_a_way_back_that_cannot_stand_on_a_label_is_refused_before_anything_is_sent(
    site: Site, changed: dict[str, str], told: str
) -> None:
    site.create()
    with pytest.raises(UsageError, match=told):
        replace(site, address=replace(site.address, **changed)).ship()
    assert site.refresh().state == JobState.CREATING


@pytest.mark.parametrize("day", [date(2026, 1, 20), date(2026, 4, 1), date(2062, 3, 2)])
def test_a_package_is_not_sent_long_ago_or_in_the_far_future(site: Site, day: date) -> None:
    site.create()
    with pytest.raises(UsageError, match="was not sent on"):
        jobs.enter_shipping(
            site.service,
            site.place,
            carrier="DHL",
            tracking_number="JD0001",
            drive_count=2,
            ship_date=day,
            return_address=site.address,
        )


def test_a_refused_carrier_or_number_says_what_would_do(site: Site) -> None:
    site.create()
    for carrier, number, error, hint in (
        ("Pigeon", "JD0001", ServiceError, "DHL"),
        ("DHL", "7", UsageError, "receipt"),
    ):
        with pytest.raises(error) as caught:
            jobs.enter_shipping(
                site.service,
                site.place,
                carrier=carrier,
                tracking_number=number,
                drive_count=2,
                ship_date=date(2026, 3, 2),
                return_address=site.address,
            )
        assert hint in caught.value.hint

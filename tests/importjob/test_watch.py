"""The watch: tells each change and each alarm once, survives silence, ends when there is something to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support import TurnedClock

from diskprep.datacenter.faults import ServiceFault
from diskprep.datacenter.server import Datacenter
from diskprep.errors import DeadlineNear, DiskprepError, DrivesFailed, NotFound, NotSignedIn, ServiceError
from diskprep.events import Event, Note, Progress
from diskprep.importjob import job as jobs
from diskprep.importjob.advice import Advice
from diskprep.importjob.client import AzureImportService
from diskprep.importjob.ledger import Ledger, key_of
from diskprep.importjob.model import Drive, DriveState, DriveStatus, Job, JobState, ReturnAddress
from diskprep.importjob.saved import load_job, write_saved
from diskprep.importjob.watch import Alarm, watch
from diskprep.seed import Seed, Staging


class Desk:
    """A person at a terminal: sees what is emitted, and turns the world between the rounds of a watch."""

    def __init__(self, service: AzureImportService, staging: Staging) -> None:
        self.service, self.staging = service, staging
        self.notes: list[str] = []
        self.bars: list[Progress] = []
        self.alarms: list[Alarm] = []
        self.waited_s: list[float] = []
        self.script: list[Callable[[], object]] = []

    def emit(self, event: Event) -> None:
        if isinstance(event, Note):
            self.notes.append(event.text)
        else:
            self.bars.append(event)

    def wait(self, seconds: float) -> None:
        self.waited_s.append(seconds)
        assert self.script, f"the watch goes on for ever: {self.notes}"
        self.script.pop(0)()

    def watch(self, *script: Callable[[], object], **kwargs: Any) -> Advice:
        self.script = list(script)
        kwargs = {"every": timedelta(minutes=15), "hook": self.alarms.append, **kwargs}
        return watch(self.service, self.staging, emit=self.emit, wait=self.wait, **kwargs)


@pytest.fixture
def desk(service: AzureImportService, staging: Staging, seed: Seed, drives: list[Drive]) -> Desk:
    jobs.create_job(service, staging, seed, drives)
    return Desk(service, staging)


def ship(desk: Desk, return_address: ReturnAddress) -> None:
    jobs.enter_shipping(
        desk.service,
        desk.staging,
        carrier="DHL",
        tracking_number="JD0001",
        drive_count=2,
        ship_date=date(2026, 3, 1),
        return_address=return_address,
    )


@pytest.fixture
def shipped(desk: Desk, return_address: ReturnAddress) -> Desk:
    ship(desk, return_address)
    return desk


class Stages:
    """A service whose job goes on as the test says: the copying itself is the datacenter's test."""

    def __init__(self, real: AzureImportService, job: Job) -> None:
        self._real, self.job = real, job

    def get(self, name: str) -> Job:
        return self.job

    def server_time(self) -> datetime:
        return self._real.server_time()

    def become(self, state: JobState | str, *drives: tuple[DriveState, int, str]) -> Callable[[], None]:
        """A turn of the script: the job in that state, with drives (state, percent, copy status)."""
        statuses = tuple(
            DriveStatus(drive_id=f"WD-{n}", state=drive_state, percent_complete=percent, copy_status=copied)
            for n, (drive_state, percent, copied) in enumerate(drives, 1)
        )

        def turn() -> None:
            self.job = replace(self.job, state=state, drives=statuses or self.job.drives)

        return turn


@pytest.fixture
def stages(shipped: Desk) -> Stages:
    stages = Stages(shipped.service, shipped.service.get("first-backup"))
    shipped.service = stages  # type: ignore[assignment]
    return stages


def nothing() -> None:
    """A round in which nothing happens."""


def test_a_job_without_a_tracking_number_has_something_to_do_at_once(desk: Desk) -> None:
    advice = desk.watch()
    assert (advice.command, advice.error, desk.waited_s) == ("job ship", None, [])
    assert (desk.notes, desk.bars, desk.alarms) == ([], [], [])


def test_the_whole_way_is_followed_to_its_end(shipped: Desk, stages: Stages) -> None:
    advice = shipped.watch(
        nothing,
        stages.become(JobState.RECEIVED, (DriveState.RECEIVED, 0, ""), (DriveState.RECEIVED, 0, "")),
        stages.become(JobState.TRANSFERRING, (DriveState.TRANSFERRING, 40, ""), (DriveState.RECEIVED, 0, "")),
        stages.become(
            JobState.TRANSFERRING, (DriveState.COMPLETED, 100, "Completed"), (DriveState.TRANSFERRING, 250, "")
        ),
        stages.become("Teleporting"),
        stages.become(
            JobState.COMPLETED, (DriveState.SHIPPED_BACK, 100, "Completed"), (DriveState.SHIPPED_BACK, 100, "Completed")
        ),
    )
    assert (advice.command, advice.error) == ("vault ingest", None)
    assert shipped.notes == [
        "import job first-backup: Received, all drives are in the datacenter",
        "drive WD-1: Received",
        "drive WD-2: Received",
        "import job first-backup: Transferring, drives are being copied",
        "drive WD-1: Transferring",
        "drive WD-1: Completed",
        "drive WD-2: Transferring",
        "import job first-backup: Teleporting",
        "import job first-backup: Completed, done, the drives are on their way back",
        "drive WD-1: ShippedBack",
        "drive WD-2: ShippedBack",
    ]
    seen = [(bar.item, bar.done_bytes) for bar in shipped.bars]
    assert seen[:3] == [("WD-1", 40), ("WD-1", 100), ("WD-2", 100)]
    assert {(bar.stage, bar.total_bytes, bar.unit) for bar in shipped.bars} == {("import job", 100, "%")}
    assert shipped.waited_s == [900.0] * 6


def test_a_job_that_ended_badly_ends_the_watch_with_an_error_to_raise(shipped: Desk, stages: Stages) -> None:
    advice = shipped.watch(
        stages.become(
            JobState.CLOSED,
            (DriveState.SHIPPED_BACK, 100, "Completed"),
            (DriveState.SHIPPED_BACK, 9, "CompletedWithErrors"),
        )
    )
    assert advice.command == "job report"
    assert isinstance(advice.error, DrivesFailed)
    assert "WD-2" in advice.text


def test_a_drive_that_does_not_arrive_ends_the_watch_once(
    shipped: Desk, datacenter: Datacenter, tmp_path: Path
) -> None:
    (tmp_path / "wd-1.img").write_bytes(b"")
    advice = shipped.watch(lambda: datacenter.receive("first-backup", {"WD-1": tmp_path / "wd-1.img"}))
    assert "drive WD-2 of import job first-backup did not arrive" in advice.text
    assert advice.command == ""
    assert isinstance(advice.error, DrivesFailed)
    assert "drive WD-2: NeverReceived" in shipped.notes
    shipped.notes.clear()
    (tmp_path / "wd-2.img").write_bytes(b"")
    with pytest.raises(KeyError):
        shipped.watch(nothing, lambda: datacenter.receive("first-backup", {"WD-2": tmp_path / "wd-2.img"}), {}.popitem)
    assert "drive WD-2: Received" in shipped.notes


def test_alarms_are_told_once_each_also_over_restarts_of_the_watch(desk: Desk, test_clock: TurnedClock) -> None:
    told = []
    for _ in range(14 * 2):
        desk.watch(once=True)
        told += [(alarm.days_left, alarm.job_name) for alarm in desk.alarms]
        desk.alarms.clear()
        test_clock.advance(hours=12)
    assert told == [(5, "first-backup"), (2, "first-backup"), (1, "first-backup")]
    assert len([note for note in desk.notes if "tracking number" in note]) == 3
    jobs.keep_alive(desk.service, desk.staging)
    test_clock.advance(days=9, hours=1)
    advice = desk.watch(once=True)
    assert isinstance(advice.error, DeadlineNear)
    assert [alarm.days_left for alarm in desk.alarms] == [5]
    assert "2026-" in desk.alarms[0].text


def test_an_alarm_that_could_not_be_passed_on_is_tried_again_and_told_once(desk: Desk, test_clock: TurnedClock) -> None:
    failures = 2

    def hook(alarm: Alarm) -> None:
        nonlocal failures
        if failures:
            failures -= 1
            raise DiskprepError("the mail did not go out")
        desk.alarms.append(alarm)

    test_clock.advance(days=10)
    for _ in range(4):
        desk.watch(once=True, hook=hook)
    assert [alarm.days_left for alarm in desk.alarms] == [5]
    assert len([note for note in desk.notes if "mail did not go out" in note]) == 2


def test_a_job_that_is_shipped_while_an_alarm_is_passed_on_stays_shipped(
    desk: Desk, return_address: ReturnAddress, test_clock: TurnedClock
) -> None:
    def hook(_alarm: Alarm) -> None:
        ship(desk, return_address)

    test_clock.advance(days=10)
    desk.watch(once=True, hook=hook)
    assert load_job(desk.staging).job.state == JobState.SHIPPING


def test_a_crash_between_telling_and_remembering_tells_twice(desk: Desk, test_clock: TurnedClock) -> None:
    def hook(alarm: Alarm) -> None:
        desk.alarms.append(alarm)
        if len(desk.alarms) == 1:
            raise KeyboardInterrupt

    test_clock.advance(days=10)
    with pytest.raises(KeyboardInterrupt):
        desk.watch(once=True, hook=hook)
    desk.watch(once=True, hook=hook)
    desk.watch(once=True, hook=hook)
    assert [alarm.days_left for alarm in desk.alarms] == [5, 5]


def test_a_job_that_was_deleted_is_advice_and_frees_its_drives(
    desk: Desk, seed: Seed, ledger: Ledger, test_clock: TurnedClock
) -> None:
    ledger.record_job(key_of(seed), ["WD-1", "WD-2"])
    test_clock.advance(days=15)
    advice = desk.watch(ledger=ledger)
    assert advice.command == "job create"
    assert isinstance(advice.error, DeadlineNear)
    assert "import job first-backup: gone" in desk.notes
    assert not ledger.jobs()[str(key_of(seed))].open
    assert isinstance(desk.watch(ledger=ledger).error, DeadlineNear)
    assert desk.notes.count("import job first-backup: gone") == 1


class Away(Stages):
    """A service that does not answer for some rounds, and then has the job done."""

    def __init__(self, real: AzureImportService, job: Job, failures: list[Exception]) -> None:
        super().__init__(real, job)
        self.failures = failures

    def get(self, name: str) -> Job:
        if self.failures:
            raise self.failures.pop(0)
        return replace(self.job, state=JobState.COMPLETED)


def away(desk: Desk, *failures: Exception) -> None:
    desk.service = Away(desk.service, desk.service.get("first-backup"), list(failures))  # type: ignore[assignment]


def test_a_silent_service_is_told_once_and_waited_for(shipped: Desk) -> None:
    away(shipped, *[ServiceError("no answer")] * 4)
    advice = shipped.watch(*[nothing] * 4)
    assert advice.command == "vault ingest"
    assert [note for note in shipped.notes if "no answer" in note] == ["no answer; trying again every 15 minutes"]


def test_patience_ends(shipped: Desk) -> None:
    away(shipped, *[ServiceError("no answer")] * 99)
    with pytest.raises(ServiceError):
        shipped.watch(*[nothing] * 99, patience=timedelta(hours=2))
    assert len(shipped.waited_s) == 8
    with pytest.raises(ServiceError):
        shipped.watch(once=True)


def test_a_refused_credential_ends_the_watch_at_once(shipped: Desk) -> None:
    away(shipped, NotSignedIn("expired"))
    with pytest.raises(NotSignedIn):
        shipped.watch(nothing)
    assert shipped.waited_s == []


@pytest.mark.parametrize("failure", [ServiceError("no answer"), NotSignedIn("expired")])
def test_alarms_are_told_while_the_service_is_silent(desk: Desk, failure: Exception, test_clock: TurnedClock) -> None:
    saved = load_job(desk.staging)
    write_saved(desk.staging, replace(saved, skew=saved.skew + timedelta(days=12, hours=1)))
    away(desk, failure)
    with pytest.raises(type(failure)):
        desk.watch(once=True)
    assert [alarm.days_left for alarm in desk.alarms] == [2]


def test_throttling_and_lost_answers_of_the_real_service_do_not_end_a_watch(
    shipped: Desk, datacenter: Datacenter
) -> None:
    datacenter.order_fault(ServiceFault.UNAVAILABLE, times=1, method="GET")
    with pytest.raises(KeyError):
        shipped.watch(nothing, {}.popitem)
    assert len([note for note in shipped.notes if "trying again" in note]) == 1


def test_without_a_job_there_is_nothing_to_watch(service: AzureImportService, staging: Staging) -> None:
    with pytest.raises(NotFound, match="no import job"):
        Desk(service, staging).watch()


def test_changes_that_another_command_wrote_down_are_told(shipped: Desk, stages: Stages) -> None:
    """`job show` runs beside the watch, sees the change first, and writes it into job.json."""

    def beside() -> None:
        stages.become(JobState.RECEIVED)()
        jobs.refresh_job(shipped.service, shipped.staging)

    shipped.watch(beside, stages.become(JobState.COMPLETED))
    assert "import job first-backup: Received, all drives are in the datacenter" in shipped.notes


def test_the_hook_hears_once_of_a_job_that_was_deleted_between_two_looks(desk: Desk, test_clock: TurnedClock) -> None:
    test_clock.advance(days=15)
    for _ in range(3):
        desk.watch(once=True)
    assert [alarm.days_left for alarm in desk.alarms] == [0]
    assert "is gone" in desk.alarms[0].text


def test_a_job_that_was_cancelled_and_is_gone_rings_no_alarm(desk: Desk, test_clock: TurnedClock) -> None:
    jobs.cancel_job(desk.service, desk.staging)
    test_clock.advance(days=200)
    desk.watch(once=True)
    assert desk.alarms == []


def test_a_look_by_hand_does_not_silence_the_timers_hook(desk: Desk, test_clock: TurnedClock) -> None:
    test_clock.advance(days=9, hours=1)
    desk.watch(hook=None, once=True)
    assert any("ends in" in note for note in desk.notes)
    assert load_job(desk.staging).told == ()
    desk.watch(once=True)
    assert [alarm.days_left for alarm in desk.alarms] == [5]
    desk.watch(once=True)
    assert len(desk.alarms) == 1


def test_a_drive_that_did_not_arrive_is_passed_on_once_whoever_saw_it_first(shipped: Desk, stages: Stages) -> None:
    stages.become(JobState.RECEIVED, (DriveState.RECEIVED, 0, ""), (DriveState.NEVER_RECEIVED, 0, ""))()
    jobs.refresh_job(shipped.service, shipped.staging)  # somebody's `job show`

    def refuse(_alarm: Alarm) -> None:
        raise DiskprepError("no mail today")

    assert isinstance(shipped.watch(hook=refuse, once=True).error, DrivesFailed)
    assert load_job(shipped.staging).passed_on == ()
    for _ in range(2):
        assert isinstance(shipped.watch(once=True).error, DrivesFailed)
    assert [(alarm.days_left, alarm.text) for alarm in shipped.alarms] == [(None, "drive WD-2 did not arrive")]


def test_how_things_stand_is_told_before_each_wait(shipped: Desk, stages: Stages) -> None:
    told: list[str] = []
    ended = stages.become(JobState.COMPLETED, *[(DriveState.COMPLETED, 100, "Completed")] * 2)
    shipped.watch(nothing, ended, stands=told.append)
    assert len(told) == 2
    assert told[0].startswith("import job first-backup: Shipping, the package is on its way; looks again on ")
    assert len(shipped.notes) == len([note for note in shipped.notes if "looks again" not in note])

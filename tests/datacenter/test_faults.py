"""Faults on order: what a client of the interface gets, what becomes of drives, and that a restart forgets none."""

from __future__ import annotations

import http.client
from pathlib import Path
from typing import Any

import pytest
from azure.mgmt.storageimportexport import StorageImportExport, models
from msrest.authentication import BasicTokenAuthentication
from msrest.exceptions import ClientRequestError
from practice import BODY, SUBSCRIPTION, MadeDisk, check_arrived, make_disk, ship, url

from diskprep.datacenter.faults import DriveFault, DriveFaults, ServiceFault
from diskprep.datacenter.refusal import Refusal
from diskprep.datacenter.server import Datacenter
from diskprep.errors import UsageError
from diskprep.events import Event, Note
from diskprep.secrets import Secret
from diskprep.store.directory import DirectoryAccount


def faulty(*faults: DriveFault, blocks: int = 1) -> DriveFaults:
    return DriveFaults(faults=frozenset(faults), blocks=blocks)


@pytest.fixture
def sdk(datacenter: Datacenter) -> StorageImportExport:
    """The service's own client, without any patience."""
    made = StorageImportExport(
        BasicTokenAuthentication({"access_token": "the-token"}), SUBSCRIPTION, base_url=datacenter.base_url
    )
    made.config.retry_policy.retries = 0
    made.config.hooks.clear()
    return made


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> tuple[MadeDisk, MadeDisk]:
    folder = tmp_path_factory.mktemp("disks")
    account = DirectoryAccount("backups", folder / "account", Secret(b"k" * 32))
    return make_disk(folder, "WD-A", account, files=2), make_disk(folder, "WD-B", account, files=2)


def raw(datacenter: Datacenter, method: str, target: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", int(datacenter.base_url.rpartition(":")[2]), timeout=20)
    connection.request(method, target, headers={"Authorization": "Bearer the-token"})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer


def test_a_throttled_client_is_told_how_long_to_wait_and_only_as_often_as_ordered(
    datacenter: Datacenter, http_call: Any
) -> None:
    datacenter.order_fault(ServiceFault.THROTTLED, times=2, method="PUT", retry_after_s=17)
    assert http_call("GET", url())[0] == 404  # another method is left alone
    answer = raw(datacenter, "PUT", url())
    assert (answer.status, answer.headers["Retry-After"]) == (429, "17")
    status, document = http_call("PUT", url(), BODY)
    assert (status, document["error"]["code"]) == (429, "TooManyRequests")
    assert http_call("PUT", url(), BODY)[0] == 201
    assert datacenter.ordered_faults() == ()


def test_faults_come_in_the_order_they_were_ordered_in(datacenter: Datacenter, http_call: Any) -> None:
    datacenter.order_fault(ServiceFault.UNAVAILABLE)
    datacenter.order_fault(ServiceFault.TOKEN_EXPIRED)
    datacenter.order_fault(ServiceFault.THROTTLED)
    codes = [http_call("GET", url())[1]["error"]["code"] for _ in range(4)]
    assert codes == ["ServiceUnavailable", "ExpiredAuthenticationToken", "TooManyRequests", "ResourceNotFound"]
    datacenter.order_fault(ServiceFault.UNAVAILABLE, times=9)
    datacenter.clear_faults()
    assert http_call("GET", url())[0] == 404


def test_a_request_without_the_token_uses_up_no_fault(datacenter: Datacenter, http_call: Any) -> None:
    datacenter.order_fault(ServiceFault.UNAVAILABLE)
    assert http_call("GET", url(), Authorization=None)[0] == 401
    assert [order.times for order in datacenter.ordered_faults()] == [1]


def test_when_an_answer_is_lost_the_job_is_there_all_the_same(
    datacenter: Datacenter, http_call: Any, sdk: StorageImportExport
) -> None:
    datacenter.order_fault(ServiceFault.ANSWER_LOST, method="PUT")
    with pytest.raises(ClientRequestError):
        sdk.jobs.create("first-backup", "seeding", BODY)
    assert [job.name for job in sdk.jobs.list_by_resource_group("seeding")] == ["first-backup"]
    again = sdk.jobs.create("first-backup", "seeding", BODY, raw=True)
    assert again.response.status_code == 200, "putting it again is the same job"
    datacenter.order_fault(ServiceFault.ANSWER_LOST, method="PATCH")
    with pytest.raises(ClientRequestError):
        sdk.jobs.update("first-backup", "seeding", {"properties": {"cancelRequested": True}})
    assert sdk.jobs.get("first-backup", "seeding").properties.cancel_requested is True


def test_the_real_client_reads_what_is_wrong_from_each_fault(datacenter: Datacenter, sdk: StorageImportExport) -> None:
    for fault, status in ((ServiceFault.TOKEN_EXPIRED, 401), (ServiceFault.UNREGISTERED, 409)):
        datacenter.order_fault(fault)
        with pytest.raises(models.ErrorResponseException) as refused:
            sdk.jobs.get("first-backup", "seeding")
        assert refused.value.response.status_code == status


@pytest.mark.parametrize(
    "order", [{"times": 0}, {"times": 1001}, {"method": "BREW"}, {"retry_after_s": -1}, {"retry_after_s": 90_000}]
)
def test_an_order_that_makes_no_sense_is_refused(datacenter: Datacenter, order: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        datacenter.order_fault(ServiceFault.THROTTLED, **order)
    assert datacenter.ordered_faults() == ()


def test_a_package_without_a_job_is_told_in_words(datacenter: Datacenter, http_call: Any, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="'first-backup', which was not found: the drives are kept") as unknown:
        datacenter.receive("first-backup", {"WD-1": tmp_path})
    assert "job create" in unknown.value.hint
    http_call("PUT", url(), BODY)
    with pytest.raises(Refusal, match="Creating: nobody entered its tracking number") as early:
        datacenter.receive("first-backup", {"WD-1": tmp_path})
    assert "job ship" in early.value.hint
    http_call("PATCH", url(), {"properties": {"cancelRequested": True}})
    with pytest.raises(Refusal, match="which was cancelled: its drives go back unprocessed"):
        datacenter.receive("first-backup", {"WD-1": tmp_path})


def test_a_lost_drive_never_comes_and_the_job_ends_with_what_there_was(
    datacenter: Datacenter, http_call: Any, disks: tuple[MadeDisk, MadeDisk], account: DirectoryAccount
) -> None:
    ship(http_call, *disks)
    here = {disk.serial: disk.path for disk in disks}
    told: list[Event] = []
    datacenter.receive("first-backup", here, told.append, faults={"WD-B": faulty(DriveFault.LOST)})
    assert [event.text for event in told if isinstance(event, Note)] == [
        "drive WD-B of job first-backup was not in the package"
    ]
    job = http_call("GET", url())[1]["properties"]
    assert (job["state"], [drive["state"] for drive in job["driveList"]]) == ("Shipping", ["Received", "NeverReceived"])
    datacenter.receive("first-backup", here)  # looked through once more: it does not turn up
    assert datacenter.process("first-backup").state == "Packaging"
    summary = datacenter.ship_back("first-backup")
    assert (summary.state, [drive.state for drive in summary.drives]) == ("Closed", ["ShippedBack", "NeverReceived"])
    returned = http_call("GET", url())[1]["properties"]["returnPackage"]
    assert (returned["carrierName"], returned["driveCount"]) == ("DHL", 1)
    check_arrived(account, disks[0])
    summary = datacenter.receive("first-backup", {"WD-B": disks[1].path})
    assert (summary.state, summary.drives[1].state) == ("Closed", "NeverReceived")


def test_a_late_drive_is_waited_for_and_the_job_ends_well(
    datacenter: Datacenter, http_call: Any, disks: tuple[MadeDisk, MadeDisk], account: DirectoryAccount
) -> None:
    ship(http_call, *disks)
    here = {disk.serial: disk.path for disk in disks}
    summary = datacenter.receive("first-backup", here, faults={"WD-B": faulty(DriveFault.LATE)})
    assert (summary.state, summary.late) == ("Shipping", ("WD-B",))
    summary = datacenter.process("first-backup")
    assert (summary.state, [drive.state for drive in summary.drives]) == (
        "Transferring",
        ["Completed", "NeverReceived"],
    )
    with pytest.raises(Refusal, match="not packed"):
        datacenter.ship_back("first-backup")
    summary = datacenter.receive("first-backup", {"WD-B": disks[1].path})
    assert (summary.late, [drive.state for drive in summary.drives]) == ((), ["Completed", "Received"])
    assert datacenter.process("first-backup").state == "Packaging"
    assert datacenter.ship_back("first-backup").state == "Completed"
    check_arrived(account, *disks)


def test_a_drive_fault_reaches_the_reading_after_a_restart_and_strikes_that_drive_alone(
    datacenter: Datacenter,
    http_call: Any,
    disks: tuple[MadeDisk, MadeDisk],
    account: DirectoryAccount,
    tmp_path: Path,
) -> None:
    ship(http_call, *disks)
    here = {disk.serial: disk.path for disk in disks}
    before = disks[1].path.read_bytes()
    datacenter.receive("first-backup", here, faults={"WD-B": faulty(DriveFault.BLOCKS_DAMAGED, blocks=2)})
    second = Datacenter(tmp_path / "state.sqlite", account, token=Secret("x"))
    summary = second.process("first-backup")
    second.stop()
    assert [drive.status for drive in summary.drives] == ["Completed", "CompletedWithErrors"]
    assert [drive.state for drive in summary.drives] == ["Completed", "CompletedMoreInfo"]
    assert datacenter.ship_back("first-backup").state == "Closed"
    drives = http_call("GET", url())[1]["properties"]["driveList"]
    assert ["errorLogUri" in drive for drive in drives] == [False, True]
    assert disks[1].path.read_bytes() == before, "the disk is never written to"


def test_a_drive_that_is_not_the_jobs_goes_back_unread(
    datacenter: Datacenter, http_call: Any, disks: tuple[MadeDisk, MadeDisk], account: DirectoryAccount
) -> None:
    ship(http_call, disks[0])
    told: list[Event] = []
    datacenter.receive("first-backup", {disk.serial: disk.path for disk in disks}, told.append)
    assert [event.text for event in told if isinstance(event, Note)] == [
        "drive WD-B is not in job first-backup: returned unprocessed"
    ]
    datacenter.process("first-backup")
    assert datacenter.ship_back("first-backup").state == "Completed"
    assert not list(account.container("backup").list("data/WD-B/"))


def test_a_job_that_is_stuck_goes_on_when_it_was_settled(
    datacenter: Datacenter, http_call: Any, disks: tuple[MadeDisk, MadeDisk]
) -> None:
    ship(http_call, disks[0])
    with pytest.raises(Refusal, match="Shipping"):
        datacenter.get_stuck("first-backup")
    datacenter.receive("first-backup", {"WD-A": disks[0].path})
    assert datacenter.get_stuck("first-backup").state == "Faulted"
    assert http_call("DELETE", url())[0] == 409
    assert datacenter.process("first-backup").state == "Packaging"
    assert datacenter.ship_back("first-backup").state == "Completed"


def test_the_same_package_may_be_opened_twice_at_any_time(
    datacenter: Datacenter, http_call: Any, disks: tuple[MadeDisk, MadeDisk]
) -> None:
    ship(http_call, disks[0])
    package = {"WD-A": disks[0].path}
    for after in (
        lambda: None,
        lambda: datacenter.process("first-backup"),
        lambda: datacenter.ship_back("first-backup"),
    ):
        datacenter.receive("first-backup", package)
        after()
    assert datacenter.receive("first-backup", package).state == "Completed"


def test_a_drive_that_turns_up_after_its_job_ended_goes_back(
    datacenter: Datacenter, http_call: Any, disks: tuple[MadeDisk, MadeDisk]
) -> None:
    ship(http_call, *disks)
    datacenter.receive("first-backup", {"WD-A": disks[0].path})
    assert datacenter.process("first-backup").state == "Packaging"
    assert datacenter.ship_back("first-backup").state == "Closed"
    with pytest.raises(Refusal, match="Closed already: its drives go back unprocessed"):
        datacenter.receive("first-backup", {"WD-B": disks[1].path})

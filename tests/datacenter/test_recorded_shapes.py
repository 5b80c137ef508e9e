"""Requests as other people's clients were recorded to send them, and answers as the real service gave them."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from azure.mgmt.storageimportexport import StorageImportExport, models
from msrest.authentication import BasicTokenAuthentication
from support import TurnedClock

from diskprep.datacenter.bodies import Mode
from diskprep.datacenter.faults import ServiceFault
from diskprep.datacenter.server import Datacenter
from diskprep.secrets import Secret
from diskprep.store.directory import DirectoryAccount

SUBSCRIPTION = "00000000-0000-4000-8000-000000000002"
PASSWORD = "238810-662376-448998-450120-652806-203390-606320-483076"
ODD_PASSWORD = "238810-662376-448998-450120-652806-203390-606320-483079"  # no product of eleven, and taken all the same
ACCOUNT = f"/subscriptions/{SUBSCRIPTION}/resourcegroups/Practice/providers/Microsoft.Storage/storageAccounts/somewhere"
#: As PowerShell sends a new job: fields in the alphabet's order, no second line of the address, two back-slashes.
POWERSHELL_NEW = {
    "properties": {
        "returnAddress": {
            "city": "Redmond",
            "countryOrRegion": "USA",
            "email": "test@example.org",
            "phone": "4250000000",
            "postalCode": "98008",
            "recipientName": "Some name",
            "stateOrProvince": "WA",
            "streetAddress1": "Street1",
        },
        "backupDriveManifest": True,
        "diagnosticsPath": "waimportexport",
        "driveList": [
            {
                "bitLockerKey": PASSWORD,
                "driveHeaderHash": "",
                "driveId": "9CA995BA",
                "manifestFile": "\\\\DriveManifest.xml",
                "manifestHash": "109B21108597EF36D5785F08303F3638",
            },
            {
                "bitLockerKey": ODD_PASSWORD,
                "driveId": "9CA995BX",
                "manifestFile": "\\\\DriveManifest2.xml",
                "manifestHash": "109B21108597EF36D5785F08303F3639",
            },
        ],
        "jobType": "Import",
        "storageAccountId": ACCOUNT,
    },
    "location": "eastus",
}
#: The fields of the answer, in the order in which the service has them.
ANSWERED = ["properties", "identity", "id", "name", "type", "location"]
ANSWERED_PROPERTIES = [
    "storageAccountId",
    "jobType",
    "returnAddress",
    "shippingInformation",
    "diagnosticsPath",
    "logLevel",
    "backupDriveManifest",
    "cancelRequested",
    "state",
    "driveList",
    "provisioningState",
    "encryptionKey",
]


@pytest.fixture
def wire(tmp_path: Path, account: DirectoryAccount, test_clock: TurnedClock) -> Iterator[Datacenter]:
    with Datacenter(
        tmp_path / "wire.sqlite", account, token=Secret("the-token"), now=test_clock, mode=Mode.WIRE
    ) as running:
        yield running


def call(
    datacenter: Datacenter, method: str, job: str, body: Any = None, version: str = "2016-11-01"
) -> tuple[http.client.HTTPResponse, Any]:
    """One request on a connection of its own; the job's name may have an action behind it."""
    connection = http.client.HTTPConnection("127.0.0.1", int(datacenter.base_url.rpartition(":")[2]), timeout=20)
    target = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/Practice/providers/Microsoft.ImportExport/jobs"
    headers = {"Authorization": "Bearer the-token", "Content-Type": "application/json"}
    try:
        data = None if body is None else json.dumps(body, indent=2).encode()
        connection.request(method, f"{target}{job}?api-version={version}", data, headers)
        answer = connection.getresponse()
        text = answer.read()
    finally:
        connection.close()
    return answer, json.loads(text) if text else None


@pytest.mark.parametrize("version", ["2016-11-01", "2020-08-01", "2021-01-01"])
def test_a_job_as_powershell_makes_it_is_answered_as_it_was_recorded(wire: Datacenter, version: str) -> None:
    answer, job = call(wire, "PUT", "/new-job", POWERSHELL_NEW, version)
    assert answer.status == 201
    assert list(job) == ANSWERED
    assert list(job["properties"]) == ANSWERED_PROPERTIES
    assert job["properties"]["driveList"] == [
        {
            "driveId": "9CA995BA",
            "manifestFile": "\\\\DriveManifest.xml",
            "manifestHash": "109B21108597EF36D5785F08303F3638",
            "driveHeaderHash": "",
            "state": "Specified",
        },
        {
            "driveId": "9CA995BX",
            "manifestFile": "\\\\DriveManifest2.xml",
            "manifestHash": "109B21108597EF36D5785F08303F3639",
            "state": "Specified",
        },
    ]
    assert job["properties"]["returnAddress"]["streetAddress2"] == ""
    assert job["properties"]["encryptionKey"] == {"kekType": "MicrosoftManaged"}
    assert (job["identity"], job["location"]) == ({"type": "None"}, "eastus")
    assert call(wire, "GET", "/new-job", version=version)[1]["location"] == "East US"


def test_a_package_as_powershell_enters_it_leaves_the_job_creating(wire: Datacenter) -> None:
    call(wire, "PUT", "/new-job", POWERSHELL_NEW)
    package = {"carrierName": "pwsh", "driveCount": 0, "trackingNumber": "pwsh20200000"}
    answer, job = call(wire, "PATCH", "/new-job", {"properties": {"deliveryPackage": package}})
    assert answer.status == 200
    assert job["properties"]["deliveryPackage"] == package  # and no shipDate, for none was sent
    assert job["properties"]["state"] == "Creating"
    answer, job = call(wire, "PATCH", "/new-job", {"properties": {"cancelRequested": True}})
    assert (answer.status, job["properties"]["cancelRequested"], job["properties"]["state"]) == (200, True, "Creating")


def test_what_recordings_take_the_published_rules_refuse(wire: Datacenter, datacenter: Datacenter) -> None:
    odd: tuple[tuple[dict[str, Any], str], ...] = (
        ({"deliveryPackage": {"carrierName": "pwsh", "trackingNumber": "1"}}, "InvalidCarrier"),
        ({"deliveryPackage": {"carrierName": "DHL", "trackingNumber": "2", "driveCount": 0}}, "InvalidDriveCount"),
        ({"state": ""}, "InvalidState"),
    )
    for here in (wire, datacenter):
        call(here, "PUT", "/new-job", POWERSHELL_NEW)
    for properties, code in odd:
        assert call(wire, "PATCH", "/new-job", {"properties": properties})[0].status == 200
        answer, error = call(datacenter, "PATCH", "/new-job", {"properties": properties})
        assert (answer.status, error["error"]["code"]) == (400, code)
        assert error["error"]["target"] == code.replace("Invalid", "deliveryPackage.").replace(
            "deliveryPackage.State", "state"
        ).replace("Carrier", "carrierName").replace("Drive", "drive")


def test_the_az_command_line_gets_through_its_whole_recorded_story(wire: Datacenter) -> None:
    new = {
        "location": "westus",
        "properties": {
            **{k: v for k, v in POWERSHELL_NEW["properties"].items() if k != "driveList"},  # type: ignore[attr-defined]
            "logLevel": "Verbose",
            "driveList": [
                {
                    "driveId": "9CA995BF",
                    "bitLockerKey": PASSWORD,
                    "manifestFile": "\\DriveManifest.xml",
                    "manifestHash": "109B21108597EF36D5785F08303F3638",
                    "driveHeaderHash": "",
                }
            ],
        },
    }
    answer, _ = call(wire, "PUT", "/test-import-export", new)
    assert answer.status == 201
    assert answer.headers["x-ms-ratelimit-remaining-subscription-writes"] == "1199"
    assert [job["name"] for job in call(wire, "GET", "")[1]["value"]] == ["test-import-export"]
    assert call(wire, "GET", "/test-import-export")[1]["location"] == "West US"
    assert call(wire, "PATCH", "/test-import-export", {"properties": {"cancelRequested": True}})[0].status == 200
    _, keys = call(wire, "POST", "/test-import-export/listBitLockerKeys")
    assert keys == {"value": [{"driveId": "9CA995BF", "bitLockerKey": PASSWORD}]}
    answer, nothing = call(wire, "DELETE", "/test-import-export")
    assert (answer.status, nothing, answer.headers["Content-Length"]) == (200, None, "0")
    assert answer.headers["x-ms-ratelimit-remaining-subscription-deletes"] == "14999"


def test_every_answer_has_the_recorded_headers_and_the_stand_ins_own_date(
    datacenter: Datacenter, test_clock: TurnedClock
) -> None:
    datacenter.advance(timedelta(days=3, hours=1))
    for method, job, status in (("GET", "", 200), ("GET", "/none", 404), ("PUT", "/new-job", 400)):
        answer, _ = call(datacenter, method, job)
        assert answer.status == status
        headers = answer.headers
        assert headers["Date"] == "Wed, 04 Mar 2026 13:00:00 GMT"
        assert headers["Server"].strip() == "Microsoft-HTTPAPI/2.0"
        assert (headers["Cache-Control"], headers["Pragma"], headers["Expires"]) == ("no-cache", "no-cache", "-1")
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Content-Type"] == "application/json"
        assert headers["x-ms-request-id"] == headers["x-ms-correlation-request-id"]
        assert re.fullmatch(
            f"LOOPBACK:20260304T130000Z:{headers['x-ms-request-id']}", headers["x-ms-routing-request-id"]
        )
    assert test_clock().day == 1  # the computer's clock was left alone


def test_an_error_tells_the_place_and_all_that_is_wrong(datacenter: Datacenter) -> None:
    drives = [{"driveId": "A", "bitLockerKey": "1", "manifestFile": "\\m", "manifestHash": "0" * 32}, 5]
    body = {**POWERSHELL_NEW, "properties": {**POWERSHELL_NEW["properties"], "driveList": drives}}  # type: ignore[dict-item]
    answer, document = call(datacenter, "PUT", "/new-job", body)
    error = document["error"]
    assert (answer.status, error["code"], error["target"]) == (400, "InvalidBitLockerKey", "driveList[0].bitLockerKey")
    assert error["message"].startswith("2 drives are wrong: ")
    assert [detail["target"] for detail in error["details"]] == ["driveList[0].bitLockerKey", "driveList[1]"]


def client(datacenter: Datacenter) -> StorageImportExport:
    """The service's own client, as it comes, but for its patience."""
    made = StorageImportExport(BasicTokenAuthentication({"access_token": "the-token"}), SUBSCRIPTION)
    made.config.base_url = datacenter.base_url
    made._client.config.base_url = datacenter.base_url
    made.config.retry_policy.retries = 0
    return made


def test_a_key_of_the_customers_is_kept_as_given(wire: Datacenter) -> None:
    key = {"kekType": "CustomerManaged", "kekUrl": "https://example.org/key", "kekVaultResourceID": "/vaults/v"}
    body = {**POWERSHELL_NEW, "properties": {**POWERSHELL_NEW["properties"], "encryptionKey": key}}  # type: ignore[dict-item]
    call(wire, "PUT", "/new-job", {**body, "identity": {"type": "SystemAssigned"}, "tags": {"a": "b"}}, "2021-01-01")
    _, job = call(wire, "GET", "/new-job", version="2021-01-01")
    assert (job["properties"]["encryptionKey"], job["identity"], job["tags"]) == (
        key,
        {"type": "SystemAssigned"},
        {"a": "b"},
    )


def test_the_real_client_sends_a_plain_dictionary_and_reads_it_back(wire: Datacenter) -> None:
    sdk = client(wire)
    sdk.config.hooks.clear()
    for group in (sdk.jobs, sdk.bit_locker_keys):
        group.api_version = "2021-01-01"
    made = sdk.jobs.create("new-job", "Practice", POWERSHELL_NEW)
    assert made.properties.additional_properties["encryptionKey"] == {"kekType": "MicrosoftManaged"}
    assert [item.bit_locker_key for item in sdk.bit_locker_keys.list("new-job", "Practice")] == [PASSWORD, ODD_PASSWORD]
    package = models.PackageInfomation(carrier_name="pwsh", tracking_number="1", drive_count=0, ship_date="8/11/2017")
    changed = sdk.jobs.update("new-job", "Practice", models.UpdateJobParameters(state="", delivery_package=package))
    assert (changed.properties.state, changed.properties.delivery_package.ship_date) == ("Creating", "8/11/2017")
    with pytest.raises(models.ErrorResponseException) as refused:
        sdk.jobs.get("other-job", "Practice")
    assert (refused.value.error.code, refused.value.response.status_code) == ("ResourceNotFound", 404)


def test_the_real_client_pages_and_filters(wire: Datacenter) -> None:
    sdk = client(wire)
    for number in range(7):
        sdk.jobs.create(f"job-{number}", "Practice", POWERSHELL_NEW)
    sdk.jobs.update("job-3", "Practice", {"properties": {"cancelRequested": True}})

    def names(text: str, top: int = 2) -> list[str]:
        return [job.name for job in sdk.jobs.list_by_subscription(top=top, filter=text)]

    others = [f"job-{number}" for number in range(7) if number != 3]
    assert names("state eq 'Completed'") == ["job-3"]
    assert names("State eq 'creating' and jobType eq 'Import'") == others
    assert names("properties/state eq 'Completed' or state eq 'Creating'") == [f"job-{number}" for number in range(7)]
    assert names("type eq 'Export'") == []
    assert names("state ne 'Creating' and type eq 'Import' or state eq 'Shipping'") == ["job-3"]
    for text in ("state", "state eq Creating", "state eq 'Creating' and", "name eq 'x'", "state eq 'a' x", "'" * 2000):
        with pytest.raises(models.ErrorResponseException) as refused:
            names(text)
        assert refused.value.error.code == "InvalidFilter"


def test_a_job_that_goes_between_two_pages_hides_no_other(wire: Datacenter) -> None:
    for number in range(5):
        call(wire, "PUT", f"/job-{number}", POWERSHELL_NEW)
    pages = client(wire).jobs.list_by_resource_group("Practice", top=2)
    assert [job.name for job in pages.advance_page()] == ["job-0", "job-1"]
    call(wire, "DELETE", "/job-0")
    assert [job.name for page in (pages.advance_page(), pages.advance_page()) for job in page] == [
        "job-2",
        "job-3",
        "job-4",
    ]


def test_a_subscription_that_is_not_registered_is_told_until_it_is(datacenter: Datacenter) -> None:
    datacenter.order_fault(ServiceFault.UNREGISTERED)
    provider = f"/subscriptions/{SUBSCRIPTION}/providers/Microsoft.ImportExport"

    def ask(method: str, target: str) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", int(datacenter.base_url.rpartition(":")[2]), timeout=20)
        connection.request(method, f"{target}?api-version=2016-02-01", headers={"Authorization": "Bearer the-token"})
        document = json.loads(connection.getresponse().read())
        connection.close()
        return document

    for _ in range(2):
        answer, document = call(datacenter, "PUT", "/new-job", POWERSHELL_NEW)
        assert (answer.status, document["error"]["code"]) == (409, "MissingSubscriptionRegistration")
        assert document["error"]["details"][0]["target"] == "Microsoft.ImportExport"
    assert ask("GET", provider)["registrationState"] == "NotRegistered"
    assert ask("POST", f"{provider}/register")["registrationState"] == "Registered"
    assert ask("GET", provider)["registrationState"] == "Registered"
    assert call(datacenter, "PUT", "/new-job", POWERSHELL_NEW)[0].status == 201

"""The ARM interface: answers as recorded ones are, rules as published, and nothing a hostile client can do."""

from __future__ import annotations

import json
import socket
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diskprep.datacenter import endpoint
from diskprep.datacenter.lifecycle import Refusal
from diskprep.datacenter.server import Datacenter
from diskprep.importjob.client import AzureImportService
from diskprep.secrets import Secret

SUBSCRIPTION = "00000000-0000-4000-8000-000000000001"
PROVIDER = "/providers/Microsoft.ImportExport"
GROUP = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/seeding{PROVIDER}"
VERSION = "?api-version=2016-11-01"
PASSWORD = "238810-662376-448998-450120-652806-203390-606320-483076"
ADDRESS = {
    "recipientName": "Operator",
    "streetAddress1": "1 Street",
    "city": "Town",
    "postalCode": "12345",
    "countryOrRegion": "Netherlands",
    "phone": "0123",
    "email": "operator@example.org",
}
PACKAGE = {"carrierName": "DHL", "trackingNumber": "T-1"}
DRIVE = {
    "driveId": "WD-1",
    "bitLockerKey": PASSWORD,
    "manifestFile": "\\DriveManifest.xml",
    "manifestHash": "D863FE44F861AE0DA4DCEAEEFFCCCE68",
    "driveHeaderHash": "",
}
BODY = {
    "location": "westeurope",
    "properties": {
        "storageAccountId": f"/subscriptions/{SUBSCRIPTION}/resourceGroups/seeding/providers/Microsoft.Storage"
        "/storageAccounts/backups",
        "jobType": "Import",
        "returnAddress": ADDRESS,
        "driveList": [DRIVE],
    },
}


def url(name: str = "first-backup") -> str:
    return f"{GROUP}/jobs/{name}{VERSION}"


def changed(**properties: Any) -> dict[str, Any]:
    body: dict[str, Any] = deepcopy(BODY)
    body["properties"].update(properties)
    return body


def test_a_created_job_is_answered_as_the_service_does(http_call: Any) -> None:
    fixture = Path(__file__).parents[2] / "fixtures" / "arm" / "job-created.json"
    expected = json.loads(fixture.read_text())
    assert http_call("PUT", url(), BODY) == (201, expected)
    again = http_call("PUT", url(), BODY)
    assert again == (200, expected)
    assert list(again[1]["properties"]) == list(expected["properties"])
    status, seen = http_call("GET", url())
    assert (status, seen) == (200, {**expected, "location": "West Europe"})


def test_keys_are_given_out_by_the_post_alone(http_call: Any) -> None:
    http_call("PUT", url(), BODY)
    for method, body in (("GET", None), ("PATCH", {"tags": {"a": "b"}})):
        assert PASSWORD not in json.dumps(http_call(method, url(), body))
    path = f"{GROUP}/jobs/first-backup/listBitLockerKeys{VERSION}"
    assert http_call("POST", path) == (200, {"value": [{"driveId": "WD-1", "bitLockerKey": PASSWORD}]})
    assert http_call("GET", path)[0] == 405


def test_names_are_compared_without_regard_to_case(http_call: Any) -> None:
    http_call("PUT", url(), BODY)
    assert http_call("GET", url("FIRST-Backup").replace("seeding", "Seeding"))[0] == 200
    assert http_call("PUT", url("First-Backup"), BODY)[0] == 200


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "MissingProperty"),
        ({**BODY, "location": "atlantis"}, "LocationNotAvailableForResourceType"),
        (changed(driveList=[]), "MissingProperty"),
        (changed(driveList=[5]), "InvalidRequestContent"),
        (changed(driveList=[{**DRIVE, "driveId": f"D{i}"} for i in range(11)]), "TooManyDrives"),
        (changed(driveList=[DRIVE, DRIVE]), "DuplicateDrive"),
        (changed(driveList=[{**DRIVE, "bitLockerKey": "1-2"}]), "InvalidBitLockerKey"),
        (changed(driveList=[{**DRIVE, "manifestHash": "zz"}]), "InvalidManifestHash"),
        (changed(driveList=[{**DRIVE, "manifestFile": "x.xml"}]), "InvalidManifestFile"),
        (changed(driveList=[{**DRIVE, "driveId": "a\x1bb"}]), "MissingProperty"),
        (changed(storageAccountId="x"), "InvalidStorageAccount"),
        (changed(jobType="Export"), "UnsupportedJobType"),
        (changed(logLevel="Loud"), "InvalidLogLevel"),
        (changed(diagnosticsPath="../x"), "InvalidDiagnosticsPath"),
        (changed(returnAddress={**ADDRESS, "email": None}), "MissingProperty"),
        (changed(returnShipping={"carrierName": "x"}), "MissingProperty"),
        (changed(backupDriveManifest="yes"), "InvalidRequestContent"),
        (changed(encryptionKey={"kekType": "Mine"}), "InvalidEncryptionKey"),
        (changed(encryptionKey={"kekType": "CustomerManaged"}), "MissingProperty"),
        ({**BODY, "tags": {"a": 5}}, "InvalidTags"),
        ({**BODY, "tags": {str(i): "" for i in range(51)}}, "InvalidTags"),
        ({**BODY, "identity": {"type": "Mine"}}, "InvalidIdentity"),
    ],
)
def test_a_wrong_job_is_refused_with_a_code(http_call: Any, body: Any, code: str) -> None:
    status, answer = http_call("PUT", url(), body)
    assert (status, answer["error"]["code"]) == (400, code)
    assert http_call("GET", url())[0] == 404


def test_ten_drives_are_taken_and_a_key_that_only_looks_right(http_call: Any) -> None:
    odd = "439675-460165-128202-118124-247014-424226-132649-198803"  # published, and not divisible by 11
    drives = [{**DRIVE, "driveId": f"D{i}", "bitLockerKey": odd} for i in range(10)]
    assert http_call("PUT", url(), changed(driveList=drives))[0] == 201


def test_shipping_needs_an_address_and_a_package(http_call: Any) -> None:
    body = deepcopy(BODY)
    del body["properties"]["returnAddress"]
    http_call("PUT", url(), body)

    def patch(**properties: Any) -> tuple[int, str]:
        status, answer = http_call("PATCH", url(), {"properties": properties})
        return status, answer["error"]["code"] if status >= 400 else answer["properties"]["state"]

    assert patch(state="Shipping") == (400, "MissingReturnAddress")
    assert patch(state="Shipping", returnAddress=ADDRESS) == (400, "MissingDeliveryPackage")
    assert patch(state="", returnAddress=ADDRESS) == (400, "InvalidState")
    assert patch(returnAddress=ADDRESS) == (200, "Creating")
    assert patch(state="Completed") == (400, "InvalidState")
    assert patch(deliveryPackage=PACKAGE) == (200, "Creating")
    assert patch(storageAccountId="x") == (400, "PropertyNotUpdatable")
    assert patch(cancelRequested=False) == (400, "InvalidCancelRequest")
    assert patch(deliveryPackage={"carrierName": "x"}) == (400, "MissingProperty")
    for count in (True, -1, 0, 2, 11, "1"):
        assert patch(deliveryPackage={**PACKAGE, "driveCount": count}) == (400, "InvalidDriveCount")
    assert patch(deliveryPackage={**PACKAGE, "carrierName": "pwsh"}) == (400, "InvalidCarrier")
    assert patch(state="Shipping") == (200, "Shipping")
    assert patch(driveList=[DRIVE]) == (409, "JobStateConflict")
    assert http_call("PUT", url(), BODY)[1]["error"]["code"] == "JobStateConflict"
    assert http_call("DELETE", url())[1]["error"]["code"] == "JobCannotBeDeleted"
    http_call("PUT", url("second"), BODY)
    status, answer = http_call("PATCH", url("second"), {"properties": {"deliveryPackage": PACKAGE}})
    assert (status, answer["error"]["code"]) == (409, "DuplicateTrackingNumber")


def test_a_cancelled_job_ends_completed(http_call: Any) -> None:
    http_call("PUT", url(), BODY)
    assert http_call("PATCH", url(), {"properties": {"cancelRequested": True}})[1]["properties"]["state"] == "Creating"
    assert http_call("GET", url())[1]["properties"]["state"] == "Completed"
    assert http_call("DELETE", url()) == (200, None)
    assert http_call("DELETE", url())[0] == 404


def test_two_weeks_without_a_tracking_number_delete_the_job_and_every_update_starts_anew(
    http_call: Any, test_clock: Any
) -> None:
    http_call("PUT", url(), BODY)
    for _ in range(3):
        test_clock.advance(days=13)
        assert http_call("PATCH", url(), {"tags": {}})[0] == 200
    test_clock.advance(days=14)
    assert http_call("GET", url())[0] == 200
    test_clock.advance(seconds=1)
    assert http_call("GET", url())[0] == 404


def test_an_ended_job_is_kept_90_days(http_call: Any, test_clock: Any) -> None:
    http_call("PUT", url(), BODY)
    http_call("PATCH", url(), {"properties": {"cancelRequested": True}})
    http_call("GET", url())
    test_clock.advance(days=90)
    assert http_call("GET", url())[0] == 200
    test_clock.advance(seconds=1)
    assert http_call("GET", url())[0] == 404


def test_lists_come_in_pages(http_call: Any, datacenter: Datacenter) -> None:
    for number in range(7):
        http_call("PUT", url(f"job-{number}"), BODY)
    http_call("PUT", url("elsewhere").replace("seeding", "other"), BODY)
    names, target, pages = [], f"{GROUP}/jobs{VERSION}&$top=3", 0
    while target:
        _, page = http_call("GET", target)
        names += [job["name"] for job in page["value"]]
        assert page.get("nextLink", datacenter.base_url).startswith(datacenter.base_url)
        target = page.get("nextLink", "").removeprefix(datacenter.base_url)
        pages += 1
    assert (names, pages) == ([f"job-{number}" for number in range(7)], 3)
    everywhere = http_call("GET", f"/subscriptions/{SUBSCRIPTION}{PROVIDER}/jobs{VERSION}")[1]["value"]
    assert len(everywhere) == 8
    for top in ("0", "101", "x", "-1"):
        assert http_call("GET", f"{GROUP}/jobs{VERSION}&$top={top}")[0] == 400


def test_the_real_client_pages_too(http_call: Any, datacenter: Datacenter) -> None:
    for number in range(130):
        http_call("PUT", url(f"job-{number:03}"), BODY)
    service = AzureImportService(datacenter.base_url, Secret("the-token"), SUBSCRIPTION, "seeding", retries=0)
    assert [job.name for job in service.list()] == [f"job-{number:03}" for number in range(130)]
    assert {location.name for location in service.locations()} >= {"eastus", "westeurope"}
    service.delete("job-000")
    assert len(service.list()) == 129


def test_the_rest_of_the_routes(http_call: Any) -> None:
    assert len(http_call("GET", f"{PROVIDER}/operations{VERSION}")[1]["value"]) == 6
    assert http_call("GET", f"{PROVIDER}/locations/West%20US{VERSION}")[1]["name"] == "West US"
    provider = f"/subscriptions/{SUBSCRIPTION}{PROVIDER}"
    for method, path in (("POST", f"{provider}/register"), ("GET", provider)):
        assert http_call(method, f"{path}?api-version=2016-02-01")[1]["registrationState"] == "Registered"


@pytest.mark.parametrize(
    ("request_", "headers", "status", "code"),
    [
        (("GET", f"{GROUP}/jobs", None), {}, 400, "MissingApiVersionParameter"),
        (("GET", f"{GROUP}/jobs?api-version=1999-01-01", None), {}, 400, "NoRegisteredProviderFound"),
        (("GET", f"{GROUP}/jobs{VERSION}", None), {"Authorization": None}, 401, "AuthenticationFailed"),
        (("GET", f"{GROUP}/jobs{VERSION}", None), {"Authorization": "Bearer the-tokem"}, 401, "AuthenticationFailed"),
        (("GET", f"{GROUP}/jobs{VERSION}", None), {"Host": "evil.example.org"}, 400, "InvalidHost"),
        (("GET", f"{GROUP}/jobs{VERSION}&$filter=x", None), {}, 400, "InvalidFilter"),
        (("GET", f"{GROUP}/jobs{VERSION}&$skiptoken=%C3%A4", None), {}, 400, "InvalidSkipToken"),
        (("GET", f"{GROUP}/jobs{VERSION}&$skiptoken=_w==", None), {}, 400, "InvalidSkipToken"),
        (("PUT", url(), b'{"tags": NaN}'), {}, 400, "InvalidRequestContent"),
        (("GET", "/", None), {}, 404, "ResourceNotFound"),
        (("GET", f"/x{VERSION}&{'&'.join('a=b' for _ in range(50))}", None), {}, 400, "InvalidRequestContent"),
        (("PUT", url(), b"{"), {}, 400, "InvalidRequestContent"),
        (("PUT", url(), b"[]"), {}, 400, "InvalidRequestContent"),
        (("PUT", url(), b"\xff\xfe\x00"), {}, 400, "InvalidRequestContent"),
        (("PUT", url(), b"[" * 500_000), {}, 400, "InvalidRequestContent"),
        (("PUT", url(), b"[" * 900 + b"]" * 900), {}, 400, "InvalidRequestContent"),
        (("PUT", url(), b"9" * 5000), {}, 400, "InvalidRequestContent"),
        (("PUT", url("a%2F..%2Fb"), BODY), {}, 404, "ResourceNotFound"),
        (("PUT", url("x" * 200), BODY), {}, 400, "InvalidJobName"),
        (("PUT", url(), b""), {"Content_Length": "99999999999"}, 413, "RequestEntityTooLarge"),
        (("PUT", url(), b""), {"Content_Length": "-5"}, 411, "LengthRequired"),
        (("PUT", url(), b""), {"Transfer_Encoding": "chunked"}, 411, "LengthRequired"),
        (("DELETE", f"{GROUP}/jobs{VERSION}", None), {}, 405, "MethodNotAllowed"),
    ],
)
def test_a_hostile_request_gets_an_error_and_nothing_else(
    http_call: Any, request_: tuple[Any, ...], headers: Any, status: int, code: str
) -> None:
    answer = http_call(*request_, **headers)
    assert (answer[0], answer[1]["error"]["code"]) == (status, code)
    assert http_call("PUT", url("fine"), BODY)[0] == 201


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["Shipping", "D", PASSWORD]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["properties", "driveList", "driveId", "state", "deliveryPackage", "location", "x"]),
                inner,
            )
        ),
        max_leaves=12,
    )
)
def test_any_body_is_answered_and_never_with_500(http_call: Any, body: Any) -> None:
    http_call("PUT", url(), BODY)
    for method in ("PUT", "PATCH"):
        assert http_call(method, url("other") if method == "PUT" else url(), body)[0] < 500


def test_a_silent_client_is_dropped_and_holds_nobody_up(
    http_call: Any, datacenter: Datacenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint._Handler, "timeout", 0.2)
    port = int(datacenter.base_url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as silent:
        silent.sendall(b"GET / HTTP/1.1\r\nHost: ")
        assert http_call("PUT", url(), BODY)[0] == 201
        silent.settimeout(5)
        assert silent.recv(100) == b""


def test_the_stand_in_listens_on_loopback_alone(datacenter: Datacenter) -> None:
    assert datacenter._endpoint is not None
    assert datacenter._endpoint._server.server_address[0] == "127.0.0.1"


def test_staff_cannot_do_what_the_state_forbids(http_call: Any, datacenter: Datacenter) -> None:
    with pytest.raises(Refusal, match="not found"):
        datacenter.receive("first-backup", {})
    http_call("PUT", url(), BODY)
    for call in (
        lambda: datacenter.receive("first-backup", {"WD-1": Path("x")}),
        lambda: datacenter.process("first-backup"),
        lambda: datacenter.ship_back("first-backup"),
    ):
        with pytest.raises(Refusal, match="Creating"):
            call()

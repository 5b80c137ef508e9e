"""The door to the service's client: every failure becomes one of ours, and no secret gets out."""

from __future__ import annotations

import logging
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from weather import PASSWORD, REQUEST, SUBSCRIPTION, TOKEN, Cloud, Waits, answered, connect, refused, sky

from diskprep.errors import JobConflict, NotSignedIn, ServiceError, UsageError
from diskprep.importjob import asking
from diskprep.importjob.client import AzureImportService
from diskprep.secrets import Secret


@pytest.fixture(scope="module")
def new_cloud() -> Iterator[Callable[[], Cloud]]:
    with sky() as new:
        yield new


@pytest.fixture
def cloud(new_cloud: Callable[[], Cloud]) -> Cloud:
    return new_cloud()


def job(**properties: Any) -> Any:
    return answered({"name": "a", "location": "x", "properties": {"state": "Creating", "driveList": [], **properties}})


def test_a_service_that_does_not_listen_is_an_error_with_a_hint() -> None:
    service = AzureImportService("http://127.0.0.1:9", Secret(TOKEN), SUBSCRIPTION, "group", retries=0)
    with pytest.raises(ServiceError, match="no answer") as caught:
        service.get("a")
    assert caught.value.hint


def test_unknown_states_and_fields_are_kept(cloud: Cloud) -> None:
    drive = {"driveId": "D", "state": "Beamed", "sparkle": 1}
    cloud.climate = job(
        state="Teleporting", driveList=[drive], aura={"x": 1}, deliveryPackage={"shipDate": "8/11/2017"}
    )
    found = connect(cloud).get("a")
    assert found.state == "Teleporting"
    assert found.drives[0].state == "Beamed"
    assert found.package is not None
    assert found.package.ship_date is None


def test_a_job_tells_its_resource_group(cloud: Cloud) -> None:
    for id_, group in (
        ("/subscriptions/s/resourceGroups/Other/providers/Microsoft.ImportExport/jobs/a", "Other"),
        ("/subscriptions/s/resourcegroups/other/providers/Microsoft.ImportExport/jobs/a", "other"),
        ("a", ""),
        (None, ""),
    ):
        cloud.climate = answered({"value": [{"id": id_, "name": "a", "properties": {}}]})
        assert [job.resource_group for job in connect(cloud).list()] == [group]


@pytest.mark.parametrize(
    "link",
    [
        "http://127.0.0.1:9/evil",
        "https://127.0.0.1:{port}/",
        "http://127.0.0.1:{port}@127.0.0.1:9/",
        "http://localhost:{port}/",
        "/jobs?page=2",
        "http://[",
        "http://127.0.0.1:{port}.example.org/",
    ],
)
def test_a_list_is_not_followed_to_another_host(cloud: Cloud, link: str) -> None:
    cloud.climate = answered({"value": [], "nextLink": link.format(port=cloud.url.rpartition(":")[2])})
    with pytest.raises(ServiceError, match="another host"):
        connect(cloud).list()
    assert len(cloud.seen) == 1


def test_a_list_is_followed_over_its_pages(cloud: Cloud) -> None:
    page = {"name": "a", "properties": {}}
    more = f"{cloud.url.replace('http', 'HTTP')}/more?$skiptoken=x"
    cloud.forecast = [
        answered({"value": [page], "nextLink": more}),
        answered({"value": [], "nextLink": more}),
        refused(503),
        answered({"value": [page, page], "nextLink": more}),
        answered({"value": [page], "nextLink": ""}),
    ]
    assert len(connect(cloud).list()) == 3
    assert cloud.seen[1].path == "/more?$skiptoken=x"


def test_a_page_without_jobs_is_not_taken_for_an_empty_one(cloud: Cloud) -> None:
    for document in ({}, {"value": None}):
        cloud.climate = answered(document)
        with pytest.raises(ServiceError, match="not what it should be"):
            connect(cloud).list()


def test_a_default_port_in_a_link_is_the_same_host() -> None:
    service = AzureImportService(None, Secret(TOKEN), SUBSCRIPTION, "group")
    assert service._is_ours("https://management.azure.com:443/x")
    assert service._is_ours("https://Management.Azure.com/x")
    assert not service._is_ours("https://management.azure.com:80/x")
    assert not service._is_ours("http://management.azure.com/x")


def test_a_list_that_never_ends_ends(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diskprep.importjob.client._PAGES_LIMIT", 5)
    cloud.climate = answered({"value": [], "nextLink": f"{cloud.url}/more"})
    with pytest.raises(ServiceError, match="more than 5"):
        connect(cloud).list()


def test_an_answer_that_never_ends_ends(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "_ANSWER_LIMIT_BYTES", 1 << 16)
    cloud.climate = answered({"value": ["x" * (1 << 20)]})
    with pytest.raises(ServiceError, match="has no end"):
        connect(cloud).list()


def test_an_answer_that_drips_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "_TIMEOUT_S", 0.3)
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
                while not stop.wait(0.05):
                    connection.sendall(b" ")

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        service = AzureImportService(url, Secret(TOKEN), SUBSCRIPTION, "group", retries=0)
        begun = time.monotonic()
        with pytest.raises(ServiceError, match="has no end"):
            service.get("a")
        assert time.monotonic() - begun < 5
        stop.set()
        thread.join()


def test_a_certificate_that_cannot_be_trusted_is_told_at_once(cloud: Cloud) -> None:
    waits = Waits()
    url = cloud.url.replace("http", "https")  # not TLS at all: the least trustworthy
    service = AzureImportService(url, Secret(TOKEN), SUBSCRIPTION, "group", patience=waits.patience())
    with pytest.raises(ServiceError, match="cannot be trusted"):
        service.get("a")
    assert waits.pauses == []
    assert cloud.seen == []


def test_texts_of_the_service_are_harmless_on_a_terminal(cloud: Cloud) -> None:
    cloud.climate = refused(400, "Bad", f"\x1b[2Jred\n key {PASSWORD} \u202e " + "x" * 9000)
    with pytest.raises(ServiceError) as caught:
        connect(cloud).get("a")
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 600
    assert PASSWORD not in caught.value.message


def test_the_details_of_a_refusal_are_told(cloud: Cloud) -> None:
    details = [{"code": "MissingProperty", "message": "phone"}, None, {"target": "x"}, {"message": "too late"}]
    document = {"error": {"code": "Invalid", "message": "no", "details": details}}
    cloud.climate = answered(document)
    object.__setattr__(cloud.climate, "status", 400)
    with pytest.raises(ServiceError, match=r"Invalid: no; MissingProperty: phone \(HTTP 400\)"):
        connect(cloud).get("a")


def test_no_secret_gets_out(cloud: Cloud, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    caplog.set_level(logging.DEBUG)
    text = repr(connect(cloud)) + repr(REQUEST)
    for answer in (
        job(driveList=[{"driveId": "D", "bitLockerKey": PASSWORD}]),
        refused(401),
        refused(409),
        refused(500),
        answered(b"{"),
        answered({"name": "a", "properties": {"driveList": [{"driveId": "D", "bitLockerKey": [PASSWORD]}, 7]}}),
    ):
        cloud.climate = answer
        try:
            text += repr(connect(cloud).create(REQUEST))
        except (JobConflict, NotSignedIn, ServiceError):
            text += traceback.format_exc()
    out, err = capfd.readouterr()
    text += caplog.text + out + err
    assert TOKEN not in text
    assert PASSWORD not in text
    assert cloud.seen[0].headers["Authorization"] == f"Bearer {TOKEN}"


def test_what_netrc_has_for_the_host_is_not_sent_instead_of_the_token(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password else")
    monkeypatch.setenv("NETRC", str(netrc))
    service = connect(cloud)
    service._line.client.config.proxies.use_env_settings = True  # as for every host that is not this computer
    service.list()
    assert cloud.seen[0].headers["Authorization"] == f"Bearer {TOKEN}"


def test_the_token_is_asked_for_at_each_request(cloud: Cloud) -> None:
    class Source:
        left = iter(["one", "two"])

        def token(self, *, renew: bool = False) -> Secret[str]:
            return Secret(next(self.left))

    cloud.climate = job()
    service = connect(cloud, token=Source())
    service.get("a")
    service.get("a")
    assert [seen.headers["Authorization"] for seen in cloud.seen] == ["Bearer one", "Bearer two"]


def test_a_token_never_travels_in_clear() -> None:
    for url in ("http://management.example.org", "ftp://x", "http://127.0.0.1.example.org"):
        with pytest.raises(UsageError, match="https"):
            AzureImportService(url, Secret(TOKEN), SUBSCRIPTION, "group")
    AzureImportService(None, Secret(TOKEN), SUBSCRIPTION, "group")


@pytest.mark.parametrize("more", ["/sub", "/?a=b", "/#part"])
def test_an_endpoint_is_a_host_and_a_port(cloud: Cloud, more: str) -> None:
    with pytest.raises(UsageError, match="more than its host"):
        AzureImportService(cloud.url + more, Secret(TOKEN), SUBSCRIPTION, "group")


def test_a_password_in_an_endpoint_is_not_repeated() -> None:
    with pytest.raises(UsageError) as caught:
        AzureImportService("https://somebody:canary@management.azure.com", Secret(TOKEN), SUBSCRIPTION, "group")
    assert "canary" not in caught.value.message + caught.value.hint

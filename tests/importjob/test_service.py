"""The door to the service's client: every failure becomes one of ours, and no secret gets out."""

from __future__ import annotations

import json
import logging
import threading
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from diskprep.errors import JobConflict, NotBuilt, NotFound, NotSignedIn, ServiceError, UsageError
from diskprep.importjob.model import Drive, JobRequest
from diskprep.importjob.service import AzureImportService, credential
from diskprep.secrets import Secret

SUBSCRIPTION = "00000000-0000-4000-8000-000000000001"
PASSWORD = "238810-662376-448998-450120-652806-203390-606320-483076"
TOKEN = "bearer-canary-0123456789"


class Script(ThreadingHTTPServer):
    """Answers from a list; the last answer is repeated."""

    answers: list[tuple[int, bytes, dict[str, str]]]
    seen: list[tuple[str, str, dict[str, str]]]


class Handler(BaseHTTPRequestHandler):
    server: Script

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.server.seen.append((self.command, self.path, dict(self.headers)))
        answers = self.server.answers
        status, body, headers = answers.pop(0) if len(answers) > 1 else answers[0]
        if status == 0:
            self.connection.close()
            return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self) -> None:
        self.do_GET()

    def do_PATCH(self) -> None:
        self.do_GET()

    def log_message(self, *args: Any) -> None: ...


@pytest.fixture
def script() -> Iterator[Script]:
    server = Script(("127.0.0.1", 0), Handler)
    server.answers, server.seen = [], []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def client(script: Script, retries: int = 0) -> AzureImportService:
    url = f"http://127.0.0.1:{script.server_address[1]}"
    return AzureImportService(url, Secret(TOKEN), SUBSCRIPTION, "group", retries=retries)


def error(
    status: int, code: str = "SomeCode", message: str = "some message", **headers: str
) -> tuple[int, bytes, dict]:
    return status, json.dumps({"error": {"code": code, "message": message}}).encode(), headers


def job(**properties: Any) -> tuple[int, bytes, dict[str, str]]:
    document = {"name": "a", "location": "x", "properties": {"state": "Creating", "driveList": [], **properties}}
    return 200, json.dumps(document).encode(), {}


REQUEST = JobRequest(
    name="a-job",
    location="westeurope",
    storage_account_id="/x",
    drives=(
        Drive(
            drive_id="D",
            recovery_password=Secret(PASSWORD),
            manifest_file="\\DriveManifest.xml",
            manifest_hash="0" * 32,
        ),
    ),
)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (error(401), NotSignedIn),
        (error(403), NotSignedIn),
        (error(404), NotFound),
        (error(409), JobConflict),
        (error(409, "MissingSubscriptionRegistration"), ServiceError),
        (error(400), ServiceError),
        (error(429), ServiceError),
        (error(500), ServiceError),
        (error(503), ServiceError),
        (error(302, Location="http://127.0.0.1:9/"), ServiceError),
        ((500, b"<html>oops", {}), ServiceError),
        ((200, b"{", {}), ServiceError),
        ((200, b"[]", {}), ServiceError),
        ((200, b'"x"', {}), ServiceError),
        ((200, b"{}", {}), ServiceError),
        ((200, b'{"properties": 5}', {}), ServiceError),
        ((200, b'{"properties": {"driveList": 7}}', {}), ServiceError),
        ((200, b'{"properties": {"percentComplete": "many"}}', {}), ServiceError),
        ((200, b"\xff\xfe", {}), ServiceError),
        ((0, b"", {}), ServiceError),
    ],
)
def test_every_failure_becomes_one_of_ours(script: Script, answer: Any, expected: type[Exception]) -> None:
    script.answers = [answer]
    calls = [
        lambda: client(script).get("a"),
        lambda: client(script).create(REQUEST),
        lambda: client(script).cancel("a"),
    ]
    for call in calls:
        with pytest.raises(expected) as caught:
            call()
        assert type(caught.value) is expected
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None


def test_a_service_that_does_not_listen_is_an_error_with_a_hint() -> None:
    service = AzureImportService("http://127.0.0.1:9", Secret(TOKEN), SUBSCRIPTION, "group", retries=0)
    with pytest.raises(ServiceError, match="no answer") as caught:
        service.get("a")
    assert caught.value.hint


def test_trouble_that_passes_is_waited_out_on_every_call(script: Script) -> None:
    for method, call in (
        ("GET", lambda: client(script, retries=3).get("a")),
        ("PUT", lambda: client(script, retries=3).create(REQUEST)),
        ("PATCH", lambda: client(script, retries=3).cancel("a")),
    ):
        script.seen.clear()
        script.answers = [error(503, **{"Retry-After": "0"}), error(429, **{"Retry-After": "0"}), job()]
        assert call().name == "a"
        assert [seen[0] for seen in script.seen] == [method] * 3
        ids = {seen[2]["x-ms-client-request-id"] for seen in script.seen}
        assert len(ids) == 1


def test_trouble_that_stays_is_told_with_the_last_answer(script: Script) -> None:
    script.answers = [error(503, "ServerBusy", "come back", **{"Retry-After": "0"})]
    with pytest.raises(ServiceError, match=r"ServerBusy: come back \(HTTP 503\)"):
        client(script, retries=2).get("a")
    assert len(script.seen) == 3


def test_unknown_states_and_fields_are_kept(script: Script) -> None:
    drive = {"driveId": "D", "state": "Beamed", "sparkle": 1}
    script.answers = [
        job(state="Teleporting", driveList=[drive], aura={"x": 1}, deliveryPackage={"shipDate": "8/11/2017"})
    ]
    found = client(script).get("a")
    assert found.state == "Teleporting"
    assert found.drives[0].state == "Beamed"
    assert found.package is not None
    assert found.package.ship_date is None


def test_a_list_is_not_followed_to_another_host(script: Script) -> None:
    script.answers = [(200, b'{"value": [], "nextLink": "http://127.0.0.1:9/evil"}', {})]
    with pytest.raises(ServiceError, match="another host"):
        client(script).list()


def test_a_list_that_never_ends_ends(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diskprep.importjob.service._PAGES_LIMIT", 5)
    url = f"http://127.0.0.1:{script.server_address[1]}/more"
    script.answers = [(200, json.dumps({"value": [], "nextLink": url}).encode(), {})]
    with pytest.raises(ServiceError, match="more than 5"):
        client(script).list()


def test_texts_of_the_service_are_harmless_on_a_terminal(script: Script) -> None:
    script.answers = [error(400, "Bad", f"\x1b[2Jred\n key {PASSWORD} \u202e " + "x" * 9000)]
    with pytest.raises(ServiceError) as caught:
        client(script).get("a")
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 600
    assert PASSWORD not in caught.value.message


def test_no_secret_gets_out(
    script: Script, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    text = repr(client(script)) + repr(REQUEST)
    for answer in (
        job(driveList=[{"driveId": "D", "bitLockerKey": PASSWORD}]),
        error(409),
        error(500),
        (200, b"{", {}),
    ):
        script.answers = [answer]
        try:
            text += repr(client(script).create(REQUEST))
        except (JobConflict, ServiceError):
            text += traceback.format_exc()
    out, err = capfd.readouterr()
    text += caplog.text + out + err
    assert TOKEN not in text
    assert PASSWORD not in text
    assert script.seen[0][2]["Authorization"] == f"Bearer {TOKEN}"


def test_the_token_is_asked_for_at_each_request(script: Script) -> None:
    script.answers = [job()]
    tokens = iter(["one", "two"])
    url = f"http://127.0.0.1:{script.server_address[1]}"
    service = AzureImportService(url, lambda: Secret(next(tokens)), SUBSCRIPTION, "group", retries=0)
    service.get("a")
    service.get("a")
    assert [seen[2]["Authorization"] for seen in script.seen] == ["Bearer one", "Bearer two"]


def test_a_token_never_travels_in_clear() -> None:
    for url in ("http://management.example.org", "ftp://x", "http://127.0.0.1.example.org"):
        with pytest.raises(UsageError, match="https"):
            AzureImportService(url, Secret(TOKEN), SUBSCRIPTION, "group")
    AzureImportService(None, Secret(TOKEN), SUBSCRIPTION, "group")


def test_signing_in_says_that_it_is_not_built() -> None:
    with pytest.raises(NotBuilt) as caught:
        credential(None)
    assert "rehearse" in caught.value.hint
    assert credential(Secret("x"))() == Secret("x")

"""A service on loopback, and bad weather between it and the client: real sockets, the real client, no waiting.

`Cloud` keeps jobs as the service does, as far as the client can tell. Its `forecast` says what happens to the next
requests: a fault each, until none is left; `climate` happens to every request.
"""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from diskprep.importjob.asking import Patience
from diskprep.importjob.client import AzureImportService
from diskprep.importjob.model import Drive, JobRequest, Package, ReturnAddress
from diskprep.importjob.signin import TokenSource
from diskprep.secrets import Secret

SUBSCRIPTION = "00000000-0000-4000-8000-000000000001"
PASSWORD = "238810-662376-448998-450120-652806-203390-606320-483076"
TOKEN = "bearer-canary-0123456789"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What happens to a request. `done`: the service carried it out before."""

    status: int = 0
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    done: bool = False
    reset: bool = False  # no answer: the connection is broken off
    half: bool = False  # the true answer, and only half of it arrives
    chunked: bool = False  # of an answer whose length is not told


def refused(status: int, code: str = "SomeCode", message: str = "some message", **headers: str) -> Fault:
    """A refusal as ARM writes it."""
    body = json.dumps({"error": {"code": code, "message": message}}).encode()
    return Fault(status=status, body=body, headers=tuple((k.replace("_", "-"), v) for k, v in headers.items()))


def answered(document: Any, **headers: str) -> Fault:
    """An answer instead of the true one."""
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return Fault(status=200, body=body, headers=tuple(headers.items()))


@dataclass(slots=True)
class Seen:
    """A request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Cloud:
    """The service's memory. `committed` names every change that was made, in order."""

    tokens: set[str] = field(default_factory=lambda: {TOKEN})
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    keys: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    committed: list[str] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    forecast: list[Fault | None] = field(default_factory=list)
    climate: Fault | None = None
    url: str = ""
    date: str = ""  # what it says the time is; empty: the true one

    def carry_out(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """The true answer to a request: a status and a document."""
        match = re.fullmatch(r".*/Microsoft\.ImportExport/(jobs|locations)(?:/([^/]+))?(/listBitLockerKeys)?", path)
        kind, name, keys = match.groups() if match else ("jobs", "nowhere", None)
        if kind == "locations":
            place = {"id": "/x/locations/westeurope", "name": "West Europe", "properties": _ADDRESS}
            return 200, place if name else {"value": [place]}
        if method != "PUT" and name is not None and name not in self.jobs:
            return _error(404, "ResourceNotFound")
        if method in ("PUT", "PATCH"):
            return self._change(method, name, json.loads(body))
        if method == "DELETE":
            self.committed.append("delete")
            return 200, self.jobs.pop(name) and None
        if name is None:
            return 200, {"value": list(self.jobs.values())}
        return 200, {"value": self.keys[name]} if keys else self.jobs[name]

    def _change(self, method: str, name: str, document: dict[str, Any]) -> tuple[int, Any]:
        job = self.jobs.get(name)
        wanted = document.get("properties", {})
        if method == "PUT":
            if job is not None and job["properties"]["state"] != "Creating":
                return _error(409, "JobStateConflict")
            drives = wanted["driveList"]
            self.keys[name] = [{"driveId": d["driveId"], "bitLockerKey": d.pop("bitLockerKey")} for d in drives]
            self.jobs[name] = {**document, "name": name, "properties": {**wanted, "state": "Creating"}}
            self.committed.append("create")
            return (201 if job is None else 200), self.jobs[name]
        assert job is not None, "looked up before"
        properties = job["properties"]
        if (wanted.get("state") == "Shipping" and properties["state"] != "Creating") or (
            wanted.get("cancelRequested") and properties.get("cancelRequested")
        ):
            return _error(409, "JobStateConflict")
        properties.update(wanted)
        self.committed.append("ship" if "state" in wanted else "cancel" if "cancelRequested" in wanted else "touch")
        return 200, job


_ADDRESS = {
    "recipientName": "Import",
    "streetAddress1": "1 Street",
    "city": "Amsterdam",
    "postalCode": "1000",
    "countryOrRegion": "Netherlands",
    "supportedCarriers": ["DHL"],
    "alternateLocations": ["/x/locations/westeurope"],
}


def _error(status: int, code: str) -> tuple[int, Any]:
    return status, {"error": {"code": code, "message": "because"}}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    cloud: Cloud

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that was broken off is what was wanted."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        cloud = self.server.cloud
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        path = unquote(urlsplit(self.path).path)
        cloud.seen.append(Seen(self.command, self.path, dict(self.headers), body))
        fault = (cloud.forecast.pop(0) if cloud.forecast else cloud.climate) or Fault(done=True)
        status, answer = fault.status, fault.body
        if fault.done:
            if self.headers["Authorization"].removeprefix("Bearer ") not in cloud.tokens:
                true_status, document = _error(401, "AuthenticationFailed")
            else:
                true_status, document = cloud.carry_out(self.command, path, body)
            if not status:
                status, answer = true_status, b"" if document is None else json.dumps(document).encode()
        if fault.reset:
            # Lingering for no time: the client sees a reset, not an end.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            return
        self.send_response(status)
        for name, value in fault.headers:
            self.send_header(name, value)
        sent = answer[: len(answer) // 2] if fault.half else answer
        if fault.chunked:
            self.send_header("Transfer-Encoding", "chunked")
            sent = b"%x\r\n%s\r\n" % (len(answer), sent) if fault.half else b"%x\r\n%s\r\n0\r\n\r\n" % (len(sent), sent)
        else:
            self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(sent)

    def do_PUT(self) -> None:
        self.do_GET()

    def do_PATCH(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.do_GET()

    def do_DELETE(self) -> None:
        self.do_GET()

    def date_time_string(self, timestamp: float | None = None) -> str:
        return self.server.cloud.date or super().date_time_string(timestamp)

    def log_message(self, *args: Any) -> None: ...


@contextmanager
def sky() -> Iterator[Callable[[], Cloud]]:
    """A running server; each call gives it a new cloud, which answers at its `url`."""
    server = _Server(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    def new_cloud() -> Cloud:
        server.cloud = Cloud(url=f"http://127.0.0.1:{server.server_address[1]}")
        return server.cloud

    new_cloud()
    thread.start()
    try:
        yield new_cloud
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class Waits:
    """Time that passes when somebody waits. `pauses` are the seconds that were waited, one by one."""

    pauses: list[float] = field(default_factory=list)
    moment_s: float = 0.0

    def wait(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.moment_s += seconds

    def patience(self, **bounds: Any) -> Patience:
        return Patience(wait=self.wait, now_s=lambda: self.moment_s, **bounds)


def connect(
    cloud: Cloud, waits: Waits | None = None, token: Secret[str] | TokenSource | None = None, **bounds: Any
) -> AzureImportService:
    """The real client at a cloud; waiting takes no time."""
    patience = (waits or Waits()).patience(**bounds)
    return AzureImportService(cloud.url, token or Secret(TOKEN), SUBSCRIPTION, "group", patience=patience)


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
            opened=True,
        ),
    ),
)
PACKAGE = Package(carrier="DHL", tracking_number="1Z-1", drive_count=1)
SENDER = ReturnAddress(
    recipient_name="Operator",
    street_address1="1 Street",
    city="Town",
    postal_code="12345",
    country_or_region="Netherlands",
    phone="0123",
    email="operator@example.org",
)

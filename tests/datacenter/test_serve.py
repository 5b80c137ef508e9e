"""The stand-in as a program: its commands, its limits, and a container behind a real blob protocol."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from practice import BODY, MadeDisk, check_arrived, make_disk, ship, url
from support import diskprep, diskprep_json, need_root, run
from typer.testing import CliRunner

from diskprep import clock
from diskprep.cli.datacenter import _account, app
from diskprep.datacenter import endpoint
from diskprep.datacenter.server import Datacenter
from diskprep.errors import DiskprepError, NotFound

HEAD = "Authorization: Bearer the-token\r\n"


class Serving:
    """`diskprep datacenter serve`, and calls to it."""

    def __init__(self, folder: Path, *options: str | Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "diskprep", "datacenter", "serve", folder, *options],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline().rpartition(":")[2])
        self.token = Path(self.process.stdout.readline().removeprefix("token file: ").strip()).read_text().strip()

    def __call__(self, method: str, target: str, body: Any = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        data = None if body is None else json.dumps(body)
        connection.request(method, target, data, {"Authorization": f"Bearer {self.token}"})
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        return answer.status, json.loads(text) if text else None

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    running = Serving(tmp_path / "practice")
    yield running
    if running.process.poll() is None:
        running.process.kill()
        running.process.wait()


def send(datacenter: Datacenter, text: str | bytes, timeout_s: float = 10) -> bytes:
    """The raw answer to raw bytes, until the stand-in closes."""
    port = int(datacenter.base_url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as connection:
        data = text.replace("HOST", f"Host: 127.0.0.1:{port}").encode() if isinstance(text, str) else text
        answer = b""
        with contextlib.suppress(OSError):  # it may close before it read everything
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while chunk := connection.recv(65536):
                answer += chunk
        return answer


def test_a_head_that_is_too_long_is_refused(datacenter: Datacenter, http_call: Any) -> None:
    many = "".join(f"X-{number}: {'x' * 1000}\r\n" for number in range(90))
    answer = send(datacenter, f"PUT {url()} HTTP/1.1\r\nHOST\r\n{HEAD}{many}\r\n")
    assert not answer or answer.startswith(b"HTTP/1.1 431 ")
    assert send(datacenter, "GET / HTTP/1.1\r\n" + "X: y\r\n" * 200 + "\r\n").startswith(b"HTTP/1.1 431 ")
    assert not send(datacenter, f"GET /{'x' * 100_000} HTTP/1.1\r\n").startswith(b"HTTP/1.1 2")
    assert http_call("GET", url())[0] == 404


def test_odd_requests_get_an_error_in_the_usual_form(datacenter: Datacenter) -> None:
    target = url().replace("?", "?x=1&")
    for text, status in (
        (f"BREW {target} HTTP/1.1\r\nHOST\r\n{HEAD}\r\n", b"501"),
        (f"HEAD {target} HTTP/1.1\r\nHOST\r\n{HEAD}\r\n", b"501"),
        (f"GET {target} HTTP/1.1\r\nHOST\r\nHOST\r\n{HEAD}\r\n", b"400"),
        (f"PUT {target} HTTP/1.1\r\nHOST\r\n{HEAD}Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", b"411"),
        (f"PUT {target} HTTP/1.1\r\nHOST\r\n{HEAD}Content-Length: 500\r\n\r\n{{", b"400"),
        (f"GET {target} HTTP/9.9\r\nHOST\r\n{HEAD}\r\n", b"505"),
        ("GET\r\n\r\n", b"400"),
    ):
        head, _, body = send(datacenter, text).partition(b"\r\n\r\n")
        assert head.split(b" ")[1] == status, text
        assert text.startswith("HEAD") or json.loads(body)["error"]["code"], text
    assert send(datacenter, bytes(range(256)) * 100) is not None


def test_a_client_that_drips_is_cut_off(datacenter: Datacenter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "_REQUEST_LIMIT_S", 0.4)
    port, start_s = int(datacenter.base_url.rpartition(":")[2]), clock.monotonic_s()
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        with contextlib.suppress(ConnectionError):
            while clock.monotonic_s() - start_s < 5:
                connection.sendall(b"G")
                clock.sleep(0.05)
        assert clock.monotonic_s() - start_s < 4


def test_more_clients_than_there_is_room_for_are_told_to_come_back(
    datacenter: Datacenter, http_call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = int(datacenter.base_url.rpartition(":")[2])
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(endpoint.CONNECTIONS_LIMIT)]
    for connection in idle:
        connection.sendall(b"GET / HTTP/1.1\r\n")
    with socket.create_connection(("127.0.0.1", port), timeout=5) as late:
        assert late.recv(1000).startswith(b"HTTP/1.1 503 ")
    for connection in idle:
        connection.close()
    until_s = clock.monotonic_s() + 5
    while True:
        try:
            assert http_call("GET", url())[0] == 404
            break
        except (AssertionError, OSError, http.client.HTTPException):
            assert clock.monotonic_s() < until_s, "there is room again when they are gone"
            clock.sleep(0.05)


def test_one_connection_serves_many_requests(datacenter: Datacenter) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", int(datacenter.base_url.rpartition(":")[2]), timeout=20)
    for number in range(20):
        connection.request("PUT", url(f"job-{number}"), json.dumps(BODY), {"Authorization": "Bearer the-token"})
        answer = connection.getresponse()
        assert (answer.status, answer.read() != b"") == (201, True)
    connection.close()


def test_the_clock_and_the_faults_are_set_while_it_serves(serving: Serving) -> None:
    assert serving("PUT", url(), BODY)[0] == 201
    before = diskprep_json("datacenter", "clock", serving.folder)["now"]
    assert diskprep_json("datacenter", "clock", serving.folder, "--advance", "13d")["now"] > before
    assert serving("GET", url())[0] == 200
    out, _ = diskprep("datacenter", "fault", serving.folder, "throttled", "--times", "2", "--method", "get")
    assert out == "throttled: the next 2 GET\n"
    assert [serving("GET", url())[0] for _ in range(3)] == [429, 429, 200]
    assert diskprep_json("datacenter", "fault", serving.folder) == {"faults": []}
    diskprep("datacenter", "fault", serving.folder, "unregistered")
    assert serving("GET", url())[0] == 409
    assert diskprep("datacenter", "fault", serving.folder, "--clear")[0] == "nothing goes wrong\n"
    diskprep("datacenter", "clock", serving.folder, "--advance", "25h")
    assert serving("GET", url())[0] == 404, "two weeks are over"
    assert serving.stop() == 0


def test_a_mistaken_command_says_what_is_wanted(tmp_path: Path) -> None:
    folder = tmp_path / "practice"
    _account(folder)
    for arguments, code, said in (
        (("clock", folder, "--advance", "soon"), 2, "3d"),
        (("clock", folder, "--advance", "99999d"), 2, "3650 days"),
        (("fault", folder, "throttled", "--method", "BREW"), 2, "PATCH"),
        (("receive", folder, "job", "WD-A"), 2, "SERIAL=IMAGE"),
        (("receive", folder, "job", "WD-A=/nowhere/a.img"), 10, "--fault SERIAL=lost"),
        (("receive", folder, "job", "--fault", "WD-A=tired"), 2, "blocks-damaged"),
        (("receive", folder, "job", "--fault", "WD-A=lost:x"), 2, "SERIAL=FAULT"),
        (("receive", folder, "job", "--fault", "WD-A=lost"), 42, "which was not found"),
        (("sas", folder, "backup", "--blob-endpoint", "http://127.0.0.1:1/a"), 2, "together"),
        (("sas", folder, "backup", "--account-key-file", "/nowhere"), 2, "together"),
    ):
        error = CliRunner().invoke(app, [str(argument) for argument in arguments]).exception
        assert isinstance(error, DiskprepError), error
        assert (error.exit_code, said in f"{error.message} {error.hint}") == (code, True), error


def test_a_mistyped_folder_is_not_made_a_stand_in(tmp_path: Path) -> None:
    folder = tmp_path / "no such folder"
    for arguments in (
        ("receive", folder, "job", "--fault", "WD-A=lost"),
        ("clock", folder, "--advance", "1d"),
        ("fault", folder, "throttled"),
    ):
        error = CliRunner().invoke(app, [str(argument) for argument in arguments]).exception
        assert isinstance(error, NotFound), error
        assert error.hint == f"`diskprep datacenter serve '{folder}'` makes one"
        assert not folder.exists()
    assert CliRunner().invoke(app, ["sas", str(folder), "backup"]).exit_code == 0
    assert CliRunner().invoke(app, ["clock", str(folder), "--advance", "1d"]).exit_code == 0


def test_a_package_that_is_not_described_in_full_is_not_opened(serving: Serving) -> None:
    account = _account(serving.folder)
    first, second = (make_disk(serving.folder, serial, account, files=1) for serial in ("WD-A", "WD-B"))
    ship(serving, first, second)
    receive, disk = ("datacenter", "receive", serving.folder, "first-backup"), f"WD-A={first.path}"
    forgotten = diskprep(*receive, disk, code=2)[1]
    assert "nothing is said of drive WD-B" in forgotten
    assert "WD-B=DISK, or --fault WD-B=lost, or --fault WD-B=late" in forgotten
    assert "nothing is said of drive WD-B" in diskprep(*receive, disk, "--fault", "WD-B=unreadable", code=2)[1]
    strange = diskprep(*receive, disk, "--fault", "WD-B=lost", "--fault", "WD-C=lost", code=2)[1]
    assert "'WD-C', which is not in import job first-backup" in strange
    job = serving("GET", url())[1]["properties"]
    assert (job["state"], {drive["state"] for drive in job["driveList"]}) == ("Shipping", {"Specified"})
    assert "Transferring" in diskprep(*receive, disk, "--fault", "WD-B=late", "--quiet")[0]
    assert "Closed" in diskprep(*receive, disk, "--fault", "WD-B=lost", "--quiet")[0]
    assert "Closed" in diskprep(*receive, disk, "--quiet")[0], "what came of it is told once more"


def test_a_story_with_faults_from_the_command_line(serving: Serving) -> None:
    account = _account(serving.folder)
    first, second = (make_disk(serving.folder, serial, account, files=2) for serial in ("WD-A", "WD-B"))
    ship(serving, first, second)
    disks = (f"WD-A={first.path}", f"WD-B={second.path}")
    out, err = diskprep("datacenter", "receive", serving.folder, "first-backup", *disks, "--fault", "WD-B=late")
    assert "drive WD-B: NeverReceived" in out
    assert "import job first-backup: Transferring\nthe job waits for WD-B" in out
    assert "was not in the package" in err
    assert "Transferring" in diskprep("datacenter", "receive", serving.folder, "first-backup", "--quiet")[0]
    fault = ("--fault", "WD-B=blocks-damaged:2")
    document = diskprep_json("datacenter", "receive", serving.folder, "first-backup", disks[1], *fault)
    assert (document["state"], [drive["status"] for drive in document["drives"]]) == (
        "Closed",
        ["Completed", "CompletedWithErrors"],
    )
    assert serving("GET", url())[1]["properties"]["state"] == "Closed"
    assert "Closed" in diskprep("datacenter", "receive", serving.folder, "first-backup", disks[1])[0]


def test_disks_are_copied_into_a_real_blob_service(tmp_path: Path, azurite: Any) -> None:
    key = tmp_path / "key"
    key.write_text(azurite.key.reveal())
    key.chmod(0o600)
    options = ("--blob-endpoint", azurite.url, "--account-key-file", key)
    serving = Serving(tmp_path / "practice", "--mode", "wire", *options)
    try:
        container = azurite.fresh_container()._client.container_name
        disk = make_disk(tmp_path, "WD-A", azurite.account, container=container, files=2)
        ship(serving, disk)
        out, _ = diskprep("datacenter", "receive", serving.folder, "first-backup", f"WD-A={disk.path}", *options)
        assert "drive WD-A: ShippedBack, Completed" in out
        check_arrived(azurite.account, disk, container=container)
        assert serving.stop() == 0
    finally:
        serving.process.kill()


@pytest.mark.root
def test_a_block_device_is_read_as_an_image_is(serving: Serving) -> None:
    need_root()
    account = _account(serving.folder)
    disk: MadeDisk = make_disk(serving.folder, "WD-A", account, files=2)
    ship(serving, disk)
    device = run("losetup", "--read-only", "--find", "--show", disk.path).strip()
    try:
        out, _ = diskprep("datacenter", "receive", serving.folder, "first-backup", f"WD-A={device}")
    finally:
        run("losetup", "--detach", device)
    assert "drive WD-A: ShippedBack, Completed" in out
    check_arrived(account, disk)

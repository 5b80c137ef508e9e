"""What the stand-in remembers: through restarts, `kill -9` at any moment, other processes, and older files."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from practice import BODY, PASSWORD, SUBSCRIPTION, MadeDisk, check_arrived, make_disk, ship, url
from support import TurnedClock

from diskprep import clock
from diskprep.datacenter.database import VERSION, Database
from diskprep.datacenter.faults import DriveFault, DriveFaults, ServiceFault
from diskprep.datacenter.server import Datacenter
from diskprep.datacenter.state import State
from diskprep.errors import DataDamaged, FormatTooNew, Locked, StorageUnavailable, UsageError
from diskprep.importjob.client import AzureImportService
from diskprep.secrets import Secret
from diskprep.store.directory import DirectoryAccount


def test_a_restart_keeps_everything(
    http_call: Any, datacenter: Datacenter, account: DirectoryAccount, tmp_path: Path, test_clock: TurnedClock
) -> None:
    ship(http_call)
    faults = {"WD-1": DriveFaults(faults=frozenset({DriveFault.BLOCKS_DAMAGED, DriveFault.LATE}), blocks=3)}
    datacenter.receive("first-backup", {"WD-1": tmp_path / "x.img"}, faults=faults)
    datacenter.order_fault(ServiceFault.THROTTLED, times=3, method="PUT", retry_after_s=7)
    datacenter.advance(timedelta(days=2))
    before, ordered = http_call("GET", url())[1], datacenter.ordered_faults()
    datacenter.stop()
    path = tmp_path / "state.sqlite"
    assert path.stat().st_mode & 0o777 == 0o600
    state = State(path, test_clock)
    key = state.find("first-backup")
    assert state.get(key).keys == {"WD-1": Secret(PASSWORD)}
    assert {**state.get(key).resource, "location": "West Europe"} == before
    assert (state.drives(key)["WD-1"].faults, state.drives(key)["WD-1"].path) == (faults["WD-1"], None)
    assert (state.orders.left(), state.clock()) == (ordered, test_clock() + timedelta(days=2))
    state.close()
    datacenter.__init__(path, account, token=Secret("the-token"), now=test_clock)  # type: ignore[misc]
    datacenter.start()
    assert datacenter.look("first-backup").late == ("WD-1",)


def test_the_clock_goes_forward_only_and_moves_no_other(datacenter: Datacenter, test_clock: TurnedClock) -> None:
    start = test_clock()
    assert datacenter.advance(timedelta(days=13)) == start + timedelta(days=13)
    test_clock.advance(hours=1)
    assert datacenter.now() == start + timedelta(days=13, hours=1)
    for step in (timedelta(seconds=-1), timedelta(days=4000)):
        with pytest.raises(UsageError, match="clock"):
            datacenter.advance(step)
    assert datacenter.now() == start + timedelta(days=13, hours=1)


def test_a_job_expires_by_the_stand_ins_clock(http_call: Any, datacenter: Datacenter) -> None:
    http_call("PUT", url(), BODY)
    datacenter.advance(timedelta(days=14))
    assert http_call("PATCH", url(), {})[0] == 200
    datacenter.advance(timedelta(days=14))
    assert http_call("GET", url())[0] == 200
    datacenter.advance(timedelta(seconds=1))
    assert http_call("GET", url())[0] == 404


def test_a_package_that_never_comes_is_told_after_two_weeks_and_ends_the_job_after_thirty_days(
    http_call: Any, datacenter: Datacenter
) -> None:
    ship(http_call)
    datacenter.advance(timedelta(days=14, seconds=1))
    job = http_call("GET", url())[1]["properties"]
    assert (job["state"], job["driveList"][0]["state"]) == ("Shipping", "NeverReceived")
    datacenter.advance(timedelta(days=16))
    assert http_call("GET", url())[1]["properties"]["state"] == "Closed"


#: The tables as the first version had them.
FIRST = """
CREATE TABLE jobs (key TEXT PRIMARY KEY, subscription TEXT NOT NULL, resource_group TEXT NOT NULL,
    resource TEXT NOT NULL, keys TEXT NOT NULL, touched TEXT NOT NULL) STRICT;
CREATE TABLE received (key TEXT NOT NULL REFERENCES jobs (key) ON DELETE CASCADE,
    serial TEXT NOT NULL, path TEXT NOT NULL, PRIMARY KEY (key, serial)) STRICT;
PRAGMA user_version = 1;
"""


def test_a_memory_of_the_first_version_is_taken_over(
    http_call: Any, datacenter: Datacenter, tmp_path: Path, test_clock: TurnedClock
) -> None:
    ship(http_call)
    datacenter.receive("first-backup", {"WD-1": Path("/images/1.img")})
    old = tmp_path / "old.sqlite"
    with (
        contextlib.closing(sqlite3.connect(tmp_path / "state.sqlite")) as new,
        contextlib.closing(sqlite3.connect(old)) as db,
    ):
        db.executescript(FIRST)
        db.executemany("INSERT INTO jobs VALUES (?, ?, ?, ?, ?, ?)", new.execute("SELECT * FROM jobs").fetchall())
        db.executemany("INSERT INTO received VALUES (?, ?, ?)", new.execute("SELECT key, serial, path FROM drives"))
        db.commit()
    state = State(old, test_clock)
    key = state.find("first-backup")
    assert state.get(key).state == "Received"
    assert state.drives(key)["WD-1"].path == Path("/images/1.img")
    state.close()
    with contextlib.closing(sqlite3.connect(old)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (VERSION,)
        assert db.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'received'").fetchone() == (0,)
    State(old, test_clock).close()  # and a second time there is nothing to take over


def test_a_memory_that_is_not_one_is_refused(tmp_path: Path, account: DirectoryAccount) -> None:
    path = tmp_path / "state.sqlite"
    path.write_bytes(b"this is not a database, but long enough to be looked at" * 100)
    with pytest.raises(DataDamaged):
        Datacenter(path, account, token=Secret("x"))
    path.unlink()
    Datacenter(path, account, token=Secret("x")).stop()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {VERSION + 1}")
    with pytest.raises(FormatTooNew):
        Datacenter(path, account, token=Secret("x"))
    with pytest.raises(StorageUnavailable):
        Datacenter(tmp_path / "file" / "state.sqlite", account, token=Secret("x")) if (tmp_path / "file").write_bytes(
            b""
        ) == 0 else None


def test_a_change_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    database = Database(tmp_path / "state.sqlite")

    def change() -> None:
        with database.transaction() as db:
            db.execute("INSERT INTO settings VALUES ('a', '1')")
            with database.transaction() as inner:
                inner.execute("INSERT INTO settings VALUES ('b', '2')")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        change()
    assert database.rows("SELECT * FROM settings") == []
    database.close()


def test_two_who_open_a_new_memory_at_once_both_can(tmp_path: Path, test_clock: TurnedClock) -> None:
    failures: list[BaseException] = []

    def work(path: Path) -> None:
        try:
            state = State(path, test_clock)
            for _ in range(5):
                state.clock.advance(timedelta(seconds=1))
            state.close()
        except BaseException as error:  # noqa: BLE001 - a thread's failure is the test's
            failures.append(error)

    for turn in range(4):
        path = tmp_path / f"{turn}.sqlite"
        threads = [threading.Thread(target=work, args=(path,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        state = State(path, test_clock)
        assert state.clock.moved_by == timedelta(seconds=20)
        state.close()
    assert failures == []


SERVER = """
import sys, time
from pathlib import Path
from diskprep.datacenter.server import Datacenter
from diskprep.secrets import Secret
from diskprep.store.directory import DirectoryAccount
root = Path(sys.argv[1])
account = DirectoryAccount("backups", root / "account", Secret(b"k" * 32))
with Datacenter(root / "state.sqlite", account, token=Secret("the-token")) as running:
    print(running.base_url, flush=True)
    time.sleep(60)
"""

#: Receives and copies; a line for each thing that happens, so that the parent can strike anywhere.
COPIER = """
import sys
from pathlib import Path
from diskprep.datacenter.server import Datacenter
from diskprep.secrets import Secret
from diskprep.store.directory import DirectoryAccount
root = Path(sys.argv[1])
account = DirectoryAccount("backups", root / "account", Secret(b"k" * 32))
datacenter = Datacenter(root / "state.sqlite", account, token=Secret("the-token"))
tell = lambda event: print(event, flush=True)
datacenter.receive("first-backup", dict(zip(sys.argv[2::2], map(Path, sys.argv[3::2]))), tell)
print("received", flush=True)
datacenter.process("first-backup", tell)
print("packed", flush=True)
datacenter.ship_back("first-backup")
print("gone", flush=True)
"""


@contextlib.contextmanager
def child(code: str, *arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """Another process on the same memory; killed at the end if it still runs."""
    with subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_kill_9_keeps_every_answered_job(tmp_path: Path) -> None:
    answered: set[str] = set()
    for turn in range(3):
        with child(SERVER, tmp_path) as process:
            assert process.stdout is not None
            port = int(process.stdout.readline().rpartition(":")[2])
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            headers = {"Authorization": "Bearer the-token"}
            for number in range(6):
                name = f"job-{turn}-{number}"
                connection.request("PUT", url(name), json.dumps(BODY), headers)
                answer = connection.getresponse()
                answer.read()
                assert answer.status == 201
                answered.add(name)
            process.send_signal(signal.SIGKILL)
            connection.close()
    account = DirectoryAccount("backups", tmp_path / "account", Secret(b"k" * 32))
    with Datacenter(tmp_path / "state.sqlite", account, token=Secret("the-token")) as running:
        service = AzureImportService(running.base_url, Secret("the-token"), SUBSCRIPTION, "seeding", retries=0)
        assert {job.name for job in service.list()} == answered


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> tuple[MadeDisk, MadeDisk]:
    folder = tmp_path_factory.mktemp("disks")
    account = DirectoryAccount("backups", folder / "account", Secret(b"k" * 32))
    return make_disk(folder, "WD-A", account), make_disk(folder, "WD-B", account)


#: How many lines the copying process gets to say before it is killed; a whole run says about 20.
STRIKES = (1, 4, 8, 12, 15, 18)


def test_killed_at_any_moment_the_datacenter_goes_on_and_nothing_counts_as_skipped(
    tmp_path: Path, disks: tuple[MadeDisk, MadeDisk], account: DirectoryAccount
) -> None:
    """One job is struck again and again, each time later; what was told as done before stays so."""
    arguments = [part for disk in disks for part in (disk.serial, disk.path)]
    reached = ""
    for strikes in STRIKES:
        folder = tmp_path / str(strikes)
        folder.mkdir()
        here = DirectoryAccount("backups", folder / "account", Secret(b"k" * 32))
        with Datacenter(folder / "state.sqlite", here, token=Secret("the-token")) as running:
            connection = http.client.HTTPConnection("127.0.0.1", int(running.base_url.rpartition(":")[2]), timeout=20)

            def call(method: str, target: str, body: Any, on: http.client.HTTPConnection = connection) -> Any:
                on.request(method, target, json.dumps(body), {"Authorization": "Bearer the-token"})
                answer = on.getresponse()
                return answer.status, json.loads(answer.read())

            ship(call, *disks)
            connection.close()
            with child(COPIER, folder, *arguments) as process:
                assert process.stdout is not None
                for _ in range(strikes):
                    reached = process.stdout.readline() or reached
                process.send_signal(signal.SIGKILL)
            summary = running.look("first-backup")
            if summary.state == "Shipping":
                running.receive("first-backup", {disk.serial: disk.path for disk in disks})
            if summary.state not in ("Packaging", "Completed"):
                assert running.process("first-backup").state == "Packaging"
            if summary.state != "Completed":
                running.ship_back("first-backup")
            summary = running.look("first-backup")
            assert (summary.state, {drive.status for drive in summary.drives}) == ("Completed", {"Completed"})
            assert {drive.bytes_succeeded for drive in summary.drives} == {
                sum(len(data) for data in disk.blobs.values()) for disk in disks
            }
            check_arrived(here, *disks)
            logs = [found.name for found in here.container("backup").list("waies/")]
            assert len(logs) == len(disks), "reading again replaces the log"
    assert reached.strip() in ("packed", "gone") or "WD-B" in reached, "the last strike came late"


def test_one_serves_while_another_receives(
    datacenter: Datacenter, http_call: Any, tmp_path: Path, disks: tuple[MadeDisk, MadeDisk], account: DirectoryAccount
) -> None:
    datacenter._state.clock._base = clock.now
    ship(http_call, *disks)
    seen = []
    with child(COPIER, tmp_path, *[part for disk in disks for part in (disk.serial, disk.path)]) as process:
        while process.poll() is None:
            status, job = http_call("GET", url())
            assert status == 200
            seen.append(job["properties"]["state"])
            assert http_call("PATCH", url("other"), {})[0] == 404
        assert process.returncode == 0, process.stderr.read() if process.stderr else ""
    assert http_call("GET", url())[1]["properties"]["state"] == "Completed"
    assert seen[0] == "Shipping"
    check_arrived(account, *disks)


def test_two_do_not_copy_at_once(
    datacenter: Datacenter, http_call: Any, disks: tuple[MadeDisk, MadeDisk], account: DirectoryAccount, tmp_path: Path
) -> None:
    ship(http_call, disks[0])
    datacenter.receive("first-backup", {disks[0].serial: disks[0].path})
    second = Datacenter(tmp_path / "state.sqlite", account, token=Secret("x"))
    with datacenter._copying(), pytest.raises(Locked, match="another process copies"):
        second.process("first-backup")
    assert second.process("first-backup").state == "Packaging"
    second.stop()


def test_the_memory_waits_for_another_writer(tmp_path: Path, test_clock: TurnedClock) -> None:
    state = State(tmp_path / "state.sqlite", test_clock)
    other = sqlite3.connect(tmp_path / "state.sqlite", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")

    def release() -> None:
        time.sleep(0.3)
        other.execute("ROLLBACK")

    thread, start_s = threading.Thread(target=release), clock.monotonic_s()
    thread.start()
    state.clock.advance(timedelta(seconds=1))
    assert clock.monotonic_s() - start_s >= 0.25
    thread.join()
    other.close()
    state.close()

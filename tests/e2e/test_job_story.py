"""The import job as an operator lives it: deadlines, refusals, lost answers, a disk that is lost, and a second trip."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import shlex
import signal
import struct
import subprocess
import sys
import termios
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from desk import CONTAINER, RETURN, Desk, serving
from support import diskprep, diskprep_json, need, run

JOB = "my-first-job"


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """A desk with two disks prepared; nothing was told to the service yet."""
    made = Desk(tmp_path_factory.mktemp("story"), megabytes=120)
    made.stage()
    diskprep("datacenter", "sas", made.practice, CONTAINER)
    made.prepare("--image-size", "96M")
    return made


@pytest.fixture(scope="module")
def service(desk: Desk) -> Iterator[tuple[str, ...]]:
    with serving(desk.practice) as reached:
        yield reached


def advance(desk: Desk, days: float) -> None:
    diskprep("datacenter", "clock", desk.practice, "--advance", f"{int(days * 24)}h")


def serials(desk: Desk) -> list[str]:
    return [disk["serial"] for disk in json.loads((desk.staging / "plan.json").read_text())["disks"]]


def test_01_a_lost_answer_to_creation_leads_to_one_job(desk: Desk, service: tuple[str, ...]) -> None:
    diskprep("datacenter", "fault", desk.practice, "answer-lost", "--times", "1", "--method", "PUT")
    out, err = diskprep("job", "create", desk.staging, *service, *desk.secret)
    assert f"disks prepared: {', '.join(serials(desk))}" in out
    assert f"import job created: {JOB}" in out
    assert "ship to: Import/Export stand-in" in out
    assert "next: diskprep job slip" in err
    assert [job["name"] for job in diskprep_json("job", "list", desk.staging, *service)["jobs"]] == [JOB]


def test_02_a_busy_service_is_waited_for_and_an_expired_token_is_told(desk: Desk, service: tuple[str, ...]) -> None:
    diskprep("datacenter", "fault", desk.practice, "throttled", "--times", "2")
    assert "Creating" in diskprep("job", "show", desk.staging, *service)[0]
    diskprep("datacenter", "fault", desk.practice, "token-expired", "--times", "1")
    assert "get a new one" in diskprep("job", "show", desk.staging, *service, code=40)[1]


def test_03_days_left_are_counted_by_the_services_clock_and_end_the_command_from_five_on(
    desk: Desk, service: tuple[str, ...]
) -> None:
    assert re.search(r"tracking number: 1[34] days", diskprep("job", "show", desk.staging, *service)[0])
    advance(desk, 9.5)
    out, err = diskprep("job", "show", desk.staging, *service, code=43)
    assert "time left to enter the tracking number: 4 days" in out
    assert "diskprep job keep-alive" in err
    document = diskprep_json("status", desk.staging, code=43)
    assert document["deadline"]["alarm_days"] == 5
    assert document["next"].startswith(f"diskprep job ship {desk.staging} --carrier")
    assert "4 days left" in diskprep("status", desk.staging, code=43)[0]


def test_04_the_hook_is_told_once_at_five_two_and_one_days(desk: Desk, service: tuple[str, ...]) -> None:
    told = desk.base / "told"
    hook = desk.base / "hook"
    hook.write_text(f'#!/bin/sh\nprintf "%s %s\\n" "$1" "$2" >>{told}\n')
    hook.chmod(0o755)
    watch = ("job", "watch", desk.staging, "--once", "--hook", str(hook), *service)
    for days, lines in ((0, 1), (0, 1), (2.6, 2), (1, 3), (0, 3)):
        if days:
            advance(desk, days)
        assert "diskprep job ship" in diskprep(*watch, code=43)[1]
        assert len(told.read_text().splitlines()) == lines
    assert told.read_text().split() == [JOB, "5", JOB, "2", JOB, "1"]


def test_05_keep_alive_gives_two_weeks_more(desk: Desk, service: tuple[str, ...]) -> None:
    assert re.search(r"tracking number: 1[34] days", diskprep("job", "keep-alive", desk.staging, *service)[0])
    assert diskprep_json("status", desk.staging)["deadline"]["alarm_days"] is None


def test_06_a_job_that_expired_is_told_and_created_again(desk: Desk, service: tuple[str, ...]) -> None:
    advance(desk, 15)
    told = diskprep("job", "watch", desk.staging, "--once", *service, code=43)[1]
    assert "deleted after two weeks" in told
    assert "diskprep job create" in told
    told = diskprep("datacenter", "receive", desk.practice, JOB, *_package(desk), code=42)[1]
    assert "which was not found" in told
    assert f"import job created: {JOB}" in diskprep("job", "create", desk.staging, *service, *desk.secret)[0]
    assert "Creating" in diskprep("job", "show", desk.staging, *service)[0]


def test_07_the_checklist_and_the_slip_say_where_it_goes_and_hold_no_secret(
    desk: Desk, service: tuple[str, ...]
) -> None:
    assert "[ ] One job, one package, one tracking number" in diskprep("job", "checklist", desk.staging, *service)[0]
    page = desk.base / "slip.html"
    diskprep("job", "slip", desk.staging, "--to", page, *service)
    text = page.read_text()
    assert "Import/Export stand-in" in text
    for serial in serials(desk):
        assert serial in text
        password = diskprep("disk", "key", serial, "--staging", desk.staging, *desk.secret)[0].strip()
        assert password not in text


def test_08_a_package_that_is_not_the_jobs_is_refused(desk: Desk, service: tuple[str, ...]) -> None:
    ship = ("job", "ship", desk.staging, "--carrier", "DHL", "--tracking-number", "JD01460000777", *RETURN, *service)
    first, second = serials(desk)
    assert f"drive {second}" in diskprep(*ship, "--serial", first, code=42)[1]
    told = diskprep(*ship, "--serial", first, "--serial", second, "--serial", "OTHER-1", code=42)[1]
    assert "OTHER-1" in told
    without = tuple(word for word in ship if word not in RETURN)
    assert "--return-street" in diskprep(*without, code=2)[1]


def test_09_it_is_shipped_and_a_lost_answer_changes_nothing(desk: Desk, service: tuple[str, ...]) -> None:
    diskprep("datacenter", "fault", desk.practice, "answer-lost", "--times", "1", "--method", "PATCH")
    ship = ("job", "ship", desk.staging, "--carrier", "DHL", "--tracking-number", "JD01460000777", *RETURN, *service)
    out, err = diskprep(*ship)
    assert "Shipping" in out
    assert "package: DHL JD01460000777, 2 disks" in out
    assert "next: diskprep job watch" in err
    assert "Shipping" in diskprep(*ship)[0]
    assert diskprep_json("status", desk.staging)["deadline"] is None
    for word in ("create", "keep-alive"):  # it has no two weeks any more, and nothing more is to be entered
        secret = desk.secret if word == "create" else ()
        out, err = diskprep("job", word, desk.staging, *service, *secret)
        assert "Shipping" in out
        assert not re.search("created|deleted|job ship|job slip", out + err)


def test_10_watch_follows_the_job_off_a_terminal_and_ends_when_there_is_something_to_do(
    desk: Desk, service: tuple[str, ...]
) -> None:
    watcher = subprocess.Popen(
        [sys.executable, "-m", "diskprep", "job", "watch", desk.staging, "--every", "1s", *service],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    time.sleep(3)
    assert watcher.poll() is None, "nothing is to be done while the package is on its way"
    lost = serials(desk)[1]
    diskprep("datacenter", "receive", desk.practice, JOB, *_package(desk), "--fault", f"{lost}=lost")
    out, err = watcher.communicate(timeout=60)
    assert watcher.returncode == 44, (
        err
    )  # as soon as the drive is missed, for the carrier's sake; else at the job's end
    told = diskprep("job", "watch", desk.staging, "--every", "1s", *service, code=44)[1]
    assert f"drive {lost}" in told
    assert "diskprep job report" in told
    assert "\x1b" not in out + err + told
    assert "|" not in err + told


def test_11_the_report_says_which_disk_and_what_to_do(desk: Desk, service: tuple[str, ...]) -> None:
    first, lost = serials(desk)
    container = ("--container", desk.container)
    out, _err = diskprep("job", "report", desk.staging, *container, *service, code=44)
    assert f"drive {first} was copied whole" in out
    assert f"drive {lost} never arrived" in out
    done = subprocess.run(
        [sys.executable, "-m", "diskprep", "job", "report", desk.staging, *container, *service, "--json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 44
    assert [drive["fate"] for drive in json.loads(done.stdout)["drives"]] == ["arrived", "lost"]


def test_12_the_repair_is_a_trip_of_its_own(desk: Desk, service: tuple[str, ...]) -> None:
    container = ("--container", desk.container)
    out, err = diskprep("job", "repair", desk.staging, *container, *service)
    repair = desk.staging / "repairs" / f"{JOB}-r1"
    assert repair.is_dir()
    assert str(repair) in out + err
    assert diskprep("job", "repair", desk.staging, *container, *service)[0] == out
    told = diskprep("job", "report", desk.staging, *container, *service, code=44)[1]
    assert f"next: diskprep status {repair}" in told
    assert "job repair" not in told
    assert f"next: diskprep status {repair}" in diskprep("status", desk.staging)[1]
    sas = ("--container-sas-file", desk.practice / f"{CONTAINER}.sas")
    journals = ("--journals", desk.base / "journals", "--image-size", "96M")
    create = ("--create-job", *service, *desk.secret)
    out, _err = diskprep("disk", "prepare", repair, desk.base / "WD-C3.img", *sas, *journals, *create)
    assert "disks prepared: WD-C3" in out
    assert f"import job created: {JOB}-r1" in out
    advance(desk, 12.5)
    diskprep("job", "show", repair, *service, code=43)
    out, err = diskprep("status", desk.staging, code=43)
    assert f"repair {JOB}-r1: Creating when last seen" in out
    assert f"import job {JOB}-r1 has no tracking number" in err
    used = ("--carrier", "DHL", "--tracking-number", "JD01460000777", *RETURN, *service)
    told = diskprep("job", "ship", repair, *used, code=42)[1]
    assert f"belongs to import job {JOB}" in told
    assert "JD01460000777-1" in told
    diskprep("job", "ship", repair, *used[:3], "JD01460000777-1", *used[4:])
    diskprep("datacenter", "receive", desk.practice, f"{JOB}-r1", f"WD-C3={desk.base / 'WD-C3.img'}")
    ingest = f"next: diskprep vault ingest {desk.staging} --container STORE --vault STORE"
    assert ingest in diskprep("job", "watch", repair, "--once", *service)[1]
    assert ingest in diskprep("status", desk.staging)[1]
    assert [made["name"] for made in diskprep_json("status", desk.staging)["repairs"]] == [f"{JOB}-r1"]


def test_13_all_of_it_is_ingested_and_restored(desk: Desk, service: tuple[str, ...]) -> None:
    diskprep("vault", "publish", desk.staging, "--vault", desk.vault, *desk.secret)
    arguments = (desk.staging, *desk.stores, "--certificate", desk.certificate, *desk.secret)
    assert "all read back" in diskprep("vault", "ingest", *arguments)[0]
    into = desk.base / "restored"
    diskprep("vault", "restore", into, "--vault", desk.vault, *desk.secret)
    told = run(
        "diff", "-r", "--no-dereference", "--exclude=fifo", "--exclude=socket",
        desk.source, into / desk.source.relative_to("/"), ok=False,
    )  # fmt: skip
    assert told == ""


def test_14_on_a_terminal_there_is_a_bar_for_each_drive(desk: Desk, service: tuple[str, ...]) -> None:
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    watcher = subprocess.Popen(
        [sys.executable, "-m", "diskprep", "job", "watch", desk.staging, "--every", "1s", *service],
        stdin=child, stdout=child, stderr=child, env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )  # fmt: skip
    os.close(child)
    shown = b""
    try:
        while chunk := _read(parent):
            shown += chunk
    finally:
        os.close(parent)
        if watcher.poll() is None:
            watcher.send_signal(signal.SIGTERM)
        assert watcher.wait(20) == 44
    assert f"import job {serials(desk)[0]}".encode() in shown
    assert b"100%" in shown


@pytest.mark.parametrize("columns", [100, 40])
def test_15_status_and_watch_leave_a_readable_screen_in_tmux(
    desk: Desk, service: tuple[str, ...], columns: int
) -> None:
    words = " ".join(map(shlex.quote, map(str, service)))
    program = f"{shlex.quote(sys.executable)} -m diskprep"
    for command, code in ((f"status {desk.staging}", 0), (f"job watch {desk.staging} --every 1s {words}", 44)):
        shown = _in_tmux(f"{program} {command}", columns)
        assert f"ENDED {code}" in shown
        assert serials(desk)[1] in shown.replace("\n", "")
        assert "Traceback" not in shown
        assert "^[" not in shown
        assert all(len(line) <= columns for line in shown.splitlines())


def test_16_no_secret_is_in_any_file_that_may_be_shown(desk: Desk) -> None:
    keys = [diskprep("disk", "key", serial, "--staging", desk.staging, *desk.secret)[0] for serial in serials(desk)]
    secrets = [desk.passphrase_file.read_text().strip(), *map(str.strip, keys)]
    shown = [desk.staging / "job.json", desk.base / "slip.html", *desk.staging.rglob("repair.json")]
    shown += Path(os.environ["DISKPREP_STATE"]).rglob("*.json")
    assert len(shown) >= 4
    for path in shown:
        assert not any(secret in path.read_text() for secret in secrets), path


def _in_tmux(command: str, columns: int) -> str:
    """What stands on the screen of a tmux of that width once `command` has ended."""
    server = ["-L", f"story-{uuid.uuid4()}", "-f", "/dev/null"]  # one that ends still has its name for a while
    line = f"{command}; echo ENDED $?; sleep 60"
    run(need("tmux"), *server, "new-session", "-d", "-x", str(columns), "-y", "50", line)
    try:
        until = time.monotonic() + 60
        while "ENDED " not in (shown := run("tmux", *server, "capture-pane", "-p")) and time.monotonic() < until:
            time.sleep(0.2)
        return shown
    finally:
        run("tmux", *server, "kill-server")


def _package(desk: Desk) -> list[str]:
    return [f"{disk.stem}={disk}" for disk in desk.disks]


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # the other end is closed
        return b""

"""One process at a time: the second is told who is busy, the lock ends with its holder, without locks nothing runs."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from diskprep import durable, process
from diskprep.errors import DiskprepError, Locked, NotFound, StorageFull, StorageUnavailable

_HOLD = (
    "import sys; from pathlib import Path; from diskprep import durable\n"
    "with durable.only_process(Path(sys.argv[1]), busy='busy', hint='hint'):\n"
    "    print('held', flush=True); sys.stdin.read()\n"
)
Hold = Callable[[], "subprocess.Popen[bytes]"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "one.lock"


@pytest.fixture
def hold(path: Path) -> Iterator[Hold]:
    """Start another process that holds the lock until its standard input is closed, or it is killed."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        child = subprocess.Popen([sys.executable, "-c", _HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        started.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        return child

    yield start
    for child in started:
        child.kill()
        child.communicate()


def _enter(path: Path, **options: Any) -> None:
    with durable.only_process(path, busy="somebody is busy", hint="come again", **options):
        pass


def test_the_second_process_is_told_who_is_busy_and_what_to_do(path: Path, hold: Hold) -> None:
    hold()
    with pytest.raises(Locked) as caught:
        _enter(path)
    assert (caught.value.message, caught.value.hint) == ("somebody is busy", "come again")


def test_a_holder_that_ends_or_is_killed_leaves_the_lock_free(path: Path, hold: Hold) -> None:
    for number in (signal.SIGKILL, signal.SIGTERM):
        holder = hold()
        holder.send_signal(number)
        assert holder.wait(60) == -number
        _enter(path)
    holder = hold()
    holder.communicate()
    assert holder.returncode == 0
    _enter(path)


def test_who_waits_gets_the_lock_when_it_is_free(path: Path, hold: Hold, monkeypatch: pytest.MonkeyPatch) -> None:
    holder = hold()
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        assert seconds > 0
        if len(waits) == 1:  # it was refused twice by now
            holder.communicate()
        waits.append(seconds)

    monkeypatch.setattr(durable.clock, "sleep", sleep)
    _enter(path, wait_s=600)
    assert len(waits) == 2


def test_who_waits_in_vain_is_refused_in_the_end(path: Path, hold: Hold, monkeypatch: pytest.MonkeyPatch) -> None:
    hold()
    now_s = [1000.0]
    monkeypatch.setattr(durable.clock, "monotonic_s", lambda: now_s[0])
    monkeypatch.setattr(durable.clock, "sleep", lambda seconds: now_s.append(now_s.pop() + seconds))
    with pytest.raises(Locked, match="somebody is busy"):
        _enter(path, wait_s=10)
    assert 10 <= now_s[0] - 1000 < 11


def test_who_does_not_wait_never_sleeps(path: Path, hold: Hold, monkeypatch: pytest.MonkeyPatch) -> None:
    hold()
    monkeypatch.setattr(durable.clock, "sleep", lambda _: pytest.fail("it waited"))
    with pytest.raises(Locked):
        _enter(path)


def test_a_forked_worker_keeps_the_lock_until_it_has_ended(path: Path) -> None:
    def work(end: socket.socket) -> None:
        process.receive_exactly(end, 1)

    with durable.only_process(path, busy="", hint=""):
        worker, end = process.fork(work)
    with pytest.raises(Locked):
        _enter(path)
    end.close()
    process.wait(worker)
    _enter(path)


def test_an_error_inside_goes_through_and_frees_the_lock(path: Path) -> None:
    error = OSError(errno.EAGAIN, "not the lock's")
    with pytest.raises(OSError, match="not the lock's") as caught, durable.only_process(path, busy="", hint=""):
        raise error
    assert caught.value is error
    _enter(path)


def test_the_file_is_the_owners_alone_and_what_is_in_it_stays(path: Path) -> None:
    before = os.umask(0)
    try:
        _enter(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_bytes(b"a mark")
    _enter(path)
    assert path.read_bytes() == b"a mark"


def test_a_file_that_cannot_be_opened_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for path, kind in (
        (tmp_path / "none" / "lock", NotFound),
        (tmp_path / "file" / "lock", StorageUnavailable),
        (tmp_path, StorageUnavailable),
        (tmp_path / "link", StorageUnavailable),
    ):
        with pytest.raises(kind, match=f"cannot open {path}"):
            _enter(path)


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOLCK, StorageUnavailable),
        (errno.ENOTSUP, StorageUnavailable),
        (errno.EIO, StorageUnavailable),
        (errno.ENOSPC, StorageFull),
        (errno.EACCES, Locked),  # some network file systems say so where others say EAGAIN
    ],
)
def test_where_nothing_can_be_locked_nothing_runs(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[DiskprepError]
) -> None:
    asked = []

    def refuse(descriptor: int, _: int) -> None:
        asked.append(descriptor)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    inside = []
    told = "somebody is busy" if kind is Locked else f"cannot lock {path}"
    with pytest.raises(kind, match=told), durable.only_process(path, busy="somebody is busy", hint=""):
        inside.append(True)
    assert inside == []
    assert len(asked) == 1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(asked[0])
    monkeypatch.undo()
    _enter(path)

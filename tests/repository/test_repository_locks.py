"""Who may be in a repository at the same time."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import socket
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from diskprep import clock
from diskprep.errors import DataDamaged, Locked
from diskprep.repository import lock as locks
from diskprep.repository.pack import BlobKind
from diskprep.repository.packwriter import PackWriter
from diskprep.repository.repository import Repository, open_repository
from diskprep.repository.snapshot import Snapshot
from diskprep.secrets import Secret
from diskprep.store.directory import DirectoryStore


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "SETTLE_S", 0.01)


@pytest.fixture
def directory(repository: Repository) -> locks.LockDirectory:
    return locks.LockDirectory(repository.store, repository.key)


def test_backups_share_a_repository_and_nobody_shares_an_exclusive_lock(repository: Repository) -> None:
    with repository.lock(), repository.lock(), pytest.raises(Locked), repository.lock(exclusive=True):
        pass
    with repository.lock(exclusive=True):
        for exclusive in (False, True):
            with pytest.raises(Locked), repository.lock(exclusive=exclusive):
                pass
    assert list(repository.store.list("locks/")) == []


def test_a_lock_is_gone_after_an_error_inside(repository: Repository) -> None:
    with pytest.raises(RuntimeError), repository.lock(exclusive=True):
        raise RuntimeError
    assert list(repository.store.list("locks/")) == []


def test_a_conflict_that_appears_while_the_lock_settles_makes_it_give_way(
    repository: Repository, directory: locks.LockDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        clock, "sleep", lambda _: directory.write(exclusive=True, hostname="elsewhere", time=clock.now())
    )
    with pytest.raises(Locked), repository.lock():
        pass
    assert [record.hostname for record in directory.records()] == ["elsewhere"]


def test_a_refresh_leaves_one_fresh_lock(
    repository: Repository, directory: locks.LockDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "REFRESH_S", 0.05)
    with repository.lock() as lock:
        first = lock.name
        for _ in range(100):
            clock.sleep(0.05)
            if lock.name != first:
                break
        assert lock.name != first
        lock.require_fresh()
        monkeypatch.setattr(locks, "GIVE_UP_S", -1.0)
        with pytest.raises(Locked):
            lock.require_fresh()
    assert directory.records() == []


def test_locks_of_the_dead_and_the_long_silent_count_for_nothing(
    repository: Repository, directory: locks.LockDirectory
) -> None:
    child = multiprocessing.get_context("fork").Process(
        target=lambda: directory.write(exclusive=True, hostname=socket.gethostname(), time=clock.now())
    )
    child.start()
    child.join()
    directory.write(exclusive=True, hostname="elsewhere", time=clock.now() - timedelta(minutes=31))
    with repository.lock(exclusive=True):
        pass
    assert len(directory.records()) == 2
    directory.write(exclusive=True, hostname="elsewhere", time=clock.now() - timedelta(minutes=29))
    with pytest.raises(Locked, match="elsewhere"), repository.lock():
        pass
    repository.remove_stale_locks()
    assert len(directory.records()) == 1


def test_a_hold_keeps_destroyers_out_and_lets_backups_in(store: DirectoryStore, repository: Repository) -> None:
    hold = repository.hold("job-1")
    again = open_repository(store, Secret("correct horse battery staple"))
    with again.lock():
        pass
    with pytest.raises(Locked, match="transit"), again.lock(exclusive=True):
        pass
    (found,) = again.find_holds()
    assert (found.name, found.label) == (hold.name, "job-1")
    again.remove_stale_locks()
    found.refresh()
    assert found.name != hold.name
    assert [one.name for one in repository.find_holds()] == [found.name]
    found.release()
    with again.lock(exclusive=True):
        pass
    with pytest.raises(Locked), repository.lock(exclusive=True):
        repository.hold("job-2")


def test_a_hold_ends_half_an_hour_after_its_time(repository: Repository) -> None:
    repository.hold("over", lifetime_s=-1900)
    with repository.lock(exclusive=True):
        pass


def test_a_lock_that_cannot_be_read_forbids_everything_an_empty_one_nothing(repository: Repository) -> None:
    repository.store.write("locks/" + "0" * 64, [])
    with repository.lock():
        pass
    repository.store.write("locks/" + "1" * 64, [os.urandom(100)])
    with pytest.raises(DataDamaged), repository.lock():
        pass


def test_a_lock_older_than_allowed_by_the_wall_clock_is_lost_for_good(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The computer slept: the monotonic clock stood still, others took the lock for stale."""
    really = clock.now
    with repository.lock() as lock:
        lock.require_fresh()
        monkeypatch.setattr(clock, "now", lambda: really() + timedelta(hours=5))
        with pytest.raises(Locked, match="lost"):
            lock.require_fresh()
        monkeypatch.setattr(clock, "now", really)
        with pytest.raises(Locked, match="lost"):
            lock.require_fresh()


@pytest.mark.parametrize("cause", ["removed", "stalled"])
def test_a_lost_lock_is_never_refreshed_back(
    repository: Repository, directory: locks.LockDirectory, monkeypatch: pytest.MonkeyPatch, cause: str
) -> None:
    with repository.lock() as lock:
        first = lock.name
        if cause == "removed":
            directory.delete(first)
        else:
            monkeypatch.setattr(locks, "GIVE_UP_S", -1.0)
        lock._refresh()
        monkeypatch.undo()
        assert lock.name == first
        with pytest.raises(Locked, match="lost"):
            lock.require_fresh()
    assert directory.records() == []


def test_a_stall_while_the_lock_is_refreshed_loses_it(
    repository: Repository, directory: locks.LockDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    really, write = clock.now, directory.write
    with locks.locked(directory, exclusive=False) as lock:

        def slow(**more: Any) -> str:
            name = write(**more)
            monkeypatch.setattr(clock, "now", lambda: really() + timedelta(hours=1))
            return name

        monkeypatch.setattr(directory, "write", slow)
        lock._refresh()
        monkeypatch.setattr(clock, "now", really)
        assert [record.name for record in directory.records()] == [lock.name]
        with pytest.raises(Locked, match="lost"):
            lock.require_fresh()


def test_nothing_is_written_under_a_lost_lock(repository: Repository, directory: locks.LockDirectory) -> None:
    writer = PackWriter(BlobKind.DATA, repository.key)
    writer.add(hashlib.sha256(b"x").digest(), b"x")
    finished = writer.finish()
    snapshot = Snapshot(id="", time=clock.now(), tree=bytes(32), paths=("/x",), hostname="h")
    with repository.lock() as lock:
        repository.save_pack(finished.entry, finished.data)
        directory.delete(lock.name)  # index file and snapshot look for it
        for save in (lambda: repository.save_index([finished.entry]), lambda: repository.save_snapshot(snapshot)):
            with pytest.raises(Locked, match="lost"):
                save()
        with pytest.raises(Locked, match="lost"):
            repository.save_pack(finished.entry, finished.data)
    assert not [item for item in repository.store.list() if item.name.startswith(("index/", "snapshots/"))]
    repository.save_index([finished.entry])  # outside, as after a repair


def test_a_snapshot_during_whose_writing_the_lock_was_lost_is_taken_back(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    really, write = clock.now, DirectoryStore.write

    def slow(store: DirectoryStore, name: str, parts: Any) -> None:
        write(store, name, parts)
        monkeypatch.setattr(clock, "now", lambda: really() + timedelta(hours=1))

    with repository.lock():
        monkeypatch.setattr(DirectoryStore, "write", slow)
        with pytest.raises(Locked, match="lost"):
            repository.save_snapshot(Snapshot(id="", time=really(), tree=bytes(32), paths=("/x",), hostname="h"))
    assert list(repository.store.list("snapshots/")) == []


class Forked:
    """A forked child that does with the lock what it is told, and says what came of it."""

    def __init__(self, lock: locks.Lock) -> None:
        context = multiprocessing.get_context("fork")
        self._ours, self._theirs = context.Pipe()
        self._process = context.Process(target=self._run, args=(lock,))
        self._process.start()
        self._theirs.close()

    def _run(self, lock: locks.Lock) -> None:
        while (order := self._theirs.recv()) is not None:
            try:
                self._theirs.send(lock.name if order == "name" else getattr(lock, order)())
            except Locked as error:
                self._theirs.send(error.message)

    def __call__(self, order: str) -> str | None:
        self._ours.send(order)
        assert self._ours.poll(20), "no answer came"
        return self._ours.recv()  # type: ignore[no-any-return]

    def end(self) -> None:
        self._ours.send(None)
        self._process.join(20)
        assert self._process.exitcode == 0


@pytest.fixture
def lock(repository: Repository) -> Iterator[locks.Lock]:
    with repository.lock() as lock:
        yield lock


@pytest.fixture
def forked(lock: locks.Lock) -> Iterator[Forked]:
    child = Forked(lock)
    yield child
    child.end()


def test_a_forked_child_sees_the_lock_refreshed(
    forked: Forked, lock: locks.Lock, directory: locks.LockDirectory
) -> None:
    """By the parent, long after the fork: the child's own copy would be stale, and its file gone."""
    first = lock.name
    assert forked("name") == first
    lock._refresh()
    assert lock.name != first
    assert forked("name") == lock.name
    assert [record.name for record in directory.records()] == [lock.name]
    assert forked("require_held") is None
    assert forked("require_fresh") is None


def test_a_forked_child_sees_an_old_lock_become_fresh(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    really, minutes = clock.now, multiprocessing.get_context("fork").Value("i")
    with repository.lock() as lock:
        monkeypatch.setattr(clock, "now", lambda: really() + timedelta(minutes=minutes.value))
        forked = Forked(lock)
        for _ in range(4):
            minutes.value += 20
            lock._refresh()
            assert forked("require_fresh") is None
        minutes.value += 23
        assert "lost" in str(forked("require_fresh"))
        minutes.value -= 23
        with pytest.raises(Locked, match="lost"):  # once lost, by whoever, it stays lost
            lock.require_fresh()
        forked.end()


@pytest.mark.parametrize("found_by", ["parent", "child"])
def test_a_lock_that_one_process_finds_lost_is_lost_to_all(
    forked: Forked, lock: locks.Lock, directory: locks.LockDirectory, found_by: str
) -> None:
    directory.delete(lock.name)
    assert forked("require_fresh") is None  # nobody has looked for its file yet
    if found_by == "child":
        assert "lost" in str(forked("require_held"))
    else:
        with pytest.raises(Locked, match="lost"):
            lock.require_held()
    assert "lost" in str(forked("require_fresh"))
    with pytest.raises(Locked, match="lost"):
        lock.require_fresh()
    lock._refresh()
    assert directory.records() == []

"""Backups under adverse conditions: deep trees, few descriptors, stalls, and a repository inside its own source."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import resource
import socket
from datetime import timedelta
from pathlib import Path

import pytest
from support import make_tree, open_descriptors
from test_staging_backup import MIB, compare_all, listing, run

from diskprep import clock
from diskprep.errors import Locked, NotBuilt, StorageUnavailable, UsageError
from diskprep.repository import lock as locks
from diskprep.repository import pack
from diskprep.repository.pack import PackEntry
from diskprep.repository.repository import Repository
from diskprep.source import Item, OpenDirectory
from diskprep.staging import walker
from diskprep.staging.dispatch import Dispatcher, Manpower
from diskprep.staging.writer import BackupOptions


def make_deep(top: Path, levels: int) -> None:
    """Directories `d` in each other, with a file and a directory `e` beside each."""
    top.mkdir()
    descriptor = os.open(top, os.O_RDONLY)
    for _ in range(levels):
        for name in ("d", "e"):
            os.mkdir(name, dir_fd=descriptor)
        with os.fdopen(os.open("leaf", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor), "wb") as stream:
            stream.write(b"leaf")
        deeper = os.open("d", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = deeper
    os.close(descriptor)


def test_a_tree_deeper_than_there_are_descriptors_is_whole(
    tmp_path: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walker, "OPEN_DIRECTORIES", 8)
    make_deep(tmp_path / "deep", 60)
    before = open_descriptors()
    most = 0
    directory = OpenDirectory.directory

    def counted(self: OpenDirectory, name: bytes) -> OpenDirectory:
        nonlocal most
        most = max(most, (open_descriptors() - before).total())
        return directory(self, name)

    monkeypatch.setattr(OpenDirectory, "directory", counted)
    result = run(repository, tmp_path / "deep", options=BackupOptions(manpower=Manpower(threads=1, processes=1)))
    assert not open_descriptors() - before
    assert result.unreadable == ()
    assert (result.files, result.dirs - len(tmp_path.parts)) == (60, 120)
    assert compare_all(repository, result.snapshot, os.fsencode(tmp_path / "deep")) == 180
    assert most < 60  # those that the worker still uses may be added to the eight


def test_a_directory_replaced_while_it_was_closed_is_told(
    tmp_path: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walker, "OPEN_DIRECTORIES", 2)
    make_deep(tmp_path / "deep", 6)
    listed, collect = OpenDirectory.list, Dispatcher.collect

    def swap(self: OpenDirectory) -> list[Item]:
        items = listed(self)
        if not items and not (tmp_path / "moved").exists():  # at the bottom
            (tmp_path / "deep").rename(tmp_path / "moved")
            make_deep(tmp_path / "other", 6)
            (tmp_path / "other").rename(tmp_path / "deep")
        return items

    with monkeypatch.context() as patch:
        patch.setattr(OpenDirectory, "list", swap)
        # What a worker still uses stays open, so every batch is waited for before the walk goes on.
        patch.setattr(Dispatcher, "collect", lambda self, *, wait: collect(self, wait=True))
        result = run(repository, tmp_path / "deep", options=BackupOptions(manpower=Manpower(threads=1, processes=1)))
    assert result.unreadable
    assert {reason for _, reason in result.unreadable} <= {
        "the directory it is in was replaced while it was being read",
        "it vanished",
    }


def test_too_few_descriptors_end_the_backup_instead_of_leaving_entries_out(
    tmp_path: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_deep(tmp_path / "deep", 10)
    really, before = os.open, open_descriptors()

    def open_(path: bytes, *args: object, **more: object) -> int:
        if path == b"leaf" and random.random() < 0.5:
            raise OSError(errno.EMFILE, "Too many open files")
        return really(path, *args, **more)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", open_)
        random.seed(1)
        with pytest.raises(StorageUnavailable, match="Too many open files"):
            run(repository, tmp_path / "deep")
    assert repository.snapshots() == []
    assert not open_descriptors() - before


def test_the_limit_of_open_files_is_raised(tmp_path: Path, repository: Repository) -> None:
    (tmp_path / "tree").mkdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
    try:
        run(repository, tmp_path / "tree")
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_listing_too_long_to_be_read_back_is_refused(
    tmp_path: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert walker.TREE_MAX_BYTES is pack.TREE_MAX_BYTES
    monkeypatch.setattr(walker, "TREE_MAX_BYTES", 4000)
    (tmp_path / "tree" / "wide").mkdir(parents=True)
    for number in range(30):
        (tmp_path / "tree" / "wide" / str(number)).write_bytes(b"")
    with pytest.raises(NotBuilt, match="tree/wide has so many entries"):
        run(repository, tmp_path / "tree")
    assert repository.snapshots() == []


def test_a_repository_inside_its_own_source_is_left_out(tmp_path: Path, repository: Repository) -> None:
    (tmp_path / "file").write_bytes(b"x")
    result = run(repository, tmp_path)
    assert list(listing(repository, result.snapshot, tmp_path)) == [b"file"]
    with pytest.raises(UsageError, match="written to"):
        run(repository, tmp_path / "repository")


def test_the_lock_of_a_killed_backup_does_not_stay(tmp_path: Path, repository: Repository) -> None:
    (tmp_path / "tree").mkdir()
    directory = locks.LockDirectory(repository.store, repository.key)
    child = multiprocessing.get_context("fork").Process(
        target=lambda: directory.write(exclusive=False, hostname=socket.gethostname(), time=clock.now())
    )
    child.start()
    child.join()
    hold, other = repository.hold("job"), directory.write(exclusive=False, hostname="elsewhere", time=clock.now())
    assert len(directory.records()) == 3
    run(repository, tmp_path / "tree")
    assert {record.name for record in directory.records()} == {hold.name, other}


def test_a_backup_that_stalled_writes_no_snapshot(
    tmp_path: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_tree(tmp_path / "tree", megabytes=4)
    really, save = clock.now, repository.save_pack

    def save_pack(entry: PackEntry, data: memoryview) -> None:
        save(entry, data)
        monkeypatch.setattr(clock, "now", lambda: really() + timedelta(hours=1))

    monkeypatch.setattr(repository, "save_pack", save_pack)
    with pytest.raises(Locked, match="lost"):
        run(repository, root, options=BackupOptions(pack_size_bytes=MIB))
    assert repository.snapshots() == []
    assert list(repository.store.list("locks/")) == []

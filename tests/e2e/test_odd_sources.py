"""Legitimate sources that nobody thinks of: the journey goes on, and what cannot be kept is told."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import diskprep, diskprep_json, make_tree, need_root, plain_user, run

from diskprep.rehearsal import preflight


@pytest.fixture(autouse=True)
def _deep_trees_removed(tmp_path: Path) -> Iterator[None]:
    """The test runner's own removal is recursive."""
    yield
    run("rm", "-rf", *tmp_path.iterdir())


def bury(root: Path, name: str, depth: int) -> None:
    """A file below `depth` directories; from inside, for its path may be longer than any call takes."""
    here = os.open(root, os.O_RDONLY)
    try:
        for _ in range(depth):
            os.mkdir(name, dir_fd=here)
            below = os.open(name, os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
        deepest = os.open("deepest", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=here)
        os.write(deepest, b"down here")
        os.close(deepest)
    finally:
        os.close(here)


def make_odd(base: Path) -> Path:
    source = base / os.fsdecode(b"not utf-8 \xff\xfe")
    source.mkdir(parents=True)
    (source / "data").write_bytes(os.urandom(200_000))
    os.mkfifo(source / "fifo")
    (source / "fifo again").hardlink_to(source / "fifo")
    (source / "old").write_bytes(b"from before the railways")
    os.utime(source / "old", ns=(-1_600_000_000_123_456_789, -1_600_000_000_123_456_789))
    (source / "last day").write_bytes(b"of 32 bits")
    os.utime(source / "last day", (4_294_967_295, 4_294_967_295))
    (source / "folder without rights").mkdir()
    (source / "folder without rights" / "inside").write_bytes(b"x")
    (source / "-n").write_bytes(b"a name like an option")
    with contextlib.suppress(OSError):
        os.setxattr(source / "data", os.fsdecode(b"user.\xff\xfe"), b"1")
    with contextlib.suppress(PermissionError):
        os.mknod(source / "null", 0o20666, os.makedev(1, 3))
    bury(source, "d", 1200)
    bury(source, "l" * 200, 30)
    (source / "folder without rights").chmod(0)
    return source


@pytest.mark.parametrize("zone", ["Africa/Monrovia", pytest.param("UTC", marks=pytest.mark.slow)])
def test_an_odd_tree_comes_back(tmp_path: Path, zone: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "diskprep", "rehearse", make_odd(tmp_path), "--workdir", tmp_path / "work", "--json"],
        env={**os.environ, "TZ": zone},
        capture_output=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["ok"] is True


@pytest.mark.root
def test_an_odd_tree_comes_back_to_a_plain_user_and_what_it_may_not_read_is_told(tmp_path: Path) -> None:
    done = subprocess.run(
        [*plain_user(), sys.executable, "-m", "diskprep", "rehearse", make_odd(tmp_path), "--workdir", tmp_path / "w"],
        capture_output=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert b"folder without rights" in done.stderr


def test_two_rehearsals_in_one_folder_are_kept_apart(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "source", megabytes=1)
    first = subprocess.Popen(
        [sys.executable, "-m", "diskprep", "rehearse", source, "--workdir", tmp_path / "w", "-q"],
        stdout=subprocess.DEVNULL,
    )
    mark = tmp_path / "w/.diskprep-rehearsal"
    while first.poll() is None and not _is_locked(mark):
        time.sleep(0.02)
    assert "another rehearsal" in diskprep("rehearse", source, "--workdir", tmp_path / "w", code=11)[1]
    assert first.wait(120) == 0


def _is_locked(path: Path) -> bool:
    if not path.exists():
        return False
    with path.open("rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def test_the_staging_of_a_real_job_in_a_rehearsals_folder_is_not_removed(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(os.urandom(50_000))
    work, secret = tmp_path / "work", tmp_path / "passphrase"
    secret.write_text("long enough a passphrase")
    diskprep("rehearse", source, "--workdir", work, "-q")
    real = ("--job", "real-job", "--storage-account", "account", "--container", "container", "--resource-group", "g")
    subscription = ("--subscription", "11111111-2222-4333-8444-555555555555", "--passphrase-file", secret)
    diskprep("stage", source, "--staging", work / "staging", *real, *subscription)
    assert "staging of a real job" in diskprep("rehearse", source, "--workdir", work, code=2)[1]
    assert diskprep_json("status", work / "staging")["job_name"] == "real-job"


@pytest.mark.root
def test_what_is_mounted_in_a_rehearsals_folder_is_not_emptied(tmp_path: Path) -> None:
    need_root()
    source = make_tree(tmp_path / "source", megabytes=1)
    work, point = tmp_path / "work", tmp_path / "work/restored/a b"
    work.mkdir()
    (work / ".diskprep-rehearsal").write_bytes(b"")
    point.mkdir(parents=True)
    run("mount", "--bind", source, point)
    try:
        assert "is mounted" in diskprep("rehearse", source, "--workdir", work, code=2)[1]
        assert (source / "empty").exists()
    finally:
        run("umount", point)


def test_a_tree_of_any_depth_is_removed_without_following_links(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/file").write_text("mine")
    top = tmp_path / "restored"
    top.mkdir()
    (top / "link").symlink_to(tmp_path / "precious")
    bury(top, "x" * 200, 3000)
    (top / "locked").mkdir()
    (top / "locked/file").write_text("x")
    (top / "locked").chmod(0)
    preflight.clear_one(tmp_path, "restored")
    assert not top.exists()
    assert (tmp_path / "precious/file").read_text() == "mine"

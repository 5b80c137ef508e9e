"""Recovery passwords of unfinished disks are kept in memory, by their owner alone, or not at all."""

from __future__ import annotations

import codecs
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import need_root, run

from diskprep.disk import memory
from diskprep.secrets import Secret

PASSWORD = Secret("-".join(["000011"] * 8))
SHARED_MEMORY = Path("/dev/shm")
SOMEBODY = 1234


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The runtime folder of a user who is not root, in memory; the test is that user as far as files go."""
    if not memory._is_memory(SHARED_MEMORY):
        pytest.skip("/dev/shm is not memory here")
    root = os.geteuid() == 0
    codecs.lookup("ascii")  # what is loaded late may be out of that user's reach
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY, prefix="diskprep-test-") as name:
        monkeypatch.setenv("XDG_RUNTIME_DIR", name)
        if root:
            os.chown(name, SOMEBODY, SOMEBODY)
            os.seteuid(SOMEBODY)
        try:
            yield Path(name)
        finally:
            if root:
                os.seteuid(0)


def test_the_folder_is_in_memory_and_closed_to_others(runtime: Path) -> None:
    before = os.umask(0)
    try:
        folder = memory.place()
        assert folder == runtime / "diskprep"
        memory.keep(folder, "volume", PASSWORD)
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "volume").stat().st_mode & 0o777 == 0o600
    assert memory.place() == folder, "the same again"


def test_what_is_kept_comes_back_until_it_is_forgotten(runtime: Path) -> None:
    folder = memory.place()
    memory.keep(folder, "volume", PASSWORD)
    assert memory.recall(folder, "volume") == PASSWORD
    assert memory.recall(folder, "another") is None
    memory.forget(folder, "volume")
    assert memory.recall(folder, "volume") is None
    assert folder is not None
    assert not list(folder.iterdir())
    memory.forget(folder, "volume")


def test_without_a_folder_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    memory.keep(None, "volume", PASSWORD)
    memory.forget(None, "volume")
    assert memory.recall(None, "volume") is None
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize("mode", [0o750, 0o701, 0o777])
def test_a_folder_that_is_open_to_others_is_refused(runtime: Path, mode: int) -> None:
    (runtime / "diskprep").mkdir()
    (runtime / "diskprep").chmod(mode)
    assert memory.place() is None


def test_a_symbolic_link_is_not_followed(runtime: Path) -> None:
    (runtime / "mine").mkdir(mode=0o700)
    (runtime / "diskprep").symlink_to(runtime / "mine")
    assert memory.place() is None
    (runtime / "diskprep").unlink()
    (runtime / "diskprep").symlink_to(runtime / "nowhere")
    assert memory.place() is None
    assert not (runtime / "nowhere").exists()


def test_a_file_in_its_place_is_refused(runtime: Path) -> None:
    (runtime / "diskprep").write_bytes(b"")
    assert memory.place() is None


@pytest.mark.root
def test_somebody_elses_folder_is_refused(runtime: Path) -> None:
    os.seteuid(0)
    need_root()
    (runtime / "diskprep").mkdir(mode=0o700)
    os.seteuid(SOMEBODY)
    assert memory.place() is None


def test_where_a_users_folder_is_not_memory_the_shared_one_serves(
    runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/nonexistent")
    monkeypatch.setattr(memory, "_SHARED", runtime)
    folder = memory.place()
    assert folder == runtime / f"diskprep-{os.geteuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_on_a_real_disk_is_refused(tmp_path: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where there is no XDG_RUNTIME_DIR, or one that is not memory."""
    monkeypatch.setattr(memory, "_SHARED", tmp_path)
    for place in ("/var/tmp", "/nonexistent", ""):
        monkeypatch.setenv("XDG_RUNTIME_DIR", place)
        assert memory.place() is None
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert memory.place() is None
    assert not Path("/var/tmp/diskprep").exists()


@pytest.mark.root
def test_a_disk_that_is_mounted_over_the_folder_is_noticed(runtime: Path, tmp_path: Path) -> None:
    os.seteuid(0)
    need_root()
    real = tmp_path / "real"
    for folder in (real, runtime / "diskprep"):
        folder.mkdir(mode=0o700)
        os.chown(folder, SOMEBODY, SOMEBODY)
    run("mount", "--bind", real, runtime / "diskprep")
    try:
        os.seteuid(SOMEBODY)
        assert memory.place() is None
    finally:
        os.seteuid(0)
        run("umount", runtime / "diskprep")


@pytest.mark.parametrize("kept", [b"", b"\xff\xfe", b"x" * 10_000], ids=["empty", "bytes", "long"])
def test_what_is_no_text_is_no_password(runtime: Path, kept: bytes) -> None:
    folder = memory.place()
    assert folder is not None
    (folder / "volume").write_bytes(kept)
    found = memory.recall(folder, "volume")
    assert found is None or found.reveal().encode() == kept

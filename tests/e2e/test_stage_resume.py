"""`diskprep stage` cut off by whatever there is: the same command goes on, and nothing complete is written again."""

from __future__ import annotations

import fcntl
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from share import Share
from staged import Place, children_of, end, ended, make_mixed, processes_of, tree, wait_until
from support import make_tree, need, need_root, run


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough for several packs of each process."""
    return make_mixed(tmp_path_factory.mktemp("long") / "source", megabytes=64)


@pytest.fixture(scope="module")
def little(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tree(tmp_path_factory.mktemp("little") / "source", megabytes=1)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, tmp_path / "staging")


@pytest.fixture
def share(tmp_path: Path) -> Iterator[Share]:
    need_root()
    share = Share(tmp_path / "server", tmp_path / "mounted")
    yield share
    share.unmount()


def killed_at(place: Place, source: Path, packs: int) -> bool:
    """Start staging and kill all its processes as soon as there are so many packs; False when it ended before."""
    child = place.start(source)
    assert wait_until(lambda: len(place.packs()) >= packs or child.poll() is not None)
    over = child.poll() is not None
    if not over:
        os.killpg(child.pid, signal.SIGKILL)
    end(child)
    assert wait_until(lambda: processes_of(place.root) == [])
    return not over


def assert_kept(before: dict[str, tuple[int, int]], place: Place) -> None:
    after = place.packs()
    assert {name: after.get(name) for name in before} == before


def test_killed_again_and_again_it_finishes_and_keeps_every_pack(source: Path, place: Place, tmp_path: Path) -> None:
    kept: dict[str, tuple[int, int]] = {}
    for _ in range(2):
        assert killed_at(place, source, len(kept) + 1)
        assert not (place.root / "seal.json").exists()
        assert_kept(kept, place)
        kept = place.packs()
    place.stage(source)
    assert_kept(kept, place)
    place.assert_whole(source, tmp_path / "restored")
    # What was stored twice would make it more than the source, which does not compress.
    assert place.pack_bytes() < run_bytes(source) * 1.01


def run_bytes(source: Path) -> int:
    return sum(path.stat().st_size for path in source.rglob("*") if path.is_file())


def test_worker_processes_end_with_a_parent_that_was_killed(source: Path, place: Place) -> None:
    child = place.start(source)
    assert wait_until(lambda: len(place.packs()) >= 1)
    workers = children_of(child.pid)
    assert workers
    child.kill()
    end(child)
    assert wait_until(lambda: processes_of(place.root) == [], seconds=20)
    kept = place.packs()
    place.stage(source)
    assert_kept(kept, place)
    place.assert_sound()


def test_a_worker_process_that_was_killed_is_told_and_the_same_command_goes_on(source: Path, place: Place) -> None:
    child = place.start(source)
    assert wait_until(lambda: len(place.packs()) >= 1)
    os.kill(children_of(child.pid)[0], signal.SIGKILL)
    _, err = end(child)
    assert child.returncode == 5
    assert re.search(r"the worker process \d+ has ended before its work was done", err)
    assert "the same command again" in err
    assert processes_of(place.root) == []
    assert list((place.repository / "locks").iterdir()) == []
    kept = place.packs()
    place.stage(source)
    assert_kept(kept, place)
    place.assert_sound()


@pytest.mark.slow
def test_interrupted_it_leaves_at_once_with_what_it_has(source: Path, place: Place) -> None:
    child = place.start(source)
    assert wait_until(lambda: len(place.packs()) >= 1)
    child.send_signal(signal.SIGINT)
    _, err = end(child)
    assert child.returncode == 130
    assert "the same command again" in err
    assert list((place.repository / "locks").iterdir()) == []
    kept = place.packs()
    place.stage(source)
    assert_kept(kept, place)
    place.assert_sound()
    assert place.pack_bytes() < run_bytes(source) * 1.01


def traced(place: Place, source: Path, call: str, fault: str, *, paths: Sequence[str] = (), number: int = 1) -> int:
    """Stage under strace, which does `fault` at the given call of each thread, with `paths` only on those; its exit.
    The log is in `base`."""
    only = [word for path in paths for word in ("-P", place.root / path)]
    inject = ("-e", f"trace={call}", "-e", f"inject={call}:{fault}:when={number}", *only)
    done = subprocess.run(
        [need("strace"), "-f", "-qq", "-o", place.base / "trace", *inject, *place.command(source)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert wait_until(lambda: processes_of(place.root) == [], seconds=20)
    return done.returncode


def assert_finished(place: Place, source: Path, restored: Path) -> None:
    place.stage(source)
    place.assert_whole(source, restored)
    assert len(list((place.repository / "keys").iterdir())) == 1
    assert len(list((place.repository / "snapshots").iterdir())) in (1, 2)


@pytest.mark.parametrize(
    "folder", [pytest.param("repository/keys", marks=pytest.mark.slow), "repository/index", "repository/snapshots"]
)
def test_killed_where_something_becomes_durable_it_finishes(
    little: Path, place: Place, tmp_path: Path, folder: str
) -> None:
    """Before the folder's first sync by each thread: the file is there, and may be gone after a power cut."""
    code = traced(place, little, "fsync", "signal=SIGKILL", paths=[folder])
    assert code in (-signal.SIGKILL, 5)  # all of it, or a worker alone
    assert not (place.root / "seal.json").exists()
    assert_finished(place, little, tmp_path / "restored")


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        ("rename", "signal=SIGKILL", -9),
        ("fsync", "signal=SIGKILL", -9),
        ("unlink", "signal=SIGKILL", -9),
        ("write", "signal=SIGKILL", -9),
        ("fsync", "error=EIO", 5),
        ("rename", "error=EIO", 5),
        ("rename", "error=ESTALE", 5),
        ("rename", "error=ENOSPC", 4),
    ],
    ids=lambda case: f"{case[0]} {case[1]}",
)
def test_every_system_call_may_fail_or_be_the_last(
    little: Path, place: Place, tmp_path: Path, case: tuple[str, str, int]
) -> None:
    call, fault, code = case
    number, step = 1, 9 if call == "write" else 1
    while True:
        exit_code = traced(place, little, call, fault, number=number)
        told = (tmp_path / "trace").read_text(errors="replace")
        if "INJECTED" not in told and "killed by SIGKILL" not in told:
            break
        assert exit_code in (code, 5), f"{call} {number}: exit {exit_code}"
        if code > 0:
            assert list(place.repository.rglob(".tmp-*")) == []
        assert_finished(place, little, tmp_path / "restored")
        shutil.rmtree(place.root)
        shutil.rmtree(tmp_path / "restored")
        number += step
    assert number > step


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["group", "parent", "worker"])
def test_killed_at_any_moment_it_finishes(source: Path, place: Place, tmp_path: Path, whom: str) -> None:
    rng = random.Random(whom)
    wanted = tree(source)
    for number in range(25):
        child = place.start(source)
        time.sleep(rng.uniform(0.4, 3.5))
        workers = children_of(child.pid) if child.poll() is None else []
        if child.poll() is None and whom == "group":
            os.killpg(child.pid, signal.SIGKILL)
        elif child.poll() is None and (whom == "parent" or workers):
            os.kill(child.pid if whom == "parent" else rng.choice(workers), signal.SIGKILL)
        end(child)
        assert child.returncode in (0, 5, -signal.SIGKILL)
        assert wait_until(lambda: processes_of(place.root) == [], seconds=20)
        kept = place.packs()
        place.stage(source)
        assert_kept(kept, place)
        place.assert_tidy()
        if number % 5 == 0:
            place.restic("check", "--read-data")
            place.restic("restore", "latest", "--target", tmp_path / "restored")
            assert tree(tmp_path / "restored" / source.relative_to("/")) == wanted
            shutil.rmtree(tmp_path / "restored")
        shutil.rmtree(place.root)


@pytest.mark.root
def test_a_full_staging_is_told_and_goes_on_after_room_was_made(source: Path, tmp_path: Path) -> None:
    need_root()
    room = tmp_path / "room"
    room.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=45m", "room", room)
    try:
        place = Place(tmp_path, room / "staging")
        refused = place.stage(source, code=4).err
        assert re.search(r"needs 0\.\d+ GB free and has 0\.047 GB", refused)
        assert "--allow-tight" in refused
        assert list(room.iterdir()) == []
        full = place.stage(source, more=("--allow-tight",), code=4).err
        assert "No space left on device" in full
        assert "make room, then give the same command again" in full
        assert list(place.root.rglob(".tmp-*")) == []
        assert list((place.repository / "locks").iterdir()) == []
        kept = place.packs()
        assert kept
        run("mount", "-o", "remount,size=200m", room)
        place.stage(source)
        assert_kept(kept, place)
        place.assert_whole(source, tmp_path / "restored")
    finally:
        run("umount", room)


@pytest.mark.root
def test_a_share_without_links_and_modes_is_a_staging(little: Path, share: Share, tmp_path: Path) -> None:
    place = Place(tmp_path, share.point / "staging")
    with pytest.raises(OSError, match="not supported"):
        (share.point / "link").symlink_to("nowhere")
    place.stage(little)
    assert not (place.root / "config").exists()  # the link for restic, which it does without
    # restic 0.14 itself gives up on a share without modes.
    Place(tmp_path, tmp_path / "server/staging").assert_whole(little, tmp_path / "restored")


@pytest.mark.root
@pytest.mark.parametrize("how", ["vanish", pytest.param("stale", marks=pytest.mark.slow), "unmount"])
def test_a_share_that_goes_away_is_told_and_goes_on_when_it_is_back(
    source: Path, share: Share, tmp_path: Path, how: str
) -> None:
    place = Place(tmp_path, share.point / "staging")
    on_server = Place(tmp_path, tmp_path / "server/staging")
    child = place.start(source)
    assert wait_until(lambda: len(on_server.packs()) >= 1)
    began = time.monotonic()
    if how == "vanish":
        share.vanish()
    elif how == "stale":
        share.become_stale()
    else:
        run("umount", "-l", share.point)
    _, err = end(child)
    assert time.monotonic() - began < 30
    assert child.returncode == 5, err
    assert "then give the same command again" in err
    assert "Traceback" not in err
    kept = on_server.packs()
    if how == "unmount":
        assert list(share.point.iterdir()) == []  # nothing was written below the mount point
    else:
        assert "give the same command again" in place.stage(source, code=5).err
    if how == "stale":
        share.recover()
    else:
        share.unmount()
        share.mount()
    place.stage(source)
    assert_kept(kept, on_server)
    on_server.assert_sound()


def test_of_two_at_one_staging_the_second_is_refused(source: Path, place: Place) -> None:
    first = place.start(source)
    assert wait_until(lambda: _is_locked(place.root / "stage.lock"))
    refused = place.stage(source, code=11).err
    assert "another process is staging into" in refused
    assert "wait until it has ended" in refused
    end(first)
    assert first.returncode == 0
    place.assert_tidy()


@pytest.mark.slow
def test_of_two_at_one_vault_both_finish(little: Path, place: Place, tmp_path: Path) -> None:
    """Backups only add; it is the staging that has one writer."""
    place.stage(little)
    other = make_tree(tmp_path / "other", megabytes=1, seed=8)
    vault = ("--vault", str(place.repository), *place.secret)
    from_ = [subprocess.Popen([*place.command()[:3], "vault", "backup", path, *vault]) for path in (little, other)]
    assert [child.wait(120) for child in from_] == [0, 0]
    assert "no errors were found" in place.restic("check", "--read-data")
    ended([*place.command()[:3], "vault", "check", *vault], 0)


def _is_locked(path: Path) -> bool:
    if not path.exists():
        return False
    with path.open("rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False

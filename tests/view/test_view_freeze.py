"""Views of file systems that stand still, on real ones; and the watchdog, which must not leave one frozen."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support import need, need_mounts, run

from diskprep import process
from diskprep.errors import Locked, SourceIncomplete, UsageError
from diskprep.source import Source
from diskprep.view import freeze, watchdog
from diskprep.view.model import Hooks, ViewKind
from diskprep.view.mounts import mount_of, read_mounts
from diskprep.view.view import consistent_view

pytestmark = pytest.mark.root

MakeVolume = Callable[..., Path]

_HOLDER = """
import os, sys
from pathlib import Path
from diskprep.source import Source
from diskprep.view.model import ViewKind
from diskprep.view.view import consistent_view
with consistent_view([Source(os.fsencode(p)) for p in sys.argv[1:]], kind=ViewKind.FREEZE):
    print("frozen", flush=True)
    sys.stdin.read()
"""


def _source(path: Path) -> Source:
    return Source(os.fsencode(path))


def _is_frozen(point: Path) -> bool:
    """Whether a file system stands still: what is frozen cannot be frozen again."""
    descriptor = os.open(point, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, watchdog.FREEZE, 0)
        fcntl.ioctl(descriptor, watchdog.THAW, 0)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _wait_until_thawed(point: Path, limit_s: float) -> bool:
    deadline = time.monotonic() + limit_s
    while _is_frozen(point):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _start_holder(*sources: Path) -> subprocess.Popen[str]:
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, *sources], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "frozen\n"
    return holder


def _watchdog_of(holder: subprocess.Popen[str]) -> int:
    children = Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split()
    (child,) = [int(pid) for pid in children if b"watchdog.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return child


@pytest.mark.parametrize("fstype", ["ext4", "xfs", "btrfs"])
def test_nobody_writes_while_the_view_is_open(fstype: str, make_volume: MakeVolume) -> None:
    point = make_volume(fstype)
    (point / "file").write_text("before")
    with consistent_view([_source(point)], kind=ViewKind.FREEZE) as view:
        writer = subprocess.Popen(["sh", "-c", f"echo after > {point}/file"])
        time.sleep(0.3)
        assert writer.poll() is None
        assert (point / "file").read_text() == "before"
        assert (view.kind, view.sources) == (ViewKind.FREEZE, (_source(point),))
        assert view.consistency == "crash-consistent: the file system stands still while it is read"
    assert writer.wait(30) == 0
    assert (point / "file").read_text() == "after\n"


def test_all_file_systems_stand_still_together(make_volume: MakeVolume) -> None:
    outer, inner, other = make_volume("ext4", "outer"), make_volume("ext4", "inner"), make_volume("ext4", "other")
    (outer / "here").mkdir()
    run("mount", "--bind", inner, outer / "here")
    (other / "file").write_text("1")
    with consistent_view([_source(outer), _source(other / "file")], kind=ViewKind.FREEZE) as view:
        assert [_is_frozen(point) for point in (outer, inner, other)] == [True, True, True]
        assert "3 file systems stand still" in view.consistency
    assert [_is_frozen(point) for point in (outer, inner, other)] == [False, False, False]


def test_a_file_system_in_a_file_of_another_is_frozen_first(make_volume: MakeVolume) -> None:
    outer = make_volume("xfs", "outer")
    image, inner = outer / "image", outer / "inner"
    with image.open("wb") as stream:
        stream.truncate(32 << 20)
    run(need("mkfs.ext4"), "-q", image)
    inner.mkdir()
    run("mount", "-o", "loop", image, inner)
    mounts = read_mounts()
    both = [mount_of(os.fsencode(point), mounts) for point in (outer, inner)]
    assert [mount.fstype for mount in freeze.freezing_order(both)] == ["ext4", "xfs"]
    (inner / "file").write_bytes(bytes(1_000_000))  # to be written to the image when it is frozen
    with consistent_view([_source(outer)], kind=ViewKind.FREEZE):
        assert _is_frozen(outer)
        with pytest.raises(UsageError, match="which is written to, is on it"):  # and so is what it lies on
            freeze.refuse(both[:1], [os.fsencode(inner)])
    assert not _is_frozen(inner)
    run("umount", inner)


def test_an_error_thaws(make_volume: MakeVolume) -> None:
    point = make_volume("ext4")
    for error in (RuntimeError("boom"), KeyboardInterrupt()):
        with pytest.raises(type(error)), consistent_view([_source(point)], kind=ViewKind.FREEZE):
            raise error
        assert not _is_frozen(point)


def test_a_killed_owner_leaves_nothing_frozen(make_volume: MakeVolume) -> None:
    one, two = make_volume("xfs", "one"), make_volume("ext4", "two")
    holder = _start_holder(one, two)
    assert _is_frozen(one)
    holder.kill()
    holder.wait(30)
    assert _wait_until_thawed(one, 10)
    assert _wait_until_thawed(two, 10)


def test_a_killed_owner_whose_child_still_holds_its_pipes_leaves_nothing_frozen(make_volume: MakeVolume) -> None:
    point = make_volume("ext4")
    program = _HOLDER.replace("    print(", "    if not os.fork():\n        import time; time.sleep(20)\n    print(", 1)
    holder = subprocess.Popen(
        [sys.executable, "-c", program, point], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "frozen\n"
    (child,) = [
        int(pid)
        for pid in Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split()
        if b"watchdog" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    try:
        holder.kill()
        holder.wait(30)
        assert _wait_until_thawed(point, 10)
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_killed_watchdog_leaves_nothing_frozen(make_volume: MakeVolume) -> None:
    point = make_volume("ext4")
    holder = _start_holder(point)
    os.kill(_watchdog_of(holder), signal.SIGKILL)
    assert _is_frozen(point)
    _, _ = holder.communicate("")
    assert holder.returncode == 1  # it cannot say that the view lasted
    assert not _is_frozen(point)


def test_the_watchdog_thaws_when_the_computer_is_shut_down(make_volume: MakeVolume) -> None:
    point = make_volume("ext4")
    holder = _start_holder(point)
    os.kill(_watchdog_of(holder), signal.SIGTERM)
    assert _wait_until_thawed(point, 10)
    holder.communicate("")


def test_the_time_limit_thaws_and_is_told(make_volume: MakeVolume) -> None:
    point = make_volume("ext4")
    with (
        pytest.raises(SourceIncomplete, match="thawed before the reading had ended"),
        consistent_view([_source(point)], kind=ViewKind.FREEZE, freeze_limit_s=0.5),
    ):
        (point / "file").write_text("waits until the limit")
    assert not _is_frozen(point)


def test_one_that_is_already_frozen_stays_so_and_the_others_are_thawed(make_volume: MakeVolume) -> None:
    one, two = make_volume("ext4", "one"), make_volume("ext4", "two")
    run("fsfreeze", "-f", two)
    try:
        with (
            pytest.raises(Locked, match="already frozen"),
            consistent_view([_source(one), _source(two)], kind=ViewKind.FREEZE),
        ):
            pass
        assert not _is_frozen(one)
        assert _is_frozen(two)
    finally:
        run("fsfreeze", "-u", two)


def test_what_this_process_writes_to_is_never_frozen(make_volume: MakeVolume, tmp_path: Path) -> None:
    need_mounts(Path("/etc"))
    point = make_volume("ext4")

    def refusal(source: Path, **options: object) -> str:
        with (
            pytest.raises(UsageError) as caught,
            consistent_view([_source(source)], kind=ViewKind.FREEZE, **options),  # type: ignore[arg-type]
        ):
            pass
        assert not _is_frozen(point)
        return caught.value.message

    assert "the system is on it" in refusal(Path("/etc"))
    staging = point / "staging" / "not yet there"
    assert f"{staging}, which is written to, is on it" in refusal(point, writes_to=[staging])
    (tmp_path / "link").symlink_to(point)
    assert "which is written to, is on it" in refusal(point, writes_to=[tmp_path / "link" / "staging"])
    with (point / "log").open("w"):
        assert f"open for writing, {point}/log, is on it" in refusal(point)
    (point / "memory").mkdir()
    run("mount", "-t", "tmpfs", "none", point / "memory")
    assert "there is no file system to freeze" in refusal(point / "memory")


def test_the_post_hook_runs_after_the_thaw(make_volume: MakeVolume) -> None:
    point = make_volume("ext4")
    hooks = Hooks(pre=f"touch {point}/pre", post=f"touch {point}/post")
    with consistent_view([_source(point)], kind=ViewKind.FREEZE, hooks=hooks):
        assert sorted(path.name for path in point.iterdir()) == ["lost+found", "pre"]
    assert (point / "post").exists()


def test_a_companion_that_dies_is_noticed() -> None:
    companion = process.Companion([sys.executable, "-c", "print('one'); print('two', end='')"])
    assert companion.line(10) == "one"
    assert companion.line(10) == ""
    companion.tell("nobody hears this")
    companion.end(10)
    silent = process.Companion([sys.executable, "-c", "import time; time.sleep(60)"])
    assert silent.line(0.05) is None
    silent.end(0.05)

"""Views through btrfs snapshots, on real volumes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support import need, need_mounts, run

from diskprep.errors import DiskprepError, UsageError
from diskprep.events import Event, Note
from diskprep.repository.keys import ScryptCost
from diskprep.repository.repository import create
from diskprep.secrets import Secret
from diskprep.source import Source
from diskprep.staging.writer import backup
from diskprep.store.directory import DirectoryStore
from diskprep.view import owner
from diskprep.view.model import ViewKind
from diskprep.view.view import consistent_view

pytestmark = pytest.mark.root

MakeVolume = Callable[..., Path]

_HOLDER = """
import os, sys
from pathlib import Path
from diskprep import interrupts
from diskprep.source import Source
from diskprep.view.view import consistent_view
interrupts.install()
with consistent_view([Source(os.fsencode(p)) for p in sys.argv[2:]], run_root=Path(sys.argv[1])) as view:
    print(view.kind, flush=True)
    sys.stdin.read()
"""


def _source(path: Path) -> Source:
    return Source(os.fsencode(path))


def _subvolume(path: Path) -> Path:
    run(need("btrfs"), "subvolume", "create", path)
    return path


def _place(source: Source) -> Path:
    """Where a view's source is read."""
    return Path(os.fsdecode(source.location))


def _files(place: Path) -> dict[str, str]:
    return {str(path.relative_to(place)): path.read_text() for path in place.rglob("*") if path.is_file()}


def _subvolumes(point: Path) -> list[str]:
    lines = run(need("btrfs"), "subvolume", "list", point).splitlines()
    return [line.partition(" path ")[2] for line in lines if line.startswith("ID ")]


def _assert_nothing_left(run_root: Path, *points: Path) -> None:
    assert list(run_root.iterdir()) == []
    assert os.fsencode(run_root) not in Path("/proc/self/mountinfo").read_bytes()
    for point in points:
        assert [name for name in _subvolumes(point) if "diskprep" in name] == []


def _start_holder(run_root: Path, *sources: Path) -> subprocess.Popen[str]:
    """A process that holds a view until its stdin ends."""
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, run_root, *sources], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "btrfs\n"
    return holder


def test_later_changes_are_not_seen_and_original_paths_stay(make_volume: MakeVolume, run_root: Path) -> None:
    point = make_volume("btrfs")
    folder = point / "folder"
    folder.mkdir()
    (folder / "kept").write_text("before")
    (folder / "doomed").write_text("before")
    with consistent_view([_source(folder)], run_root=run_root) as view:
        (folder / "kept").write_text("after")
        (folder / "doomed").unlink()
        (folder / "new").write_text("after")
        (source,) = view.sources
        assert (view.kind, source.path) == (ViewKind.BTRFS, os.fsencode(folder))
        assert view.consistency == "crash-consistent: 1 btrfs snapshot of one moment"
        assert _files(_place(source)) == {"kept": "before", "doomed": "before"}
        assert run_root.stat().st_mode & 0o777 == 0o700
    _assert_nothing_left(run_root, point)


def test_nested_subvolumes_are_seen_at_their_place(make_volume: MakeVolume, run_root: Path) -> None:
    point = make_volume("btrfs")
    nested = _subvolume(point / "nested")
    (nested / "file").write_text("1")
    (nested / "folder").mkdir()
    deeper = _subvolume(nested / "folder" / "deeper \n\\ é")
    (deeper / "file").write_text("2")
    (point / "file").write_text("0")
    inode = (deeper / "file").stat().st_ino, deeper.stat().st_ino
    with consistent_view([_source(point)], run_root=run_root) as view:
        for path in (point / "file", nested / "file", deeper / "file"):
            path.write_text("changed")
        place = _place(view.sources[0])
        shown = place / "nested" / "folder" / deeper.name
        assert _files(place) == {"file": "0", "nested/file": "1", f"nested/folder/{deeper.name}/file": "2"}
        assert ((shown / "file").stat().st_ino, shown.stat().st_ino) == inode
        assert [path.name for path in place.iterdir() if "diskprep" in path.name] == []
        assert "3 btrfs snapshots" in view.consistency
    _assert_nothing_left(run_root, point)


def test_one_file_system_leaves_nested_subvolumes_out(make_volume: MakeVolume, run_root: Path) -> None:
    point = make_volume("btrfs")
    (_subvolume(point / "nested") / "file").write_text("1")
    (point / "file").write_text("0")
    with consistent_view([_source(point)], one_file_system=True, run_root=run_root) as view:
        assert _files(_place(view.sources[0])) == {"file": "0"}


def test_what_the_backup_excludes_gets_no_snapshot(make_volume: MakeVolume, run_root: Path) -> None:
    point = make_volume("btrfs")
    (_subvolume(point / "nested") / "file").write_text("1")
    with consistent_view([_source(point)], exclude=[os.fsencode(point / "nested")], run_root=run_root) as view:
        assert "1 btrfs snapshot " in view.consistency


def test_a_file_system_mounted_below_is_seen_too(make_volume: MakeVolume, run_root: Path) -> None:
    outer, inner = make_volume("btrfs", "outer"), make_volume("btrfs", "inner")
    (inner / "part").mkdir()
    (inner / "part" / "file").write_text("1")
    (outer / "here").mkdir()
    (outer / "memory").mkdir()
    run("mount", "--bind", inner / "part", outer / "here")
    run("mount", "-t", "tmpfs", "none", outer / "memory")
    (outer / "memory" / "file").write_text("2")
    heard: list[Event] = []
    with consistent_view([_source(outer)], run_root=run_root, emit=heard.append) as view:
        (inner / "part" / "file").write_text("changed")
        assert _files(_place(view.sources[0])) == {"here/file": "1", "memory/file": "2"}
    assert heard == [Note(stage="view", text=f"{outer}/memory: in memory, read as it is")]
    _assert_nothing_left(run_root, outer, inner)


def test_several_sources_on_two_volumes(make_volume: MakeVolume, run_root: Path) -> None:
    one, two = make_volume("btrfs", "one"), make_volume("btrfs", "two")
    for folder in (one / "a", one / "b", two / "c"):
        folder.mkdir()
        (folder / "file").write_text(folder.name)
    (two / "link").symlink_to("nowhere")
    sources = [_source(path) for path in (one / "a", one / "b", two / "c" / "file", two / "link")]
    with consistent_view(sources, run_root=run_root) as view:
        for folder in (one / "a", one / "b", two / "c"):
            (folder / "file").write_text("changed")
        (two / "link").unlink()
        a, b, file, link = map(_place, view.sources)
        assert [source.path for source in view.sources] == [source.path for source in sources]
        assert (_files(a), _files(b), file.read_text()) == ({"file": "a"}, {"file": "b"}, "c")
        assert str(link.readlink()) == "nowhere"
        assert "2 btrfs snapshots, each of its own moment" in view.consistency
    _assert_nothing_left(run_root, one, two)


@pytest.mark.parametrize("name", [b"with blank", b"new\nline", b"back\\040slash", b"not-utf8-\xff\xfe", b"-dash"])
def test_sources_with_odd_names(name: bytes, make_volume: MakeVolume, run_root: Path) -> None:
    point = make_volume("btrfs")
    folder = point / os.fsdecode(name)
    folder.mkdir()
    nested = _subvolume_of(folder, name)
    (nested / "file").write_text("1")
    with consistent_view([Source(os.fsencode(folder))], run_root=run_root) as view:
        (nested / "file").write_text("changed")
        place = _place(view.sources[0])
        assert (place / os.fsdecode(name) / "file").read_text() == "1"
    _assert_nothing_left(run_root, point)


def _subvolume_of(folder: Path, name: bytes) -> Path:
    run(need("btrfs"), "subvolume", "create", "--", folder / os.fsdecode(name))
    return folder / os.fsdecode(name)


def test_a_source_behind_a_symlink_and_in_a_mounted_subvolume(
    make_volume: MakeVolume, run_root: Path, tmp_path: Path
) -> None:
    point = make_volume("btrfs")
    home = _subvolume(point / "@home")
    (home / "user").mkdir()
    (home / "user" / "file").write_text("1")
    mounted = tmp_path / "home"
    mounted.mkdir()
    run("mount", "-o", "subvol=@home", point.with_name("volume.img"), mounted)
    try:
        (tmp_path / "link").symlink_to(mounted)
        with consistent_view([_source(tmp_path / "link" / "user")], run_root=run_root) as view:
            (home / "user" / "file").write_text("changed")
            assert _files(_place(view.sources[0])) == {"file": "1"}
            assert view.sources[0].path == os.fsencode(tmp_path / "link" / "user")
    finally:
        run("umount", mounted)
    _assert_nothing_left(run_root, point)


def test_the_view_goes_after_an_error_and_an_interrupt(make_volume: MakeVolume, run_root: Path) -> None:
    point = make_volume("btrfs")
    _subvolume(point / "nested")
    for error in (RuntimeError("boom"), KeyboardInterrupt()):
        with pytest.raises(type(error)), consistent_view([_source(point)], run_root=run_root):
            raise error
        _assert_nothing_left(run_root, point)


def test_a_busy_view_goes_all_the_same(make_volume: MakeVolume, run_root: Path) -> None:
    point = make_volume("btrfs")
    (_subvolume(point / "nested") / "file").write_text("1")
    heard: list[Event] = []
    with consistent_view([_source(point)], run_root=run_root, emit=heard.append) as view:
        stream = (_place(view.sources[0]) / "nested" / "file").open()
    with stream:
        assert stream.read() == "1"
        assert heard == []
    _assert_nothing_left(run_root, point)


def test_ctrl_c_removes_the_view(make_volume: MakeVolume, run_root: Path) -> None:
    point = make_volume("btrfs")
    holder = _start_holder(run_root, point)
    assert len(_subvolumes(point)) == 1
    holder.send_signal(signal.SIGINT)
    assert holder.wait(30) != 0
    _assert_nothing_left(run_root, point)


def test_what_a_killed_run_left_is_removed_by_the_next_one(make_volume: MakeVolume, run_root: Path) -> None:
    one, two = make_volume("btrfs", "one"), make_volume("btrfs", "two")
    _subvolume(one / "nested")
    (two / "file").write_text("1")
    holder = _start_holder(run_root, one, two)
    holder.kill()
    holder.wait(30)
    (left,) = run_root.iterdir()
    assert owner.is_dead(left.name)
    assert len(_subvolumes(one)) == 3
    heard: list[Event] = []
    # A source of one volume only: the other is cleaned by way of what the dead run had mounted.
    with consistent_view([_source(two)], run_root=run_root, emit=heard.append) as view:
        assert _files(_place(view.sources[0])) == {"file": "1"}
    assert [note.text.split(",")[1] for note in heard if isinstance(note, Note)] == [" which a dead run had left"] * 3
    _assert_nothing_left(run_root, one, two)


def test_what_an_earlier_boot_left_is_removed_and_what_others_own_is_not(
    make_volume: MakeVolume, run_root: Path
) -> None:
    point = make_volume("btrfs")
    machine, boot, *rest = owner.new_token().split("-")[1:]
    others = "0" * 8 if machine != "0" * 8 else "1" * 8
    earlier = "-".join(["diskprep", machine, "f" * 8 if boot != "f" * 8 else "e" * 8, *rest])
    foreign = "-".join(["diskprep", others, boot, *rest])
    for name in (earlier, foreign, owner.new_token(), "diskprep-mine"):
        run(need("btrfs"), "subvolume", "snapshot", "-r", point, point / name)
    kept = set(_subvolumes(point)) - {earlier}
    with consistent_view([_source(point)], run_root=run_root):
        pass
    assert set(_subvolumes(point)) == kept
    assert len(kept) == 3


def test_a_run_that_is_still_alive_is_left_alone(make_volume: MakeVolume, run_root: Path) -> None:
    point = make_volume("btrfs")
    (point / "file").write_text("1")
    holder = _start_holder(run_root, point)
    before = _subvolumes(point)
    with consistent_view([_source(point)], run_root=run_root) as view:
        assert set(before) < set(_subvolumes(point))
        assert _files(_place(view.sources[0])) == {"file": "1"}
    assert _subvolumes(point) == before
    holder.communicate("")
    assert holder.returncode == 0
    _assert_nothing_left(run_root, point)


def test_an_incremental_through_a_view_reads_no_file_again(
    make_volume: MakeVolume, run_root: Path, tmp_path: Path
) -> None:
    point = make_volume("btrfs")
    (_subvolume(point / "nested") / "file").write_bytes(os.urandom(100_000))
    (point / "file").write_bytes(os.urandom(2_000_000))
    repository = create(
        DirectoryStore(tmp_path / "repository"), Secret("correct horse battery"), cost=ScryptCost(n=16, r=1, p=1)
    )
    first = backup(repository, [_source(point)], hostname="here")
    with consistent_view([_source(point)], run_root=run_root) as view:
        second = backup(repository, view.sources, hostname="here", base=repository.snapshots()[-1])
    assert (first.files, second.files, second.files_unmodified) == (2, 2, 2)
    assert [snapshot.paths for snapshot in repository.snapshots()] == [(str(point),)] * 2
    assert second.unreadable == ()


def test_a_kind_that_is_not_possible_is_refused_and_auto_does_without(
    make_volume: MakeVolume, run_root: Path, tmp_path: Path
) -> None:
    need_mounts(tmp_path)
    point = make_volume("btrfs")
    for kind in (ViewKind.BTRFS, ViewKind.LVM, ViewKind.ZFS):
        with (
            pytest.raises(UsageError, match=f"--snapshot {kind}: no snapshot is possible: {tmp_path}"),
            consistent_view([_source(tmp_path)], kind=kind, exclude=[os.fsencode(point)], run_root=run_root),
        ):
            pass
    heard: list[Event] = []
    sources = [_source(point), _source(tmp_path / "volume.img")]
    with consistent_view(sources, run_root=run_root, emit=heard.append) as view:
        assert (view.kind, view.sources) == (ViewKind.NONE, tuple(sources))
    (note,) = heard
    assert isinstance(note, Note)
    assert note.text.startswith(f"no snapshot is possible: {tmp_path}/volume.img is ")
    assert not run_root.exists()


def test_a_read_only_file_system_is_read_where_it_is(make_volume: MakeVolume, run_root: Path) -> None:
    outer, inner = make_volume("btrfs", "outer"), make_volume("ext4", "inner")
    (inner / "file").write_text("1")
    (outer / "here").mkdir()
    run("mount", "-o", "remount,ro", inner)
    run("mount", "--bind", inner, outer / "here")
    with consistent_view([_source(outer)], kind=ViewKind.BTRFS, run_root=run_root) as view:
        assert (_place(view.sources[0]) / "here" / "file").read_text() == "1"


def test_a_run_directory_that_others_can_write_to_is_refused(make_volume: MakeVolume, run_root: Path) -> None:
    point = make_volume("btrfs")
    run_root.mkdir()
    run_root.chmod(0o777)
    with (
        pytest.raises(DiskprepError, match="can be written by others"),
        consistent_view([_source(point)], kind=ViewKind.BTRFS, run_root=run_root),
    ):
        pass
    assert _subvolumes(point) == []

"""What the kernel says of mounts, and whose a name is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import need, need_mounts, need_root, run

from diskprep.errors import NotFound
from diskprep.view import owner
from diskprep.view.model import join
from diskprep.view.mounts import inside, mount_id, mount_of, parse_mountinfo, read_mounts, relative, resolve

_LINES = (
    b"43 27 0:39 / /mnt/a rw,relatime - btrfs /dev/loop0 rw,discard=async,space_cache=v2,subvolid=5,subvol=/\n"
    b"44 43 0:39 /@home /mnt/a/new\\012line\\040\\134040 ro,nosuid shared:5 master:1 - btrfs /dev/loop0 rw\n"
    b"45 27 7:1 / /snap ro - squashfs /dev/loop1 ro,errors=continue\n"
    b"46 27 0:50 / /tank rw - zfs tank/with\\040blank rw,xattr\n"
    b"47 27 0:51 / /mnt/\xff\xfe rw - tmpfs none rw\n"
    b"48 cut short\n"
)


def test_mountinfo_is_read_with_its_escapes() -> None:
    top, home, snap, tank, memory = parse_mountinfo(_LINES)
    assert (top.id, top.number, top.root, top.point, top.fstype) == (43, "0:39", b"/", b"/mnt/a", "btrfs")
    assert (home.root, home.point, home.device) == (b"/@home", b"/mnt/a/new\nline \\040", b"/dev/loop0")
    assert [mount.is_fixed for mount in (top, home, snap)] == [False, False, True]
    assert tank.device == b"tank/with blank"
    assert (memory.point, memory.is_in_memory, tank.is_in_memory) == (b"/mnt/\xff\xfe", True, False)


def test_the_mount_of_a_path_is_what_the_kernel_says(tmp_path: Path) -> None:
    need_mounts(tmp_path)
    mounts = read_mounts()
    assert mount_of(b"/proc/self", mounts).fstype == "proc"
    assert mount_of(b"/", mounts).point == b"/"
    (tmp_path / "link").symlink_to("/proc")
    assert mount_id(os.fsencode(tmp_path / "link")) == mount_id(os.fsencode(tmp_path))
    assert mount_id(os.fsencode(tmp_path / "nothing")) is None
    with pytest.raises(NotFound):
        mount_of(os.fsencode(tmp_path / "nothing"), mounts)


_IN_CHROOT = """
import sys
from diskprep.source import Source
from diskprep.view.model import ViewKind
from diskprep.view.view import consistent_view
for kind in (ViewKind.NONE, ViewKind.AUTO):
    heard = []
    with consistent_view([Source(b"/data")], kind=kind, emit=heard.append) as view:
        print(view.kind, view.sources[0].location, *(note.text for note in heard))
"""


@pytest.mark.root
def test_where_the_mounts_cannot_be_seen_files_are_read_as_they_are(tmp_path: Path) -> None:
    need_root()
    need_mounts(tmp_path)  # in a chroot no other one can be made this way
    binds = [Path("/proc"), Path("/usr"), Path(sys.base_prefix), Path(sys.prefix), Path(__file__).parents[2]]
    root = tmp_path / "root"
    (root / "data").mkdir(parents=True)
    for path in binds:
        (root / path.relative_to("/")).mkdir(parents=True, exist_ok=True)
    for path in (Path("/lib"), Path("/lib64"), Path("/bin"), Path("/sbin")):
        if path.is_symlink():
            (root / path.relative_to("/")).symlink_to(path.readlink())
        elif path.is_dir():
            (root / path.relative_to("/")).mkdir(exist_ok=True)
            binds.append(path)
    script = (
        'set -e; r=$1; shift; while [ $1 != -- ]; do mount --rbind $1 $r$1; shift; done; shift; exec chroot $r "$@"'
    )
    said = run(
        *(need("unshare"), "--mount", "sh", "-c", script, "sh", root, *binds, "--"),
        *(sys.executable, "-c", _IN_CHROOT),
    )
    assert said.splitlines() == [
        "none b'/data'",
        "none b'/data' no snapshot is possible: cannot tell which file system '/data' is on; "
        "the files are read as they are, while they may change",
    ]


def test_symlinks_on_the_way_are_resolved_and_the_last_one_is_not(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "way").symlink_to("real")
    (tmp_path / "real" / "last").symlink_to("/nowhere")
    assert resolve(os.fsencode(tmp_path / "way" / "last")) == os.fsencode(tmp_path / "real" / "last")
    assert resolve(b"/") == b"/"


_NAMES = st.lists(st.binary(min_size=1, max_size=5).filter(lambda name: b"/" not in name), max_size=4)


@given(_NAMES, _NAMES)
def test_a_path_is_its_folder_and_the_rest(folder: list[bytes], rest: list[bytes]) -> None:
    top = b"/" + b"/".join(folder)
    path = join(top, b"/".join(rest))
    assert inside(path, top)
    assert relative(path, top) == b"/".join(rest)
    assert join(top, relative(path, top)) == path
    assert not inside(b"/ab", b"/a")


def test_a_name_is_dead_only_when_its_process_surely_is() -> None:
    mine = owner.new_token()
    _, machine, boot, space, pid, start, rest = mine.split("-")
    other = "0" * 8

    def name(**changes: str) -> str:
        fields = {"machine": machine, "boot": boot, "space": space, "pid": pid, "start": start, "rest": rest, **changes}
        return "-".join(["diskprep", *fields.values()])

    assert name() == mine
    assert owner.is_ours(mine)
    assert owner.is_ours(mine + "-12")
    assert not owner.is_dead(mine)
    assert not owner.is_dead(mine + "-0")
    assert owner.is_dead(name(start=str(int(start) + 1)))  # the number was given to another process
    assert owner.is_dead(name(boot=other) + "-3")
    assert not owner.is_dead(name(machine=other, boot=other))
    assert not owner.is_dead(name(space="1", start="1"))  # of another container: nobody here can know
    for foreign in ("diskprep-data", "data", "", mine + "x", mine.upper(), "x" + mine):
        assert not owner.is_ours(foreign)
        assert not owner.is_dead(foreign)


def test_a_process_that_waits_to_be_reaped_is_dead() -> None:
    program = "from diskprep.view.owner import new_token; print(new_token())"
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    token = child.stdout.read().strip()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    try:
        assert owner.is_ours(token)
        assert owner.is_dead(token)
    finally:
        child.wait(30)
    assert owner.is_dead(token)

"""`diskprep stage` keeps what a tree may hold, tells what it cannot keep, and agrees with restic about both."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from share import Share
from staged import PROGRAM, Place, ended, restic, tree
from support import make_tree, need, need_root, plain_user, run

_ACL = struct.pack(
    "<I" + "HHI" * 5, 2, 1, 6, 0xFFFFFFFF, 2, 4, 65534, 4, 4, 0xFFFFFFFF, 16, 4, 0xFFFFFFFF, 32, 0, 0xFFFFFFFF
)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, tmp_path / "staging")


def make_everything(root: Path) -> Path:
    """`make_tree`, and what only root may make."""
    make_tree(root, megabytes=1)
    odd = root / "odd"
    os.mknod(odd / "null", 0o20666, os.makedev(1, 3))
    os.mknod(odd / "disk", 0o60640, os.makedev(7, 200))
    (odd / "owned").write_bytes(b"by somebody without a name")
    os.chown(odd / "owned", 54321, 54322)
    os.lchown(odd / "dangling", 54321, 54322)
    (root / "sticky").mkdir()
    (root / "sticky").chmod(0o1777)
    (root / "setgid").mkdir()
    (root / "setgid").chmod(0o2750)
    (root / "n" / ("x" * 255)).mkdir(parents=True)
    (odd / "epoch").write_bytes(b"before it")
    os.utime(odd / "epoch", ns=(-1, -1))
    (odd / "big hole").touch()
    os.truncate(odd / "big hole", 60 << 20)
    os.setxattr(odd / "owned", "user.empty", b"")
    os.setxattr(odd, "user.folder", b"v" * 1000)
    os.setxattr(odd / "owned", "trusted.secret", b"of root")
    os.setxattr(odd / "owned", "system.posix_acl_access", _ACL)
    os.setxattr(root / "sticky", "system.posix_acl_default", _ACL)
    return root


def vault_restore(place: Place, target: Path) -> None:
    ended([*PROGRAM, "vault", "restore", str(target), "--vault", str(place.repository), *place.secret], 0)


def summary(place: Place, repository: Path, source: Path, *more: str) -> dict[str, int]:
    """restic's backup of the source, as numbers."""
    said = restic(repository, "backup", "--json", source, *more, secret=place.secret[1])
    last = json.loads(said.strip().splitlines()[-1])
    assert last["message_type"] == "summary"
    return {name: value for name, value in last.items() if isinstance(value, int)}


_NOTHING_NEW = {"files_new": 0, "files_changed": 0, "dirs_new": 0, "data_blobs": 0}
_ABOVE_BYTES = 5000  # of the trees above a source; the source's own has more


@pytest.mark.root
def test_everything_comes_back_and_restic_finds_nothing_to_add(place: Place, tmp_path: Path) -> None:
    need_root()
    source = make_everything(tmp_path / "source")
    wanted = tree(source)
    said = place.stage(source, more=("--json",)).document
    assert said["skipped_sockets"] == 1
    assert (said["unreadable"], said["changed"]) == ([], [])
    assert said["preflight"]["source"]["files"] == said["files"]
    place.assert_whole(source, tmp_path / "by restic")
    shutil.rmtree(tmp_path / "by restic")
    vault_restore(place, tmp_path / "by us")
    ours = tmp_path / "by us" / source.relative_to("/")
    assert tree(ours) == wanted
    for name in ("holes", "big hole"):  # a hole comes back where it is of some length
        took = [(folder / "odd" / name).stat().st_blocks * 512 for folder in (ours, source)]
        assert took[0] <= took[1] + (1 << 20)
    assert len({path.stat().st_ino for path in (ours / "odd").glob("hard-*")}) == 1

    added = summary(place, place.repository, source)
    assert {name: added[name] for name in _NOTHING_NEW} == _NOTHING_NEW
    assert added["dirs_changed"] <= len(source.parts) - 2  # those above the source, where others write
    assert added["files_unmodified"] == said["files"]
    vault = ("--vault", str(place.repository), *place.secret, "--json")
    again = ended([*PROGRAM, "vault", "backup", str(source), *vault], 0).document
    assert again["files_unmodified"] == said["files"]
    assert again["bytes_added"] < _ABOVE_BYTES


@pytest.mark.root
def test_we_add_nothing_after_a_first_backup_by_restic(place: Place, tmp_path: Path) -> None:
    need_root()
    source, repository = make_everything(tmp_path / "source"), tmp_path / "repository"
    restic(repository, "init", "--repository-version", "2", secret=place.secret[1])
    files = summary(place, repository, source)["files_new"]
    vault = ("--vault", str(repository), *place.secret, "--json")
    ours = ended([*PROGRAM, "vault", "backup", str(source), *vault], 0).document
    assert ours["files_unmodified"] == files
    assert ours["bytes_added"] < _ABOVE_BYTES


def test_paths_longer_than_any_call_takes_come_back(place: Place, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    here = os.open(source, os.O_RDONLY)
    for _ in range(25):
        os.mkdir("l" * 200, dir_fd=here)
        below = os.open("l" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    with os.fdopen(os.open("deepest", os.O_CREAT | os.O_WRONLY, 0o640, dir_fd=here), "wb") as stream:
        stream.write(b"down here" * 100_000)
    os.close(here)
    try:
        assert place.stage(source, more=("--json",)).document["unreadable"] == []
        assert len(place.restic("ls", "latest").splitlines()[-1]) > 5000
        vault_restore(place, tmp_path / "restored")
        assert tree(tmp_path / "restored" / source.relative_to("/")) == tree(source)
    finally:
        run("rm", "-rf", source, tmp_path / "restored")  # the test runner's own removal is recursive


@pytest.mark.parametrize("entries", [50_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_a_folder_of_very_many_entries(place: Place, tmp_path: Path, entries: int) -> None:
    folder = tmp_path / "source/wide"
    folder.mkdir(parents=True)
    (folder / "first").write_bytes(b"")
    descriptor = os.open(folder, os.O_RDONLY)
    for number in range(entries - 1):
        os.symlink(f"t{number}", f"entry {number}", dir_fd=descriptor)
    os.close(descriptor)
    began = time.monotonic()
    place.stage(tmp_path / "source")
    assert time.monotonic() - began < 10 + entries / 5000
    assert place.restic("ls", "latest", folder).count(f"{folder}/") == entries


def test_a_sparse_file_of_100_gb_takes_seconds(place: Place, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    file = tmp_path / "source/sparse"
    with file.open("wb") as stream:
        stream.truncate(100_000_000_000)
        stream.seek(50_000_000_001)
        stream.write(b"island")
    began = time.monotonic()
    assert place.stage(tmp_path / "source", more=("--json", "--allow-tight")).document["bytes_processed"] == 10**11
    assert time.monotonic() - began < 40
    assert place.pack_bytes() < 8 << 20
    node = next(
        json.loads(line) for line in place.restic("ls", "--json", "latest").splitlines() if '"name":"sparse"' in line
    )
    assert node["size"] == 10**11


@pytest.fixture
def unsteady(tmp_path: Path) -> Iterator[Share]:
    """A share on which files vanish, fail, grow and shrink while they are read, as their names say."""
    need_root()
    server = tmp_path / "server"
    for size in (9000, 3_000_000):
        (server / f"of {size}").mkdir(parents=True)
        for name in ("steady", "vanishing", "failing", "growing", "shrinking"):
            (server / f"of {size}" / name).write_bytes(random.Random(name).randbytes(size))
    share = Share(server, tmp_path / "source")
    yield share
    share.unmount()


@pytest.mark.root
def test_what_happens_to_files_meanwhile_is_told_and_the_rest_is_complete(
    place: Place, unsteady: Share, tmp_path: Path
) -> None:
    source = unsteady.point
    done = place.stage(source, more=("--json",), code=3)
    said = done.document
    sizes = (9000, 3_000_000)
    assert {(found["path"], found["reason"]) for found in said["unreadable"]} == {
        *((f"{source}/of {size}/vanishing", "it vanished") for size in sizes),
        *((f"{source}/of {size}/failing", "Input/output error") for size in sizes),
    }
    assert set(said["changed"]) == {f"{source}/of {size}/{name}" for size in sizes for name in ("growing", "shrinking")}
    assert "4 source entries could not be read, 4 changed meanwhile; all else is stored" in done.err
    assert "--snapshot auto" in done.err
    place.restic("restore", "latest", "--target", tmp_path / "restored")
    restored = tmp_path / "restored" / source.relative_to("/")
    for size in sizes:
        assert {path.name for path in (restored / f"of {size}").iterdir()} == {"steady", "growing", "shrinking"}
        steady = (tmp_path / f"server/of {size}/steady").read_bytes()
        assert (restored / f"of {size}/steady").read_bytes() == steady
    assert "no errors were found" in place.restic("check", "--read-data")


@pytest.mark.root
def test_what_a_plain_user_may_not_read_is_told_and_the_rest_is_complete(place: Place, tmp_path: Path) -> None:
    source = make_tree(tmp_path / "source", megabytes=1)
    (source / "closed").mkdir()
    (source / "closed/inside").write_bytes(b"x")
    (source / "closed").chmod(0)
    done = ended([*plain_user(), *place.command(source, more=("--json",))], 3)
    told = {found["path"]: found["reason"] for found in done.document["unreadable"]}
    assert set(told) == {f"{source}/closed", f"{source}/odd/no rights"}
    assert set(told.values()) == {"Permission denied"}
    listed = place.restic("ls", "latest").splitlines()
    assert f"{source}/folder 1/small-299" in listed
    assert f"{source}/odd/no rights" not in listed


def make_selectable(root: Path) -> list[Path]:
    one, two = root / "one", root / "two"
    for folder in (one, two):
        (folder / "cache").mkdir(parents=True)
        (folder / "cache/CACHEDIR.TAG").write_text("Signature: 8a477f597d28d172789f06886806bc55\n# made by a test\n")
        (folder / "cache/cached").write_bytes(b"again and again")
        (folder / "private").mkdir()
        (folder / "private/.nobackup").write_text("please not")
        (folder / "private/diary").write_bytes(b"dear diary")
        (folder / "node_modules/deep/er").mkdir(parents=True)
        (folder / "node_modules/deep/er/file.js").write_bytes(b"js")
        for name in ("a.TMP", "b.tmp", "c.txt", "[brackets]", "new\nline.tmp"):
            (folder / name).write_bytes(os.urandom(50))
        (folder / "large").write_bytes(bytes(200_000))
    (root / "patterns").write_text("# a comment\n\n*.txt\n  node_modules/**/er  \n!c.txt\n")
    return [one, two]


@pytest.mark.parametrize(
    "options",
    [
        ["--exclude", "*.tmp", "--exclude", "private", "--iexclude", "A.tMp", "--exclude-file", "PATTERNS"],
        ["--exclude-if-present", ".nobackup:please", "--exclude-caches", "--exclude-larger-than", "100K"],
    ],
    ids=["patterns", "contents"],
)
def test_what_is_left_out_is_what_restic_leaves_out(place: Place, tmp_path: Path, options: list[str]) -> None:
    sources = make_selectable(tmp_path)
    words = [word.replace("PATTERNS", str(tmp_path / "patterns")) for word in options]
    assert place.stage(*sources, more=(*words, "--json")).document["left_out"] > 0
    ours, theirs = listings(place, *words, *sources)
    assert ours == theirs
    assert f"{sources[0]}/[brackets]" in ours
    assert f"{sources[0]}/private/diary" not in ours


def listings(place: Place, *words: str | Path) -> tuple[set[str], set[str]]:
    """All paths of the staging's snapshot, and of one that restic takes now."""
    ours = set(place.restic("ls", "latest").splitlines()[1:])
    place.restic("backup", *words)
    return ours, set(place.restic("ls", "latest").splitlines()[1:])


@pytest.mark.root
def test_one_file_system_leaves_out_what_restic_leaves_out(place: Place, tmp_path: Path) -> None:
    need_root()
    sources = make_selectable(tmp_path)
    mounted, file = sources[0] / "mounted", sources[0] / "bound"
    mounted.mkdir()
    file.touch()
    run("mount", "-t", "tmpfs", "-o", "size=1m", "other", mounted)
    (mounted / "elsewhere").write_bytes(b"x")
    run("mount", "--bind", mounted / "elsewhere", file)
    try:
        place.stage(*sources, more=("-x",))
        ours, theirs = listings(place, "-x", *sources)
        assert ours == theirs
        assert str(mounted) in ours
        assert f"{mounted}/elsewhere" not in ours
    finally:
        run("umount", file)
        run("umount", mounted)


@pytest.mark.root
def test_a_btrfs_snapshot_is_read_under_the_original_paths_and_removed(place: Place, tmp_path: Path) -> None:
    need_root()
    image, point = tmp_path / "btrfs.img", tmp_path / "volume"
    with image.open("wb") as stream:
        stream.truncate(128 << 20)
    run(need("mkfs.btrfs"), "-q", image)
    point.mkdir()
    run("mount", "-o", "loop", image, point)
    try:
        source = point / "data"
        source.mkdir()
        (source / "file").write_bytes(b"before")
        # The hook runs before the snapshot, the other after it: what that one writes is not in the backup.
        (tmp_path / "post").write_text(f"#!/bin/sh\necho after > '{source}/file'\n")
        (tmp_path / "post").chmod(0o755)
        done = place.stage(source, more=("--snapshot", "btrfs", "--post-hook", tmp_path / "post"))
        assert "crash-consistent: 1 btrfs snapshot" in done.err
        assert (source / "file").read_bytes() == b"after\n"
        assert place.restic("dump", "latest", str(source / "file")) == "before"
        assert "snapshot" not in run("btrfs", "subvolume", "list", point)
        assert run("btrfs", "subvolume", "list", point) == ""
        place.assert_tidy()
    finally:
        run("umount", point)


def added_by_changes(place: Place, source: Path, options: tuple[str, ...]) -> int:
    """Bytes that a second backup adds after seven times 100,000 bytes of an image of 28 MB were written to."""
    image = source / "machine.img"
    source.mkdir()
    image.write_bytes(random.Random(1).randbytes(28 << 20))
    first = place.stage(source, more=(*options, "--json")).document
    assert [found["path"] for found in first["fixed_blocks"]] == ([str(image)] if options else [])
    with image.open("r+b") as stream:
        for number in range(7):
            stream.seek((number * 4 << 20) + 300_000)
            stream.write(random.Random(number).randbytes(100_000))
    vault = ("--vault", str(place.repository), *place.secret, "--json")
    again = ended([*PROGRAM, "vault", "backup", str(source), *options, *vault], 0).document
    place.restic("restore", "latest", "--target", place.base / f"restored from {place.root.name}")
    assert tree(place.base / f"restored from {place.root.name}" / source.relative_to("/")) == tree(source)
    return int(again["bytes_added"])


def test_blocks_of_one_size_store_little_more_than_what_changed(place: Place, tmp_path: Path) -> None:
    added = added_by_changes(place, tmp_path / "source", ("--fixed-blocks", "256k"))
    assert 700_000 <= added <= 4 * 700_000


@pytest.mark.slow
def test_blocks_of_one_size_store_far_less_than_chunks_by_content(place: Place, tmp_path: Path) -> None:
    by_content = added_by_changes(Place(tmp_path, tmp_path / "other"), tmp_path / "source 2", ())
    assert added_by_changes(place, tmp_path / "source", ("--fixed-blocks", "256k")) * 3 < by_content

"""The independent witness notices every kind of difference, and replicas are faithful."""

from __future__ import annotations

import os
import shutil
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from diskprep.compare import EntryType, changed, differences, display, fingerprint
from diskprep.errors import StorageUnavailable, UsageError
from diskprep.replica import change_some, copy_tree

AS_ROOT = os.geteuid() == 0


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """One entry of each kind."""
    root = tmp_path / "tree"
    (root / "sub/deep").mkdir(parents=True)
    (root / "file").write_bytes(b"contents")
    (root / "sub/empty").write_bytes(b"")
    (root / "sub/deep/big").write_bytes(os.urandom(3 << 20))
    os.link(root / "file", root / "sub/linked")
    (root / "link").symlink_to("../outside")
    os.mkfifo(root / "fifo")
    (root / os.fsdecode(b"bad-\xff-name")).write_bytes(b"1")
    with (root / "holes").open("wb") as stream:
        stream.truncate(64 << 20)
        stream.seek(32 << 20)
        stream.write(b"data in the middle")
    if AS_ROOT:
        os.mknod(root / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        os.chown(root / "sub/empty", 1234, 2345)
    (root / "file").chmod(0o4751 if AS_ROOT else 0o751)
    for at, path in enumerate([*root.rglob("*"), root]):
        os.utime(path, ns=(1, 1_600_000_000_123_456_789 + at), follow_symlinks=False)
    return root


def faithful_copy(tree: Path) -> Path:
    copy = tree.parent / "copy"
    assert copy_tree(tree, copy) == []
    return copy


def test_a_copy_has_the_same_fingerprint(tree: Path) -> None:
    copy = faithful_copy(tree)
    want, have = fingerprint(tree), fingerprint(copy)
    assert differences(want, have) == []
    assert want.entries[b"sub/linked"].linked_with == b"file"
    assert want.entries[b""].type is EntryType.DIRECTORY
    assert not want.unreadable
    assert (copy / "holes").stat().st_blocks < (8 << 20) / 512


def test_sockets_are_left_out(tree: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tree / "socket"))
        assert b"socket" not in fingerprint(tree).entries
        assert copy_tree(tree, tree.parent / "copy") == []
    assert not (tree.parent / "copy/socket").exists()


def flip(path: Path) -> None:
    status = path.stat()
    with path.open("r+b") as stream:
        stream.seek(status.st_size // 2)
        byte = stream.read(1)
        stream.seek(-1, 1)
        stream.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def relink(path: Path) -> None:
    status = path.stat()
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)
    path.chmod(stat.S_IMODE(status.st_mode))
    os.utime(path, ns=(1, status.st_mtime_ns))


def retarget(path: Path) -> None:
    status = path.lstat()
    path.unlink()
    path.symlink_to("elsewhere")
    os.utime(path, ns=(1, status.st_mtime_ns), follow_symlinks=False)


def retype(path: Path) -> None:
    path.unlink()
    path.mkdir()


def one_ns_off(path: Path) -> None:
    os.utime(path, ns=(1, path.lstat().st_mtime_ns + 1), follow_symlinks=False)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("sub/deep/big", flip, "has other contents"),
        ("sub/empty", lambda path: path.write_bytes(b"1"), "has 1 bytes, not 0"),
        ("file", lambda path: path.chmod(0o600), "has mode 0600"),
        ("sub/deep", one_ns_off, "was last modified +0.000000001 s"),
        ("link", one_ns_off, "was last modified +0.000000001 s"),
        ("link", retarget, "points to elsewhere, not to ../outside"),
        ("sub/linked", relink, "is linked with nothing, not with file"),
        ("fifo", Path.unlink, "is missing"),
        ("fifo", retype, "is a directory, not a fifo"),
        ("new", Path.mkdir, "should not be there"),
    ],
)
def test_every_kind_of_difference_is_told(tree: Path, name: str, change: Callable[[Path], object], words: str) -> None:
    want, copy = fingerprint(tree), faithful_copy(tree)
    change(copy / name)
    lines = [line for line in differences(want, fingerprint(copy)) if line.startswith(f"{name}: ")]
    assert len(lines) == 1
    assert words in lines[0]
    told = {line.partition(":")[0] for line in differences(want, fingerprint(copy), ignore=[name.encode()])}
    assert name not in told


@pytest.mark.skipif(not AS_ROOT, reason="owners are compared only as root")
def test_another_owner_is_told_as_root(tree: Path) -> None:
    want, copy = fingerprint(tree), faithful_copy(tree)
    os.chown(copy / "sub/empty", 1, 2)
    assert differences(want, fingerprint(copy)) == ["sub/empty: belongs to 1:2, not to 1234:2345"]


def test_a_changed_extended_attribute_is_told(tree: Path) -> None:
    try:
        os.setxattr(tree / "sub/empty", "user.colour", b"red")
    except OSError:
        pytest.skip("no extended attributes on this file system")
    os.utime(tree / "sub", ns=(1, 1))
    want, copy = fingerprint(tree), faithful_copy(tree)
    assert differences(want, fingerprint(copy)) == []
    os.setxattr(copy / "sub/empty", "user.colour", b"blue")
    assert differences(want, fingerprint(copy)) == ["sub/empty: has other extended attributes: user.colour"]


def test_the_limit_cuts_and_counts(tree: Path) -> None:
    shutil.rmtree(tree.parent / "copy", ignore_errors=True)
    copy = tree.parent / "empty"
    copy.mkdir()
    lines = differences(fingerprint(tree), fingerprint(copy), limit=3)
    assert len(lines) == 4
    assert lines[-1].startswith("... and ")


def test_unreadable_files_are_listed_and_not_fatal(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: bytes, buffer: memoryview) -> bytes:
        if path.endswith(b"big"):
            raise OSError(5, "Input/output error")
        return b"0" * 32

    copy = faithful_copy(tree)
    monkeypatch.setattr("diskprep.compare._hash_file", refuse)
    found = fingerprint(tree)
    assert found.unreadable == {b"sub/deep/big": "Input/output error"}
    assert found.entries[b"sub/deep/big"].sha256 is None
    monkeypatch.undo()
    assert differences(fingerprint(copy), found) != []
    with pytest.raises(StorageUnavailable):
        fingerprint(tree / "nothing")


def test_what_moved_in_between_is_found_by_light_scans(tree: Path) -> None:
    before = fingerprint(tree, contents=False)
    assert changed(before, fingerprint(tree)) == frozenset()
    flip(tree / "sub/deep/big")
    (tree / "sub/empty").unlink()
    assert changed(before, fingerprint(tree, contents=False)) == {b"sub/deep/big", b"sub", b"sub/empty"}


def test_names_that_are_not_text_are_shown_escaped() -> None:
    assert display(b"bad-\xff-\n") == "bad-\\udcff-\\n"
    assert display(b"") == "."


def test_a_copy_goes_only_into_an_empty_place(tree: Path) -> None:
    with pytest.raises(UsageError):
        copy_tree(tree, tree / "sub")


def test_changes_repeat_with_the_seed_and_are_of_every_kind(tree: Path) -> None:
    for number in range(60):
        (tree / f"sub/file-{number}").write_bytes(os.urandom(number * 7))
    one, two = faithful_copy(tree), tree.parent / "two"
    copy_tree(tree, two)
    done = change_some(one, 7)
    assert done == change_some(two, 7)
    for kind in ("append", "overwrite", "truncate", "chmod", "rename", "delete", "new file", "new dir", "new symbolic"):
        assert any(line.startswith(kind) for line in done), kind
    words = "was last modified"
    assert [line for line in differences(fingerprint(one), fingerprint(two)) if words not in line] == []
    assert change_some(tree, 8) != done


def test_changes_never_leave_the_root_and_work_on_one_file(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "untouched").write_bytes(b"precious")
    root = tmp_path / "root"
    root.mkdir()
    (root / "way-out").symlink_to(outside)
    (root / "file-out").symlink_to(outside / "untouched")
    (root / "only").write_bytes(b"the only file")
    before = fingerprint(outside)
    for seed in range(10):
        change_some(root, seed)
    assert changed(before, fingerprint(outside)) == frozenset()
    empty = tmp_path / "empty"
    empty.mkdir()
    assert len(change_some(empty, 1)) == 3

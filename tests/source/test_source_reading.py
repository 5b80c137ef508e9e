"""Reading a source: everything is seen, nothing is touched, nothing leads astray."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

import pytest
from support import make_tree

from diskprep.errors import NotFound, StorageUnavailable, UsageError
from diskprep.source import (
    EntryUnreadable,
    OpenDirectory,
    Source,
    ancestor,
    check_sources,
    describe,
    display,
    measure,
    public_path,
)


def test_names_are_bytes_and_sorted_as_bytes(tmp_path: Path) -> None:
    names = [b"b", b"a", b"\xff\xfe", b"new\nline", "ü".encode(), b"B", b"-", b"~"]
    for name in names:
        os.close(os.open(os.fsencode(tmp_path) + b"/" + name, os.O_CREAT | os.O_WRONLY))
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    opened = OpenDirectory.at(os.fsencode(tmp_path))
    items = opened.list()
    opened.close()
    assert [item.name for item in items] == sorted([*names, b"folder", b"link"])
    assert [item.name for item in items if item.is_directory] == [b"folder"]
    assert [item.name for item in items if not item.is_directory and not item.is_regular] == [b"link"]


def test_paths_longer_than_the_kernel_takes_are_read(tmp_path: Path) -> None:
    name = b"d" * 200
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(30):
        os.mkdir(name, dir_fd=here)
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open(b"leaf", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)
    opened = OpenDirectory.at(os.fsencode(tmp_path))
    for _ in range(30):
        below_opened = opened.directory(name)
        opened.close()
        opened = below_opened
    file = opened.file(b"leaf")
    assert file.read_small(10) == b""
    file.close()
    opened.close()


def test_a_symlink_is_described_and_never_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"secret")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("target")
    (tmp_path / "folder-link").symlink_to("folder")
    opened = OpenDirectory.at(os.fsencode(tmp_path))
    assert opened.describe(b"link").linktarget == b"target"
    with pytest.raises(EntryUnreadable):
        opened.file(b"link")
    with pytest.raises(EntryUnreadable):
        opened.directory(b"folder-link")
    with pytest.raises(EntryUnreadable):
        opened.file(b"folder")
    with pytest.raises(EntryUnreadable, match="vanished"):
        opened.file(b"nothing")
    opened.close()


def test_a_fifo_is_described_without_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert stat.S_ISFIFO(describe(os.fsencode(tmp_path / "fifo")).stat.st_mode)
    opened = OpenDirectory.at(os.fsencode(tmp_path))
    with pytest.raises(EntryUnreadable, match="replaced"):
        opened.file(b"fifo")
    opened.close()


def test_reading_leaves_the_access_time_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    os.utime(path, ns=(1, 2))
    os.utime(tmp_path, ns=(3, 4))
    opened = OpenDirectory.at(os.fsencode(tmp_path))
    opened.list()
    file = opened.file(b"file")
    assert file.read_small(100) == b"content"
    assert not file.changed()
    file.close()
    opened.close()
    assert (path.stat().st_atime_ns, tmp_path.stat().st_atime_ns) == (1, 3)


def test_extended_attributes_come_with_the_entry(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"")
    try:
        os.setxattr(path, "user.one", b"\x00\xff")
        os.setxattr(path, "user.two", b"")
    except OSError:
        pytest.skip("this file system has no extended attributes")
    opened = OpenDirectory.at(os.fsencode(tmp_path))
    file = opened.file(b"file")
    assert sorted(file.entry.xattrs) == [(b"user.one", b"\x00\xff"), (b"user.two", b"")]
    file.close()
    opened.close()
    assert sorted(ancestor(os.fsencode(path)).xattrs) == [(b"user.one", b"\x00\xff"), (b"user.two", b"")]


def test_a_file_longer_than_it_said_is_not_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    opened = OpenDirectory.at(os.fsencode(tmp_path))
    file = opened.file(b"file")
    with path.open("ab") as stream:
        stream.write(b"6789")
    assert file.read_small(100) == b"123456789"
    assert file.changed()
    file.close()
    file = opened.file(b"file")
    assert file.read_small(8) is None
    file.close()
    opened.close()


def test_a_measure_counts_regular_files_and_leaves_out_what_is_excluded(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "tree", megabytes=2)
    sizes = [path.lstat().st_size for path in root.rglob("*") if stat.S_ISREG(path.lstat().st_mode)]
    whole = measure([Source(os.fsencode(root))])
    assert (whole.files, whole.size_bytes) == (len(sizes), sum(sizes))
    part = measure([Source(b"/elsewhere", os.fsencode(root))], {b"/elsewhere/odd"})
    assert part.size_bytes == whole.size_bytes - measure([Source(os.fsencode(root / "odd"))]).size_bytes
    assert measure([Source(os.fsencode(root / "empty"))]).files == 1


def test_sources_are_absolute_clean_and_apart(tmp_path: Path) -> None:
    assert Source(b"//a/./b/../c/").path == b"/a/c"
    assert Source(b"/").components == ()
    for path in (b"relative", b"", b"/with\0nul"):
        with pytest.raises(UsageError):
            Source(path)
    here = os.fsencode(tmp_path)
    with pytest.raises(UsageError, match="inside"):
        check_sources([Source(here), Source(here + b"/x", here)])
    with pytest.raises(UsageError):
        check_sources([])
    with pytest.raises(NotFound):
        check_sources([Source(here + b"/nothing")])
    check_sources([Source(here), Source(here + b"2", here)])


def test_paths_are_shown_without_what_a_terminal_would_obey() -> None:
    assert display(b"/plain/\xc3\xbc") == "/plain/ü"
    assert display(b"/\xff\n\x1b[31m") == "/\\xff\\n\\x1b[31m"
    assert public_path(b"/a\xff\xc3\xbc") == "/a\ufffdü"


def test_sockets_and_devices_are_described_only(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(tmp_path)
        try:
            listener.bind("socket")
        finally:
            os.chdir(here)
    assert stat.S_ISSOCK(describe(os.fsencode(tmp_path / "socket")).stat.st_mode)
    assert stat.S_ISCHR(describe(b"/dev/null").stat.st_mode)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS])
def test_a_shortage_of_our_own_is_not_an_unreadable_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    (tmp_path / "file").write_bytes(b"x")
    opened = OpenDirectory.at(os.fsencode(tmp_path))

    def fail(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", fail)
    for act in (lambda: opened.file(b"file"), lambda: OpenDirectory.at(os.fsencode(tmp_path))):
        with pytest.raises(StorageUnavailable, match=os.strerror(number)):
            act()
    monkeypatch.setattr(os, "stat", fail)
    with pytest.raises(StorageUnavailable):
        opened.describe(b"file")
    monkeypatch.undo()
    opened.close()

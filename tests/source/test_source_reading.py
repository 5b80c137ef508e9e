"""Reading a source: everything is seen, nothing is touched, nothing leads astray."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from pathlib import Path

import pytest
from support import make_tree, open_descriptors

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
    assert opened.read_small(b"leaf", 10).data == b""
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
    buffer = bytearray(100)
    assert file.read_into(memoryview(buffer), 0) == 7
    assert not file.changed()
    file.close()
    small = opened.read_small(b"file", 100)
    assert (small.data, small.changed) == (b"content", False)
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

    def grow(status: os.stat_result) -> bool:
        assert status.st_size == 5
        with path.open("ab") as stream:
            stream.write(b"6789")
        return True

    small = opened.read_small(b"file", 100, grow)
    assert (small.data, small.changed, small.stat.st_size) == (b"123456789", True, 5)
    path.write_bytes(b"12345")
    assert opened.read_small(b"file", 8, grow).data is None
    file = opened.file(b"file")
    with path.open("ab") as stream:
        stream.write(b"!")
    buffer = bytearray(100)
    assert bytes(buffer[: file.read_into(memoryview(buffer), 3)]) == b"456789!"
    assert file.changed()
    file.close()
    opened.close()


def test_a_file_shorter_than_it_said_ends_where_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    opened = OpenDirectory.at(os.fsencode(tmp_path))

    def shrink(_: os.stat_result) -> bool:
        os.truncate(path, 3)
        return True

    small = opened.read_small(b"file", 100, shrink)
    assert (small.data, small.changed) == (b"123", True)
    opened.close()


def test_a_small_file_that_is_not_wanted_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    opened = OpenDirectory.at(os.fsencode(tmp_path))
    monkeypatch.setattr(os, "read", None)  # reading would be a TypeError
    for limit, wanted in ((100, False), (4, True)):
        small = opened.read_small(b"file", limit, lambda _, wanted=wanted: wanted)  # type: ignore[misc]
        assert (small.data, small.changed, small.stat.st_size) == (None, False, 5)
    monkeypatch.undo()
    assert opened.read_small(b"file", 5).data == b"12345"
    opened.close()


def test_a_file_that_the_kernel_hands_out_in_pieces_is_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    opened = OpenDirectory.at(os.fsencode(tmp_path))
    file = opened.file(b"file")
    read, preadv = os.read, os.preadv
    monkeypatch.setattr(os, "read", lambda descriptor, count: read(descriptor, min(count, 3)))
    monkeypatch.setattr(os, "preadv", lambda descriptor, parts, at: preadv(descriptor, [parts[0][:3]], at))
    small = opened.read_small(b"file", 10)
    assert (small.data, small.changed) == (b"0123456789", False)
    buffer = bytearray(8)
    assert file.read_into(memoryview(buffer), 1) == 8
    assert buffer == b"12345678"
    monkeypatch.undo()
    file.close()
    opened.close()


def test_a_small_file_is_never_a_link_a_fifo_or_a_directory(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"secret")
    (tmp_path / "link").symlink_to("target")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    opened = OpenDirectory.at(os.fsencode(tmp_path))
    before = open_descriptors()
    for name in (b"link", b"folder", b"fifo", b"nothing"):
        with pytest.raises(EntryUnreadable):
            opened.read_small(name, 100)
    assert not open_descriptors() - before
    opened.close()


def test_holes_are_found_where_they_are(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as stream:
        stream.truncate(4 << 20)
        stream.seek(1 << 20)
        stream.write(b"island")
    opened = OpenDirectory.at(os.fsencode(tmp_path))
    file = opened.file(b"file")
    assert file.may_have_holes
    assert (file.next_data(0), file.next_hole(0)) == (1 << 20, 0)
    assert 1 << 20 < file.next_hole(1 << 20) <= (1 << 20) + (1 << 16)  # a block of the file system
    assert file.next_data(2 << 20) == file.next_hole(9 << 20) - (5 << 20) == 4 << 20  # there are none: the end
    os.truncate(path, 1 << 19)
    assert file.next_data(2 << 20) == 2 << 20  # not before what was asked
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


@pytest.mark.parametrize("what", ["directory", "file"])
def test_a_close_that_was_interrupted_closes_nothing_else_when_it_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with contextlib.closing(OpenDirectory.at(os.fsencode(tmp_path))) as directory:
        opened = directory if what == "directory" else directory.file(b"file")
        close = os.close

        def closed_and_interrupted(descriptor: int) -> None:
            close(descriptor)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(os, "close", closed_and_interrupted)
            with pytest.raises(KeyboardInterrupt):
                opened.close()
        with (tmp_path / "file").open("rb") as others:  # it gets the number
            opened.close()
            assert others.read() == b"x"

"""Long files: holes that are not read, and files that do not hold still."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support import need
from test_staging_backup import MIB, content, listing, run

from diskprep.errors import StorageFull
from diskprep.repository.chunker import MAX_BYTES, MIN_BYTES, Chunker
from diskprep.repository.pack import PackEntry
from diskprep.repository.repository import Repository
from diskprep.source import OpenDirectory, OpenFile
from diskprep.staging.batch import SMALL_BYTES
from diskprep.staging.blocks import BlockRule
from diskprep.staging.dispatch import Manpower
from diskprep.staging.writer import BackupOptions

KIB = 1 << 10
CREWS = [Manpower(threads=1, processes=0), Manpower(threads=2, processes=1)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "tree").mkdir()
    return tmp_path / "tree"


def make_sparse(path: Path, size_bytes: int, islands: list[tuple[int, int]]) -> None:
    """A file of holes, but for islands of noise: offset and length of each."""
    with path.open("wb") as stream:
        stream.truncate(size_bytes)
        for offset, length in islands:
            stream.seek(offset)
            stream.write(random.Random(offset).randbytes(length))


class Reads:
    """How much is read of long files, and something that happens right after the first read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, first: Callable[[], object] | None = None) -> None:
        self.total_bytes = 0
        pending = [] if first is None else [first]
        read = OpenFile.read_into

        def counted(file: OpenFile, buffer: memoryview, offset: int) -> int:
            count = read(file, buffer, offset)
            self.total_bytes += count
            if pending:
                pending.pop()()
            return count

        monkeypatch.setattr(OpenFile, "read_into", counted)


LAYOUTS = {
    "at the start": (12 * MIB + 17, [(9 * MIB + 4096, 3 * MIB + 17 - 4096)]),
    "in the middle": (24 * MIB, [(0, 5 * MIB), (18 * MIB, 6 * MIB)]),
    "at the end": (20 * MIB + 1, [(0, 7 * MIB)]),
    "shorter than a chunk": (9 * MIB, [(0, 4 * MIB), (4 * MIB + 256 * KIB, 4 * MIB)]),
    "just long enough to be skipped": (16 * MIB, [(0, 3 * MIB), (5 * MIB, 3 * MIB), (10 * MIB - 4096, 6 * MIB)]),
    "many short ones": (12 * MIB, [(number * MIB, 600 * KIB) for number in range(12)]),
    "over the buffers": (70 * MIB, [(0, 100 * KIB), (17 * MIB, MIB), (40 * MIB, 9 * MIB), (69 * MIB, 4096)]),
    "nothing else": (5 * MIB + 3, []),
    "a whole number of chunks": (8 * MIB, []),
    "a last byte": (30 * MIB, [(30 * MIB - 1, 1)]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("block_bytes", [None, 256 * KIB, 4 * MIB])
def test_a_hole_is_stored_as_the_zeros_it_stands_for(
    root: Path, repository: Repository, layout: str, block_bytes: int | None
) -> None:
    size_bytes, islands = LAYOUTS[layout]
    make_sparse(root / "holes.img", size_bytes, islands)
    subprocess.run(["cp", "--sparse=never", root / "holes.img", root / "none.img"], check=True)
    rule = None if block_bytes is None else BlockRule(block_bytes=block_bytes)
    result = run(repository, root, options=BackupOptions(block_rule=rule))
    assert (result.changed, result.unreadable, result.bytes_processed) == ((), (), 2 * size_bytes)
    nodes = listing(repository, result.snapshot, root)
    assert nodes[b"holes.img"].content == nodes[b"none.img"].content
    assert nodes[b"holes.img"].size == nodes[b"none.img"].size == size_bytes
    data = (root / "none.img").read_bytes()
    ends = Chunker(repository.polynomial).split(data)
    if block_bytes is not None and size_bytes >= 8 * MIB:
        ends = [*range(block_bytes, size_bytes, block_bytes), size_bytes]
    chunks = [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    assert list(nodes[b"none.img"].content or ()) == [hashlib.sha256(chunk).digest() for chunk in chunks]


def test_a_hole_of_eight_gigabytes_is_not_read(
    root: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    size_bytes = 8 * KIB * MIB
    make_sparse(root / "huge", size_bytes, [(3 * KIB * MIB, 3 * MIB)])
    reads = Reads(monkeypatch)
    begun = time.monotonic()
    result = run(repository, root)
    assert time.monotonic() - begun < 10
    assert reads.total_bytes < 12 * MIB
    node = listing(repository, result.snapshot, root)[b"huge"]
    assert (node.size, result.bytes_processed, result.bytes_stored < 5 * MIB) == (size_bytes, size_bytes, True)
    zeros = hashlib.sha256(bytes(MIN_BYTES)).digest()
    others = [blob_id for blob_id in node.content or () if blob_id != zeros]
    assert len(node.content or ()) - len(others) >= (size_bytes - 4 * MIB) // MIN_BYTES
    assert 1 <= len(others) <= 8
    again = run(repository, root, base=repository.snapshot(result.snapshot))
    assert (again.files_unmodified, again.tree == result.tree) == (1, True)


def test_a_file_system_that_knows_no_holes_is_read_through(
    root: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_sparse(root / "file", 9 * MIB, [(0, 3 * MIB)])
    seek = os.lseek

    def lseek(descriptor: int, offset: int, whence: int) -> int:
        if whence in (os.SEEK_DATA, os.SEEK_HOLE):
            raise OSError(errno.EINVAL, "Invalid argument")
        return seek(descriptor, offset, whence)

    monkeypatch.setattr(os, "lseek", lseek)
    result = run(repository, root)
    monkeypatch.undo()
    assert content(repository, listing(repository, result.snapshot, root)[b"file"]) == (root / "file").read_bytes()


def test_a_hole_that_is_punched_while_the_file_is_read_is_told(
    root: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, path = need("fallocate"), root / "file"
    make_sparse(path, 30 * MIB, [(0, 10 * MIB), (20 * MIB, 10 * MIB)])
    punch: list[str | Path] = [program, "--punch-hole", "--offset", str(4 * MIB), "--length", str(23 * MIB), path]
    Reads(monkeypatch, lambda: subprocess.run(punch, check=True))
    result = run(repository, root)
    assert result.changed == (f"{root}/file",)
    node = listing(repository, result.snapshot, root)[b"file"]
    stored = content(repository, node)
    assert node.size == len(stored) == 30 * MIB
    assert stored[: 2 * MIB] == path.read_bytes()[: 2 * MIB]


def test_a_file_that_grows_while_it_is_read_is_stored_as_it_was_read(
    root: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = root / "log"
    path.write_bytes(random.Random(1).randbytes(5 * MIB))

    def grow() -> None:
        with path.open("ab") as stream:
            stream.write(b"another line\n" * 200_000)

    Reads(monkeypatch, grow)
    result = run(repository, root)
    assert (result.changed, result.files) == ((f"{root}/log",), 1)
    node = listing(repository, result.snapshot, root)[b"log"]
    assert content(repository, node) == path.read_bytes()
    assert node.size == result.bytes_processed == path.stat().st_size > 7 * MIB


@pytest.mark.parametrize("left", [0, 5, 3 * MIB])
def test_a_file_that_shrinks_while_it_is_read_is_stored_as_it_was_read(
    root: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    path = root / "file"
    data = random.Random(1).randbytes(20 * MIB)
    path.write_bytes(data)
    Reads(monkeypatch, lambda: os.truncate(path, left))
    result = run(repository, root)
    assert (result.changed, result.unreadable) == ((f"{root}/file",), ())
    node = listing(repository, result.snapshot, root)[b"file"]
    stored = content(repository, node)
    assert node.size == len(stored) == result.bytes_processed
    assert left <= len(stored) <= 8 * MIB
    assert data.startswith(stored)


def test_a_sparse_file_that_shrinks_into_its_hole_is_told(
    root: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = root / "file"
    make_sparse(path, 60 * MIB, [(0, 4 * MIB), (50 * MIB, MIB)])
    Reads(monkeypatch, lambda: os.truncate(path, 10 * MIB))
    result = run(repository, root)
    assert result.changed == (f"{root}/file",)
    node = listing(repository, result.snapshot, root)[b"file"]
    assert node.size == len(content(repository, node))


def test_a_long_file_that_vanishes_before_it_is_read_is_told_and_one_that_vanishes_later_is_whole(
    root: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = random.Random(1).randbytes(3 * MIB)
    for name in ("gone", "going", "staying"):
        (root / name).write_bytes(data + name.encode())
    open_really = OpenDirectory.file

    def open_(directory: OpenDirectory, name: bytes) -> OpenFile:
        if name == b"gone":
            (root / "gone").unlink()
        file = open_really(directory, name)
        if name == b"going":
            (root / "going").unlink()
        return file

    monkeypatch.setattr(OpenDirectory, "file", open_)
    result = run(repository, root)
    assert result.unreadable == ((f"{root}/gone", "it vanished"),)
    assert result.changed == (f"{root}/going",)  # its inode time moved
    nodes = listing(repository, result.snapshot, root)
    assert {name: content(repository, node)[3 * MIB :] for name, node in nodes.items()} == {
        b"going": b"going",
        b"staying": b"staying",
    }
    assert result.files == 2


def test_a_file_that_fails_halfway_is_told_and_its_neighbours_are_whole(
    root: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = random.Random(1).randbytes(30 * MIB)
    for name in ("bad", "good"):
        (root / name).write_bytes(data)
    preadv = os.preadv

    def failing(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        if offset > 17 * MIB and Path(f"/proc/self/fd/{descriptor}").readlink().name == "bad":
            raise OSError(errno.EIO, "Input/output error")
        return preadv(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", failing)
    result = run(repository, root)
    monkeypatch.undo()
    assert result.unreadable == ((f"{root}/bad", "Input/output error"),)
    nodes = listing(repository, result.snapshot, root)
    assert list(nodes) == [b"good"]
    assert content(repository, nodes[b"good"]) == data
    assert (result.files, result.bytes_processed) == (1, 30 * MIB)


@pytest.mark.parametrize("manpower", CREWS)
def test_a_small_file_that_grows_long_while_it_is_read_is_read_as_a_long_one(
    root: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch, manpower: Manpower
) -> None:
    path = root / "log"
    path.write_bytes(b"one line\n")
    read = os.read

    def reading(descriptor: int, count: int) -> bytes:
        if path.stat().st_size == 9 and Path(f"/proc/self/fd/{descriptor}").readlink().name == "log":
            with path.open("ab") as stream:
                stream.write(random.Random(1).randbytes(SMALL_BYTES + MIB))
        return read(descriptor, count)

    monkeypatch.setattr(os, "read", reading)
    result = run(repository, root, options=BackupOptions(manpower=manpower))
    node = listing(repository, result.snapshot, root)[b"log"]
    assert content(repository, node) == path.read_bytes()
    assert (node.size, result.files, result.bytes_processed) == (SMALL_BYTES + MIB + 9, 1, SMALL_BYTES + MIB + 9)


@pytest.mark.parametrize("manpower", CREWS)
@pytest.mark.parametrize("act", ["grows", "shrinks", "vanishes"])
def test_a_small_file_that_does_not_hold_still_is_told_by_whoever_reads_it(
    root: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch, manpower: Manpower, act: str
) -> None:
    path = root / "file"
    path.write_bytes(b"0123456789")
    (root / "neighbour").write_bytes(b"calm")
    read, open_really = os.read, os.open

    def reading(descriptor: int, count: int) -> bytes:
        if Path(f"/proc/self/fd/{descriptor}").readlink().name == "file":
            os.truncate(path, 20 if act == "grows" else 4)
        return read(descriptor, count)

    def opening(name: object, *more: object, **keywords: object) -> int:
        if name == b"file":
            path.unlink(missing_ok=True)
        return open_really(name, *more, **keywords)  # type: ignore[arg-type]

    if act == "vanishes":
        monkeypatch.setattr(os, "open", opening)
    else:
        monkeypatch.setattr(os, "read", reading)
    result = run(repository, root, options=BackupOptions(manpower=manpower))
    monkeypatch.undo()
    nodes = listing(repository, result.snapshot, root)
    assert content(repository, nodes[b"neighbour"]) == b"calm"
    if act == "vanishes":
        assert (result.unreadable, result.changed, result.files) == (((f"{root}/file", "it vanished"),), (), 1)
        return
    assert (result.unreadable, result.changed, result.files) == ((), (f"{root}/file",), 2)
    expected = b"0123456789".ljust(20, b"\0") if act == "grows" else b"0123"
    assert content(repository, nodes[b"file"]) == expected
    assert nodes[b"file"].size == len(expected)


def test_chunks_at_the_limit_and_files_at_the_edges_are_whole(root: Path, repository: Repository) -> None:
    sizes = [SMALL_BYTES, SMALL_BYTES + 1, MAX_BYTES, MAX_BYTES + 1, 2 * MAX_BYTES, 2 * MAX_BYTES + 1, 4 * MAX_BYTES]
    for size_bytes in sizes:  # ones have no cut but at the limit
        (root / str(size_bytes)).write_bytes(b"\xff" * size_bytes)
    result = run(repository, root)
    nodes = listing(repository, result.snapshot, root)
    cutter = Chunker(repository.polynomial)
    for size_bytes in sizes:
        data = b"\xff" * size_bytes
        ends = cutter.split(data)
        chunks = [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        wanted = [hashlib.sha256(chunk).digest() for chunk in chunks]
        assert list(nodes[str(size_bytes).encode()].content or ()) == wanted


def test_storage_that_fails_while_a_long_file_is_cut_ends_the_backup(
    root: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And leaves no thread behind that reads into a buffer or waits for one."""
    (root / "file").write_bytes(random.Random(1).randbytes(60 * MIB))

    def full(entry: PackEntry, data: memoryview) -> None:
        raise StorageFull("full")

    before = threading.active_count()
    monkeypatch.setattr(repository, "save_pack", full)
    with pytest.raises(StorageFull):
        run(repository, root, options=BackupOptions(pack_size_bytes=MIB))
    monkeypatch.undo()
    assert threading.active_count() == before
    result = run(repository, root)
    node = listing(repository, result.snapshot, root)[b"file"]
    assert content(repository, node) == (root / "file").read_bytes()

"""Blocks of one size: which files they are for, and where they are cut."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_staging_backup import MIB, content, listing, run

from diskprep.errors import UsageError
from diskprep.repository.chunker import Chunker
from diskprep.repository.repository import Repository
from diskprep.staging.blocks import LEAST_BYTES, MIN_FILE_BYTES, MOST_BYTES, BlockRule
from diskprep.staging.cutting import BlockCutter, ContentCutter, LateCutter
from diskprep.staging.writer import BackupOptions

RULE = BlockRule(block_bytes=256 << 10)
POLYNOMIAL = 0x3DA3358B4DC173


def head_with(*marks: tuple[int, bytes]) -> bytes:
    """The beginning of a file: noise, with these marks at their offsets."""
    head = bytearray(b"\x5a" * BlockRule.HEAD_BYTES)
    for offset, mark in marks:
        head[offset : offset + len(mark)] = mark
    return bytes(head)


def reason(path: bytes, head: bytes = head_with(), size_bytes: int = 1 << 30) -> str | None:
    choice = RULE.choose(path, size_bytes, head)
    return None if choice is None else choice.reason.rpartition(" is ")[2]


@pytest.mark.parametrize(
    ("offset", "mark", "kind"),
    [
        (0, b"QFI\xfb", "a QEMU disk image"),
        (0, b"KDMV", "a VMware disk image"),
        (0, b"COWD", "a VMware disk image"),
        (0, b"vhdxfile", "a Hyper-V disk image"),
        (0, b"conectix", "a Hyper-V disk image"),
        (64, b"\x7f\x10\xda\xbe", "a VirtualBox disk image"),
        (0, b"SQLite format 3\0", "an SQLite database"),
        (0, b"LUKS\xba\xbe", "an encrypted volume"),
        (3, b"-FVE-FS-", "an encrypted volume"),
        (3, b"NTFS    ", "a file system image"),
        (0, b"XFSB", "a file system image"),
        (1024 + 56, b"\x53\xef", "a file system image"),
        (65536 + 64, b"_BHRfS_M", "a file system image"),
        (512, b"LABELONE", "a volume's image"),
        (512, b"EFI PART", "a disk image"),
        (4096, b"EFI PART", "a disk image"),
        (4, b"\xef\xcd\xab\x89", "an ESE database"),
    ],
)
def test_a_file_is_known_by_what_it_begins_with(offset: int, mark: bytes, kind: str) -> None:
    assert reason(b"/any/name", head_with((offset, mark))) == kind
    assert reason(b"/any/name", head_with((offset + 1, mark))) is None
    assert reason(b"/any/name", head_with((offset, mark[:-1]))) is None
    assert reason(b"/any/name", head_with((offset, mark))[: offset + len(mark) - 1]) is None


def test_a_boot_sector_is_one_with_a_table_of_partitions() -> None:
    flags = [(446 + 16 * number, bytes([flag])) for number, flag in enumerate((0x80, 0, 0, 0))]
    assert reason(b"/x", head_with((510, b"\x55\xaa"), *flags)) == "a disk image"
    assert reason(b"/x", head_with((510, b"\x55\xaa"), *flags[:3])) is None
    assert reason(b"/x", head_with(*flags)) is None


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        (b"/var/lib/mysql/shop/orders.ibd", "an InnoDB table"),
        (b"/srv/A.MDF", "an SQL Server database"),
        (b"/srv/a.Ndf", "an SQL Server database"),
        (b"/srv/users.dbf", "a database file"),
        (b"/srv/mail.edb", "an ESE database"),
        (b"/vm/disk-flat.vmdk", "a VMware disk image"),
        (b"/vm/a.vhd", "a Hyper-V disk image"),
        (b"/vm/a.vdi", "a VirtualBox disk image"),
        (b"/vm/sd card.img", "a disk image"),
        (b"/vm/vm-100.raw", "a disk image"),
        (b"/var/lib/postgresql/15/main/base/16384/2619", "a PostgreSQL table"),
        (b"/var/lib/postgresql/15/main/base/16384/2619.12", "a PostgreSQL table"),
        (b"/pg/global/1260", "a PostgreSQL table"),
        (b"/pg/pg_tblspc/16385/PG_15_202209061/16384/2619", "a PostgreSQL table"),
        (b"/var/lib/mysql/ibdata1", "an InnoDB tablespace"),
        (b"/var/lib/mysql/undo_001", "an InnoDB tablespace"),
        (b"/srv/film.mkv", None),
        (b"/srv/folder.img/film", None),
        (b"/srv/img", None),
        (b"/srv/a.img.gz", None),
        (b"/pg/base/16384/2619_fsm", None),
        (b"/pg/base/2619", None),
        (b"/srv/ibdata", None),
    ],
)
def test_or_by_its_name(path: bytes, kind: str | None) -> None:
    assert reason(path) == kind
    assert reason(path, b"") == kind


def test_short_files_are_cut_by_content() -> None:
    assert reason(b"/a.img", size_bytes=MIN_FILE_BYTES - 1) is None
    assert reason(b"/a.img", size_bytes=MIN_FILE_BYTES) == "a disk image"


@pytest.mark.parametrize(
    ("size", "text"), [(16 << 10, "16 KiB"), (256 << 10, "256 KiB"), (1 << 20, "1 MiB"), (4 << 20, "4 MiB")]
)
def test_the_reason_says_how_and_why(size: int, text: str) -> None:
    choice = BlockRule(block_bytes=size).choose(b"/a.img", 1 << 30, b"")
    assert choice is not None
    assert choice.reason == f"cut in blocks of {text}: it is a disk image"
    assert choice.cutter == BlockCutter(size)


@pytest.mark.parametrize("size", [0, -1, 1, LEAST_BYTES // 2, LEAST_BYTES + 1, 3 << 18, MOST_BYTES * 2])
def test_only_sizes_that_make_sense_can_be_had(size: int) -> None:
    with pytest.raises(UsageError, match=f"blocks of {size} bytes") as caught:
        BlockRule(block_bytes=size)
    assert "power of two" in caught.value.hint


@given(st.integers(0, 100), st.integers(1, 30), st.data())
def test_blocks_are_cut_the_same_whatever_arrives_when(length: int, block: int, data: st.DataObject) -> None:
    cutter = BlockCutter(block)
    ends, start, arrived = list[int](), 0, 0
    while True:
        arrived = data.draw(st.integers(min(arrived + 1, length), length))
        while (end := cutter.cut(b"", start, arrived, final=arrived == length)) is not None:
            ends.append(end)
            start = end
        if arrived == length:
            break
    assert ends == [*range(block, length, block), length][: length and None]


@settings(max_examples=10)
@given(st.integers(1, 3 << 20), st.integers(0, 2**32))
def test_zeros_are_cut_as_the_cutters_say(before: int, seed: int) -> None:
    """What reading of holes is left out on: where a chunk that began before zeros ends, and those after it."""
    data = random.Random(seed).randbytes(before) + bytes(6 << 20)
    for cutter in (ContentCutter(Chunker(POLYNOMIAL)), BlockCutter(256 << 10), BlockCutter(4 << 20)):
        start, ends = 0, list[int]()
        while (end := cutter.cut(data, start, len(data), final=False)) is not None:
            ends.append(end)
            start = end
        into = [end for end in ends if end >= before]
        assert into[0] <= before + cutter.reach_bytes
        assert all(end - last == cutter.zero_bytes for last, end in itertools.pairwise(into))


def test_a_late_cutter_is_made_once_and_its_error_is_told_when_it_is_needed() -> None:
    made = list[Chunker]()

    def make() -> Chunker:
        made.append(Chunker(POLYNOMIAL))
        return made[-1]

    cutter = LateCutter(make)
    assert made == []
    assert cutter.get() is cutter.get()
    assert cutter.is_ready()
    assert len(made) == 1

    def fail() -> Chunker:
        raise ValueError("not irreducible")

    broken = LateCutter(fail)
    for _ in range(2):
        with pytest.raises(ValueError, match="not irreducible"):
            broken.get()


def test_files_of_fixed_blocks_are_told_and_only_changed_blocks_are_stored_again(
    tmp_path: Path, repository: Repository
) -> None:
    root = tmp_path / "tree"
    root.mkdir()
    data = bytearray(random.Random(1).randbytes(9 * MIB + 5))
    for name in ("disk.img", "film"):
        (root / name).write_bytes(data if name == "disk.img" else data[::-1])
    (root / "short.img").write_bytes(data[: 2 * MIB])
    options = BackupOptions(block_rule=RULE)
    first = run(repository, root, options=options)
    assert first.fixed_blocks == ((f"{root}/disk.img", "cut in blocks of 256 KiB: it is a disk image"),)
    nodes = listing(repository, first.snapshot, root)
    assert len(nodes[b"disk.img"].content or ()) == 37
    assert len(nodes[b"film"].content or ()) < 18
    assert {name: content(repository, node) for name, node in nodes.items()} == {
        path.name.encode(): path.read_bytes() for path in root.iterdir()
    }
    for offset in (0, 5 * MIB, 9 * MIB + 4):
        data[offset] ^= 1
    (root / "disk.img").write_bytes(data)
    again = run(repository, root, base=repository.snapshot(first.snapshot), options=options)
    trees = sum(1 for _ in tmp_path.parts) * 3000
    assert 2 * (256 << 10) + 5 < again.bytes_added < 2 * (256 << 10) + 5 + trees
    assert again.files_unmodified == 2

"""The table of files says what the reader says, in the order of the disk, and nothing of a volume that is damaged."""

from __future__ import annotations

import random
import struct

import pytest
from volume_support import MIB, MadeDisk, pattern, source

from diskprep.errors import DataDamaged, NotFound
from diskprep.volume.device import Device, open_for_writing, open_memory
from diskprep.volume.format import open_disk
from diskprep.volume.ntfs import Filler, NotNtfs, Reader, records, selftest
from diskprep.volume.ntfs.libntfs import Mount
from diskprep.volume.ntfs.planner import overlay_on
from diskprep.volume.ntfs.table import Table

_RECORD = 1024
_ENTRY_NAME = 82  # where the name is in an entry of a directory's index
_FILE = "many/name-007"


@pytest.fixture
def filled(plain_ntfs: Device) -> Device:
    Filler(plain_ntfs).write(
        [source(f"many/name-{n:03}", b"%d" % n) for n in range(300)]
        + [source(f"big/{n}", pattern(f"big {n}", n * 70_001)) for n in range(1, 12)]
        + [source("Deep/er/est/file.bin", pattern("deep", 3 * MIB + 5)), source("empty", b"")]
    )
    return plain_ntfs


def contents(device: Device) -> dict[str, bytes]:
    with Reader(device) as reader:
        return {e.path: b"".join(reader.stream(e.path)) for e in reader.list() if not e.is_directory}


def table_contents(table: Table) -> dict[str, bytes]:
    return {table.path(number): b"".join(table.open(number).chunks()) for number in range(len(table))}


def test_the_table_has_what_the_directories_have(filled: Device) -> None:
    table, wanted = Table(filled), contents(filled)
    assert len(table) == len(wanted) == 313
    assert table_contents(table) == wanted
    for path, data in wanted.items():
        number = table.find(path)
        assert number is not None
        assert table.size_bytes(number) == len(data)
    assert table.total_bytes() == sum(map(len, wanted.values()))


def test_only_the_very_name_is_found(filled: Device) -> None:
    table = Table(filled)
    for path in ("MANY/name-007", "many", "many/name-300", "many/name-007/", "", "System Volume Information", "$MFT"):
        assert table.find(path) is None


def test_names_that_were_forgotten_are_not_found_but_still_told(filled: Device) -> None:
    table = Table(filled)
    number = table.find("big/3")
    assert number is not None
    table.forget_names()
    assert table.find("big/3") is None
    assert table.path(number) == "big/3"


def test_a_file_can_be_read_up_to_the_end_of_its_last_cluster_and_no_further(filled: Device) -> None:
    table = Table(filled)
    number = table.find("big/3")
    assert number is not None
    stream, size = table.open(number), 3 * 70_001
    whole = -(-size // stream.unit_bytes) * stream.unit_bytes
    assert whole > size
    view = memoryview(bytearray(whole + 1))
    stream.read_into(view[:whole], 0)
    assert view[:size] == pattern("big 3", size)
    for wrong in (view, view[:1]):
        with pytest.raises(DataDamaged):
            stream.read_into(wrong, whole if len(wrong) == 1 else 0)


def test_files_come_in_the_order_of_their_first_clusters(filled: Device) -> None:
    table = Table(filled)
    with Reader(filled) as reader:
        places = [reader.extents(table.path(number)) for number in range(len(table))]
    starts = [place[0][0] for place in places if place]
    assert starts == sorted(starts)
    assert len(starts) > 10


def test_the_systems_own_files_on_a_bitlocker_volume_are_left_out(disk: MadeDisk) -> None:
    with open_for_writing(disk.path) as device:
        volume = open_disk(device, disk.password)
        assert len(Table(volume)) == 0
        Filler(volume).write([source("one", pattern("one", 100_000))])
        assert table_contents(Table(volume)) == {"one": pattern("one", 100_000)}


def test_files_in_many_pieces_are_read_whole(plain_ntfs: Device) -> None:
    """Small files fill the volume; the large one takes the room between those that stay, more than fit one record."""
    filler = Filler(plain_ntfs)
    room = filler.free_bytes() - 3 * MIB
    filler.write([source(f"f{n}", pattern(str(n), 65_537)) for n in range(room // 73_728)])
    with Reader(plain_ntfs) as reader:
        left = reader.free_bytes()
    large = pattern("large", left // 4096 * 4096 - 400_000)
    filler.write([source("large", large)])
    table = Table(plain_ntfs)
    number = table.find("large")
    assert number is not None
    stream = table.open(number)
    assert b"".join(stream.chunks()) == large
    assert len(stream.runs) > 1


def test_what_is_no_ntfs_is_called_so() -> None:
    with open_memory(MIB) as empty, pytest.raises(NotNtfs):
        Table(empty)


def record_place(device: Device, path: str) -> int:
    """Where on the volume a file's record is."""
    name = path.rpartition("/")[2].encode("utf-16-le")
    whole = device.pread(device.size_bytes, 0)
    places = [
        at
        for at in range(0, len(whole), _RECORD)
        if whole[at : at + 4] == b"FILE" and name in whole[at : at + _RECORD] and records.is_in_use(whole[at : at + 64])
    ]
    assert len(places) == 1
    return places[0]


def test_a_file_that_no_directory_names_is_damage(filled: Device) -> None:
    """It is deleted, then its record comes back."""
    place = record_place(filled, _FILE)
    record = filled.pread(_RECORD, place)
    with overlay_on(filled, 4096) as overlay:
        with Mount(selftest.library(), overlay) as mount:
            mount.delete(*_FILE.split("/"))
        for offset, data in overlay.changes():
            filled.pwrite(data, offset)
    assert len(Table(filled)) == 312
    filled.pwrite(record, place)
    with pytest.raises(DataDamaged, match="1 files on the NTFS volume have no name"):
        Table(filled)


def test_a_file_with_two_names_is_damage(filled: Device) -> None:
    place, other = record_place(filled, _FILE), record_place(filled, "many/name-008")
    number, wanted = filled.pread(4, place + 44), filled.pread(4, other + 44)
    whole, name = filled.pread(filled.size_bytes, 0), "name-007".encode("utf-16-le")
    starts = [at - _ENTRY_NAME for at in range(_ENTRY_NAME, len(whole), 2) if whole.startswith(name, at)]
    entries = [at for at in starts if whole[at : at + 4] == number]
    assert entries
    for at in entries:
        filled.pwrite(wanted, at)
    with pytest.raises(DataDamaged, match="in two places"):
        Table(filled)


def test_an_entry_for_an_older_use_of_a_record_is_damage(filled: Device) -> None:
    place = record_place(filled, _FILE)
    sequence = struct.unpack("<H", filled.pread(2, place + 16))[0]
    filled.pwrite(struct.pack("<H", sequence + 1), place + 16)
    with pytest.raises(DataDamaged, match="not the one that is referred to"):
        Table(filled)


def test_a_record_that_is_marked_free_is_damage(filled: Device) -> None:
    filled.pwrite(b"\0\0", record_place(filled, _FILE) + 22)
    with pytest.raises(DataDamaged, match="not the one that is referred to"):
        Table(filled)


@pytest.mark.parametrize("seed", range(3))
def test_damage_of_any_kind_raises_damage_and_nothing_else(filled: Device, seed: int) -> None:
    rng = random.Random(seed)
    whole = filled.pread(filled.size_bytes, 0)
    places = [at for at in range(0, len(whole), 512) if whole[at : at + 4] in (b"FILE", b"INDX")]
    noticed = 0
    for _ in range(25):
        changes = []
        for _ in range(rng.choice([1, 1, 2, 8])):
            at = rng.randrange(512) if rng.random() < 0.15 else rng.choice(places) + rng.randrange(1024)
            changes.append((at, bytes([rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])])))
        for at, byte in changes:
            filled.pwrite(byte, at)
        try:
            table = Table(filled)
            for number in range(len(table)):
                for chunk in table.open(number).chunks():
                    assert chunk
        except (DataDamaged, NotFound):
            noticed += 1
        for at, _byte in changes:
            filled.pwrite(whole[at : at + 1], at)
    assert noticed > 0
    assert len(Table(filled)) == 313

"""The reader finds what is there, and turns every kind of damage into one error."""

from __future__ import annotations

import random

import pytest
from volume_support import MIB, pattern, source

from diskprep.errors import DataDamaged, NotFound
from diskprep.volume.device import Device, open_memory
from diskprep.volume.ntfs import Entry, Filler, NotNtfs, Reader


@pytest.fixture
def filled(plain_ntfs: Device) -> Device:
    Filler(plain_ntfs).write(
        [source(f"many/name-{n:05}-{'x' * (n % 60)}", b"%d" % n) for n in range(900)]
        + [source("Deep/er/est/file.bin", pattern("deep", 3 * MIB + 5)), source("empty", b"")]
    )
    return plain_ntfs


def test_a_directory_with_a_deep_index_is_listed_whole(filled: Device) -> None:
    with Reader(filled) as reader:
        entries = list(reader.list())
    names = [e.path for e in entries if e.path.startswith("many/")]
    assert sorted(names) == [f"many/name-{n:05}-{'x' * (n % 60)}" for n in range(900)]
    assert Entry(path="Deep/er/est", size_bytes=0, is_directory=True) in entries
    assert Entry(path="Deep/er/est/file.bin", size_bytes=3 * MIB + 5, is_directory=False) in entries
    assert not [e for e in entries if e.path.startswith(("$", "System Volume"))]
    assert len(entries) == 900 + 1 + 4 + 1


def test_lookup_is_exact_first_and_then_without_case(filled: Device) -> None:
    with Reader(filled) as reader:
        for path in ("Deep/er/est/file.bin", "deep/ER/est/FILE.bin"):
            assert reader.stat(path) == Entry(path=path, size_bytes=3 * MIB + 5, is_directory=False)
        assert reader.stat("many").is_directory
        for path in ("nope", "many/nope", "empty/x", "", "many/", "../many"):
            with pytest.raises(NotFound):
                reader.stat(path)
        for path in ("many", "nope"):
            with pytest.raises(NotFound):
                reader.read(path, 0, 1)


def test_ranges_are_read_exactly_and_past_the_end_is_damage(filled: Device) -> None:
    data = pattern("deep", 3 * MIB + 5)
    rng = random.Random(3)
    with Reader(filled) as reader:
        for _ in range(100):
            begin = rng.randrange(len(data))
            count = rng.randrange(len(data) - begin + 1)
            assert reader.read("Deep/er/est/file.bin", begin, count) == data[begin : begin + count]
        assert [len(c) for c in reader.stream("Deep/er/est/file.bin", MIB)] == [MIB, MIB, MIB, 5]
        assert list(reader.stream("empty")) == []
        for begin, count in ((len(data), 1), (0, len(data) + 1), (-1, 1), (0, -1)):
            with pytest.raises(DataDamaged):
                reader.read("Deep/er/est/file.bin", begin, count)


def test_what_is_no_ntfs_is_called_so() -> None:
    with open_memory(MIB) as empty, pytest.raises(NotNtfs):
        Reader(empty)


def read_all(device: Device) -> None:
    with Reader(device) as reader:
        for entry in reader.list():
            if not entry.is_directory and entry.size_bytes < 8 * MIB:
                list(reader.stream(entry.path))
        reader.free_bytes()


@pytest.mark.parametrize("seed", range(4))
def test_damage_of_any_kind_raises_damage_and_nothing_else(filled: Device, seed: int) -> None:
    """Flipped bytes in boot sector, file records and index blocks; most are noticed, none does more than that."""
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
            read_all(filled)
        except (DataDamaged, NotFound):
            noticed += 1
        for at, _byte in changes:
            filled.pwrite(whole[at : at + 1], at)
    assert noticed > 2
    read_all(filled)


def test_the_free_room_agrees_with_the_map_of_clusters(filled: Device) -> None:
    with Reader(filled) as reader:
        size, count = reader.geometry.cluster_bytes, reader.geometry.clusters
        used, total = reader.clusters_used(0, filled.size_bytes)
        assert total == count
        assert reader.free_bytes() == (count - used) * size
        parts = [reader.clusters_used(at * size, 7 * size) for at in range(0, count, 7)]
        assert sum(part[0] for part in parts) == used
        assert sum(part[1] for part in parts) == count

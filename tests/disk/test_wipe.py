"""What was on a disk is gone, as far as was promised, and what was not promised is said."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from faulty import IMAGE_BYTES, MIB, order_of, quick
from support import need, need_root, run
from test_prepare import Bench

import journal
from diskprep.disk import target
from diskprep.disk.prepare import prepare_disk
from diskprep.disk.wipe import wipe
from diskprep.disk.work import Order, Wipe, Work
from diskprep.events import Event, Note, Progress
from diskprep.volume.device import Device, open_for_reading

SECRET = b"old secret plans"
DISK_BYTES = 128 * MIB


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    quick(monkeypatch)
    return Bench(tmp_path, (70_000, 700))


def wiped(order: Order) -> tuple[dict[str, Any], list[Event]]:
    """Wipe only, without the steps that follow; the record's fields and what was told."""
    told: list[Event] = []
    order.journal_path.parent.mkdir(exist_ok=True)
    with (
        journal.Journal.create(order.journal_path, {"serial": order.serial}) as log,
        target.open_claimed(order.target) as device,
    ):
        return wipe(Work(order=order, journal=log, emit=told.append, device=device)), told


def notes(told: list[Event]) -> list[str]:
    return [event.text for event in told if isinstance(event, Note)]


def test_an_image_becomes_one_hole(bench: Bench) -> None:
    path = bench.root / "WD-0001.img"
    path.write_bytes(SECRET * (IMAGE_BYTES // len(SECRET)))
    fields, told = wiped(order_of(bench))
    assert fields == {"discarded": True, "how": "discard"}
    assert path.stat().st_size == IMAGE_BYTES
    assert path.stat().st_blocks == 0
    assert not notes(told)


def test_an_image_keeps_its_size_all_the_time(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody killed in between leaves an image that no call knows any more."""
    path = bench.root / "WD-0001.img"
    path.write_bytes(SECRET * (IMAGE_BYTES // len(SECRET)))
    order, sizes = order_of(bench), []
    real = os.ftruncate

    def ftruncate(descriptor: int, length: int) -> None:
        real(descriptor, length)
        sizes.append(path.stat().st_size)

    monkeypatch.setattr(os, "ftruncate", ftruncate)
    wiped(order)
    assert set(sizes) <= {IMAGE_BYTES}


def test_what_cannot_discard_loses_its_edges_and_that_is_said(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    path = bench.root / "WD-0001.img"
    path.write_bytes(SECRET * (IMAGE_BYTES // len(SECRET)))
    monkeypatch.setattr(Device, "discard", lambda self: False)
    fields, told = wiped(order_of(bench))
    assert fields == {"discarded": False, "how": "discard"}
    data = path.read_bytes()
    assert not any(data[: 2 * MIB])
    assert not any(data[-2 * MIB :])
    assert data.count(SECRET) == (IMAGE_BYTES - 4 * MIB) // len(SECRET)
    assert len(notes(told)) == 1
    assert "`--wipe full`" in notes(told)[0]


@contextlib.contextmanager
def loop_device(backing: Path) -> Iterator[str]:
    need_root()
    with backing.open("wb") as stream:
        for _ in range(DISK_BYTES // MIB):
            stream.write(SECRET * (MIB // len(SECRET)))
    loop = run("losetup", "--find", "--show", "--partscan", backing).strip()
    try:
        yield loop
    finally:
        run("partx", "--delete", loop, ok=False)
        run("losetup", "--detach", loop)


@pytest.fixture
def discards(tmp_path: Path) -> Iterator[str]:
    """A loop device that can discard: its file's file system can make holes."""
    with loop_device(tmp_path / "backing") as loop:
        yield loop


@pytest.fixture
def keeps(tmp_path: Path) -> Iterator[str]:
    """A loop device that cannot discard."""
    need_root()
    place = tmp_path / "ramfs"
    place.mkdir()
    run("mount", "-t", "ramfs", "ramfs", place)
    try:
        with loop_device(place / "backing") as loop:
            yield loop
    finally:
        run("umount", place)


def used_disk(loop: str) -> list[tuple[int, int]]:
    """Make it a disk with a past: partitions with file systems, and a RAID member; (start, length) of each part."""
    run(need("sgdisk"), "-n1:2048:+30M", "-n2:0:+20M", "-n3:0:+40M", loop)
    run("partx", "--update", loop)
    name = Path(loop).name
    parts = []
    for number in (1, 2, 3):
        base = Path("/sys/block") / name / f"{name}p{number}"
        parts.append(tuple(int((base / what).read_text()) * 512 for what in ("start", "size")))
    images = Path(loop).name
    assert images
    run(need("mkfs.ext4"), "-q", "-F", "-E", f"offset={parts[0][0]}", loop, "20M")
    with open(loop, "r+b") as stream:  # noqa: PTH123
        stream.seek(parts[1][0] + 4096 - 10)
        stream.write(b"SWAPSPACE2")
        stream.seek(parts[1][0] + 1024)
        stream.write(struct.pack("<III", 1, 2000, 0))
        for start, length in [(0, DISK_BYTES), parts[2]]:
            place = (start + length - 8192) // 4096 * 4096  # version 1.0 of an MD superblock is near the end
            stream.seek(place)
            stream.write(md_superblock((place - start) // 512))
        os.fsync(stream.fileno())
    return [(start, length) for start, length in parts]


def md_superblock(sector: int) -> bytes:
    """A RAID member's superblock, version 1.0, 256 bytes, with its checksum at 216."""
    data = bytearray(256)
    struct.pack_into("<III", data, 0, 0xA92B4EFC, 1, 0)
    data[16:32] = os.urandom(16)
    struct.pack_into("<Q", data, 80, 2048)
    struct.pack_into("<I", data, 92, 2)
    struct.pack_into("<QQQ", data, 128, 0, sector, sector)
    total = sum(struct.unpack("<64I", data))
    struct.pack_into("<I", data, 216, ((total & 0xFFFFFFFF) + (total >> 32)) & 0xFFFFFFFF)
    return bytes(data)


def probe(loop: str, start: int = 0, length: int = DISK_BYTES) -> str:
    return run("blkid", "--probe", "--offset", str(start), "--size", str(length), loop, ok=False).strip()


def content(loop: str) -> bytes:
    with open_for_reading(Path(loop)) as device:
        device.drop_cache()
        return device.pread(device.size_bytes, 0)


@pytest.mark.root
@pytest.mark.parametrize("kind", ["discards", "keeps"])
def test_nobody_recognises_what_was_on_a_disk(bench: Bench, kind: str, request: pytest.FixtureRequest) -> None:
    loop = str(request.getfixturevalue(kind))
    parts = used_disk(loop)
    places = [(0, DISK_BYTES), *parts]
    known = [probe(loop, *place) for place in places]
    assert all(known), f"the disk has no past: {known}"
    fields, told = wiped(order_of(bench, f"{loop},serial=WD-0001"))
    assert fields["discarded"] == (kind == "discards")
    assert bool(notes(told)) == (kind == "keeps")
    assert [probe(loop, *place) for place in places] == [""] * len(places)
    data = content(loop)
    assert data.count(SECRET) == 0 if kind == "discards" else data.count(SECRET) > 1000
    for start, length in places:
        assert not any(data[start : start + 2 * MIB])
        assert not any(data[start + length - 2 * MIB : start + length])


@pytest.mark.root
def test_a_disk_that_only_says_that_it_has_discarded_is_not_believed(
    bench: Bench, keeps: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a disk shows afterwards is its own affair, and some show what was there."""
    parts = used_disk(keeps)
    monkeypatch.setattr(Device, "discard", lambda self: True)
    wiped(order_of(bench, f"{keeps},serial=WD-0001"))
    assert [probe(keeps, *place) for place in [(0, DISK_BYTES), *parts]] == [""] * 4


@pytest.mark.root
@pytest.mark.parametrize("kind", ["discards", "keeps"])
def test_a_full_wipe_leaves_no_old_byte(bench: Bench, kind: str, request: pytest.FixtureRequest) -> None:
    loop = str(request.getfixturevalue(kind))
    order = replace(order_of(bench, f"{loop},serial=WD-0001"), wipe=Wipe.FULL)
    fields, told = wiped(order)
    assert fields["how"] == "full"
    assert not any(content(loop))
    assert not notes(told)
    progress = [event for event in told if isinstance(event, Progress)]
    assert [event.done_bytes for event in progress] == sorted(event.done_bytes for event in progress)
    assert (progress[-1].done_bytes, progress[-1].total_bytes) == (DISK_BYTES, DISK_BYTES)


@pytest.mark.root
def test_a_used_disk_that_was_prepared_carries_nothing_old_in_its_tables(bench: Bench, keeps: str) -> None:
    used_disk(keeps)
    prepare_disk(order_of(bench, f"{keeps},serial=WD-0001"), lambda event: None)
    told = run("wipefs", "--no-act", keeps)
    assert "gpt" in told
    assert not [name for name in ("ext4", "swap", "raid") if name in told]

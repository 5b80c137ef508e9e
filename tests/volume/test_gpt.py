"""Partition tables are what other programs write and read, and survive the loss of either copy."""

from __future__ import annotations

import contextlib
import random
import uuid
import zlib
from pathlib import Path

import pytest
from support import need, run
from volume_support import MIB

from diskprep.errors import DataDamaged
from diskprep.volume import gpt
from diskprep.volume.device import create_image, open_for_reading, open_for_writing, open_memory

TABLE = gpt.Table(
    disk_guid=uuid.UUID(int=0x1234567890ABCDEF1234567890ABCDEF),
    partitions=(gpt.Partition(first_lba=2048, last_lba=40959, name="Basic data partition", guid=uuid.UUID(int=99)),),
)


def test_sgdisk_finds_no_problem_and_reads_the_same(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    create_image(image, 24 * MIB)
    with open_for_writing(image) as device:
        gpt.write(device, TABLE)
        assert gpt.read(device) == TABLE
    assert "No problems found" in run(need("sgdisk"), "-v", image)
    assert str(TABLE.disk_guid).upper() in run("sgdisk", "-p", image)
    detail = run("sgdisk", "-i", "1", image)
    assert "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7" in detail
    assert "First sector: 2048" in detail
    assert "Attribute flags: 0000000000000000" in detail


def test_a_table_that_sgdisk_wrote_is_read(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    create_image(image, 24 * MIB)
    run(need("sgdisk"), "-o", "-n", "1:2048:30000", "-t", "1:0700", "-c", "1:Daten ä", "-n", "2:30720:0", image)
    with open_for_reading(image) as device:
        table = gpt.read(device)
    assert [(p.first_lba, p.name) for p in table.partitions] == [(2048, "Daten ä"), (30720, "")]
    assert table.partitions[0].type_guid == gpt.BASIC_DATA


@pytest.mark.parametrize("lost", [range(34 * 512), range(512, 1024), range(1024, 1152)])
def test_the_backup_serves_when_the_primary_is_lost(lost: range) -> None:
    with open_memory(24 * MIB) as device:
        gpt.write(device, TABLE)
        device.pwrite(bytes(len(lost)), lost.start)
        assert gpt.read(device) == TABLE


def test_the_primary_serves_when_the_end_is_lost_and_neither_means_none() -> None:
    with open_memory(24 * MIB) as device:
        gpt.write(device, TABLE)
        device.pwrite(bytes(33 * 512), device.size_bytes - 33 * 512)
        assert gpt.read(device) == TABLE
        device.pwrite(bytes(4096), 0)
        with pytest.raises(gpt.NoPartitionTable):
            gpt.read(device)


def test_hostile_tables_raise_nothing_but_our_error() -> None:
    rng = random.Random(11)
    with open_memory(24 * MIB) as device:
        gpt.write(device, TABLE)
        device.pwrite(bytes(512), device.size_bytes - 512)
        good = device.pread(92, 512)
        for _ in range(1500):
            header = bytearray(good)
            for _ in range(rng.randrange(1, 4)):
                header[rng.randrange(92)] = rng.choice([0, 1, 0x7F, 0xFF])
            header[16:20] = bytes(4)
            header[16:20] = zlib.crc32(header).to_bytes(4, "little")
            device.pwrite(header, 512)
            with contextlib.suppress(DataDamaged):
                gpt.read(device)


def test_a_write_torn_after_the_backup_leaves_a_table_that_is_read() -> None:
    with open_memory(24 * MIB) as device, open_memory(24 * MIB) as torn:
        gpt.write(device, TABLE)
        tail = 33 * 512
        torn.pwrite(device.pread(tail, device.size_bytes - tail), device.size_bytes - tail)
        assert gpt.read(torn) == TABLE

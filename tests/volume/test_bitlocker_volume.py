"""The decrypted view behaves as plain bytes, but for the regions BitLocker keeps for itself."""

from __future__ import annotations

import os
import random
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from volume_support import CREATED, MIB, MadeDisk

from diskprep.errors import DataDamaged, DiskFailed
from diskprep.secrets import Secret
from diskprep.volume.bitlocker import (
    MetadataDamaged,
    Method,
    NotBitLocker,
    Volume,
    WrongRecoveryPassword,
    generate_recovery_password,
    layout,
)
from diskprep.volume.bitlocker.metadata import Metadata
from diskprep.volume.device import Device, open_for_writing, open_memory
from diskprep.volume.format import open_disk

COPIES = (3 * MIB, 5 * MIB, 7 * MIB)
HEADER = 3 * MIB + 65536
START = 1 * MIB
SIZE = 12 * MIB


@pytest.fixture(params=[(Method.XTS_AES_128, 512), (Method.AES_CBC_256, 512), (Method.XTS_AES_256, 4096)])
def opened(request: pytest.FixtureRequest) -> Iterator[tuple[Device, Volume]]:
    """A volume that is encrypted up to 1 MiB before its end, on a device in memory."""
    method, sector_bytes = request.param
    metadata = Metadata(
        method=method,
        guid=uuid.uuid4(),
        created=CREATED,
        description="",
        sector_bytes=sector_bytes,
        encrypted_bytes=SIZE - MIB,
        copy_offsets=COPIES,
        header_offset=HEADER,
    )
    with open_memory(START + SIZE) as device:
        key = Secret(os.urandom(method.key_bytes))
        yield device, Volume(device, start_bytes=START, size_bytes=SIZE, metadata=metadata, key=key)


def reserved(volume: Volume) -> list[range]:
    return [range(offset, offset + length) for offset, length in volume.reserved]


def blank_reserved(volume: Volume, data: bytes, offset: int) -> bytes:
    """`data` with zeros where it would fall into a reserved region."""
    out = bytearray(data)
    for region in reserved(volume):
        begin, end = max(region.start, offset), min(region.stop, offset + len(data))
        if begin < end:
            out[begin - offset : end - offset] = bytes(end - begin)
    return bytes(out)


def test_any_reads_and_writes_equal_those_of_plain_memory(opened: tuple[Device, Volume]) -> None:
    _device, volume = opened
    rng = random.Random(5)
    volume.pwrite(bytes(SIZE), 0)
    model = bytearray(SIZE)
    for _ in range(150):
        near = rng.choice([0, 8192, *COPIES, HEADER, HEADER + 8192, SIZE - MIB, SIZE - 70_000, rng.randrange(SIZE)])
        offset = max(0, near - rng.randrange(9000))
        length = min(rng.choice([1, 5, 511, 512, 4096, 9000, 70_000, 300_000, 1_200_000]), SIZE - offset)
        data = blank_reserved(volume, rng.randbytes(length), offset)
        volume.pwrite(data, offset)
        model[offset : offset + length] = data
        begin = rng.randrange(SIZE)
        count = min(rng.randrange(2_500_000), SIZE - begin)
        assert volume.pread(count, begin) == model[begin : begin + count]
    assert volume.pread(SIZE, 0) == model


def test_only_ciphertext_reaches_the_device(opened: tuple[Device, Volume]) -> None:
    device, volume = opened
    text = b"plain text that nobody may see. " * 1024
    volume.pwrite(blank_reserved(volume, text * 100, 0), 0)
    on_disk = device.pread(SIZE - MIB, START)
    assert text[:32] not in on_disk
    assert not any(on_disk[:8192])  # the boot sector's place; what the file system has there is elsewhere
    for region in reserved(volume)[2:]:
        assert not any(on_disk[region.start : region.stop])


def test_a_write_into_a_reserved_region_raises_unless_it_is_zeros(opened: tuple[Device, Volume]) -> None:
    device, volume = opened
    before = device.pread(START + SIZE, 0)
    for region in reserved(volume):
        volume.pwrite(bytes(len(region)), region.start)
        for place in (region.start, region.stop - 1):
            with pytest.raises(DataDamaged):
                volume.pwrite(b"x", place)
    assert device.pread(START + SIZE, 0) == before


def test_beyond_the_end_is_an_error(opened: tuple[Device, Volume]) -> None:
    _device, volume = opened
    for call in (
        lambda: volume.pread(2, SIZE - 1),
        lambda: volume.pwrite(b"xx", SIZE - 1),
        lambda: volume.pread(1, -1),
    ):
        with pytest.raises(DiskFailed):
            call()
    assert volume.pread(0, SIZE) == b""


def test_small_writes_of_many_threads_side_by_side_all_survive(opened: tuple[Device, Volume]) -> None:
    _device, volume = opened
    volume.pwrite(bytes(MIB), MIB)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: volume.pwrite(bytes([n % 255 + 1]) * 100, MIB + 100 * n), range(600)))
    assert volume.pread(60_000, MIB) == b"".join(bytes([n % 255 + 1]) * 100 for n in range(600))


def test_sealed_writes_are_what_a_write_does(opened: tuple[Device, Volume]) -> None:
    device, volume = opened
    for offset, length in ((0, 16384), (8192, 3 * MIB), (COPIES[1] - 4096, 65536 + 8192), (SIZE - MIB - 4096, 8192)):
        data = blank_reserved(volume, random.Random(offset).randbytes(length), offset)
        before = device.pread(START + SIZE, 0)
        pieces = list(volume.sealed_writes(data, offset))
        assert device.pread(START + SIZE, 0) == before
        volume.pwrite(data, offset)
        after = device.pread(START + SIZE, 0)
        for place, piece in pieces:
            device.pwrite(piece, place)
        assert device.pread(START + SIZE, 0) == after != before
        for place, piece in pieces:
            device.pwrite(bytes(len(piece)), place)
        untouched = bytearray(before)
        for place, piece in pieces:
            untouched[place : place + len(piece)] = bytes(len(piece))
        assert device.pread(START + SIZE, 0) == untouched
    for region in reserved(volume):
        assert list(volume.sealed_writes(bytes(len(region)), region.start)) == []
        with pytest.raises(DataDamaged):
            list(volume.sealed_writes(b"x" * len(region), region.start))
    with pytest.raises(DiskFailed):
        list(volume.sealed_writes(bytes(8192), SIZE - 4096))


def test_large_and_small_writes_to_an_image_are_all_read_back(disk: MadeDisk) -> None:
    """Large ones may go past the page cache; side by side and one over the other with small ones nothing is lost."""
    rng, begin, size = random.Random(8), 40 * MIB, 12 * MIB
    model = bytearray(size)
    with open_for_writing(disk.path) as device:
        volume = open_disk(device, disk.password)
        volume.pwrite(model, begin)
        for _ in range(60):
            unit = rng.choice([1, 512, 4096, 4096, 65536])
            length = rng.randrange(1, 2 * MIB // unit) * unit if unit > 1 else rng.randrange(1, 9000)
            offset = rng.randrange((size - length) // unit) * unit
            data = blank_reserved(volume, rng.randbytes(length), begin + offset)
            volume.pwrite(data, begin + offset)
            model[offset : offset + length] = data
            count = rng.randrange(20_000)
            assert volume.pread(count, begin + offset) == model[offset : offset + count][:count]
        volume.sync()
    with open_for_writing(disk.path) as device:
        device.drop_cache()
        assert open_disk(device, disk.password).pread(size, begin) == model


@pytest.mark.parametrize("destroyed", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)])
def test_the_volume_opens_while_one_metadata_copy_is_left(disk: MadeDisk, destroyed: tuple[int, ...]) -> None:
    with open_for_writing(disk.path) as device:
        offsets = open_disk(device, disk.password).metadata.copy_offsets
        for index in destroyed:
            device.pwrite(os.urandom(65536), disk.layout.start_bytes + offsets[index])
        assert open_disk(device, disk.password).metadata.guid == disk.layout.volume_guid


def test_with_all_copies_gone_the_metadata_are_called_damaged(disk: MadeDisk) -> None:
    with open_for_writing(disk.path) as device:
        for offset in open_disk(device, disk.password).metadata.copy_offsets:
            device.pwrite(bytes(65536), disk.layout.start_bytes + offset)
        with pytest.raises(MetadataDamaged):
            open_disk(device, disk.password)


def test_a_copy_forged_without_the_key_is_not_taken(disk: MadeDisk) -> None:
    """The CRC of a forged copy is right; only the hash under the master key tells."""
    with open_for_writing(disk.path) as device:
        metadata = open_disk(device, disk.password).metadata
        for offset in metadata.copy_offsets:
            place = disk.layout.start_bytes + offset
            copy = layout.parse_copy(device.pread(65536, place))
            device.pwrite(layout.encode_copy(replace(copy, next_nonce=99)), place)
        with pytest.raises(MetadataDamaged):
            open_disk(device, disk.password)


def test_a_wrong_recovery_password_and_an_empty_disk_are_told_apart(disk: MadeDisk) -> None:
    with open_for_writing(disk.path) as device, pytest.raises(WrongRecoveryPassword):
        open_disk(device, generate_recovery_password())
    with open_memory(64 * MIB) as empty, pytest.raises(NotBitLocker):
        open_disk(empty, disk.password)

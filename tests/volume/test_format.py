"""A disk is made whole or is not recognised at all; what was on it before is gone."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import need_root, run
from volume_support import CREATED, MIB, MadeDisk, Maker, pattern, source

from diskprep import process
from diskprep.errors import DataDamaged, DiskFailed, DiskRefused, ReadBackFailed, UsageError
from diskprep.secrets import Secret
from diskprep.volume import gpt
from diskprep.volume.bitlocker import Method, generate_recovery_password, keys
from diskprep.volume.device import Device, create_image, open_for_reading, open_for_writing, open_memory
from diskprep.volume.format import Layout, format_disk, open_disk, read_volume_identity
from diskprep.volume.ntfs import Filler, Reader, reserve


def make(device: Device, password: Secret[str], **changes: str) -> Layout:
    texts = {"label": "DISK-1", "description": "host DISK-1", **changes}
    return format_disk(device, method=Method.XTS_AES_128, recovery_password=password, created=CREATED, **texts)


def test_a_new_disk_has_one_partition_and_an_empty_ntfs(pristine_disk: MadeDisk) -> None:
    with open_for_reading(pristine_disk.path) as device:
        (partition,) = gpt.read(device).partitions
        volume = open_disk(device, pristine_disk.password)
        with Reader(volume) as reader:
            assert list(reader.list()) == []
            assert reader.free_bytes() > 55 * MIB
        assert partition.first_lba == 2048
        assert (partition.last_lba + 1) * 512 % MIB == 0
        assert gpt.read(device).disk_guid == pristine_disk.layout.disk_guid
        assert read_volume_identity(device) == (volume.metadata.guid, volume.metadata.description)
        assert volume.metadata.guid == pristine_disk.layout.volume_guid
        assert volume.metadata.created == CREATED
        assert volume.metadata.description == "host TEST-1"


def test_the_regions_are_files_of_the_file_system_in_one_piece(pristine_disk: MadeDisk) -> None:
    with open_for_reading(pristine_disk.path) as device:
        volume = open_disk(device, pristine_disk.password)
        with Reader(volume) as reader:
            names = [*reserve.COPY_NAMES, reserve.HEADER_NAME]
            places = [reader.extents(f"{reserve.FOLDER}/{name}")[0][0] for name in names]
            assert reader.stat(f"{reserve.FOLDER}/{reserve.FURTHER_NAME}").size_bytes == 65536
    assert places == [*volume.metadata.copy_offsets, volume.metadata.header_offset]


@pytest.mark.parametrize("size", [64 * MIB, 64 * MIB + 4096, 100 * MIB - 512, 20_000_000 * 512])
def test_disks_of_odd_sizes_and_large_ones_are_made(size: int, maker: Maker, tmp_path: Path) -> None:
    made = maker(tmp_path / "disk.img", size, Method.AES_CBC_128 if size == 64 * MIB else Method.XTS_AES_256)
    assert "No problems found" in run("sgdisk", "-v", made.path)


def test_the_regions_are_in_one_piece_where_the_library_starts_with_a_gap() -> None:
    """On a volume of 10 TB the first free cluster it takes is a single one."""
    with open_memory(10 * 10**12) as plain:
        argv = ["mkntfs", "-F", "-Q", "-q", "-s", "512", "-p", "2048", "-H", "255", "-S", "63"]
        process.run([*argv, f"/proc/self/fd/{plain.descriptor}"], pass_fds=[plain.descriptor])
        reserved = reserve.reserve(plain)
        with Reader(plain) as reader:
            held = [entry.path for entry in reader.list()]
            places = [reader.extents(f"{reserve.FOLDER}/{name}") for name in (*reserve.COPY_NAMES, reserve.HEADER_NAME)]
    assert held == []
    assert [offset for ((offset, _),) in places] == [*reserved.copy_offsets, reserved.header_offset]


def test_too_small_a_disk_and_bad_texts_are_refused_before_anything_is_written() -> None:
    password = generate_recovery_password()
    with open_memory(64 * MIB - 512) as small, pytest.raises(DiskRefused):
        make(small, password)
    with open_memory(64 * MIB) as device:
        for changes in ({"label": ""}, {"label": "x" * 33}, {"label": "a\nb"}, {"description": "\ud800"}):
            with pytest.raises(UsageError):
                make(device, password, **changes)
        with pytest.raises(UsageError):
            make(device, Secret("123456-" * 7 + "123456"))
        assert list(device.data_extents()) == []


def test_old_signatures_are_gone_and_the_old_password_opens_nothing(disk: MadeDisk) -> None:
    password = generate_recovery_password()
    with open_for_writing(disk.path) as device:
        device.pwrite(b"\xff" * MIB, device.size_bytes - MIB)
        layout = make(device, password)
        assert layout.volume_guid != disk.layout.volume_guid
        assert layout.disk_guid != disk.layout.disk_guid
        with pytest.raises(Exception, match="does not open"):
            open_disk(device, disk.password)
        assert open_disk(device, password).metadata.guid == layout.volume_guid
        assert not any(device.pread(512 * 1000, device.size_bytes - 512 * 1034))


def test_a_dirty_disk_gives_the_same_file_system_as_a_blank_one(tmp_path: Path) -> None:
    """Nothing in use relies on the disk having been zeros."""
    image = tmp_path / "dirty.img"
    create_image(image, 64 * MIB)
    password = generate_recovery_password()
    with open_for_writing(image) as device:
        for at in range(0, 64 * MIB, MIB):
            device.pwrite(os.urandom(MIB), at)
        make(device, password)
        with Reader(open_disk(device, password)) as reader:
            assert list(reader.list()) == []
            assert (
                len(list(reader.stream("System Volume Information/FVE2.{da392a22-cae0-4f0f-9a30-b8830385d046}"))) == 1
            )


class _Failing(Device):
    """A device that fails from its n-th write on, or changes what is written."""

    def __init__(self, inner: Device, *, writes: int = 1 << 60, spoil: int | None = None) -> None:
        self._inner, self._left, self._spoil = inner, writes, spoil
        super().__init__(inner.path, os.dup(inner.descriptor))

    def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        self._left -= 1
        if self._left < 0:
            raise DiskFailed("injected")
        whole = bytearray(data)
        if self._spoil is not None and offset <= self._spoil < offset + len(whole):
            whole[self._spoil - offset] ^= 1
        super().pwrite(whole, offset)


@pytest.fixture
def used() -> Iterator[Device]:
    """A disk in memory that was a BitLocker disk of ours before."""
    with open_memory(64 * MIB) as device:
        make(device, generate_recovery_password())
        yield device


def test_a_disk_that_was_interrupted_at_any_write_is_not_recognised(
    used: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "stretch", lambda initial, salt: Secret(hashlib.sha256(initial.reveal() + salt).digest()))
    password, writes = generate_recovery_password(), 0
    while True:
        writes += 1
        try:
            with _Failing(used, writes=writes) as device:
                make(device, password)
        except DiskFailed:
            assert read_volume_identity(used) is None
            with pytest.raises(DataDamaged):
                open_disk(used, password)
        else:
            break
    assert writes > 10
    assert read_volume_identity(used) is not None


@pytest.mark.parametrize("place", [MIB + 11, MIB + 4 * 4096 + 100, MIB + 62 * MIB - 600])
def test_a_medium_that_changes_a_bit_is_found_by_reading_back(used: Device, place: int) -> None:
    with _Failing(used, spoil=place) as device, pytest.raises(ReadBackFailed):
        make(device, generate_recovery_password())


@pytest.mark.root
@pytest.mark.parametrize("sector_bytes", [512, 4096])
def test_a_block_device_is_formatted_filled_and_read(tmp_path: Path, sector_bytes: int) -> None:
    need_root()
    image, password = tmp_path / "disk.img", generate_recovery_password()
    create_image(image, 96 * MIB)
    loop = Path(run("losetup", "--sector-size", str(sector_bytes), "-f", "--show", image).strip())
    try:
        with open_for_writing(loop) as device:
            assert device.sector_bytes == sector_bytes
            make(device, password)
            data = pattern("loop", 5 * MIB + 13)
            Filler(open_disk(device, password)).write([source("a/b.bin", data), source("a/c", b"small")])
            device.drop_cache()
            with Reader(open_disk(device, password)) as reader:
                assert b"".join(reader.stream("a/b.bin")) == data
                assert reader.read("a/c", 0, 5) == b"small"
        if sector_bytes == 512:
            assert "No problems found" in run("sgdisk", "-v", loop)
    finally:
        run("losetup", "-d", loop)


def test_reading_back_covers_all_that_was_written(pristine_disk: MadeDisk) -> None:
    """The view of a new disk is a whole NTFS volume: its first and last sector are boot sectors."""
    with open_for_reading(pristine_disk.path) as device:
        volume = open_disk(device, pristine_disk.password)
        first, last = volume.pread(512, 0), volume.pread(512, volume.size_bytes - 512)
    assert hashlib.sha256(first).digest() == hashlib.sha256(last).digest()
    assert first[3:11] == b"NTFS    "

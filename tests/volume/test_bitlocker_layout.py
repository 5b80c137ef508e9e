"""The bytes of boot sector and metadata: golden, there and back, and hostile."""

from __future__ import annotations

import hashlib
import random
import struct
import uuid
import zlib
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from volume_support import WindowsVolume

from diskprep.errors import DataDamaged
from diskprep.secrets import Secret
from diskprep.volume.bitlocker import Metadata, Method, generate_recovery_password, layout, metadata
from diskprep.volume.bitlocker.layout import BootSector, NotBitLocker, VolumeNotActive

OFFSETS = (0x2100000, 0x2C1D000, 0x373A000)


def make_region() -> bytes:
    facts = Metadata(
        method=Method.XTS_AES_128,
        guid=uuid.UUID(int=7),
        created=datetime(2025, 1, 2, tzinfo=UTC),
        description="host LABEL",
        sector_bytes=512,
        encrypted_bytes=100 << 20,
        copy_offsets=OFFSETS,
        header_offset=0x2110000,
    )
    return metadata.create(facts, further_offset=0x2112000, recovery_password=generate_recovery_password())[0]


REGION = make_region()


def test_a_boot_sector_reads_back_and_has_every_constant() -> None:
    boot = BootSector(sector_bytes=512, cluster_sectors_code=8, hidden_sectors=2048, copy_offsets=OFFSETS)
    data = boot.encode()
    assert len(data) == 8192
    assert layout.parse_boot_sector(data[:512]) == boot
    assert data[:11] == b"\xeb\x58\x90-FVE-FS-"
    assert data[56:64] == bytes(8)
    assert data[71:90] == b"NO NAME    FAT32   "
    assert data[510:512] == b"\x55\xaa"
    assert BootSector.encode(boot)[512:] != data[512:]  # filler is random, as Windows' is


def test_a_region_is_64_kib_and_reads_back_to_the_same_bytes() -> None:
    copy = layout.parse_copy(REGION)
    assert len(REGION) == 65536
    assert layout.encode_copy(copy) == REGION
    assert copy.state == copy.next_state == 4
    assert copy.next_nonce == 7  # the protector took 2 to 4, the volume key 5, the hash 6
    assert [datum.role for datum in copy.datums] == [7, 2, 3, 0x0F]
    assert len(copy.datums[1].encode()) == 288
    assert len(copy.datums[3].encode()) == 100


def test_the_boot_sectors_of_windows_read_and_write_back_in_all_fields(
    windows_volumes: dict[str, WindowsVolume],
) -> None:
    sector = windows_volumes["bitlk-aes-xts-128"].path.read_bytes()[:512]
    mine = layout.parse_boot_sector(sector).encode()[:512]
    for begin, end in [(0, 90), (160, 216), (0x198, 512)]:
        assert mine[begin:end] == sector[begin:end]


def test_windows_metadata_have_the_golden_hash_and_are_written_back_to_the_same_bytes(
    windows_volumes: dict[str, WindowsVolume],
) -> None:
    whole = windows_volumes["bitlk-aes-xts-128"].path.read_bytes()
    offset = layout.parse_boot_sector(whole[:512]).copy_offsets[0]
    region = whole[offset : offset + 65536]
    copy = layout.parse_copy(region)
    assert len(copy.covered) == 880
    assert zlib.crc32(copy.covered) == 0x42FDBD31
    digest = "650451a7c3b43919f3fdae49ae17c72a51a1f6bd77b64cb94152a4f722135d16"
    assert hashlib.sha256(copy.covered).hexdigest() == digest
    assert copy.encode_covered() == copy.covered
    assert layout.encode_copy(copy) == region


@pytest.mark.parametrize("name", ["first-recovery", "new-entry", "two-recovery", "xts-256", "cbc-128", "4k"])
def test_our_metadata_have_the_fields_of_windows(name: str, windows_volumes: dict[str, WindowsVolume]) -> None:
    found = next(volume for key, volume in windows_volumes.items() if key.endswith(name))
    whole = found.path.read_bytes()
    boot = layout.parse_boot_sector(whole[:512])
    theirs = layout.parse_copy(whole[boot.copy_offsets[0] : boot.copy_offsets[0] + 65536])
    assert (
        layout.encode_copy(theirs)[: len(theirs.covered) + 80]
        == whole[boot.copy_offsets[0] : boot.copy_offsets[0] + len(theirs.covered) + 80]
    )
    assert theirs.relocated_sectors == 8192 // boot.sector_bytes
    extension = next(d for d in theirs.datums if d.type == 0x0F).body[16:]
    ours = layout.relocation_body(theirs.header_offset, theirs.header_offset + 8192, boot.sector_bytes)[16:]
    build = slice(44, 48)  # the system's build number differs
    assert extension[:44] == ours[:44]
    assert extension[48:] == ours[48:], build


def test_one_changed_byte_of_the_covered_part_is_noticed() -> None:
    covered = len(layout.parse_copy(REGION).covered)
    for at in range(0, covered, 7):
        damaged = bytearray(REGION)
        damaged[at] ^= 0x40
        with pytest.raises(DataDamaged):
            layout.parse_copy(bytes(damaged))


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 1 << 32))
def test_hostile_metadata_with_a_right_crc_raise_nothing_but_our_error(seed: int) -> None:
    rng = random.Random(seed)
    damaged = bytearray(REGION)
    total = struct.unpack_from("<H", damaged, 8)[0] * 16
    for _ in range(rng.randrange(1, 6)):
        damaged[rng.randrange(12, total)] = rng.choice([0, 1, 0xFF, rng.randrange(256)])
    struct.pack_into("<I", damaged, total + 4, zlib.crc32(damaged[:total]))
    try:
        copy = layout.parse_copy(bytes(damaged))
        layout.parse_relocation(copy.datums)
        layout.from_filetime(copy.created_filetime)
        boot = BootSector(sector_bytes=512, cluster_sectors_code=8, hidden_sectors=0, copy_offsets=OFFSETS)
        protector = metadata.Protector(0x0800, Secret(bytes(32)), _Anything())
        metadata._open_copy(copy, boot, protector)
    except (DataDamaged, layout.WrongRecoveryPassword):
        pass


class _Anything(dict):  # type: ignore[type-arg]
    """Stretched keys for every salt, so that no time goes into stretching."""

    def __missing__(self, key: bytes) -> Secret[bytes]:
        return Secret(bytes(32))

    def __contains__(self, key: object) -> bool:
        return True


@given(st.binary(max_size=200))
def test_hostile_datums_raise_nothing_but_our_error(data: bytes) -> None:
    try:
        datums = layout.parse_datums(data)
    except DataDamaged:
        return
    assert b"".join(datum.encode() for datum in datums) == data


def test_other_volumes_are_told_apart() -> None:
    good = BootSector(sector_bytes=512, cluster_sectors_code=8, hidden_sectors=0, copy_offsets=OFFSETS).encode()[:512]

    def changed(at: int, data: bytes) -> bytes:
        return good[:at] + data + good[at + len(data) :]

    for sector in (bytes(512), changed(0, b"\xeb\x52"), changed(160, bytes(16)), changed(11, b"\x01\x03")):
        with pytest.raises(NotBitLocker):
            layout.parse_boot_sector(sector)
    with pytest.raises(VolumeNotActive):
        layout.parse_boot_sector(changed(160, layout.GUID_USED_SPACE_ONLY.bytes_le))


@given(st.datetimes(timezones=st.just(UTC)).filter(lambda moment: moment.year > 1601))
def test_times_survive_to_the_microsecond(moment: datetime) -> None:
    assert layout.from_filetime(layout.filetime(moment)) == moment

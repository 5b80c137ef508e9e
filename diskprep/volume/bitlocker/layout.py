"""BitLocker's bytes (BDE version 2, Windows 7 and later): boot sector, metadata copy, datums. Pure; no I/O, no keys.

Everything is little-endian, GUIDs are in mixed-endian form, times are FILETIMEs (100 ns since 1601-01-01 UTC), and
offsets count bytes from the start of the volume. Field by field this follows volumes made by Windows 7 to 11 and the
public format notes of the readers libbde, dislocker and cryptsetup. Invariant: `encode_copy(parse_copy(x)) == x` for
every copy that `parse_copy` accepts and whose validation part fills the region as Windows writes it.
"""

from __future__ import annotations

import os
import struct
import uuid
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import IntEnum, StrEnum
from typing import Final

from diskprep.errors import DataDamaged, WrongPassphrase

SIGNATURE: Final = b"-FVE-FS-"
COPY_BYTES: Final = 65536
HEADER_BYTES: Final = 8192  # the part of the file system that is stored elsewhere, because our boot sector is there
STATE_ENCRYPTED: Final = 4
PROTECTION_RECOVERY: Final = 0x0800
PROTECTION_PASSWORD: Final = 0x2000
GUID_NORMAL: Final = uuid.UUID("4967d63b-2e29-4ad8-8399-f6a339e3d001")
GUID_USED_SPACE_ONLY: Final = uuid.UUID("92a84d3b-dd80-4d0e-9e4e-b1e3284eaed8")

_INFORMATION = struct.Struct("<8sHHHHQII3QQ")
_DATASET = struct.Struct("<IIII16sIHHQ")
_DATUM = struct.Struct("<HHHH")
_VALIDATION = struct.Struct("<HHI")
_EPOCH = datetime(1601, 1, 1, tzinfo=UTC)
_BOOT_CODE = bytes.fromhex("faf4ebfd")  # cli; hlt; jump back: a data disk is never started from


class NotBitLocker(DataDamaged):
    """There is no BitLocker volume of a known kind here."""


class VolumeNotActive(DataDamaged):
    """The volume is decrypted, is being converted, or has only its used space encrypted."""


class NoRecoveryProtector(DataDamaged):
    """No protector of the kind asked for (recovery password, password) is on the volume."""


class WrongRecoveryPassword(WrongPassphrase):
    """The recovery password (or password) opens none of the volume's protectors."""


class MetadataDamaged(DataDamaged):
    """None of the three metadata copies is whole."""


class MethodNotSupported(DataDamaged):
    """The volume uses an encryption method that is not read, as the diffuser of Windows Vista and 7."""


class Method(StrEnum):
    """Encryption methods, by the names Windows documents them under."""

    XTS_AES_128 = "xts-aes-128"
    XTS_AES_256 = "xts-aes-256"
    AES_CBC_128 = "aes-cbc-128"
    AES_CBC_256 = "aes-cbc-256"

    @property
    def code(self) -> int:
        """The number that stands for it on disk."""
        return _METHOD_CODES[self]

    @property
    def key_bytes(self) -> int:
        """Length of the volume key; XTS has two halves."""
        return {0x8002: 16, 0x8003: 32, 0x8004: 32, 0x8005: 64}[self.code]

    @classmethod
    def of_code(cls, code: int) -> Method:
        """Raises MethodNotSupported."""
        for method, number in _METHOD_CODES.items():
            if number == code:
                return method
        if code in (0x8000, 0x8001):
            raise MethodNotSupported("the volume uses AES-CBC with the Elephant diffuser, which is not supported")
        raise MethodNotSupported(f"the volume uses the unknown encryption method {code:#06x}")


_METHOD_CODES = {
    Method.AES_CBC_128: 0x8002,
    Method.AES_CBC_256: 0x8003,
    Method.XTS_AES_128: 0x8004,
    Method.XTS_AES_256: 0x8005,
}


class DatumType(IntEnum):
    """What a datum's body is made of."""

    KEY = 1
    TEXT = 2
    STRETCH_KEY = 3
    AES_CCM = 5
    VMK = 8
    RELOCATION = 0x0F


class Role(IntEnum):
    """What a datum is for."""

    PROPERTY = 0
    VMK = 2
    FVEK = 3
    DESCRIPTION = 7
    RELOCATION = 0x0F
    RECOVERY_RAW = 0x12
    RECOVERY_STRETCHED = 0x13


class KeyKind(IntEnum):
    """The algorithm number inside a key datum; a volume key has its method's code instead."""

    RECOVERY_RAW = 0x1000
    STRETCHED_PASSWORD = 0x1001
    VMK = 0x2003
    SHA256 = 0x2005
    STRETCHED_RECOVERY = 0x2008


@dataclass(frozen=True, slots=True, kw_only=True)
class Datum:
    """One entry of a dataset; bodies may hold more datums."""

    role: int
    type: int
    body: bytes
    flags: int = 1

    def encode(self) -> bytes:
        return _DATUM.pack(_DATUM.size + len(self.body), self.role, self.type, self.flags) + self.body


def parse_datums(data: bytes) -> list[Datum]:
    """The datums that fill `data` exactly. Raises DataDamaged."""
    datums, position = [], 0
    while position < len(data):
        if position + _DATUM.size > len(data):
            raise DataDamaged("a metadata entry is cut off")
        size, role, kind, flags = _DATUM.unpack_from(data, position)
        if size < _DATUM.size or position + size > len(data):
            raise DataDamaged("a metadata entry has an impossible size")
        datums.append(Datum(role=role, type=kind, flags=flags, body=data[position + _DATUM.size : position + size]))
        position += size
    return datums


def encode_key(kind: int, key: bytes) -> bytes:
    """The plaintext of an encrypted datum: a key datum with its algorithm number."""
    return Datum(role=Role.PROPERTY, type=DatumType.KEY, flags=0, body=struct.pack("<HH", kind, 0) + key).encode()


def decode_key(data: bytes) -> tuple[int, bytes]:
    """The inverse of `encode_key`: algorithm number and key. Raises DataDamaged."""
    datums = parse_datums(data)
    if len(datums) != 1 or datums[0].type != DatumType.KEY or len(datums[0].body) < 4:
        raise DataDamaged("an unwrapped key is not in the expected form")
    return struct.unpack_from("<H", datums[0].body)[0], datums[0].body[4:]


@dataclass(frozen=True, slots=True, kw_only=True)
class MetadataCopy:
    """One of the three metadata regions, parsed. `covered` are the bytes that CRC and hash are taken over."""

    state: int
    next_state: int
    encrypted_bytes: int
    converted_bytes: int
    relocated_sectors: int
    copy_offsets: tuple[int, int, int]
    header_offset: int
    guid: uuid.UUID
    next_nonce: int
    method_code: int
    method_code_again: int
    created_filetime: int
    datums: tuple[Datum, ...]
    validation: Datum | None
    covered: bytes = b""

    def encode_covered(self) -> bytes:
        """Information header, dataset header and datums, padded to 16 bytes."""
        entries = b"".join(datum.encode() for datum in self.datums)
        dataset_bytes = _DATASET.size + len(entries)
        total = -(-(_INFORMATION.size + dataset_bytes) // 16) * 16
        return (
            _INFORMATION.pack(
                SIGNATURE,
                total // 16,
                2,
                self.state,
                self.next_state,
                self.encrypted_bytes,
                self.converted_bytes,
                self.relocated_sectors,
                *self.copy_offsets,
                self.header_offset,
            )
            + _DATASET.pack(
                dataset_bytes,
                1,
                _DATASET.size,
                dataset_bytes,
                self.guid.bytes_le,
                self.next_nonce,
                self.method_code,
                self.method_code_again,
                self.created_filetime,
            )
            + entries
        ).ljust(total, b"\0")


def encode_copy(copy: MetadataCopy) -> bytes:
    """The whole 64 KiB region of `copy`, which must have its validation datum."""
    assert copy.validation is not None
    covered = copy.encode_covered()
    checks = _VALIDATION.pack(COPY_BYTES - len(covered), 2, zlib.crc32(covered)) + copy.validation.encode()
    region = (covered + checks).ljust(COPY_BYTES, b"\0")
    assert len(region) == COPY_BYTES
    return region


def parse_copy(region: bytes) -> MetadataCopy:
    """Parse a 64 KiB region whose CRC-32 is right. Raises DataDamaged."""
    signature, paragraphs, version, state, next_state, encrypted, converted, relocated, *offsets = (
        _INFORMATION.unpack_from(region)
    )
    if signature != SIGNATURE or version != 2:
        raise DataDamaged("a metadata copy has no signature or an unknown version")
    total = paragraphs * 16
    if not _INFORMATION.size + _DATASET.size <= total <= COPY_BYTES - _VALIDATION.size - _DATUM.size:
        raise DataDamaged("a metadata copy has an impossible size")
    _length, _version, crc = _VALIDATION.unpack_from(region, total)
    if zlib.crc32(region[:total]) != crc:
        raise DataDamaged("a metadata copy has a wrong CRC-32")
    size, _one, head, _end, guid, nonce, method, again, created = _DATASET.unpack_from(region, _INFORMATION.size)
    if head != _DATASET.size or not _DATASET.size <= size <= total - _INFORMATION.size:
        raise DataDamaged("a metadata copy has an impossible dataset size")
    return MetadataCopy(
        state=state,
        next_state=next_state,
        encrypted_bytes=encrypted,
        converted_bytes=converted,
        relocated_sectors=relocated,
        copy_offsets=(offsets[0], offsets[1], offsets[2]),
        header_offset=offsets[3],
        guid=uuid.UUID(bytes_le=guid),
        next_nonce=nonce,
        method_code=method,
        method_code_again=again,
        created_filetime=created,
        datums=tuple(parse_datums(region[_INFORMATION.size + head : _INFORMATION.size + size])),
        validation=_parse_validation(region[total + _VALIDATION.size :]),
        covered=region[:total],
    )


def _parse_validation(data: bytes) -> Datum | None:
    size = _DATUM.unpack_from(data)[0]
    if not _DATUM.size <= size <= len(data):
        return None
    return parse_datums(data[:size])[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class BootSector:
    """What a reader needs of the volume's first sector, and a writer to make it."""

    sector_bytes: int
    cluster_sectors_code: int  # the byte as it stands in the NTFS boot sector
    hidden_sectors: int
    copy_offsets: tuple[int, int, int]

    def encode(self) -> bytes:
        """The first `HEADER_BYTES` of the volume. What follows the first 512 bytes is never read; it is random."""
        sector = bytearray(512)
        sector[0:11] = b"\xeb\x58\x90" + SIGNATURE
        struct.pack_into("<HB", sector, 11, self.sector_bytes, self.cluster_sectors_code)
        sector[21] = 0xF8
        struct.pack_into("<HHI", sector, 24, 63, 255, self.hidden_sectors)
        struct.pack_into("<I", sector, 36, 0x1FE0)
        struct.pack_into("<HH", sector, 48, 1, 6)
        sector[64:67] = b"\x80\x00\x29"
        sector[71:90] = b"NO NAME    FAT32   "
        sector[90 : 90 + len(_BOOT_CODE)] = _BOOT_CODE
        sector[160:176] = GUID_NORMAL.bytes_le
        struct.pack_into("<3Q", sector, 176, *self.copy_offsets)
        sector[0x198:0x1E8] = b"\x78" * 80
        sector[0x1E8:0x1FE] = b"\xff" * 19 + b"\x00\x1f\x2c"
        sector[510:512] = b"\x55\xaa"
        return bytes(sector) + os.urandom(HEADER_BYTES - len(sector))


def parse_boot_sector(sector: bytes) -> BootSector:
    """Parse the first 512 bytes of a volume. Raises NotBitLocker, or VolumeNotActive for used-space-only volumes."""
    if sector[3:11] == b"MSWIN4.1" and sector[424:440] == GUID_NORMAL.bytes_le:
        raise NotBitLocker("this is a BitLocker To Go volume with FAT, which is not supported")
    if sector[3:11] != SIGNATURE or sector[510:512] != b"\x55\xaa":
        raise NotBitLocker("this is not a BitLocker volume")
    if sector[0:3] != b"\xeb\x58\x90":
        raise NotBitLocker("this BitLocker volume was made by Windows Vista, which is not supported")
    guid = uuid.UUID(bytes_le=sector[160:176])
    if guid == GUID_USED_SPACE_ONLY:
        raise VolumeNotActive("only the used space of this BitLocker volume is encrypted, which is not supported")
    if guid != GUID_NORMAL:
        raise NotBitLocker(f"this is a BitLocker volume of an unknown kind ({guid})")
    sector_bytes, cluster = struct.unpack_from("<HB", sector, 11)
    if sector_bytes not in (512, 4096):
        raise NotBitLocker(f"the BitLocker volume has sectors of {sector_bytes} bytes")
    first, second, third = struct.unpack_from("<3Q", sector, 176)
    return BootSector(
        sector_bytes=sector_bytes,
        cluster_sectors_code=cluster,
        hidden_sectors=struct.unpack_from("<I", sector, 28)[0],
        copy_offsets=(first, second, third),
    )


def relocation_body(header_offset: int, further_offset: int, sector_bytes: int) -> bytes:
    """Body of the relocation datum as Windows 10 writes it, with the extension that names the further region.

    `further_offset`: the ordinary 64 KiB file that follows the relocated header; its content is zeros.
    """
    extension = struct.pack(
        "<HHIQQI2I4I2HHBBQII",
        *(5, 0x4C, 0),
        0x0A if sector_bytes == 512 else 0x0B,
        *(0, 0),  # no conversion log
        *(sector_bytes, sector_bytes),
        *(10, 0, 19045, 2),  # the system that made it: Windows 10 22H2
        *(0, 0),
        *(0x0110, 1, 2),
        *(further_offset, COPY_BYTES, 0),
    )
    return struct.pack("<QQ", header_offset, HEADER_BYTES) + extension


def parse_relocation(datums: Iterable[Datum]) -> tuple[int, int]:
    """Offset and size in bytes of the relocated header. Raises DataDamaged."""
    for datum in datums:
        if datum.type == DatumType.RELOCATION and len(datum.body) >= 16:
            offset, size = struct.unpack_from("<QQ", datum.body)
            return offset, size
    raise DataDamaged("the metadata do not say where the file system's first sectors are")


def filetime(moment: datetime) -> int:
    """`moment`, which has a zone, in units of 100 ns since 1601."""
    return (moment.astimezone(UTC) - _EPOCH) // timedelta(microseconds=1) * 10


def from_filetime(value: int) -> datetime:
    """The inverse of `filetime`; a value past the calendar gives its last moment."""
    try:
        return _EPOCH + timedelta(microseconds=value // 10)
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC)

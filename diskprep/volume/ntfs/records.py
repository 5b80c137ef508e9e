"""NTFS's bytes, as far as reading needs them: boot sector, MFT records, attributes, runs, index nodes. Pure; no I/O.

What is parsed may be hostile: every offset is checked, and what does not fit raises DataDamaged (NotNtfs for the boot
sector). Format facts: the public documentation of the Linux-NTFS project.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from diskprep.errors import DataDamaged

FIRST_USER_RECORD: Final = 24
ROOT: Final = 5
BITMAP: Final = 6
EXTEND: Final = 11
ATTRIBUTE_LIST: Final = 0x20
DATA: Final = 0x80
INDEX_ROOT: Final = 0x90
INDEX_ALLOCATION: Final = 0xA0
DIRECTORY_INDEX: Final = "$I30"
_STRIDE = 512  # update sequences protect every 512 bytes, whatever the sector size
_DOS_NAME = 2
_COMPRESSED_OR_ENCRYPTED = 0x40FF


class NotNtfs(DataDamaged):
    """There is no NTFS file system here."""


def unpack(layout: str, data: bytes, offset: int) -> tuple[Any, ...]:
    """struct.unpack_from that raises DataDamaged outside of `data`."""
    if not 0 <= offset <= len(data) - struct.calcsize(layout):
        raise DataDamaged("an NTFS structure is cut off")
    return struct.unpack_from(layout, data, offset)


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """What the boot sector says. Sizes in bytes."""

    sector_bytes: int
    cluster_bytes: int
    clusters: int
    mft_cluster: int
    record_bytes: int
    cluster_sectors_code: int


def parse_boot_sector(sector: bytes, volume_bytes: int) -> Geometry:
    """The geometry in the first 512 bytes. Raises NotNtfs."""
    if len(sector) < 512 or sector[3:11] != b"NTFS    " or sector[510:512] != b"\x55\xaa":
        raise NotNtfs("this is not an NTFS volume")
    sector_bytes, code = struct.unpack_from("<HB", sector, 11)
    sectors, mft = struct.unpack_from("<QQ", sector, 40)
    per_cluster = code if code <= 128 else 1 << (256 - code)
    record = struct.unpack_from("<b", sector, 64)[0]
    cluster_bytes = sector_bytes * per_cluster
    if sector_bytes not in (512, 1024, 2048, 4096) or not per_cluster or per_cluster & (per_cluster - 1):
        raise NotNtfs("the NTFS boot sector has impossible sector or cluster sizes")
    record_bytes = record * cluster_bytes if record > 0 else 1 << min(-record, 32)
    if cluster_bytes > 2 << 20 or record_bytes not in (1024, 2048, 4096):
        raise NotNtfs("the NTFS boot sector has impossible cluster or record sizes")
    if not 0 < sectors * sector_bytes <= volume_bytes or mft * cluster_bytes >= volume_bytes:
        raise NotNtfs("the NTFS file system is larger than its volume")
    return Geometry(
        sector_bytes=sector_bytes,
        cluster_bytes=cluster_bytes,
        clusters=sectors // per_cluster,
        mft_cluster=mft,
        record_bytes=record_bytes,
        cluster_sectors_code=code,
    )


def apply_fixups(block: bytes, magic: bytes) -> bytes:
    """A record or index block with the ends of its sectors put back. Raises DataDamaged."""
    if block[:4] != magic:
        raise DataDamaged(f"an NTFS block has no {magic.decode()} signature")
    offset, count = unpack("<HH", block, 4)
    if count != len(block) // _STRIDE + 1:
        raise DataDamaged("an NTFS block has an impossible update sequence")
    sequence = unpack(f"<{count}H", block, offset)
    whole = bytearray(block)
    for index, original in enumerate(sequence[1:], 1):
        if struct.unpack_from("<H", whole, index * _STRIDE - 2)[0] != sequence[0]:
            raise DataDamaged("an NTFS block was written only in part")
        struct.pack_into("<H", whole, index * _STRIDE - 2, original)
    return bytes(whole)


@dataclass(frozen=True, slots=True)
class Run:
    """`count` clusters of an attribute from cluster `vcn` on; `lcn` is where they are, -1 for a hole."""

    vcn: int
    lcn: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribute:
    """One attribute of a record: a resident value, or runs."""

    type: int
    name: str
    flags: int
    value: bytes | None
    runs: tuple[Run, ...] = ()
    first_vcn: int = 0
    size_bytes: int = 0
    initialized_bytes: int = 0

    def check_plain(self) -> None:
        """Raise DataDamaged for compressed or encrypted data, which are not read."""
        if self.flags & _COMPRESSED_OR_ENCRYPTED:
            raise DataDamaged("an NTFS attribute is compressed or encrypted, which is not supported")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A file record. `number` is its place in the MFT, `sequence` counts the uses of that place."""

    number: int
    sequence: int
    is_directory: bool
    base: int
    attributes: tuple[Attribute, ...]

    def find(self, kind: int, name: str = "") -> Attribute | None:
        return next((a for a in self.attributes if a.type == kind and a.name == name), None)


def is_in_use(block: bytes) -> bool:
    """Whether an MFT record says that it is in use; one that is no record at all is not."""
    return block[:4] == b"FILE" and bool(block[22] & 1)


def parse_record(block: bytes, number: int) -> Record:
    """An MFT record that is in use. Raises DataDamaged."""
    data = apply_fixups(block, b"FILE")
    sequence, _links, offset, flags = unpack("<HHHH", data, 16)
    if not flags & 1:
        raise DataDamaged(f"NTFS record {number} is not in use")
    return Record(
        number=number,
        sequence=sequence,
        is_directory=bool(flags & 2),
        base=unpack("<Q", data, 32)[0] & 0xFFFFFFFFFFFF,
        attributes=tuple(_parse_attributes(data, offset)),
    )


def _parse_attributes(data: bytes, offset: int) -> Iterator[Attribute]:
    while unpack("<I", data, offset)[0] != 0xFFFFFFFF:
        kind, length, non_resident, name_units, name_offset, flags = unpack("<IIBBHH", data, offset)
        attribute = data[offset : offset + length]
        if length < 24 or len(attribute) != length:
            raise DataDamaged("an NTFS attribute has an impossible length")
        name = attribute[name_offset : name_offset + 2 * name_units].decode("utf-16-le", "replace")
        if non_resident:
            yield _parse_non_resident(attribute, kind, name, flags)
        else:
            size, start = unpack("<IH", attribute, 16)
            if start + size > length:
                raise DataDamaged("an NTFS attribute's value is cut off")
            value = attribute[start : start + size]
            yield Attribute(type=kind, name=name, flags=flags, value=value, size_bytes=size, initialized_bytes=size)
        offset += length


def _parse_non_resident(attribute: bytes, kind: int, name: str, flags: int) -> Attribute:
    first_vcn, _last, start = unpack("<QQH", attribute, 16)
    _allocated, size, initialized = unpack("<QQQ", attribute, 40)
    runs = tuple(_parse_runs(attribute[start:], first_vcn))
    return Attribute(
        type=kind,
        name=name,
        flags=flags,
        value=None,
        runs=runs,
        first_vcn=first_vcn,
        size_bytes=size if not first_vcn else 0,
        initialized_bytes=min(initialized, size) if not first_vcn else 0,
    )


def _parse_runs(data: bytes, vcn: int) -> Iterator[Run]:
    position, lcn = 0, 0
    while True:
        head = unpack("<B", data, position)[0]
        if not head:
            return
        count_bytes, offset_bytes = head & 15, head >> 4
        body = data[position + 1 : position + 1 + count_bytes + offset_bytes]
        count = int.from_bytes(body[:count_bytes], "little", signed=True)
        if len(body) != count_bytes + offset_bytes or count_bytes > 8 or offset_bytes > 8 or count <= 0:
            raise DataDamaged("an NTFS run list is damaged")
        if offset_bytes:
            lcn += int.from_bytes(body[count_bytes:], "little", signed=True)
            if lcn < 0:
                raise DataDamaged("an NTFS run list refers to clusters before the volume")
        yield Run(vcn, lcn if offset_bytes else -1, count)
        vcn += count
        position += 1 + len(body)


def parse_attribute_list(value: bytes) -> list[int]:
    """Numbers of the records that hold a file's attributes, in order, each once."""
    numbers: dict[int, None] = {}
    offset = 0
    while offset < len(value):
        length = unpack("<H", value, offset + 4)[0]
        if length < 26:
            raise DataDamaged("an NTFS attribute list is damaged")
        numbers[unpack("<Q", value, offset + 16)[0] & 0xFFFFFFFFFFFF] = None
        offset += length
    return list(numbers)


def merge(parts: list[Attribute]) -> list[Attribute]:
    """Attributes of several records with the pieces of one attribute put together. Raises DataDamaged."""
    whole: dict[tuple[int, str], Attribute] = {}
    for part in sorted(parts, key=lambda a: a.first_vcn):
        known = whole.get((part.type, part.name))
        if known is None or part.value is not None:
            whole.setdefault((part.type, part.name), part)
            continue
        end = known.runs[-1].vcn + known.runs[-1].count if known.runs else 0
        if part.first_vcn != end:
            raise DataDamaged("a part of an NTFS attribute is missing")
        whole[part.type, part.name] = replace(known, runs=known.runs + part.runs)
    return list(whole.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexEntry:
    """A name in a directory and the record it stands for."""

    name: str
    number: int
    sequence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexNode:
    """One node of a directory's tree: its names, and the nodes below it."""

    entries: list[IndexEntry]
    children: list[int]


def parse_index_root(value: bytes) -> tuple[int, IndexNode]:
    """Size in bytes of the directory's index blocks, and the root node."""
    block_bytes = unpack("<I", value, 8)[0]
    if block_bytes not in (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536):
        raise DataDamaged("an NTFS directory has impossible index blocks")
    return block_bytes, _parse_node(value, 16)


def parse_index_block(block: bytes, vcn: int) -> IndexNode:
    """The node in an index block that must be the one at `vcn`."""
    data = apply_fixups(block, b"INDX")
    if unpack("<Q", data, 16)[0] != vcn:
        raise DataDamaged("an NTFS index block is in the wrong place")
    return _parse_node(data, 24)


def _parse_node(data: bytes, header: int) -> IndexNode:
    offset, length = unpack("<II", data, header)
    end, position = header + length, header + offset
    node = IndexNode(entries=[], children=[])
    while position < end:
        reference, size, key_bytes, flags = unpack("<QHHH", data, position)
        if size < 16 or position + size > end:
            raise DataDamaged("an NTFS directory entry has an impossible size")
        if flags & 1:
            node.children.append(unpack("<Q", data, position + size - 8)[0])
        if flags & 2:
            return node
        key = data[position + 16 : position + 16 + key_bytes]
        name_units, space = unpack("<BB", key, 64)
        name = key[66 : 66 + 2 * name_units]
        if len(name) != 2 * name_units:
            raise DataDamaged("an NTFS name is cut off")
        if space != _DOS_NAME:
            node.entries.append(
                IndexEntry(
                    name=name.decode("utf-16-le", "replace"),
                    number=reference & 0xFFFFFFFFFFFF,
                    sequence=reference >> 48,
                )
            )
        position += size
    raise DataDamaged("an NTFS directory has no last entry")

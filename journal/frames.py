"""Frames: the bytes of a journal and how they are read back. Pure: no files, no locks (docs/formats/journal.md).

    0      header page    magic, version, journal id, CRC-32
    4096   mark page A    how far records were acknowledged: count, end offset, chain, CRC-32
    8192   mark page B    the same; the two are written in turn
    12288  frames         CRC-32, payload length, sequence number, payload, zeros up to a multiple of 8, chain

The chain of a frame is SHA-256 over the chain before it and the frame's length, number and payload; the first one is
chained to the header page, so no record can be moved, removed, repeated or taken from another journal unnoticed.
All numbers are little-endian.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PAGE_BYTES = 4096
FIRST_FRAME = 3 * PAGE_BYTES
PAYLOAD_LIMIT_BYTES = 1 << 20
VERSION = 1
_MAGIC = b"\x89DPJ\r\n\x1a\n"
_HEADER = struct.Struct("<8sI16s")
_MARK = struct.Struct("<8s16sQQ32s")
_MARK_MAGIC = b"DPJ-MARK"
_FRAME = struct.Struct("<IIQ")  # CRC-32 of all that follows in the frame, payload length, sequence number
_CHAIN_BYTES = 32
_CRC = struct.Struct("<I")


class JournalError(Exception):
    """Base of what this package raises."""


class JournalDamaged(JournalError):
    """The journal is not one, or is damaged before its last acknowledged record."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record: its number (from 0), its type, and its other fields as JSON has them."""

    sequence: int
    type: str
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Mark:
    """What was acknowledged: `count` records, which end at byte `end` of the file, with this chain."""

    count: int
    end: int
    chain: bytes


@dataclass(slots=True)
class Replay:
    """A journal as read: `end` and `chain` are those of the last good record; `tail` tells what came after it."""

    journal_id: bytes
    records: list[Record] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)  # [i]: the mark that acknowledges the first i records
    end: int = FIRST_FRAME
    chain: bytes = b""
    tail: str = ""


def encode_header(journal_id: bytes) -> bytes:
    return _page(_HEADER.pack(_MAGIC, VERSION, journal_id))


def header_chain(header: bytes) -> bytes:
    """The chain before the first record."""
    return hashlib.sha256(header).digest()


def encode_mark(journal_id: bytes, mark: Mark) -> bytes:
    return _page(_MARK.pack(_MARK_MAGIC, journal_id, mark.count, mark.end, mark.chain))


def mark_offset(count: int) -> int:
    """Where the mark of `count` records is kept: consecutive ones never share a page."""
    return PAGE_BYTES * (1 + count % 2)


def encode_frame(sequence: int, payload: bytes, chain: bytes) -> tuple[bytes, bytes]:
    """The frame of a record, and the chain after it."""
    chain = _next_chain(chain, sequence, payload)
    body = payload + b"\0" * (-len(payload) % 8) + chain
    numbers = _FRAME.pack(0, len(payload), sequence)[4:]
    return _CRC.pack(zlib.crc32(body, zlib.crc32(numbers))) + numbers + body, chain


def encode_payload(type_: str, fields: Mapping[str, Any]) -> bytes:
    """Canonical JSON: sorted keys, no spaces, ASCII. Raises ValueError or TypeError when it cannot be JSON."""
    text = json.dumps({**fields, "type": type_}, sort_keys=True, separators=(",", ":"), allow_nan=False)
    if len(text) > PAYLOAD_LIMIT_BYTES:
        raise ValueError(f"a record of {len(text)} bytes; the limit is {PAYLOAD_LIMIT_BYTES}")
    return text.encode("ascii")


def replay(data: bytes) -> Replay:
    """All good records of a journal. Raises JournalDamaged unless every acknowledged record is among them.

    A frame after the last acknowledged one may be torn: it is left out and `tail` says so. A frame there that is whole
    but does not continue the chain was never appended to this journal, so it is damage.
    """
    header = data[:PAGE_BYTES]
    found = Replay(journal_id=_decode_header(header))
    found.chain = header_chain(header)
    found.marks.append(Mark(0, found.end, found.chain))
    acknowledged = _decode_marks(data, found.journal_id)
    while found.end < len(data) and not found.tail:
        found.tail = _take_frame(data, found)
    known = len(found.records)
    if acknowledged.count > known:
        what = found.tail or "the file ends"
        raise JournalDamaged(
            f"record {known} is damaged or missing ({what} at byte {found.end}); {acknowledged.count} were acknowledged"
        )
    if found.marks[acknowledged.count] != acknowledged:
        raise JournalDamaged("the records are not those that were acknowledged in this journal")
    return found


def _take_frame(data: bytes, found: Replay) -> str:
    """Add the frame at `found.end` to `found`; or return why it is not a good one."""
    start = found.end
    if start + _FRAME.size > len(data):
        return "the file ends inside a frame"
    crc, length, sequence = _FRAME.unpack_from(data, start)
    body = start + _FRAME.size
    end = body + length + (-length % 8) + _CHAIN_BYTES
    if not 0 < length <= PAYLOAD_LIMIT_BYTES:
        return "a frame of impossible length"
    if end > len(data):
        return "the file ends inside a frame"
    if zlib.crc32(memoryview(data)[start + 4 : end]) != crc:
        return "a frame with a wrong checksum"
    payload = data[body : body + length]
    chain = _next_chain(found.chain, sequence, payload)
    padded = payload + b"\0" * (-length % 8) + chain
    if sequence != len(found.records) or data[body:end] != padded:
        raise JournalDamaged(
            f"the frame at byte {start} does not continue this journal: it was moved, repeated or is of another one"
        )
    found.records.append(decode_payload(sequence, payload))
    found.end, found.chain = end, chain
    found.marks.append(Mark(sequence + 1, end, chain))
    return ""


def decode_payload(sequence: int, payload: bytes) -> Record:
    try:
        fields = json.loads(payload)
        type_ = fields.pop("type")
        if encode_payload(type_, fields) != payload:
            raise ValueError("not canonical")
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise JournalDamaged(f"record {sequence} is not a record: {error}") from None
    return Record(sequence, type_, fields)


def _decode_header(page: bytes) -> bytes:
    if page[:8] != _MAGIC:
        raise JournalDamaged("not a journal, or its first page is damaged")
    if not _page_is_whole(page):
        raise JournalDamaged("the journal's first page is damaged")
    _, version, journal_id = _HEADER.unpack_from(page)
    if version != VERSION:
        raise JournalDamaged(f"the journal has format version {version}; this program knows {VERSION} only")
    return bytes(journal_id)


def _decode_marks(data: bytes, journal_id: bytes) -> Mark:
    """The newest whole mark. One of the two may be torn: it was being written when power went."""
    marks = []
    for offset in (PAGE_BYTES, 2 * PAGE_BYTES):
        page = data[offset : offset + PAGE_BYTES]
        if _page_is_whole(page):
            magic, owner, count, end, chain = _MARK.unpack_from(page)
            if magic != _MARK_MAGIC or owner != journal_id:
                raise JournalDamaged("an acknowledgement mark of another journal")
            marks.append(Mark(count, end, chain))
    if not marks:
        raise JournalDamaged("both acknowledgement marks are damaged")
    return max(marks, key=lambda mark: mark.count)


def _page(content: bytes) -> bytes:
    content = content.ljust(PAGE_BYTES - 4, b"\0")
    return content + _CRC.pack(zlib.crc32(content))


def _page_is_whole(page: bytes) -> bool:
    return len(page) == PAGE_BYTES and _CRC.unpack(page[-4:])[0] == zlib.crc32(page[:-4])


def _next_chain(chain: bytes, sequence: int, payload: bytes) -> bytes:
    return hashlib.sha256(chain + _FRAME.pack(0, len(payload), sequence)[4:] + payload).digest()

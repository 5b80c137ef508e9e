"""Packs: files of many sealed blobs of one kind, named by the SHA-256 of the whole.

    sealed blob 1 || ... || sealed blob n || sealed header || u32 LE length of the sealed header

The header lists kind, lengths and id of each blob in order; offsets are the running sum. A blob's id is the SHA-256 of
its plaintext. Invariant: a pack holds data or trees, never both.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, overload

from diskprep.durable import Buffer
from diskprep.errors import DataDamaged
from diskprep.repository import codec
from diskprep.repository.crypto import OVERHEAD_BYTES, SEAL_ROOM_BYTES, DataKey

HEADER_MAX_BYTES = 16 << 20
HEADER_ENTRIES = (HEADER_MAX_BYTES - (1 << 20)) // 41  # as many as surely fit
TREE_MAX_BYTES = 1 << 30  # a directory of two million entries
DATA_MAX_BYTES = 64 << 20  # restic's chunks end at 8 MiB; other writers' may be longer
_STORED = struct.Struct("<BI32s")
_COMPRESSED = struct.Struct("<BII32s")
_LENGTH = struct.Struct("<I")
_FIXED_BYTES = _LENGTH.size + OVERHEAD_BYTES
_STRETCH_BYTES = 128 << 10  # of a pack that is hashed at a time, at least
_BUFFER_BYTES = 8 << 20  # longer blobs get memory of their own


class BlobKind(StrEnum):
    DATA = "data"
    TREE = "tree"


_TYPES: Mapping[int, tuple[BlobKind, bool]] = {
    0: (BlobKind.DATA, False),
    1: (BlobKind.TREE, False),
    2: (BlobKind.DATA, True),
    3: (BlobKind.TREE, True),
}
_TYPE_OF = {value: number for number, value in _TYPES.items()}


class BlobLocation(NamedTuple):
    """Where a blob lies: `length` sealed bytes at `offset` of `pack`. `uncompressed_length`: None when stored as is."""

    kind: BlobKind
    id: bytes
    pack: str
    offset: int
    length: int
    uncompressed_length: int | None

    @property
    def plaintext_bytes(self) -> int:
        return self.length - OVERHEAD_BYTES if self.uncompressed_length is None else self.uncompressed_length


class PackSummary(NamedTuple):
    """A pack without its blobs."""

    kind: BlobKind
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PackEntry:
    """A pack as its header and the index list it. `pack` is its name: 64 hexadecimal digits."""

    pack: str
    kind: BlobKind
    blobs: tuple[BlobLocation, ...]

    @property
    def size_bytes(self) -> int:
        """Size of the pack file, as the format makes it."""
        return pack_bytes((blob.length, blob.uncompressed_length) for blob in self.blobs)

    @property
    def summary(self) -> PackSummary:
        return PackSummary(self.kind, self.size_bytes)


def pack_bytes(blobs: Iterable[tuple[int, int | None]]) -> int:
    """Size of the file of a pack of blobs with these sealed and uncompressed lengths."""
    return _FIXED_BYTES + sum(length + (_STORED if plain is None else _COMPRESSED).size for length, plain in blobs)


def encode_header(kind: BlobKind, blobs: Iterable[tuple[bytes, int, int | None]]) -> bytes:
    """The plaintext of a pack's header; `blobs`: id, sealed length, and uncompressed length or None."""
    stored, compressed = _TYPE_OF[kind, False], _TYPE_OF[kind, True]
    return b"".join(
        [
            _STORED.pack(stored, length, blob_id)
            if plain is None
            else _COMPRESSED.pack(compressed, length, plain, blob_id)
            for blob_id, length, plain in blobs
        ]
    )


def encode_tail(sealed_header: bytes) -> bytes:
    """What follows the blobs in the file."""
    return sealed_header + _LENGTH.pack(len(sealed_header))


def pack_entry(name: str, kind: BlobKind, blobs: Iterable[tuple[bytes, int, int | None]]) -> PackEntry:
    """The entry of a pack of these blobs, as `encode_header` takes them."""
    located = []
    offset = 0
    for blob_id, length, plain in blobs:
        located.append(BlobLocation(kind, blob_id, name, offset, length, plain))
        offset += length
    return PackEntry(pack=name, kind=kind, blobs=tuple(located))


def object_name(pack: str) -> str:
    """The pack's name in a store."""
    return f"data/{pack[:2]}/{pack}"


def parse_header(name_hex: str, plaintext: bytes, blobs_bytes: int) -> PackEntry:
    """The entry a pack's opened header describes; the lengths must fill `blobs_bytes` exactly. Raises DataDamaged."""
    kinds: set[BlobKind] = set()
    blobs: list[tuple[bytes, int, int | None]] = []
    position = 0
    try:
        while position < len(plaintext):
            kind, compressed = _TYPES[plaintext[position]]
            kinds.add(kind)
            plain: int | None = None
            if compressed:
                _, length, plain, blob_id = _COMPRESSED.unpack_from(plaintext, position)
                position += _COMPRESSED.size
            else:
                _, length, blob_id = _STORED.unpack_from(plaintext, position)
                position += _STORED.size
            blobs.append((blob_id, length, plain))
    except (KeyError, struct.error):
        raise DataDamaged(f"pack {name_hex}: its header is malformed") from None
    if len(kinds) != 1:
        raise DataDamaged(f"pack {name_hex}: it mixes data and trees, or is empty")
    if sum(length for _, length, _ in blobs) != blobs_bytes:
        raise DataDamaged(f"pack {name_hex}: its header does not cover the file")
    return pack_entry(name_hex, kinds.pop(), blobs)


def read_entry(name_hex: str, data: Buffer, key: DataKey) -> PackEntry:
    """Open the header at the end of a whole pack file. Raises DataDamaged."""
    view = memoryview(data).cast("B")
    if len(view) < _FIXED_BYTES:
        raise DataDamaged(f"pack {name_hex}: the file is too short")
    (header_bytes,) = _LENGTH.unpack(view[-_LENGTH.size :])
    start = len(view) - _LENGTH.size - header_bytes
    if start < 0 or header_bytes > HEADER_MAX_BYTES:
        raise DataDamaged(f"pack {name_hex}: the length of its header is impossible")
    try:
        header = key.open(view[start : -_LENGTH.size])
    except DataDamaged as error:
        raise DataDamaged(f"pack {name_hex}: header: {error.message}") from None
    return parse_header(name_hex, header, start)


@overload
def open_blob(sealed: Buffer, blob: BlobLocation, key: DataKey) -> bytes: ...
@overload
def open_blob(sealed: Buffer, blob: BlobLocation, key: DataKey, buffer: bytearray) -> bytes | memoryview: ...
def open_blob(sealed: Buffer, blob: BlobLocation, key: DataKey, buffer: bytearray | None = None) -> bytes | memoryview:
    """The plaintext of a blob, checked against its id. Raises DataDamaged naming pack and blob.

    It is decrypted in `buffer`, if there is one and it has room; what is not compressed is then a view of it.
    """
    limit = DATA_MAX_BYTES if blob.kind is BlobKind.DATA else TREE_MAX_BYTES
    plaintext: bytes | memoryview
    try:
        if blob.plaintext_bytes > limit:
            raise DataDamaged("its length is not believable")
        if buffer is None or len(sealed) + SEAL_ROOM_BYTES > len(buffer):
            plaintext = key.open(sealed)
        else:
            view = memoryview(buffer)
            plaintext = view[: key.open_into(view, memoryview(sealed))]
        if blob.uncompressed_length is not None:
            plaintext = codec.decompress(plaintext, blob.uncompressed_length)
            if len(plaintext) != blob.uncompressed_length:
                raise DataDamaged("its length differs from the announced one")
    except DataDamaged as error:
        raise DataDamaged(f"pack {blob.pack}: blob {blob.id.hex()}: {error.message}") from None
    if hashlib.sha256(plaintext).digest() != blob.id:
        raise DataDamaged(f"pack {blob.pack}: blob {blob.id.hex()}: its content has another hash")
    return plaintext


def verify_pack(name_hex: str, data: Buffer, key: DataKey, entry: PackEntry | None) -> PackEntry:
    """Check a whole pack file: its hash is its name, its header is what the index says (`entry`, None: not known), and
    every blob opens and hashes to its id. Returns the entry. Raises DataDamaged. Safe to run in many threads."""
    view = memoryview(data).cast("B")
    try:
        found, digest = _open_all(name_hex, view, key, entry)
    except DataDamaged:
        if hashlib.sha256(view).hexdigest() == name_hex:
            raise
        digest = ""
    if digest != name_hex:
        raise DataDamaged(f"pack {name_hex}: the file's hash is not its name") from None
    return found


def _open_all(name_hex: str, view: memoryview, key: DataKey, entry: PackEntry | None) -> tuple[PackEntry, str]:
    """Open the header and every blob; the entry, and the hash of the whole, taken on the way: a stretch is hashed and
    opened while the processor's cache has it. Raises DataDamaged."""
    found = read_entry(name_hex, view, key)
    if entry is not None and found != entry:
        raise DataDamaged(f"pack {name_hex}: its header differs from the index")
    digest = hashlib.sha256()
    hashed = 0
    buffer = bytearray(min(_BUFFER_BYTES, max(blob.length for blob in found.blobs)) + SEAL_ROOM_BYTES)
    for blob in found.blobs:
        end = blob.offset + blob.length
        if end - hashed > _STRETCH_BYTES:
            digest.update(view[hashed:end])
            hashed = end
        open_blob(view[blob.offset : end], blob, key, buffer)
    digest.update(view[hashed:])
    return found, digest.hexdigest()

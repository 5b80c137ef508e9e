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

from diskprep.durable import Buffer
from diskprep.errors import DataDamaged
from diskprep.repository import codec
from diskprep.repository.crypto import OVERHEAD_BYTES, DataKey

HEADER_MAX_BYTES = 16 << 20
TREE_MAX_BYTES = 1 << 30  # a directory of two million entries
DATA_MAX_BYTES = 64 << 20  # restic's chunks end at 8 MiB; other writers' may be longer
_STORED = struct.Struct("<BI32s")
_COMPRESSED = struct.Struct("<BII32s")
_LENGTH = struct.Struct("<I")
_FIXED_BYTES = _LENGTH.size + OVERHEAD_BYTES


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


@dataclass(frozen=True, slots=True)
class BlobLocation:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class PackEntry:
    """A pack as its header and the index list it. `pack` is its name: 64 hexadecimal digits."""

    pack: str
    kind: BlobKind
    blobs: tuple[BlobLocation, ...]

    @property
    def size_bytes(self) -> int:
        """Size of the pack file, as the format makes it."""
        header = sum(_entry_struct(blob.uncompressed_length).size for blob in self.blobs)
        return sum(blob.length for blob in self.blobs) + header + _FIXED_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedPack:
    """A pack ready to be written: its entry and the parts of the file in order."""

    entry: PackEntry
    parts: list[bytes]


def object_name(pack: str) -> str:
    """The pack's name in a store."""
    return f"data/{pack[:2]}/{pack}"


class PackWriter:
    """Collects blobs of one kind in memory: the target size plus one blob. Used by one thread."""

    def __init__(self, kind: BlobKind, key: DataKey) -> None:
        self.kind = kind
        self.size_bytes = 0
        self._key = key
        self._parts: list[bytes] = []
        self._blobs: list[tuple[bytes, int, int | None]] = []
        self._hash = hashlib.sha256()

    def add(self, blob_id: bytes, plaintext: Buffer) -> int:
        """Compress, seal and append a blob; return its sealed length."""
        frame = codec.compress(plaintext)
        length = len(plaintext)
        gains = len(frame) < length
        sealed = self._key.seal(frame if gains else plaintext)
        self._hash.update(sealed)
        self._parts.append(sealed)
        self._blobs.append((blob_id, len(sealed), length if gains else None))
        self.size_bytes += len(sealed)
        return len(sealed)

    @property
    def full_of_entries(self) -> bool:
        return len(self._blobs) * _COMPRESSED.size > HEADER_MAX_BYTES - (1 << 20)

    def finish(self) -> FinishedPack:
        """Close the pack; the writer is not used again."""
        header = b"".join(
            _STORED.pack(_TYPE_OF[self.kind, False], length, blob_id)
            if plain is None
            else _COMPRESSED.pack(_TYPE_OF[self.kind, True], length, plain, blob_id)
            for blob_id, length, plain in self._blobs
        )
        sealed = self._key.seal(header)
        tail = sealed + _LENGTH.pack(len(sealed))
        self._hash.update(tail)
        self._parts.append(tail)
        name = self._hash.hexdigest()
        return FinishedPack(entry=_entry(name, self.kind, self._blobs), parts=self._parts)


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
    return _entry(name_hex, kinds.pop(), blobs)


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


def open_blob(sealed: Buffer, blob: BlobLocation, key: DataKey) -> bytes:
    """The plaintext of a blob, checked against its id. Raises DataDamaged naming pack and blob."""
    limit = DATA_MAX_BYTES if blob.kind is BlobKind.DATA else TREE_MAX_BYTES
    try:
        if blob.plaintext_bytes > limit:
            raise DataDamaged("its length is not believable")
        plaintext = key.open(sealed)
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
    if hashlib.sha256(data).hexdigest() != name_hex:
        raise DataDamaged(f"pack {name_hex}: the file's hash is not its name")
    found = read_entry(name_hex, data, key)
    if entry is not None and found != entry:
        raise DataDamaged(f"pack {name_hex}: its header differs from the index")
    view = memoryview(data).cast("B")
    for blob in found.blobs:
        open_blob(view[blob.offset : blob.offset + blob.length], blob, key)
    return found


def _entry(name: str, kind: BlobKind, blobs: Iterable[tuple[bytes, int, int | None]]) -> PackEntry:
    located = []
    offset = 0
    for blob_id, length, plain in blobs:
        located.append(BlobLocation(kind, blob_id, name, offset, length, plain))
        offset += length
    return PackEntry(pack=name, kind=kind, blobs=tuple(located))


def _entry_struct(uncompressed_length: int | None) -> struct.Struct:
    return _STORED if uncompressed_length is None else _COMPRESSED

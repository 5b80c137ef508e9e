"""The index: which blob lies in which pack.

Index files can always be rebuilt from pack headers. All blobs of a pack stand in one index file; a pack may stand in
several files only when they say the same. In memory: about 300 bytes a blob.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from diskprep.errors import DataDamaged
from diskprep.repository.pack import BlobKind, BlobLocation, PackEntry

__all__ = ["BlobKind", "BlobLocation", "Index", "PackEntry", "index_document", "parse_index"]


class Index:
    """All blobs that the index files name. Changed by its owner only; readers may use it from several threads."""

    def __init__(self, entries: Iterable[PackEntry] = ()) -> None:
        self._packs: dict[str, PackEntry] = {}
        self._blobs: dict[BlobKind, dict[bytes, BlobLocation]] = {kind: {} for kind in BlobKind}
        for entry in entries:
            self.add(entry)

    @property
    def packs(self) -> Mapping[str, PackEntry]:
        """Pack name (64 hexadecimal digits) -> its entry."""
        return MappingProxyType(self._packs)

    def add(self, entry: PackEntry) -> None:
        """Take in a pack. Raises DataDamaged when it is known with other blobs."""
        known = self._packs.setdefault(entry.pack, entry)
        if known is not entry:
            if known != entry:
                raise DataDamaged(f"two index files describe pack {entry.pack} differently")
            return
        for blob in entry.blobs:
            self._blobs[blob.kind].setdefault(blob.id, blob)

    def find(self, kind: BlobKind, blob_id: bytes) -> BlobLocation | None:
        return self._blobs[kind].get(blob_id)

    def has(self, kind: BlobKind, blob_id: bytes) -> bool:
        return blob_id in self._blobs[kind]

    def __len__(self) -> int:
        return sum(map(len, self._blobs.values()))


def index_document(entries: Iterable[PackEntry]) -> dict[str, Any]:
    """The JSON of an index file."""
    return {"packs": [{"id": entry.pack, "blobs": [_blob_document(blob) for blob in entry.blobs]} for entry in entries]}


def parse_index(document: dict[str, Any]) -> list[PackEntry]:
    """The packs an index file names. Raises DataDamaged."""
    try:
        return [_parse_pack(pack) for pack in document["packs"] or ()]
    except (KeyError, TypeError, ValueError):
        raise DataDamaged("an index file is malformed") from None


def _blob_document(blob: BlobLocation) -> dict[str, Any]:
    document = {"id": blob.id.hex(), "type": str(blob.kind), "offset": blob.offset, "length": blob.length}
    if blob.uncompressed_length is not None:
        document["uncompressed_length"] = blob.uncompressed_length
    return document


def _parse_pack(pack: dict[str, Any]) -> PackEntry:
    name = pack["id"]
    _digest(name)
    blobs = []
    for blob in pack["blobs"]:
        offset, length, plain = blob["offset"], blob["length"], blob.get("uncompressed_length") or None
        if not all(isinstance(number, int) and 0 <= number < 1 << 32 for number in (offset, length, plain or 0)):
            raise ValueError("a length out of range")
        blobs.append(BlobLocation(BlobKind(blob["type"]), _digest(blob["id"]), name, offset, length, plain))
    # restic lists blobs in any order; a header has them by offset.
    blobs.sort(key=lambda blob: blob.offset)
    if len({blob.kind for blob in blobs}) != 1:
        raise DataDamaged(f"an index file lists pack {name} as empty, or with data and trees mixed")
    return PackEntry(pack=name, kind=blobs[0].kind, blobs=tuple(blobs))


def _digest(text: str) -> bytes:
    if len(text) != 64 or text != text.lower():
        raise ValueError("not an id")
    return bytes.fromhex(text)

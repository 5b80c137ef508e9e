"""The index: which blob lies in which pack.

Index files can always be rebuilt from pack headers. All blobs of a pack stand in one index file; a pack may stand in
several files only when they say the same. In memory: about 300 bytes a blob.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from diskprep.errors import DataDamaged
from diskprep.repository.pack import BlobKind, BlobLocation, PackEntry, PackSummary, pack_bytes

__all__ = ["BlobKind", "BlobLocation", "Index", "PackEntry", "encode_index", "parse_index"]


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


def encode_index(entries: Iterable[PackEntry]) -> bytes:
    """The JSON of an index file, as text: there are too many blobs to make a document of each first."""
    packs = [
        f'{{"id":"{entry.pack}","blobs":[{",".join([_encode_blob(blob) for blob in entry.blobs])}]}}'
        for entry in entries
    ]
    return f'{{"packs":[{",".join(packs)}]}}\n'.encode()


def parse_index(document: dict[str, Any], *, only: BlobKind | None = None) -> list[PackEntry]:
    """The packs an index file names, all or of one kind. Raises DataDamaged."""
    try:
        packs = document["packs"] or ()
        if only is not None:
            packs = [pack for pack in packs if any(blob["type"] == only.value for blob in pack["blobs"])]
        return [_parse_pack(pack) for pack in packs]
    except (KeyError, TypeError, ValueError):
        raise DataDamaged("an index file is malformed") from None


def summarize_index(document: dict[str, Any]) -> dict[str, PackSummary]:
    """Kind and size of each pack an index file names, without an object for every blob. Raises DataDamaged."""
    found = {}
    try:
        for pack in document["packs"] or ():
            name, blobs = pack["id"], pack["blobs"]
            _digest(name)
            kinds = {blob["type"] for blob in blobs}
            size_bytes = pack_bytes((blob["length"], blob.get("uncompressed_length") or None) for blob in blobs)
            if len(kinds) != 1:
                raise DataDamaged(f"an index file lists pack {name} as empty, or with data and trees mixed")
            found[name] = PackSummary(BlobKind(kinds.pop()), size_bytes)
    except (KeyError, TypeError, ValueError):
        raise DataDamaged("an index file is malformed") from None
    return found


def blob_ids(document: dict[str, Any]) -> list[bytes]:
    """The ids of the data blobs an index file names. Raises DataDamaged."""
    try:
        packs = document["packs"] or ()
        return [_digest(blob["id"]) for pack in packs for blob in pack["blobs"] if blob["type"] == BlobKind.DATA.value]
    except (KeyError, TypeError, ValueError):
        raise DataDamaged("an index file is malformed") from None


def _encode_blob(blob: BlobLocation) -> str:
    kind, blob_id, _, offset, length, plain = blob
    plain_text = "" if plain is None else f',"uncompressed_length":{plain}'
    return f'{{"id":"{blob_id.hex()}","type":"{kind.value}","offset":{offset},"length":{length}{plain_text}}}'


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
    digest = bytes.fromhex(text)  # which overlooks capitals and white space
    if len(digest) != 32 or digest.hex() != text:
        raise ValueError("not an id")
    return digest

"""Locations: where the blobs of one kind lie, in 48 bytes each, for repositories with millions of them.

What `Index.find` answers, without an object for every blob; it is filled once and then only read.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from diskprep.repository.crypto import OVERHEAD_BYTES
from diskprep.repository.pack import BlobKind, BlobLocation, PackEntry

_WANTED = np.dtype([("key", ">u8"), ("rest", "V24")])
_RECORD = np.dtype(
    [("key", ">u8"), ("rest", "V24"), ("pack", "<u4"), ("offset", "<u4"), ("length", "<u4"), ("plain", "<u4")]
)
_STORED = 0  # no blob is empty, so none has this uncompressed length


class Locations:
    """`add` all packs, then `sort`, then `find`. Threads and forked processes may share it from then on."""

    def __init__(self, kind: BlobKind) -> None:
        self._kind = kind
        self._packs: list[str] = []
        self._parts: list[np.ndarray] = []
        self._records = np.empty(0, dtype=_RECORD)

    def add(self, entries: Iterable[PackEntry]) -> None:
        """Take in the packs of this kind among `entries`."""
        rows = []
        for entry in entries:
            if entry.kind is self._kind:
                number = len(self._packs)
                self._packs.append(entry.pack)
                rows += [
                    (
                        int.from_bytes(blob.id[:8]),
                        blob.id[8:],
                        number,
                        blob.offset,
                        blob.length,
                        blob.uncompressed_length,
                    )
                    for blob in entry.blobs
                ]
        if rows:
            self._parts.append(np.array([(*row[:5], row[5] or _STORED) for row in rows], dtype=_RECORD))

    def sort(self) -> None:
        """Make what was added findable."""
        records = np.concatenate([self._records, *self._parts])
        self._parts.clear()
        self._records = records[np.argsort(records["key"], kind="stable")]

    def find(self, kind: BlobKind, blob_id: bytes) -> BlobLocation | None:
        """Where a blob lies; the first place that was added, when there are several."""
        if kind is not self._kind:
            return None
        key, rest = int.from_bytes(blob_id[:8]), blob_id[8:]
        keys = self._records["key"]
        for place in range(int(np.searchsorted(keys, np.uint64(key))), len(keys)):
            record = self._records[place]
            if int(record["key"]) != key:
                return None
            if bytes(record["rest"]) == rest:
                pack = self._packs[int(record["pack"])]
                plain = int(record["plain"])
                return BlobLocation(
                    kind,
                    blob_id,
                    pack,
                    int(record["offset"]),
                    int(record["length"]),
                    None if plain == _STORED else plain,
                )
        return None

    def __len__(self) -> int:
        return len(self._records)

    def plaintext_lengths(self, ids: bytes) -> np.ndarray:
        """The bytes in each of the blobs whose ids are joined in `ids`, as int64; -1 for one that is unknown."""
        wanted = np.frombuffer(ids, dtype=_WANTED)
        if not len(self._records):
            return np.full(len(wanted), -1, dtype=np.int64)
        places = np.searchsorted(self._records["key"], wanted["key"])
        found = self._records[np.minimum(places, len(self._records) - 1)]
        lengths = np.where(found["plain"] == _STORED, found["length"] - np.int64(OVERHEAD_BYTES), found["plain"])
        for place in np.flatnonzero((found["key"] != wanted["key"]) | (found["rest"] != wanted["rest"])):
            location = self.find(self._kind, ids[place * 32 : place * 32 + 32])
            lengths[place] = -1 if location is None else location.plaintext_bytes
        return lengths.astype(np.int64)

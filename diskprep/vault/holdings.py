"""Holdings: where every blob of a repository lies, and which of them recovery points need.

Made for prune: ids are compared in full, a need once noted is never lost, and what cannot be read is an error, not a
gap. Memory: about 60 bytes for each place of a blob, about 130 more for a moment while they are sorted.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np

from diskprep.errors import DataDamaged, DiskprepError
from diskprep.events import Emit, Progress, silent
from diskprep.repository.pack import BlobKind, BlobLocation, PackEntry, object_name
from diskprep.repository.repository import Repository
from diskprep.vault.reading import Range, in_threads, open_range, ranges

_WORDS = 4  # an id of 32 bytes as numbers
_STORED = 0  # no blob is empty, so none has this uncompressed length


class _Places:
    """All places of the blobs of one kind, sorted by id. A blob is spoken of by the number of its first place."""

    def __init__(self, kind: BlobKind) -> None:
        self._kind = kind
        self._text = bytearray()
        self._numbers = array("I")  # pack, offset, length, uncompressed length of each

    def add(self, pack: int, blobs: Iterable[BlobLocation]) -> None:
        for blob in blobs:
            self._text += blob.id
            self._numbers.extend((pack, blob.offset, blob.length, blob.uncompressed_length or _STORED))

    def sort(self) -> None:
        ids = _as_words(self._text)
        order = np.lexsort((ids[:, 3], ids[:, 2], ids[:, 1], ids[:, 0]))
        self._ids = ids[order]
        self._rows = np.array(self._numbers, dtype=np.uint32).reshape(-1, 4)[order]
        self._text, self._numbers = bytearray(), array("I")
        count = len(order)
        self._starts = np.ones(count, dtype=bool)  # whether another blob begins at this place
        self._starts[1:] = (self._ids[1:] != self._ids[:-1]).any(axis=1)
        self.needed = np.zeros(count, dtype=bool)  # at the first place of each blob
        self._packs = self._rows[:, 0]

    def find(self, ids: Iterable[bytes]) -> tuple[np.ndarray, int]:
        """The number of each of the blobs that have a place, and how many have none."""
        wanted = _as_words(b"".join(ids))
        keys = self._ids[:, 0]
        places = np.searchsorted(keys, wanted[:, 0])
        found = np.full(len(wanted), -1, dtype=np.int64)
        open_ones = np.arange(len(wanted))
        while len(open_ones):  # more than once only where ids share their first 8 bytes, as copies of one blob do not
            at = places[open_ones]
            inside = at < len(keys)
            open_ones, at = open_ones[inside], at[inside]
            same_key = keys[at] == wanted[open_ones, 0]
            open_ones, at = open_ones[same_key], at[same_key]
            equal = (self._ids[at] == wanted[open_ones]).all(axis=1)
            found[open_ones[equal]] = at[equal]
            open_ones = open_ones[~equal]
            places[open_ones] += 1
        return found[found >= 0], int((found < 0).sum())

    def need(self, blobs: np.ndarray) -> np.ndarray:
        """Note that these are needed; return those of which that is new, each once."""
        new = np.unique(blobs[~self.needed[blobs]])
        self.needed[new] = True
        return new

    def copies(self, blob: int) -> range:
        """The places of a blob."""
        end = blob + 1
        while end < len(self._starts) and not self._starts[end]:
            end += 1
        return range(blob, end)

    def needed_blobs(self) -> np.ndarray:
        return np.flatnonzero(self.needed)

    def several(self) -> np.ndarray:
        """The needed blobs with more places than one."""
        last = np.ones(len(self._starts), dtype=bool)
        last[:-1] = self._starts[1:]
        return np.flatnonzero(self.needed & ~last)

    def pack_of(self, places: np.ndarray) -> np.ndarray:
        packs: np.ndarray = self._packs[places]
        return packs

    def lengths(self, places: np.ndarray) -> np.ndarray:
        lengths: np.ndarray = self._rows[places, 2].astype(np.int64)
        return lengths

    def location(self, place: int, packs: list[str]) -> BlobLocation:
        pack, offset, length, plain = (int(number) for number in self._rows[place])
        blob_id = self._ids[place].astype(">u8").tobytes()
        return BlobLocation(self._kind, blob_id, packs[pack], offset, length, None if plain == _STORED else plain)

    def __len__(self) -> int:
        return len(self._rows)


@dataclass(slots=True)
class Holdings:
    """What the index files say. `packs`, `sizes`: name of each pack, by its number, and its size in bytes. `there`:
    whether the store has it with that size; only then the places in it are among `places`. `files`: object name of
    each index file, and the numbers of its packs."""

    packs: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    there: list[bool] = field(default_factory=list)
    files: dict[str, array[int]] = field(default_factory=dict)
    places: dict[BlobKind, _Places] = field(default_factory=lambda: {kind: _Places(kind) for kind in BlobKind})

    def location(self, kind: BlobKind, place: int) -> BlobLocation:
        return self.places[kind].location(place, self.packs)


def read_holdings(repository: Repository, stored: Mapping[str, int]) -> Holdings:
    """Read all index files; `stored` is name and size of the objects below `data/`. Raises DataDamaged when an index
    file cannot be read, or two say different things of a pack."""
    found = Holdings()
    known: dict[str, tuple[int, int]] = {}
    for name, entries in repository.index_files():
        numbers = found.files.setdefault(name, array("I"))
        for entry in entries:
            content = hash(entry)
            number, other = known.setdefault(entry.pack, (len(found.packs), content))
            if other != content:
                raise DataDamaged(
                    f"{name}: another index file describes pack {entry.pack} differently",
                    hint="`restic repair index` makes the index anew; nothing was changed",
                )
            numbers.append(number)
            if number == len(found.packs):
                take(found, entry, there=stored.get(object_name(entry.pack)) == entry.size_bytes)
    for places in found.places.values():
        places.sort()
    return found


def take(found: Holdings, entry: PackEntry, *, there: bool) -> None:
    """Add a pack that was not known. `there`: whether the store has it, whole."""
    number = len(found.packs)
    found.packs.append(entry.pack)
    found.sizes.append(entry.size_bytes)
    found.there.append(there)
    if there:
        found.places[entry.kind].add(number, entry.blobs)


def note_needs(repository: Repository, found: Holdings, roots: Iterable[bytes], emit: Emit = silent) -> None:
    """Note every directory below the root trees, and every blob of their files, as needed; each directory is read once.

    Raises DataDamaged when a directory cannot be read or understood, or something that is needed stands in no index.
    """
    trees, data = found.places[BlobKind.TREE], found.places[BlobKind.DATA]
    level = trees.need(_all_found(found, BlobKind.TREE, list(roots)))
    done = 0
    while len(level):
        locations = (found.location(BlobKind.TREE, int(place)) for place in level)
        below: list[np.ndarray] = []
        for look in in_threads(repository.store, lambda group: _look(repository, group), ranges(locations)):
            data.need(_all_found(found, BlobKind.DATA, look.blobs))
            below.append(trees.need(_all_found(found, BlobKind.TREE, look.subtrees)))
            done += look.size_bytes
            emit(Progress(stage="directories", done_bytes=done))
        level = np.concatenate(below)


def _all_found(found: Holdings, kind: BlobKind, ids: list[bytes]) -> np.ndarray:
    blobs, missing = found.places[kind].find(ids)
    if missing:
        what = "directories" if kind is BlobKind.TREE else "blobs of a directory's files"
        absent = found.there.count(False)
        packs = f"; {absent} packs are missing, or have another size than the index says" if absent else ""
        raise DataDamaged(
            f"{missing} {what} that recovery points need are nowhere in the vault{packs}",
            hint="nothing was deleted; `diskprep vault check` tells more, `diskprep vault repair` may bring them back",
        )
    return blobs


@dataclass(slots=True)
class _Look:
    subtrees: list[bytes]
    blobs: list[bytes]
    size_bytes: int = 0


def _look(repository: Repository, group: Range) -> _Look:
    found = _Look([], [])
    for blob, plaintext in open_range(repository, group):
        if isinstance(plaintext, DiskprepError):
            raise DataDamaged(
                f"a directory cannot be read: {plaintext.message}",
                hint="nothing was deleted; `diskprep vault check` tells more",
            )
        found.size_bytes += blob.length
        subtrees, blobs = needs(plaintext)
        found.subtrees += subtrees
        found.blobs += blobs
    found.blobs = list(dict.fromkeys(found.blobs))
    return found


def needs(plaintext: bytes) -> tuple[list[bytes], list[bytes]]:
    """The trees and the data blobs that a directory names, whatever its entries are. Raises DataDamaged."""
    try:
        nodes: list[dict[str, Any]] = _list(json.loads(plaintext)["nodes"])
        for node in nodes:
            if node["type"] == "dir" and not node.get("subtree"):
                raise ValueError("a directory without a listing")
        subtrees = [_id(node["subtree"]) for node in nodes if node.get("subtree") is not None]
        return subtrees, [_id(text) for text in chain.from_iterable(_list(node.get("content")) for node in nodes)]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataDamaged(f"a directory is malformed: {error}", hint="nothing was deleted") from None


def _list(value: Any) -> list[Any]:
    if value is not None and not isinstance(value, list):
        raise ValueError("something that is no list")
    return value or []


def _id(text: str) -> bytes:
    value = bytes.fromhex(text)
    if len(value) != 8 * _WORDS:
        raise ValueError("an id of the wrong length")
    return value


def _as_words(text: bytes | bytearray) -> np.ndarray:
    """Ids, one after the other, as rows of four numbers that sort as the ids do."""
    return np.frombuffer(bytes(text), dtype=">u8").astype(np.uint64).reshape(-1, _WORDS)

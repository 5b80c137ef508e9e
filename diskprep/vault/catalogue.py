"""The catalogue: every blob that the index names, numbered, for what looks at many recovery points at once.

A set of blobs is then an array of bits, and what a directory names an array of numbers. Memory: 48 bytes a blob, where
`Repository.index` takes 300; no blob's data is read.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from diskprep.errors import DataDamaged, DiskprepError, NotFound
from diskprep.repository.pack import BlobKind, BlobLocation, PackEntry, object_name
from diskprep.repository.repository import Repository
from diskprep.repository.tree import Node, parse_tree
from diskprep.vault.reading import Range, in_threads, open_range, ranges

_RECORD = np.dtype([("id", "S32"), ("pack", "<u4"), ("offset", "<u4"), ("length", "<u4"), ("plain", "<u4")])
_STORED = 0  # no blob is empty, so none has this uncompressed length
_AHEAD_BYTES = 32 << 20
_AHEAD_TREES = 512
_ID_BYTES = 32

Numbers = NDArray[np.int64]
Mask = NDArray[np.bool_]
T = TypeVar("T")


class Blobs:
    """The blobs of one kind; a blob's number is the place of its id among all ids in their order."""

    def __init__(self, kind: BlobKind, records: NDArray[np.void], packs: Sequence[str]) -> None:
        """`records` are ordered by id, no id twice."""
        self._kind, self._records, self._names = kind, records, packs
        self._ids = np.ascontiguousarray(records["id"])
        self.lengths: Numbers = records["length"].astype(np.int64)  # in their packs, sealed

    def __len__(self) -> int:
        return len(self._records)

    @property
    def packs(self) -> Numbers:
        """The number of each blob's pack."""
        return self._records["pack"].astype(np.int64)

    @property
    def plaintext_lengths(self) -> Numbers:
        """The length of each blob's content."""
        plain = self._records["plain"].astype(np.int64)
        return np.where(plain == _STORED, self.lengths - 32, plain)  # sealing adds 32 bytes

    def numbers(self, ids: bytes) -> Numbers:
        """The numbers of the blobs whose ids, 32 bytes each, stand in `ids`; -1 for one that no index names."""
        wanted = np.frombuffer(ids, dtype="S32")
        if not len(self) or not len(wanted):
            return np.full(len(wanted), -1, dtype=np.int64)
        places = np.minimum(np.searchsorted(self._ids, wanted), len(self) - 1)
        return np.where(self._ids[places] == wanted, places, -1)

    def id(self, number: int) -> bytes:
        return self._ids[number : number + 1].tobytes()  # as an element it would lose zeros at its end

    def location(self, number: int) -> BlobLocation:
        record = self._records[number]
        plain = int(record["plain"])
        return BlobLocation(
            self._kind,
            self.id(number),
            self._names[int(record["pack"])],
            int(record["offset"]),
            int(record["length"]),
            None if plain == _STORED else plain,
        )

    def find(self, blob_id: bytes) -> BlobLocation | None:
        number = int(self.numbers(blob_id)[0])
        return None if number < 0 else self.location(number)

    def starting(self, prefix: str) -> list[bytes]:
        """The ids that start with these lower-case hexadecimal digits."""
        ends = [np.frombuffer(bytes.fromhex(prefix.ljust(64, digit)), dtype="S32") for digit in "0f"]
        first, last = np.searchsorted(self._ids, ends[0], "left"), np.searchsorted(self._ids, ends[1], "right")
        return [self.id(number) for number in range(int(first[0]), int(last[0]))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """All blobs and packs that the index names. `absent`: the store lacks the pack, or has it with another size."""

    data: Blobs
    trees: Blobs
    packs: tuple[str, ...]
    pack_bytes: Numbers
    absent: Mask


def read_catalogue(repository: Repository, *, look_for_packs: bool = False) -> Catalogue:
    """Read all index files anew, and with `look_for_packs` list the packs; otherwise none counts as absent.

    Of a blob that is in several packs the first one is taken that is not absent. Raises DataDamaged.
    """
    packs: list[str] = []
    sizes: list[int] = []
    parts: dict[BlobKind, list[NDArray[np.void]]] = {kind: [np.empty(0, dtype=_RECORD)] for kind in BlobKind}
    known: set[str] = set()
    for _, entries in repository.index_files():
        fresh = [entry for entry in entries if entry.pack not in known]
        for kind in BlobKind:
            parts[kind].append(_records(fresh, kind, len(packs)))
        packs += [entry.pack for entry in fresh]
        sizes += [entry.size_bytes for entry in fresh]
        known.update(entry.pack for entry in fresh)
    absent = np.zeros(len(packs), dtype=np.bool_)
    if look_for_packs:
        stored = {item.name: item.size_bytes for item in repository.store.list("data/")}
        for number, (name, size) in enumerate(zip(packs, sizes, strict=True)):
            absent[number] = stored.get(object_name(name)) != size
    return Catalogue(
        data=_blobs(BlobKind.DATA, parts, packs, absent),
        trees=_blobs(BlobKind.TREE, parts, packs, absent),
        packs=tuple(packs),
        pack_bytes=np.array(sizes, dtype=np.int64),
        absent=absent,
    )


def _records(entries: list[PackEntry], kind: BlobKind, first: int) -> NDArray[np.void]:
    rows = [
        (blob.id, number, blob.offset, blob.length, blob.uncompressed_length or _STORED)
        for number, entry in enumerate(entries, start=first)
        if entry.kind is kind
        for blob in entry.blobs
    ]
    return np.array(rows, dtype=_RECORD)


def _blobs(kind: BlobKind, parts: dict[BlobKind, list[NDArray[np.void]]], packs: list[str], absent: Mask) -> Blobs:
    records = np.concatenate(parts.pop(kind))
    if absent.any():
        records = records[np.argsort(absent[records["pack"]], kind="stable")]
    records = records[np.argsort(records["id"], kind="stable")]
    first = np.ones(len(records), dtype=np.bool_)
    first[1:] = records["id"][1:] != records["id"][:-1]
    return Blobs(kind, records[first], packs)


def is_hex(text: str) -> bool:
    """Whether this is an id or the beginning of one: 1 to 64 lower-case hexadecimal digits."""
    return 0 < len(text) <= 2 * _ID_BYTES and not set(text) - set(string.hexdigits.lower())


def open_each(
    repository: Repository, locations: Iterable[BlobLocation], use: Callable[[bytes], T]
) -> Iterator[tuple[BlobLocation, T | DiskprepError]]:
    """What `use`, called in several threads, makes of each blob's content; a blob that is missing or damaged, or that
    `use` finds so, comes as its error."""

    def used(plaintext: bytes | DiskprepError) -> T | DiskprepError:
        if isinstance(plaintext, DiskprepError):
            return plaintext
        try:
            return use(plaintext)
        except DataDamaged as error:
            return error

    def work(group: Range) -> list[tuple[BlobLocation, T | DiskprepError]]:
        return [(blob, used(plaintext)) for blob, plaintext in open_range(repository, group)]

    for found in in_threads(repository.store, work, ranges(locations)):
        yield from found


class TreeReader:
    """Reads directories one after the other, and ahead as the caller foresees. Memory: 32 MiB of what was read ahead,
    or one longer directory."""

    def __init__(self, repository: Repository, trees: Blobs) -> None:
        self._repository, self._trees = repository, trees
        self._read: dict[bytes, bytes | DiskprepError] = {}
        self._held_bytes = 0

    def read(self, tree: bytes, ahead: Iterable[bytes] = ()) -> tuple[Node, ...]:
        """The entries of a directory, by name. `ahead`: what will be asked for soon, the soonest first; it may be
        without end. Raises NotFound, DataDamaged."""
        return parse_tree(self.content(tree, ahead))

    def content(self, tree: bytes, ahead: Iterable[bytes] = ()) -> bytes:
        """The listing of a directory as it is stored, for who wants few of its entries. Raises as `read` does."""
        if tree not in self._read:
            self._fetch(tree, ahead)
        plaintext = self._read.pop(tree)
        if isinstance(plaintext, DiskprepError):
            raise plaintext
        self._held_bytes -= len(plaintext)
        return plaintext

    def _fetch(self, tree: bytes, ahead: Iterable[bytes]) -> None:
        location = self._trees.find(tree)
        if location is None:
            self._read[tree] = NotFound(f"no index names the directory {tree.hex()}")
            return
        wanted = {tree: location}
        room = _AHEAD_BYTES - self._held_bytes - location.plaintext_bytes
        for looked_at, other in enumerate(ahead):
            if room <= 0 or looked_at >= _AHEAD_TREES:
                break
            if other not in self._read and other not in wanted:
                location = self._trees.find(other)
                if location is not None:
                    wanted[other] = location
                    room -= location.plaintext_bytes
        for blob, plaintext in open_each(self._repository, wanted.values(), bytes):
            if isinstance(plaintext, DiskprepError):
                message = f"the directory {blob.id.hex()}: {plaintext.message}"
                self._read[blob.id] = type(plaintext)(message, hint=plaintext.hint)
            else:
                self._read[blob.id] = plaintext
                self._held_bytes += len(plaintext)

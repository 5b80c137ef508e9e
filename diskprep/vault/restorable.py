"""Which recovery points can be restored already, while packs still travel.

What is missing is told by the index and one listing; who needs it, by the trees. No data is read. Memory: 40 bytes a
blob while the index is read, about 100 for each directory and for each pack.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain

import numpy as np

from diskprep.errors import DataDamaged, DiskprepError, NotFound
from diskprep.repository.locations import Locations
from diskprep.repository.pack import BlobKind, BlobLocation, PackEntry, object_name
from diskprep.repository.repository import Repository
from diskprep.repository.tree import parse_base
from diskprep.vault.reading import Range, in_threads, open_range, ranges

_PRESENT, _UNKNOWN = -1, -2
_ID_BYTES = 32
_NONE: array[int] = array("L")


@dataclass(frozen=True, slots=True, kw_only=True)
class Restorable:
    """What a recovery point still lacks; nothing: it can be restored.

    `missing_packs`: names (64 hexadecimal digits) of the packs it needs and the vault has not, or has with another
    size, ascending; `missing_bytes`: their sizes together. `unknown_blobs`: blobs of its files and directories that no
    index file names, counted once a directory, and directories that do not open: no disk brings these.
    """

    missing_packs: tuple[str, ...] = ()
    missing_bytes: int = 0
    unknown_blobs: int = 0

    @property
    def is_whole(self) -> bool:
        return not self.missing_packs and not self.unknown_blobs


def restorable(repository: Repository) -> Mapping[str, Restorable]:
    """Snapshot id -> what it lacks, for every snapshot. Raises DataDamaged for an index or snapshot file.

    Below a directory whose own pack is missing nothing is known: what else is needed there is not told.
    """
    snapshots = repository.snapshots()  # before the index: what a backup adds meanwhile is then in it
    places = _read_index(repository)
    forest = _Forest(repository, places)
    forest.grow({snapshot.tree for snapshot in snapshots})
    roots = {snapshot.tree for snapshot in snapshots}
    found = {root: forest.below(root) for root in roots} if forest.lacks_something else {}
    return {snapshot.id: found.get(snapshot.tree, Restorable()) for snapshot in snapshots}


@dataclass(slots=True)
class _Places:
    """Where blobs are: in a pack that is there, in a missing one (its number), or nowhere."""

    packs: list[tuple[str, int]] = field(default_factory=list)  # the missing ones: name and size
    trees: Locations = field(default_factory=lambda: Locations(BlobKind.TREE))  # those that can be read
    missing_trees: dict[bytes, int] = field(default_factory=dict)
    _ids: bytearray = field(default_factory=bytearray)
    _states: array[int] = field(default_factory=lambda: array("i"))
    _sorted: np.ndarray | None = None
    _keys: np.ndarray | None = None
    _order: np.ndarray | None = None

    def add(self, entry: PackEntry, *, is_there: bool) -> None:
        state = _PRESENT if is_there else len(self.packs)
        if not is_there:
            self.packs.append((entry.pack, entry.size_bytes))
        if entry.kind is BlobKind.DATA:
            self._ids += b"".join([blob.id for blob in entry.blobs])
            self._states.extend([state] * len(entry.blobs))
        elif is_there:
            self.trees.add([entry])
        else:
            self.missing_trees.update((blob.id, state) for blob in entry.blobs)

    def sort(self) -> None:
        """Make what was added findable: by the first 8 bytes of the ids, what is there before what is missing."""
        self.trees.sort()
        ids = np.frombuffer(bytes(self._ids), dtype=np.uint8).reshape(-1, _ID_BYTES)
        states = np.array(self._states, dtype=np.int32)
        order = np.lexsort((states, _keys_of(ids)))
        self._sorted, self._order = ids[order], states[order]
        self._keys = _keys_of(self._sorted)
        self._ids, self._states = bytearray(), array("i")

    def look_up(self, blobs: Iterable[bytes]) -> Iterator[int]:
        """For each blob of a file that is not there: the number of its pack, or `_UNKNOWN`. Safe in many threads."""
        wanted = np.frombuffer(b"".join(blobs), dtype=np.uint8).reshape(-1, _ID_BYTES)
        assert self._sorted is not None
        assert self._keys is not None
        assert self._order is not None
        keys = _keys_of(wanted)
        places = np.searchsorted(self._keys, keys)
        inside = np.minimum(places, max(len(self._keys) - 1, 0))
        if len(self._keys):
            equal = (self._sorted[inside] == wanted).all(axis=1)
            states = np.where(equal, self._order[inside], _UNKNOWN)
        else:
            states = np.full(len(wanted), _UNKNOWN)
        for number in np.flatnonzero(states != _PRESENT):
            state = int(states[number])
            if state == _UNKNOWN:  # or another id with the same first 8 bytes stands before it
                state = self._search(int(places[number]), keys[number], wanted[number].tobytes())
            if state != _PRESENT:
                yield state

    def _search(self, place: int, key: np.uint64, blob: bytes) -> int:
        assert self._sorted is not None
        assert self._keys is not None
        assert self._order is not None
        while place < len(self._keys) and self._keys[place] == key:
            if self._sorted[place].tobytes() == blob:
                return int(self._order[place])
            place += 1
        return _UNKNOWN


def _keys_of(ids: np.ndarray) -> np.ndarray:
    """The first 8 bytes of each id as a number."""
    return np.ascontiguousarray(ids).view(np.uint64)[:, 0]


def _read_index(repository: Repository) -> _Places:
    sizes = {stored.name: stored.size_bytes for stored in repository.store.list("data/")}
    places, seen = _Places(), set()
    for _, entries in repository.index_files():
        for entry in entries:
            if entry.pack not in seen:
                seen.add(entry.pack)
                places.add(entry, is_there=sizes.get(object_name(entry.pack)) == entry.size_bytes)
    places.sort()
    return places


@dataclass(frozen=True, slots=True)
class _Look:
    """One directory that was read: its directories, and what its files lack."""

    tree: bytes
    subtrees: tuple[bytes, ...] = ()
    missing: tuple[int, ...] = ()
    unknown: int = 0


class _Forest:
    """All directories below some roots, each read once, level by level; in memory only what each one lacks."""

    def __init__(self, repository: Repository, places: _Places) -> None:
        self._repository, self._places = repository, places
        self._numbers: dict[bytes, int] = {}
        self._subtrees: list[array[int]] = []
        self._missing: list[tuple[int, ...]] = []
        self._unknown: list[int] = []

    @property
    def lacks_something(self) -> bool:
        return any(self._missing) or any(self._unknown)

    def grow(self, roots: Iterable[bytes]) -> None:
        level = [root for root in roots if self._number(root)[1]]
        while level:
            there: list[BlobLocation] = []
            for tree in level:
                location = self._places.trees.find(BlobKind.TREE, tree)
                if location is not None:
                    there.append(location)
                elif tree in self._places.missing_trees:
                    self._keep(_Look(tree, missing=(self._places.missing_trees[tree],)))
                else:
                    self._keep(_Look(tree, unknown=1))
            level = []
            for looks in in_threads(self._repository.store, self._look, ranges(there)):
                for look in looks:
                    level += self._keep(look)

    def below(self, root: bytes) -> Restorable:
        """What all directories from `root` down lack."""
        seen, pending = bytearray(len(self._numbers)), [self._numbers[root]]
        seen[pending[0]] = 1
        missing: set[int] = set()
        unknown = 0
        while pending:
            number = pending.pop()
            missing.update(self._missing[number])
            unknown += self._unknown[number]
            for child in self._subtrees[number]:
                if not seen[child]:
                    seen[child] = 1
                    pending.append(child)
        packs = sorted(self._places.packs[number] for number in missing)
        return Restorable(
            missing_packs=tuple(name for name, _ in packs),
            missing_bytes=sum(size_bytes for _, size_bytes in packs),
            unknown_blobs=unknown,
        )

    def _number(self, tree: bytes) -> tuple[int, bool]:
        """The number of a directory, and whether it is new."""
        number = self._numbers.get(tree)
        if number is not None:
            return number, False
        self._subtrees.append(_NONE)
        self._missing.append(())
        self._unknown.append(0)
        number = self._numbers[tree] = len(self._numbers)
        return number, True

    def _keep(self, look: _Look) -> list[bytes]:
        """Note what a directory lacks; returns those of its directories that were not seen before."""
        numbers = [(tree, *self._number(tree)) for tree in look.subtrees]
        place = self._numbers[look.tree]
        if numbers:
            self._subtrees[place] = array("L", [number for _, number, _ in numbers])
        self._missing[place], self._unknown[place] = look.missing, look.unknown
        return [tree for tree, _, is_new in numbers if is_new]

    def _look(self, group: Range) -> list[_Look]:
        found = []
        for blob, plaintext in open_range(self._repository, group):
            try:
                if isinstance(plaintext, DiskprepError):
                    raise plaintext
                base = parse_base(plaintext)
            except (DataDamaged, NotFound):
                found.append(_Look(blob.id, unknown=1))
                continue
            content = dict.fromkeys(chain.from_iterable(file.content for file in base.files.values()))
            states = list(self._places.look_up(content))
            found.append(
                _Look(
                    blob.id,
                    tuple(dict.fromkeys(base.subtrees.values())),
                    tuple(sorted({state for state in states if state != _UNKNOWN})),
                    states.count(_UNKNOWN),
                )
            )
        return found

"""Recovery points: what each one holds, what it added to the vault, and what other schedules would have stored for it.

Every directory is read once, however many recovery points share it, and kept as numbers: 4 bytes for each blob and
directory it names. What a point needs is then found without reading anything. Memory: the catalogue, 52 bytes for each
directory, those numbers, and a bit for each blob and each series of points; it does not grow with the number of points.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diskprep.errors import DataDamaged, DiskprepError
from diskprep.events import Emit, Progress, silent
from diskprep.repository.repository import Repository
from diskprep.repository.snapshot import Snapshot
from diskprep.vault.catalogue import Blobs, Catalogue, Mask, Numbers, open_each, read_catalogue
from diskprep.vault.restorable import Restorable

_STAGE = "list"
_SLICE = 1 << 16  # directories that are asked for at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which recovery points are meant, in restic's words; all by default.

    A point is meant when it is of one of `hosts`, has all `paths`, and has all tags of one of `tags`. An empty tag
    means points without any.
    """

    hosts: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    tags: tuple[tuple[str, ...], ...] = ()

    def has(self, snapshot: Snapshot) -> bool:
        return (
            (not self.hosts or snapshot.hostname in self.hosts)
            and set(self.paths) <= set(snapshot.paths)
            and (not self.tags or any(_has_tags(snapshot, tags) for tags in self.tags))
        )


def _has_tags(snapshot: Snapshot, tags: tuple[str, ...]) -> bool:
    return not snapshot.tags if tags == ("",) else set(tags) <= set(snapshot.tags)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A recovery point. Sizes are bytes.

    `size_bytes`: of its files, as long as they were, a hard-linked one for each of its names; holes count. All others
    are of sealed blobs, as they lie in packs: `growth_bytes` of those that no earlier point needs, `full_bytes` of all
    it needs, so what it would take alone, and `differential_bytes` of those that the first point of the same host and
    paths does not need; for that one itself all. `lacks` says what keeps it from being restored.
    """

    snapshot: Snapshot
    size_bytes: int
    files: int
    directories: int
    growth_bytes: int
    full_bytes: int
    differential_bytes: int
    lacks: Restorable


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """All recovery points of a vault, oldest first. `problems`: directories that could not be read; the points they
    belong to are not restorable, and their figures are too small."""

    points: tuple[Point, ...]
    problems: tuple[str, ...]


def survey(repository: Repository, *, emit: Emit = silent) -> Survey:
    """Look at all recovery points: reads snapshots, index and trees, lists the packs, and reads no data.

    Raises DataDamaged when an index file or a snapshot file is damaged, StorageUnavailable.
    """
    snapshots = repository.snapshots()  # before the index: what a backup adds meanwhile is then in the index
    catalogue = read_catalogue(repository, look_for_packs=True)
    graph = _Graph(repository, catalogue)
    graph.read([snapshot.tree for snapshot in snapshots], emit)
    seen = _Needs.nothing(catalogue)
    firsts: dict[tuple[str, tuple[str, ...]], tuple[NDArray[np.uint8], NDArray[np.uint8]]] = {}
    points = []
    for snapshot in snapshots:
        needs = graph.needs(snapshot.tree)
        series = (snapshot.hostname, snapshot.paths)
        first = firsts.get(series)
        if first is None:
            firsts[series] = (np.packbits(needs.trees), np.packbits(needs.data))
        full = needs.stored_bytes(catalogue)
        points.append(
            Point(
                snapshot=snapshot,
                size_bytes=needs.size_bytes,
                files=needs.files,
                directories=needs.directories,
                growth_bytes=needs.stored_bytes(catalogue, without=(seen.trees, seen.data)),
                full_bytes=full,
                differential_bytes=full
                if first is None
                else needs.stored_bytes(
                    catalogue, without=(_bits(first[0], catalogue.trees), _bits(first[1], catalogue.data))
                ),
                lacks=needs.lacks(catalogue),
            )
        )
        seen.trees |= needs.trees
        seen.data |= needs.data
    return Survey(points=tuple(points), problems=tuple(graph.problems))


def _bits(packed: NDArray[np.uint8], blobs: Blobs) -> Mask:
    return np.unpackbits(packed, count=len(blobs)).astype(np.bool_)


@dataclass(slots=True, kw_only=True)
class _Needs:
    """What one root tree needs: a bit for each directory and each data blob of the catalogue."""

    trees: Mask
    data: Mask
    size_bytes: int = 0
    files: int = 0
    directories: int = 0
    unknown: int = 0

    @staticmethod
    def nothing(catalogue: Catalogue) -> _Needs:
        return _Needs(
            trees=np.zeros(len(catalogue.trees), dtype=np.bool_), data=np.zeros(len(catalogue.data), dtype=np.bool_)
        )

    def stored_bytes(self, catalogue: Catalogue, *, without: tuple[Mask, Mask] | None = None) -> int:
        """The sealed size of what is needed, each blob once, but for those of `without`: trees, data."""
        trees, data = (
            (self.trees, self.data) if without is None else (self.trees & ~without[0], self.data & ~without[1])
        )
        return int(catalogue.trees.lengths[trees].sum() + catalogue.data.lengths[data].sum())

    def lacks(self, catalogue: Catalogue) -> Restorable:
        needed = np.zeros(len(catalogue.packs), dtype=np.bool_)
        if catalogue.absent.any():
            needed[catalogue.trees.packs[self.trees]] = True
            needed[catalogue.data.packs[self.data]] = True
        missing = np.flatnonzero(needed & catalogue.absent)
        return Restorable(
            missing_packs=tuple(sorted(catalogue.packs[int(number)] for number in missing)),
            missing_bytes=int(catalogue.pack_bytes[missing].sum()),
            unknown_blobs=self.unknown,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Listing:
    """A directory: the ids, 32 bytes each, of its directories and of its files' blobs; its files' number and size."""

    subtrees: bytes
    data: bytes
    files: int
    size_bytes: int


def _listing(plaintext: bytes) -> _Listing:
    """What a survey wants of a tree blob. Raises DataDamaged."""
    subtrees: list[str] = []
    data: list[str] = []
    files = size_bytes = 0
    try:
        for node in json.loads(plaintext)["nodes"] or ():
            if node["type"] == "file":
                files += 1
                size_bytes += int(node.get("size", 0))
                data += node.get("content") or ()
            elif node["type"] == "dir":
                subtrees.append(node["subtree"])
        if not 0 <= size_bytes < 1 << 62:
            raise ValueError("a size out of range")
        return _Listing(subtrees=_ids(subtrees), data=_ids(data), files=files, size_bytes=size_bytes)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataDamaged(f"a tree is malformed: {error}") from None


def _ids(texts: list[str]) -> bytes:
    ids = bytes.fromhex("".join(texts))
    if len(ids) != 32 * len(texts) or any(len(text) != 64 for text in texts):
        raise ValueError("an id of the wrong length")
    return ids


class _Lists:
    """A list of numbers for each directory, one behind the other in one array."""

    def __init__(self, length: int) -> None:
        self._starts = np.zeros(length, dtype=np.int64)
        self._counts = np.zeros(length, dtype=np.int64)
        self._flat = array("I")

    def put(self, number: int, values: Numbers) -> None:
        self._starts[number], self._counts[number] = len(self._flat), len(values)
        self._flat.frombytes(values.astype(np.uint32).tobytes())

    def of(self, numbers: Numbers) -> tuple[Numbers, Numbers]:
        """The lists of these directories, joined, and the length of each."""
        counts = self._counts[numbers]
        total = int(counts.sum())
        if not total:
            return np.empty(0, dtype=np.int64), counts
        before = np.cumsum(counts) - counts
        places = np.repeat(self._starts[numbers] - before, counts) + np.arange(total)
        return np.frombuffer(self._flat, dtype=np.uint32)[places].astype(np.int64), counts


class _Graph:
    """All directories that were read, by their number in the catalogue."""

    def __init__(self, repository: Repository, catalogue: Catalogue) -> None:
        self._repository, self._catalogue = repository, catalogue
        count = len(catalogue.trees)
        self._subtrees, self._data = _Lists(count), _Lists(count)
        self._bytes, self._files = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
        self._unknown = np.zeros(count, dtype=np.uint32)
        self.problems: list[str] = []

    def read(self, roots: Iterable[bytes], emit: Emit) -> None:
        """Read every directory below some roots once, level by level."""
        trees = self._catalogue.trees
        total, done = int(trees.lengths.sum()), 0
        seen = np.zeros(len(trees), dtype=np.bool_)
        level = self._known(trees.numbers(b"".join(roots)))
        while len(level):
            seen[level] = True
            below = [np.empty(0, dtype=np.int64)]
            for start in range(0, len(level), _SLICE):
                part = level[start : start + _SLICE]
                locations = [trees.location(int(number)) for number in part]
                for blob, listing in open_each(self._repository, locations, _listing):
                    done += blob.length
                    below.append(self._put(int(trees.numbers(blob.id)[0]), listing))
                    emit(Progress(stage=_STAGE, done_bytes=done, total_bytes=total))
            level = self._known(np.concatenate(below))
            level = level[~seen[level]]

    def _known(self, numbers: Numbers) -> Numbers:
        return np.unique(numbers[numbers >= 0])

    def _put(self, number: int, listing: _Listing | DiskprepError) -> Numbers:
        """Keep a directory; return the numbers of its own."""
        if isinstance(listing, DiskprepError):
            self._unknown[number] = 1
            self.problems.append(f"the directory {self._catalogue.trees.id(number).hex()}: {listing.message}")
            return np.empty(0, dtype=np.int64)
        subtrees = self._catalogue.trees.numbers(listing.subtrees)
        data = self._catalogue.data.numbers(listing.data)
        self._unknown[number] = np.count_nonzero(subtrees < 0) + np.count_nonzero(data < 0)
        subtrees = subtrees[subtrees >= 0]
        self._subtrees.put(number, subtrees)
        self._data.put(number, np.unique(data[data >= 0]))
        self._files[number], self._bytes[number] = listing.files, listing.size_bytes
        return subtrees

    def needs(self, root: bytes) -> _Needs:
        """What a root tree needs. A directory that stands in several places counts as often in sizes and numbers."""
        found = _Needs.nothing(self._catalogue)
        level = self._catalogue.trees.numbers(root)
        if level[0] < 0:
            found.unknown = 1
            return found
        times = np.ones(1, dtype=np.int64)
        found.directories = -1  # the root is none of its own
        while len(level):
            found.trees[level] = True
            found.directories += int(times.sum())
            found.files += int((self._files[level] * times).sum())
            found.size_bytes += int((self._bytes[level] * times).sum())
            below, counts = self._subtrees.of(level)
            level, places = np.unique(below, return_inverse=True)
            summed = np.zeros(len(level), dtype=np.int64)
            np.add.at(summed, places, np.repeat(times, counts))
            times = summed
        numbers = np.flatnonzero(found.trees)
        found.data[self._data.of(numbers)[0]] = True
        found.unknown = int(self._unknown[numbers].sum())
        return found


def schedules(points: Iterable[Point]) -> dict[str, int]:
    """What the points take in bytes under three schedules: as they are, every one a synthetic full; a full one first
    and then what changed since; a full one each time."""
    points = tuple(points)
    return {
        "synthetic_full": sum(point.growth_bytes for point in points),
        "differential": sum(point.differential_bytes for point in points),
        "full": sum(point.full_bytes for point in points),
    }

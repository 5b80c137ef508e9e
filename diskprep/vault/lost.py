"""What is lost with packs that are missing or damaged: their blobs, and the files and recovery points that need them.

`Sound` is the index without such packs; a blob that lies in another pack too is not lost. `TreeMap` reads every
directory of the recovery points once. Memory: about 300 bytes a directory, and the contents of files that miss a blob.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from diskprep.errors import DataDamaged, DiskprepError, NotFound
from diskprep.repository.index import Index
from diskprep.repository.pack import BlobKind, BlobLocation, PackEntry
from diskprep.repository.repository import Repository
from diskprep.repository.snapshot import Snapshot
from diskprep.repository.tree import NodeType, parse_tree
from diskprep.vault.reading import Range, in_threads, open_range, ranges


class Sound:
    """Where blobs can be read: what the index says, without the packs in `bad`."""

    def __init__(self, index: Index, bad: Collection[str]) -> None:
        self._index, self._bad = index, frozenset(bad)
        named = {(blob.kind, blob.id) for pack in self._bad & index.packs.keys() for blob in index.packs[pack].blobs}
        self._elsewhere: dict[tuple[BlobKind, bytes], BlobLocation] = {}
        self._suspect = named
        if named:
            for pack, entry in index.packs.items():
                if pack not in self._bad:
                    self.add(entry)

    def add(self, entry: PackEntry) -> None:
        """Take in a whole pack: what of it lay in bad packs alone, or in none, can be read from now on."""
        for blob in entry.blobs:
            key = (blob.kind, blob.id)
            if key in self._suspect or not self._index.has(*key):
                self._elsewhere.setdefault(key, blob)

    def find(self, kind: BlobKind, blob_id: bytes) -> BlobLocation | None:
        """Where a blob can be read; None: it is lost, or was never there."""
        found = self._index.find(kind, blob_id)
        if found is not None and found.pack not in self._bad:
            return found
        return self._elsewhere.get((kind, blob_id))

    def length_of(self, blob_id: bytes) -> int | None:
        """Length of a data blob's plaintext, which the index tells of lost ones too; None: no index names it."""
        found = self._index.find(BlobKind.DATA, blob_id) or self._elsewhere.get((BlobKind.DATA, blob_id))
        return None if found is None else found.plaintext_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """A file that misses a blob. `path` is absolute, as recovery points have it; `content`: ids of all its blobs."""

    path: bytes
    content: tuple[bytes, ...]
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LostEntry:
    """A file, or a whole directory, that cannot be restored from these recovery points (ids, oldest first)."""

    path: bytes
    is_directory: bool
    points: tuple[str, ...]


@dataclass(slots=True)
class _Found:
    """What one directory holds, as far as it matters."""

    tree: bytes
    children: tuple[tuple[bytes, bytes], ...] = ()
    files: tuple[tuple[bytes, tuple[bytes, ...], int], ...] = ()
    gone: bool = False


@dataclass(slots=True)
class TreeMap:
    """All directories below some root trees, and which of them lead to a file that misses a blob."""

    repository: Repository
    sound: Sound
    _children: dict[bytes, tuple[tuple[bytes, bytes], ...]] = field(default_factory=dict)
    _files: dict[bytes, tuple[tuple[bytes, tuple[bytes, ...], int], ...]] = field(default_factory=dict)
    _gone: set[bytes] = field(default_factory=set)
    _affected: set[bytes] = field(default_factory=set)

    def read(self, points: Iterable[Snapshot]) -> None:
        """Read every directory of the recovery points. What cannot be read counts as lost."""
        level = list(dict.fromkeys(point.tree for point in points))
        while level:
            places = {tree: self.sound.find(BlobKind.TREE, tree) for tree in level}
            self._gone.update(tree for tree, place in places.items() if place is None)
            self._children |= dict.fromkeys(level, ())
            below: dict[bytes, None] = {}
            groups = ranges([place for place in places.values() if place is not None])
            for group in in_threads(self.repository.store, self._look, groups):
                for found in group:
                    self._children[found.tree] = found.children
                    if found.files:
                        self._files[found.tree] = found.files
                    if found.gone:
                        self._gone.add(found.tree)
                    below |= dict.fromkeys(child for _, child in found.children)
            level = [tree for tree in below if tree not in self._children]
        self._affected = self._leading_to({*self._files, *self._gone})

    def needs(self, points: Sequence[Snapshot]) -> Iterator[Need]:
        """Files that miss a blob now, those of the newest recovery point first; each path with a content once."""
        told: set[tuple[bytes, tuple[bytes, ...]]] = set()
        visited: set[tuple[bytes, bytes]] = set()
        for point in reversed(points):
            for path, tree in self._directories(point, visited):
                for name, content, size_bytes in self._files.get(tree, ()):
                    need = Need(path=path + b"/" + name, content=content, size_bytes=size_bytes)
                    if (need.path, content) not in told and self.misses(content):
                        told.add((need.path, content))
                        yield need

    def lost(self, points: Sequence[Snapshot]) -> tuple[LostEntry, ...]:
        """What the recovery points cannot give back now, by path."""
        found: dict[tuple[bytes, bool], list[str]] = {}
        for point in points:
            for path, tree in self._directories(point, set()):
                if tree in self._gone:
                    found.setdefault((path or b"/", True), []).append(point.id)
                for name, content, _ in self._files.get(tree, ()):
                    if self.misses(content):
                        found.setdefault((path + b"/" + name, False), []).append(point.id)
        return tuple(
            LostEntry(path=path, is_directory=is_directory, points=tuple(ids))
            for (path, is_directory), ids in sorted(found.items())
        )

    def misses(self, content: Iterable[bytes]) -> bool:
        """Whether a blob of a file can be read nowhere."""
        return any(self.sound.find(BlobKind.DATA, blob) is None for blob in content)

    def _directories(self, point: Snapshot, visited: set[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
        """Path (without a slash at its end) and tree of each affected directory that is not in `visited` yet."""
        pending = [(b"", point.tree)]
        while pending:
            path, tree = pending.pop()
            if tree not in self._affected or (path, tree) in visited:
                continue
            visited.add((path, tree))
            yield path, tree
            pending += [(path + b"/" + name, child) for name, child in reversed(self._children[tree])]

    def _leading_to(self, trees: set[bytes]) -> set[bytes]:
        """These trees and all above them."""
        parents: dict[bytes, list[bytes]] = {}
        for tree, children in self._children.items():
            for _, child in children:
                parents.setdefault(child, []).append(tree)
        found, pending = set(trees), list(trees)
        while pending:
            for above in parents.get(pending.pop(), ()):
                if above not in found:
                    found.add(above)
                    pending.append(above)
        return found

    def _look(self, group: Range) -> list[_Found]:
        return [self._parse(blob.id, plaintext) for blob, plaintext in open_range(self.repository, group)]

    def _parse(self, tree: bytes, plaintext: bytes | DiskprepError) -> _Found:
        if not isinstance(plaintext, bytes):
            if isinstance(plaintext, (DataDamaged, NotFound)):
                return _Found(tree, gone=True)
            raise plaintext
        try:
            nodes = parse_tree(plaintext)
        except DataDamaged:
            return _Found(tree, gone=True)
        return _Found(
            tree,
            tuple((n.name, n.subtree) for n in nodes if n.type is NodeType.DIR and n.subtree is not None),
            tuple(
                (n.name, n.content, n.size)
                for n in nodes
                if n.type is NodeType.FILE and n.content and self.misses(n.content)
            ),
        )

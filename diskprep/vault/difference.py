"""Difference: what changed from one recovery point to another, as restic's diff tells it.

Both trees are walked side by side. Directories with the same listing are equal and are not read. Memory: the catalogue,
three bytes for each of its blobs, what `TreeReader` reads ahead, and of the directories on the way to the present one
the entries that differ.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import chain, islice

import numpy as np

from diskprep.errors import DataDamaged, NotFound, UsageError
from diskprep.repository.repository import Repository
from diskprep.repository.snapshot import Snapshot
from diskprep.repository.tree import Node, NodeType
from diskprep.source.source import display
from diskprep.vault.catalogue import Blobs, Catalogue, Mask, Numbers, TreeReader, read_catalogue

_AHEAD_ENTRIES = 4096


class Change(StrEnum):
    """What happened to an entry, by restic's letters. Content that changed while nothing else did is bit rot, or was
    made to look so."""

    ADDED = "+"
    REMOVED = "-"
    CONTENT = "M"
    METADATA = "U"
    TYPE = "T"
    TYPE_AND_METADATA = "TU"
    CONTENT_ALONE = "M?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """An entry that is not the same in both points; `before` or `after` is None where it is not there."""

    path: bytes
    change: Change
    before: Node | None
    after: Node | None

    @property
    def is_directory(self) -> bool:
        node = self.after or self.before
        return node is not None and node.type is NodeType.DIR


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """One side of a difference: entries that only this point has, and blobs that only its changed directories and files
    name, each once: `plaintext_bytes` of content, `stored_bytes` in packs."""

    files: int = 0
    directories: int = 0
    others: int = 0
    data_blobs: int = 0
    tree_blobs: int = 0
    plaintext_bytes: int = 0
    stored_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A whole difference. `problems` names what could not be read."""

    changed_files: int
    added: Amount
    removed: Amount
    problems: tuple[str, ...]


class Difference:
    """The difference between two points, or between what lies at and below the absolute `path` in each.

    `metadata`: tell also of entries of which nothing but metadata changed (of a directory, its listing as well).
    `exact`: also read the directories that are equal, so that a blob which they name counts neither as added nor as
    removed, as in restic. Without it a copy of an unchanged file is counted as if it took room.
    """

    def __init__(
        self,
        repository: Repository,
        before: Snapshot,
        after: Snapshot,
        *,
        path: bytes = b"/",
        metadata: bool = False,
        exact: bool = False,
    ) -> None:
        """Reads the index and the way to `path`. Raises DataDamaged, UsageError, and NotFound when neither has it."""
        catalogue = read_catalogue(repository)
        self._reader = TreeReader(repository, catalogue.trees)
        self._metadata, self._exact = metadata, exact
        self._sides = (_Side(catalogue), _Side(catalogue))
        self._common = _Side(catalogue)
        self._changed_files = 0
        self._problems: list[str] = []
        path = os.path.normpath(path)
        if not path.startswith(b"/"):
            raise UsageError(f"{display(path)} is no absolute path", hint="give it as it was backed up, from the root")
        self._way = path.strip(b"/")
        above = (b"/" + self._way).rpartition(b"/")[0]
        self._top = _Pair(path=above, before=self._node(before, self._way), after=self._node(after, self._way))
        if self._top.before is None and self._top.after is None:
            raise NotFound(f"neither recovery point has {display(path)}")

    def run(self) -> Iterator[Changed]:
        """All that changed, in the order of the paths; to be called once."""
        stack: list[_Pair] = [self._top]
        while stack:
            pair = stack.pop()
            if pair is not self._top or self._way:  # the root is no entry
                yield from self._compare(pair)
            else:
                self._count(pair)
            one, other = pair.listings
            if one is not None and one == other:
                if self._exact:
                    self._take_in(one)
            elif one is not None or other is not None:
                stack += reversed(self._below(pair, stack))

    def summary(self) -> Summary:
        """What it amounts to, after `run` has ended."""
        removed, added = (side.amount(other, self._common) for side, other in _both_ways(self._sides))
        return Summary(changed_files=self._changed_files, added=added, removed=removed, problems=tuple(self._problems))

    def _node(self, snapshot: Snapshot, way: bytes) -> Node | None:
        node = Node(name=b"/", type=NodeType.DIR, mode=0, mtime=0, atime=0, ctime=0, subtree=snapshot.tree)
        for name in way.split(b"/") if way else ():
            if node.subtree is None:
                return None
            found = next((entry for entry in self._reader.read(node.subtree) if entry.name == name), None)
            if found is None:
                return None
            node = found
        return node

    def _count(self, pair: _Pair) -> None:
        for side, node in zip(self._sides, (pair.before, pair.after), strict=True):
            if node is not None:
                side.name_blobs(node)

    def _compare(self, pair: _Pair) -> Iterator[Changed]:
        self._count(pair)
        before, after = pair.before, pair.after
        change: Change | None = None
        if before is None or after is None:
            change = Change.ADDED if before is None else Change.REMOVED
            self._sides[before is None].own(before or after)
        elif before.type is not after.type:
            change = Change.TYPE_AND_METADATA if self._metadata else Change.TYPE
        elif before.type is NodeType.FILE and before.content != after.content:
            self._changed_files += 1
            alone = replace(before, content=None) == replace(after, content=None)
            change = Change.CONTENT_ALONE if alone else Change.CONTENT
        elif self._metadata and before != after:
            change = Change.METADATA
        if change is not None:
            yield Changed(path=pair.path + b"/" + pair.name, change=change, before=before, after=after)

    def _below(self, pair: _Pair, stack: list[_Pair]) -> list[_Pair]:
        """The entries of a directory that is not the same on both sides."""
        path = pair.path + b"/" + pair.name if pair is not self._top or self._way else b""
        ahead = _ahead(pair, stack)
        sides = []
        for listing in pair.listings:
            nodes: tuple[Node, ...] = ()
            if listing is not None:
                try:
                    nodes = self._reader.read(listing, ahead)
                except (DataDamaged, NotFound) as error:
                    self._problems.append(error.message)
                    return []  # what the other side has would seem added or removed
            sides.append({node.name: node for node in nodes})
        before, after = sides
        same = [node for name, node in before.items() if node == after.get(name)]
        self._take_in_both(same)
        for node in same:
            del before[node.name], after[node.name]
        return [
            _Pair(path=path, before=before.get(name), after=after.get(name))
            for name in sorted(before.keys() | after.keys())
        ]

    def _take_in_both(self, nodes: list[Node]) -> None:
        """Note the blobs of entries that are the same on both sides."""
        for side in self._sides:
            side.name_blobs(*nodes)
        if self._exact:
            for node in nodes:
                if node.subtree is not None:
                    self._take_in(node.subtree)

    def _take_in(self, tree: bytes) -> None:
        """Note the blobs of a directory that is on both sides, and of all below it."""
        stack = [tree]
        while stack:
            tree = stack.pop()
            if not self._common.enter(tree):
                continue
            try:
                nodes = self._reader.read(tree, reversed(stack))
            except (DataDamaged, NotFound) as error:
                self._problems.append(error.message)
                continue
            stack += [node.subtree for node in nodes if node.subtree is not None]
            self._common.name_blobs(*[node for node in nodes if node.subtree is None])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    """An entry of the directory `path` in both points, or in one."""

    path: bytes
    before: Node | None
    after: Node | None

    @property
    def name(self) -> bytes:
        node = self.before or self.after
        assert node is not None
        return node.name

    @property
    def listings(self) -> tuple[bytes | None, bytes | None]:
        before, after = self.before, self.after
        return before.subtree if before is not None else None, after.subtree if after is not None else None


def _ahead(pair: _Pair, stack: list[_Pair]) -> Iterable[bytes]:
    """The listings that will be read next."""
    differing = (other.listings for other in chain((pair,), islice(reversed(stack), _AHEAD_ENTRIES)))
    return (tree for one, two in differing if one != two for tree in (one, two) if tree is not None)


class _Side:
    """The blobs that one side names, and the entries that it alone has."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._data: Mask = np.zeros(len(catalogue.data), dtype=np.bool_)
        self._trees: Mask = np.zeros(len(catalogue.trees), dtype=np.bool_)
        self._entries = {"files": 0, "directories": 0, "others": 0}

    def name_blobs(self, *nodes: Node) -> None:
        """Note the blobs that some entries name themselves."""
        _mark(self._trees, self._catalogue.trees, b"".join([node.subtree for node in nodes if node.subtree]))
        _mark(self._data, self._catalogue.data, b"".join([blob for node in nodes for blob in node.content or ()]))

    def enter(self, tree: bytes) -> bool:
        """Note a directory; whether it was new."""
        number = int(self._catalogue.trees.numbers(tree)[0])
        if number < 0:
            return True
        new = not self._trees[number]
        self._trees[number] = True
        return new

    def own(self, node: Node | None) -> None:
        kinds = {NodeType.FILE: "files", NodeType.DIR: "directories"}
        if node is not None:
            self._entries[kinds.get(node.type, "others")] += 1

    def amount(self, other: _Side, common: _Side) -> Amount:
        data = np.flatnonzero(self._data & ~other._data & ~common._data)
        trees = np.flatnonzero(self._trees & ~other._trees & ~common._trees)
        return Amount(
            **self._entries,
            data_blobs=len(data),
            tree_blobs=len(trees),
            plaintext_bytes=_sum(self._catalogue.data.plaintext_lengths, data)
            + _sum(self._catalogue.trees.plaintext_lengths, trees),
            stored_bytes=_sum(self._catalogue.data.lengths, data) + _sum(self._catalogue.trees.lengths, trees),
        )


def _both_ways(sides: tuple[_Side, _Side]) -> tuple[tuple[_Side, _Side], tuple[_Side, _Side]]:
    return sides, (sides[1], sides[0])


def _mark(mask: Mask, blobs: Blobs, ids: bytes) -> None:
    numbers = blobs.numbers(ids)
    mask[numbers[numbers >= 0]] = True


def _sum(lengths: Numbers, numbers: Numbers) -> int:
    return int(lengths[numbers].sum())

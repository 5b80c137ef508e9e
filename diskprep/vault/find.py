"""Find: entries of recovery points by name, path, id or time.

All points are walked at once, path by path: where several have the same directory it is read once, and an entry that
they have in common is found once, with all of them. Memory: what `TreeReader` reads ahead, and for the directories on
the way to the present one their subdirectories and what was found in them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from math import inf

import numpy as np

from diskprep.errors import DataDamaged, NotFound, UsageError
from diskprep.repository.repository import Repository
from diskprep.repository.snapshot import Snapshot
from diskprep.repository.tree import Node, NodeType, parse_tree
from diskprep.source.selection import Pattern, Selection
from diskprep.vault.catalogue import Blobs, Catalogue, TreeReader, is_hex, read_catalogue
from diskprep.vault.listing import documents, node_of

_SPECIAL = re.compile(rb"[*?\[\\]")
_AHEAD_ENTRIES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What is looked for: entries that any of `patterns`, `blobs`, `trees` or `packs` meets, and whose modification
    time, in nanoseconds since the epoch, is in `oldest_ns` to `newest_ns`.

    `patterns`: restic's; one that meets a directory meets all that is in it. `blobs`: files with such a chunk;
    `trees`: directories with such a listing; `packs`: files or directories of which a part lies in such a pack. These
    three are the beginnings of ids, in hex. Raises UsageError.
    """

    patterns: tuple[bytes, ...] = ()
    ignore_case: bool = False
    blobs: tuple[str, ...] = ()
    trees: tuple[str, ...] = ()
    packs: tuple[str, ...] = ()
    oldest_ns: int | None = None
    newest_ns: int | None = None
    _selection: Selection = field(init=False, repr=False, compare=False)
    _heads: tuple[_Head, ...] | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not (self.patterns or self.blobs or self.trees or self.packs):
            raise UsageError("nothing was said to look for", hint="give a PATTERN, for example '*.docx'")
        for text in (*self.blobs, *self.trees, *self.packs):
            if not is_hex(text):
                raise UsageError(f"{text!r} is no id and no beginning of one", hint="give 1 to 64 of the digits 0-9a-f")
        if any(not pattern for pattern in self.patterns):
            raise UsageError("a pattern is empty")
        patterns = tuple(Pattern(text=_literal_mark(text), origin="find") for text in self.patterns)
        selection = Selection(iexclude=patterns) if self.ignore_case else Selection(exclude=patterns)
        object.__setattr__(self, "_selection", selection)
        object.__setattr__(self, "_heads", self._known_heads())

    def meets_path(self, path: bytes) -> bool:
        return self._selection.leaves_out(path)

    def meets_time(self, node: Node) -> bool:
        return (self.oldest_ns is None or node.mtime >= self.oldest_ns) and (
            self.newest_ns is None or node.mtime <= self.newest_ns
        )

    def may_be_below(self, path: bytes) -> bool:
        """Whether something below the directory `path` may be found, which itself is not."""
        if self._heads is None:
            return True
        parts = tuple(path.strip(b"/").split(b"/"))
        return any(
            len(parts) < head.depth and parts[: len(head.fixed)] == head.fixed[: len(parts)] for head in self._heads
        )

    def _known_heads(self) -> tuple[_Head, ...] | None:
        """The directories that the patterns begin with; None when there is one that may match anywhere."""
        if self.ignore_case or self.blobs or self.trees or self.packs:
            return None
        heads = []
        for pattern in self.patterns:
            clean = os.path.normpath(pattern)
            parts = clean.strip(b"/").split(b"/")
            if not clean.startswith(b"/") or parts == [b""]:  # the root means everything
                return None
            fixed = next((at for at, part in enumerate(parts) if _SPECIAL.search(part)), len(parts))
            heads.append(_Head(fixed=tuple(parts[:fixed]), depth=inf if b"**" in parts else len(parts)))
        return tuple(heads)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Head:
    """A pattern's first components, up to one that may match several names; what it meets is no deeper than `depth`."""

    fixed: tuple[bytes, ...]
    depth: float


def _literal_mark(pattern: bytes) -> bytes:
    """`pattern` with an exclamation mark at its beginning taken as part of a name: nothing can be taken back here."""
    return b"\\" + pattern if pattern.startswith(b"!") else pattern


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """An entry that was found, and the points, oldest first, that have it just so."""

    path: bytes
    node: Node
    points: tuple[Snapshot, ...]


class Search:
    """A search through some recovery points; `problems`, complete when `run` has ended, names what could not be
    read."""

    def __init__(self, repository: Repository, points: Sequence[Snapshot], query: Query) -> None:
        """Reads the index. Raises DataDamaged, and NotFound when the vault has nothing with an id of the query."""
        self._points, self._query = points, query
        catalogue = read_catalogue(repository)
        self._data, self._trees = _wanted(catalogue, query)
        self._reader = TreeReader(repository, catalogue.trees)
        self.problems: list[str] = []

    def run(self) -> Iterator[Match]:
        """All that is found, by path; of one path, what the oldest point has first."""
        roots: dict[bytes, list[int]] = {}
        for number, point in enumerate(self._points):
            roots.setdefault(point.tree, []).append(number)
        stack: list[Match | _Directory] = [_Directory(path=b"", trees=roots, inherited=False)]
        while stack:
            top = stack.pop()
            if isinstance(top, Match):
                yield top
            else:
                stack += reversed(self._look(top, stack))

    def _look(self, directory: _Directory, stack: list[Match | _Directory]) -> list[Match | _Directory]:
        """What is found in a directory, and the directories below that are to be looked at, each behind its match."""
        below: dict[bytes, _Directory] = {}
        found: dict[bytes, dict[Node, list[int]]] = {}
        ahead = _ahead(directory, stack)
        for tree, points in directory.trees.items():
            try:
                nodes = list(self._nodes(directory, self._reader.content(tree, ahead)))
            except (DataDamaged, NotFound) as error:
                self.problems.append(error.message)
                continue
            for path, node, inherited in nodes:
                if (inherited or self._has_id(node)) and self._query.meets_time(node):
                    found.setdefault(node.name, {}).setdefault(node, []).extend(points)
                if node.subtree is not None and (inherited or self._query.may_be_below(path)):
                    entry = below.get(node.name)
                    if entry is None:
                        entry = below[node.name] = _Directory(path=path, trees={}, inherited=inherited)
                    entry.trees.setdefault(node.subtree, []).extend(points)
        items: list[Match | _Directory] = []
        for name in sorted(found.keys() | below.keys()):
            for node, numbers in sorted(found.get(name, {}).items(), key=lambda item: min(item[1])):
                points_of = tuple(self._points[number] for number in sorted(numbers))
                items.append(Match(path=directory.path + b"/" + name, node=node, points=points_of))
            if name in below:
                items.append(below[name])
        return items

    def _nodes(self, directory: _Directory, listing: bytes) -> Iterator[tuple[bytes, Node, bool]]:
        """Path and entry of what may be found, or have it below, and whether a pattern meets it. Raises DataDamaged."""
        above = directory.path + b"/"
        if directory.inherited or self._data or self._trees:
            for node in parse_tree(listing):
                path = above + node.name
                yield path, node, directory.inherited or self._query.meets_path(path)
            return
        for name, document in documents(listing):  # most are neither: no more is made of them than their names
            path = above + name
            meets = self._query.meets_path(path)
            if meets or document.get("type") == NodeType.DIR:
                yield path, node_of(document), meets

    def _has_id(self, node: Node) -> bool:
        if node.type is NodeType.FILE:
            return bool(self._data) and not self._data.isdisjoint(node.content or ())
        return node.subtree in self._trees


@dataclass(frozen=True, slots=True, kw_only=True)
class _Directory:
    """A directory to look at: its listings, and the numbers of the points that have each. `inherited`: a pattern met
    it, and so all that is in it."""

    path: bytes
    trees: dict[bytes, list[int]]
    inherited: bool


def _ahead(directory: _Directory, stack: list[Match | _Directory]) -> Iterable[bytes]:
    """The listings that will be read next."""
    near = islice(reversed(stack), _AHEAD_ENTRIES)
    return chain(directory.trees, chain.from_iterable(item.trees for item in near if isinstance(item, _Directory)))


def _wanted(catalogue: Catalogue, query: Query) -> tuple[frozenset[bytes], frozenset[bytes]]:
    """The ids of the data blobs and trees that the query means. Raises NotFound."""
    data = {blob for prefix in query.blobs for blob in _starting(catalogue.data, prefix, "blob")}
    trees = {tree for prefix in query.trees for tree in _starting(catalogue.trees, prefix, "directory")}
    for prefix in query.packs:
        packs = [number for number, name in enumerate(catalogue.packs) if name.startswith(prefix)]
        if not packs:
            raise NotFound(f"no index names a pack {prefix}")
        data |= _inside(catalogue.data, packs)
        trees |= _inside(catalogue.trees, packs)
    return frozenset(data), frozenset(trees)


def _starting(blobs: Blobs, prefix: str, what: str) -> list[bytes]:
    ids = blobs.starting(prefix)
    if not ids and len(prefix) == 64:  # a directory may name it all the same
        ids = [bytes.fromhex(prefix)]
    if not ids:
        raise NotFound(f"no index names a {what} {prefix}")
    return ids


def _inside(blobs: Blobs, packs: list[int]) -> set[bytes]:
    return {blobs.id(int(number)) for number in np.flatnonzero(np.isin(blobs.packs, packs))}

"""Checking a vault: every pack there with its size, every recovery point resolvable, and with `read` every byte.

Nothing is changed; who finds problems withdraws the certificate (`withdrawal`).

Memory: the index, 100 bytes for each directory, what reading holds (see `reading`), and with `read` a pack and its
blobs for each worker.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Protocol

from diskprep.errors import DataDamaged, DiskprepError, NotFound, UsageError
from diskprep.events import Emit, Progress, silent
from diskprep.repository.pack import BlobKind, PackEntry, object_name
from diskprep.repository.repository import Repository
from diskprep.repository.tree import NodeType
from diskprep.vault.hands import Hands, hands, spread
from diskprep.vault.listing import Document, documents, file_of, node_of
from diskprep.vault.reading import locate, open_range, ranges, verify_whole

_STAGE = "check"
_TOGETHER_BYTES = 16 << 20  # of small packs in one message
_TREES_TOGETHER = 64  # in one message
_PART = re.compile(r"(\d{1,9})/(\d{1,9})")
_PERCENT = re.compile(r"(\d{1,3}(?:\.\d{1,9})?)%")


class Subset(Protocol):
    """Which packs are read."""

    def choose(self, packs: Sequence[PackEntry]) -> list[PackEntry]: ...


@dataclass(frozen=True, slots=True)
class EveryPack:
    """All of them."""

    def choose(self, packs: Sequence[PackEntry]) -> list[PackEntry]:
        return list(packs)


@dataclass(frozen=True, slots=True)
class Part:
    """The `number`th (from 1) of `of` parts that together are all packs, and stay the same: by the packs' names."""

    number: int
    of: int

    def choose(self, packs: Sequence[PackEntry]) -> list[PackEntry]:
        # What restic takes for the same words: its first byte decides, and there are at most 256 parts.
        return [entry for entry in packs if int(entry.pack[:2], 16) % self.of == self.number - 1]


@dataclass(frozen=True, slots=True)
class Share:
    """Packs at random, of this share (0 to 1) of their number; at least one."""

    of_packs: Decimal

    def choose(self, packs: Sequence[PackEntry]) -> list[PackEntry]:
        count = min(len(packs), max(1, int(len(packs) * self.of_packs)))
        return random.SystemRandom().sample(list(packs), count)


@dataclass(frozen=True, slots=True)
class Amount:
    """Packs at random, of about so many bytes together; at least one."""

    size_bytes: int

    def choose(self, packs: Sequence[PackEntry]) -> list[PackEntry]:
        total = sum(entry.size_bytes for entry in packs)
        share = min(Decimal(1), Decimal(self.size_bytes) / max(total, 1))
        return Share(share).choose(packs)


def parse_subset(text: str, size_bytes: int | None) -> Subset:
    """What `n/t`, `x%` or a size, already parsed as `size_bytes`, says. Raises UsageError."""
    if part := _PART.fullmatch(text):
        number, of = int(part[1]), int(part[2])
        if 1 <= number <= of <= 256:
            return Part(number, of)
        raise UsageError(f"there is no part {text}", hint="1/12 is the first of twelve parts; 256 is the most")
    if percent := _PERCENT.fullmatch(text):
        share = Decimal(percent[1]) / 100
        if 0 < share <= 1:
            return Share(share)
        raise UsageError(f"{text} is no share", hint="more than 0%, and at most 100%")
    if size_bytes:
        return Amount(size_bytes)
    raise UsageError(f"{text!r} is not a subset", hint="write it as 1/12, 5% or 10G")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """What was looked at; the vault is whole when `problems` is empty. `read_packs` and `read_bytes`: what was read of
    the packs."""

    packs: int
    pack_bytes: int
    snapshots: tuple[str, ...]
    directories: int
    files: int
    read_bytes: int
    problems: tuple[str, ...]
    read_packs: int = 0


def check(
    repository: Repository, *, read_data: bool = False, subset: Subset | None = None, emit: Emit = silent
) -> CheckResult:
    """Check the whole repository; `read_data` also reads every pack and opens every blob, `subset` those it chooses.

    Raises only when the store, an index file or a snapshot file cannot be read at all; all else is in `problems`.
    """
    snapshots = repository.snapshots()  # before the index: what a backup adds meanwhile is then in the index
    repository.reload_index()
    packs = list(repository.index.packs.values())
    to_read = subset.choose(packs) if subset is not None else packs if read_data else []
    crew: Hands[int] = hands(repository.store, lambda: _Looker(repository))
    try:
        problems = list(pack_problems(repository))
        walk = _TreeWalk(repository, crew)
        walk.run([snapshot.tree for snapshot in snapshots])
        problems += walk.problems
        problems += _read(crew, to_read, emit)
    finally:
        crew.close()
    return CheckResult(
        packs=len(packs),
        pack_bytes=sum(entry.size_bytes for entry in packs),
        snapshots=tuple(snapshot.id for snapshot in snapshots),
        directories=walk.directories,
        files=walk.files,
        read_bytes=sum(entry.size_bytes for entry in to_read),
        problems=tuple(problems),
        read_packs=len(to_read),
    )


def pack_problems(repository: Repository) -> Iterator[str]:
    """A line for each pack that the index names and the store lacks, or has with a size other than implied."""
    sizes = {stored.name: stored.size_bytes for stored in repository.store.list("data/")}
    for name, entry in repository.index.packs.items():
        size = sizes.get(object_name(name))
        if size is None:
            yield f"pack {name} is missing"
        elif size != entry.size_bytes:
            yield f"pack {name} has {size} bytes, not {entry.size_bytes}"


class _Looker:
    """A worker that verifies packs, or looks at directories, as it is told."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    def answer(self, message: bytes) -> bytes:
        asked = json.loads(message)
        if "packs" in asked:
            found = _Found(problems=[problem for name in asked["packs"] if (problem := self._problem(name))])
        else:
            found = self._look([bytes.fromhex(tree) for tree in asked["trees"]])
        subtrees = [tree.hex() for tree in found.subtrees]
        return json.dumps([subtrees, found.files, found.problems]).encode()

    def close(self) -> None:
        return

    def _problem(self, name: str) -> str:
        try:
            verify_whole(self._repository, self._repository.index.packs[name])
        except (DataDamaged, NotFound) as error:
            return error.message
        return ""

    def _look(self, trees: list[bytes]) -> _Found:
        found = _Found()
        locations, unknown = locate(self._repository, BlobKind.TREE, trees)
        found.problems += [f"no index names the directory {tree.hex()}" for tree in unknown]
        for group in ranges(locations):
            for blob, plaintext in open_range(self._repository, group):
                try:
                    if isinstance(plaintext, DiskprepError):
                        raise plaintext
                    for name, document in documents(plaintext):
                        self._look_at(name, document, found)
                except (DataDamaged, NotFound) as error:
                    found.problems.append(f"the directory {blob.id.hex()}: {error.message}")
        return found

    def _look_at(self, name: bytes, document: Document, found: _Found) -> None:
        content: tuple[bytes, ...]
        file = file_of(name, document)
        if file is not None:
            content = file.content
        else:
            node = node_of(document)
            if node.type is NodeType.DIR:
                if node.subtree is None:
                    found.problems.append(f"the directory {name!r} has no listing")
                else:
                    found.subtrees.append(node.subtree)
            if node.type is not NodeType.FILE:
                return
            content = node.content or ()
        found.files += 1
        has = self._repository.index.has
        lost = sum([not has(BlobKind.DATA, blob) for blob in content])
        if lost:
            found.problems.append(f"{lost} blobs of the file {name!r} are in no index")


@dataclass(slots=True)
class _Found:
    """What some directories hold, or what is wrong with some packs."""

    subtrees: list[bytes] = field(default_factory=list)
    files: int = 0
    problems: list[str] = field(default_factory=list)


def _found(answer: bytes) -> _Found:
    subtrees, files, problems = json.loads(answer)
    return _Found([bytes.fromhex(tree) for tree in subtrees], files, problems)


# -- every byte


def _read(crew: Hands[int], packs: Sequence[PackEntry], emit: Emit) -> Iterator[str]:
    total = sum(entry.size_bytes for entry in packs)
    done = 0
    for size_bytes, answer in spread(crew, _bundles(packs)):
        done += size_bytes
        yield from _found(answer).problems
        emit(Progress(stage=_STAGE, done_bytes=done, total_bytes=total))


def _bundles(packs: Sequence[PackEntry]) -> Iterator[tuple[int, bytes]]:
    """Size and names of some packs after the other: of many small ones, several together."""
    names: list[str] = []
    size = 0
    for entry in packs:
        if names and size + entry.size_bytes > _TOGETHER_BYTES:
            yield size, json.dumps({"packs": names}).encode()
            names, size = [], 0
        names.append(entry.pack)
        size += entry.size_bytes
    if names:
        yield size, json.dumps({"packs": names}).encode()


# -- recovery points


class _TreeWalk:
    """Has every directory below some root trees looked at once, level by level."""

    def __init__(self, repository: Repository, crew: Hands[int]) -> None:
        self._repository, self._crew = repository, crew
        self._seen: set[bytes] = set()
        self.directories = self.files = 0
        self.problems: list[str] = []

    def run(self, roots: list[bytes]) -> None:
        level = self._unseen(roots)
        while level:
            below: list[bytes] = []
            for _, answer in spread(self._crew, self._portions(level)):
                found = _found(answer)
                below += found.subtrees
                self.files += found.files
                self.problems += found.problems
            level = self._unseen(below)

    def _portions(self, level: list[bytes]) -> Iterator[tuple[int, bytes]]:
        """Trees that lie next to each other go to one worker, in messages of about one read."""
        find = self._repository.index.find
        places = [(location.pack, location.offset) if (location := find(BlobKind.TREE, t)) else ("", 0) for t in level]
        ordered = [tree for _, tree in sorted(zip(places, level, strict=True))]
        size = max(1, min(_TREES_TOGETHER, len(level) // (4 * self._crew.count)))
        for start in range(0, len(ordered), size):
            trees = [tree.hex() for tree in ordered[start : start + size]]
            yield 0, json.dumps({"trees": trees}).encode()

    def _unseen(self, trees: list[bytes]) -> list[bytes]:
        new = [tree for tree in dict.fromkeys(trees) if tree not in self._seen]
        self._seen.update(new)
        self.directories += len(new)
        return new

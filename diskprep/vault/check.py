"""Checking a vault: every pack there with its size, every recovery point resolvable, and with `read_data` every byte.

Nothing is changed. Memory: the index, 100 bytes for each directory, and what reading holds (see `reading`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from diskprep.errors import DataDamaged, DiskprepError, NotFound
from diskprep.events import Emit, Progress, silent
from diskprep.repository.pack import BlobKind, PackEntry, object_name, verify_pack
from diskprep.repository.repository import Repository
from diskprep.repository.tree import Node, NodeType, parse_tree
from diskprep.vault.reading import Range, in_threads, locate, open_range, ranges

_STAGE = "check"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """What was looked at; the vault is whole when `problems` is empty. `read_bytes`: how much of the packs was read."""

    packs: int
    pack_bytes: int
    snapshots: tuple[str, ...]
    directories: int
    files: int
    read_bytes: int
    problems: tuple[str, ...]


def check(repository: Repository, *, read_data: bool = False, emit: Emit = silent) -> CheckResult:
    """Check the whole repository; `read_data` also reads every pack and opens every blob.

    Raises only when the store, an index file or a snapshot file cannot be read at all; all else is in `problems`.
    """
    snapshots = repository.snapshots()  # before the index: what a backup adds meanwhile is then in the index
    repository.reload_index()
    problems = list(pack_problems(repository))
    walk = TreeWalk(repository)
    walk.run([snapshot.tree for snapshot in snapshots])
    problems += walk.problems
    read_bytes = 0
    if read_data:
        total = sum(entry.size_bytes for entry in repository.index.packs.values())
        for size_bytes, problem in in_threads(
            repository.store, lambda e: _verify(repository, e), repository.index.packs.values()
        ):
            read_bytes += size_bytes
            problems += [problem] if problem else []
            emit(Progress(stage=_STAGE, done_bytes=read_bytes, total_bytes=total))
    return CheckResult(
        packs=len(repository.index.packs),
        pack_bytes=sum(entry.size_bytes for entry in repository.index.packs.values()),
        snapshots=tuple(snapshot.id for snapshot in snapshots),
        directories=walk.directories,
        files=walk.files,
        read_bytes=read_bytes,
        problems=tuple(problems),
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


def _verify(repository: Repository, entry: PackEntry) -> tuple[int, str]:
    try:
        data = repository.store.read(object_name(entry.pack))
        verify_pack(entry.pack, data, repository.key, entry)
    except (DataDamaged, NotFound) as error:
        return entry.size_bytes, error.message
    return entry.size_bytes, ""


@dataclass(slots=True)
class _Found:
    """What some directories hold."""

    subtrees: list[bytes] = field(default_factory=list)
    files: int = 0
    problems: list[str] = field(default_factory=list)


class TreeWalk:
    """Reads every directory below some root trees once, level by level, and looks up every blob of every file."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._seen: set[bytes] = set()
        self.directories = self.files = 0
        self.problems: list[str] = []

    def run(self, roots: list[bytes]) -> None:
        level = self._unseen(roots)
        while level:
            locations, unknown = locate(self._repository, BlobKind.TREE, level)
            self.problems += [f"no index names the directory {tree.hex()}" for tree in unknown]
            below: list[bytes] = []
            for found in in_threads(self._repository.store, self._look, ranges(locations)):
                below += found.subtrees
                self.files += found.files
                self.problems += found.problems
            level = self._unseen(below)

    def _unseen(self, trees: list[bytes]) -> list[bytes]:
        new = [tree for tree in dict.fromkeys(trees) if tree not in self._seen]
        self._seen.update(new)
        self.directories += len(new)
        return new

    def _look(self, group: Range) -> _Found:
        found = _Found()
        for blob, plaintext in open_range(self._repository, group):
            try:
                if isinstance(plaintext, DiskprepError):
                    raise plaintext
                for node in parse_tree(plaintext):
                    self._look_at(node, found)
            except (DataDamaged, NotFound) as error:
                found.problems.append(f"the directory {blob.id.hex()}: {error.message}")
        return found

    def _look_at(self, node: Node, found: _Found) -> None:
        if node.type is NodeType.DIR:
            if node.subtree is None:
                found.problems.append(f"the directory {node.name!r} has no listing")
            else:
                found.subtrees.append(node.subtree)
        elif node.type is NodeType.FILE:
            found.files += 1
            lost = sum(self._repository.index.find(BlobKind.DATA, blob) is None for blob in node.content or ())
            if lost:
                found.problems.append(f"{lost} blobs of the file {node.name!r} are in no index")

"""Small vaults with a history, and a store that is cut off: for tests of what deletes."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diskprep.durable import Buffer
from diskprep.repository.keys import ScryptCost
from diskprep.repository.pack import BlobKind
from diskprep.repository.repository import Repository, create
from diskprep.repository.tree import Node, NodeType, parse_tree
from diskprep.secrets import Secret
from diskprep.source import Source
from diskprep.staging.writer import BackupOptions, backup
from diskprep.store import Store, StoredObject
from diskprep.store.directory import DirectoryStore

PASSPHRASE = "a passphrase of the tests"
CHEAP = ScryptCost(n=16, r=1, p=1)
PACK_BYTES = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """A vault and what each of its recovery points holds: snapshot id -> path -> SHA-256."""

    repository: Repository
    contents: dict[str, dict[bytes, str]]

    @property
    def folder(self) -> Path:
        return Path(self.repository.store.location)

    def over(self, store: Store) -> Repository:
        """The same repository in another place, opened without its key files."""
        opened = self.repository
        return Repository(store, opened.key, opened.id, opened.polynomial, PACK_BYTES)

    def copied(self, folder: Path) -> Repository:
        shutil.copytree(self.folder, folder)
        return self.over(DirectoryStore(folder))


def new_history(store: Store, source: Path, *, points: int = 5, seed: int = 3) -> History:
    """A source that changes, backed up again and again."""
    repository = create(store, Secret(PASSPHRASE), cost=CHEAP)
    history = History(repository=repository, contents={})
    rng = random.Random(seed)
    for number in range(points):
        change(source, rng, number)
        take_point(history, source)
    return history


def change(source: Path, rng: random.Random, number: int) -> None:
    """Some files new, some other, some gone."""
    folder = source / f"folder {number % 3}"
    folder.mkdir(parents=True, exist_ok=True)
    there = sorted(path for path in source.rglob("*") if path.is_file())
    for path in rng.sample(there, len(there) // 3):
        path.unlink()
    for name in range(12):
        (folder / f"{number}-{name}").write_bytes(rng.randbytes(rng.randrange(30_000)))
    (source / "long").write_bytes(rng.randbytes(1_500_000))


def take_point(history: History, source: Path) -> str:
    before = history.repository.snapshots()
    result = backup(
        history.repository,
        [Source(os.fsencode(source))],
        hostname="host",
        base=before[-1] if before else None,
        options=BackupOptions(pack_size_bytes=PACK_BYTES),
    )
    history.contents[result.snapshot] = contents(history.repository, result.snapshot)
    assert len(history.contents[result.snapshot]) == sum(path.is_file() for path in source.rglob("*"))
    return result.snapshot


def load_tree(repository: Repository, tree_id: bytes) -> tuple[Node, ...]:
    """The entries of a directory."""
    return parse_tree(repository.load_blob(BlobKind.TREE, tree_id))


def contents(repository: Repository, snapshot: str) -> dict[bytes, str]:
    """Path and SHA-256 of every file of a recovery point, every blob read, opened and checked."""
    repository.forget_index()

    def below(tree: bytes, folder: bytes) -> Iterator[tuple[bytes, str]]:
        for node in load_tree(repository, tree):
            path = folder + b"/" + node.name
            if node.subtree is not None:
                yield from below(node.subtree, path)
            elif node.type is NodeType.FILE:
                data = b"".join(repository.load_blob(BlobKind.DATA, blob) for blob in node.content or ())
                yield path, hashlib.sha256(data).hexdigest()

    return dict(below(repository.snapshot(snapshot).tree, b""))


def assert_whole(history: History, repository: Repository, *, points: Sequence[str] | None = None) -> None:
    """Every recovery point that is there (`points`: these are) holds what it held."""
    there = [point.id for point in repository.snapshots()]
    assert points is None or sorted(there) == sorted(points)
    for point in there:
        assert contents(repository, point) == history.contents[point]


class CutOff:
    """A store that calls `strike` before one of the calls that change it, counted from 0."""

    def __init__(self, inner: Store, at: int, strike: Callable[[str, str], None]) -> None:
        self._inner, self._left, self._strike = inner, at, strike
        self._mutex = threading.Lock()
        self.done: list[tuple[str, str]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def write(self, name: str, parts: Sequence[Buffer]) -> None:
        self._count("write", name)
        self._inner.write(name, parts)

    def delete(self, name: str) -> None:
        self._count("delete", name)
        self._inner.delete(name)

    def _count(self, what: str, name: str) -> None:
        with self._mutex:
            self.done.append((what, name))
            self._left -= 1
            if self._left == -1:
                self._strike(what, name)


def kill(_what: str, _name: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_child(action: Callable[[], object]) -> int:
    """Run `action` in a forked process; its exit status, -9 when it was killed."""
    child = os.fork()
    if not child:
        code = 1
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def listing(store: Store) -> list[StoredObject]:
    """What is there but for locks."""
    return sorted((item for item in store.list() if not item.name.startswith("locks/")), key=lambda item: item.name)

"""Restore: a recovery point written into a fresh directory, below which it has its original absolute paths.

Write order: directories (mode 0700), contents with each file's metadata when its last byte is there, then links and
special files, then the directories' metadata, deepest first. What is restored is not synced to stable storage.

Memory: about 1.5 KB for each entry and 150 bytes for each blob besides the index, and what reading holds (see
`reading`). Packs are read in the order of the files that need them, each wanted range once.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from diskprep import durable
from diskprep.errors import DataDamaged, DiskprepError, NotFound
from diskprep.events import Emit, Progress
from diskprep.repository.pack import BlobKind, BlobLocation
from diskprep.repository.repository import Repository
from diskprep.repository.snapshot import Snapshot
from diskprep.repository.tree import Node, NodeType, parse_tree
from diskprep.vault.reading import Range, in_threads, open_range, ranges
from diskprep.vault.target import Target, write_sparse

_STAGE = "restore"
_OPEN_FILES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreResult:
    """What was restored. `warnings`: metadata that this file system or our rights did not allow (at most 1000)."""

    directories: int
    files: int
    others: int
    bytes_restored: int
    warnings: tuple[str, ...]


def restore(
    repository: Repository,
    snapshot: Snapshot | str,
    target: Path,
    *,
    emit: Emit,
    subpath: str | None = None,
) -> RestoreResult:
    """Restore a snapshot, or only what lies at or below the absolute path `subpath`, into `target`.

    `target` must be absent or an empty directory: UsageError otherwise. Raises NotFound for an unknown snapshot or
    subpath, StorageFull, StorageUnavailable. When stored data is damaged or missing, all that can be restored is, and
    then DataDamaged names what could not.
    """
    if isinstance(snapshot, str):
        snapshot = repository.snapshot(snapshot)
    _ = repository.index  # read it before anything is made
    place = Target(target)
    run = _Restore(repository, place, emit)
    try:
        run.walk(snapshot.tree, tuple(os.fsencode(part) for part in (subpath or "").split("/") if part))
        run.write_contents()
        run.make_others()
        run.finish_directories()
    except OSError as error:
        raise durable.storage_error(error, f"restore into {target}") from error
    finally:
        run.close()
        place.close()
    if run.lost:
        raise DataDamaged(
            f"{len(run.lost)} entries could not be restored, all others are in {target}: {'; '.join(run.lost[:3])}",
            hint="`diskprep vault check` tells what is damaged",
        )
    return run.result()


@dataclass(slots=True, eq=False)
class _File:
    """A file on its way: `blobs` counts what is still to be written."""

    directory: int
    node: Node
    blobs: int
    descriptor: int | None = None
    users: int = 0
    created: bool = False
    holes: bool = False
    failed: str = ""


@dataclass(frozen=True, slots=True)
class _Directory:
    """A directory whose listing is still to be read; `wanted`: the components of the subpath below it."""

    number: int
    wanted: tuple[bytes, ...]


class _Restore:
    def __init__(self, repository: Repository, target: Target, emit: Emit) -> None:
        self._repository, self._target, self._emit = repository, target, emit
        self._directories: list[tuple[int, Node]] = []
        self._files: list[_File] = []
        self._specials: list[tuple[int, Node]] = []
        self._links: list[tuple[tuple[int, bytes], int, Node]] = []
        self._first: dict[tuple[NodeType, int, int], tuple[int, Node]] = {}
        self._wanted_found = False
        self._lock = threading.Lock()
        self._open_files = 0
        self._done_bytes = 0
        self.lost: list[str] = []

    def result(self) -> RestoreResult:
        return RestoreResult(
            directories=len(self._directories),
            files=len(self._files) + sum(node.type is NodeType.FILE for _, _, node in self._links),
            others=len(self._specials) + sum(node.type is not NodeType.FILE for _, _, node in self._links),
            bytes_restored=self._done_bytes,
            warnings=tuple(self._target.warnings),
        )

    # -- the directories

    def walk(self, root: bytes, wanted: tuple[bytes, ...]) -> None:
        """Read all listings level by level, make the directories, and collect everything else."""
        self._wanted_found = not wanted
        level: dict[bytes, list[_Directory]] = {root: [_Directory(0, wanted)]}
        while level:
            locations = []
            for tree, directories in level.items():
                location = self._repository.index.find(BlobKind.TREE, tree)
                if location is not None:
                    locations.append(location)
                else:
                    self._lose_directories(directories, "no index names its listing")
            below: dict[bytes, list[_Directory]] = {}
            for listings in in_threads(self._repository.store, self._listings, ranges(locations)):
                for tree, nodes in listings:
                    if isinstance(nodes, DiskprepError):
                        self._lose_directories(level[tree], nodes.message)
                        continue
                    for directory in level[tree]:
                        for node in nodes:
                            self._take(directory, node, below)
            level = below
        if not self._wanted_found and not self.lost:
            raise NotFound(f"the snapshot has no {os.fsdecode(b'/' + b'/'.join(wanted))}")

    def _listings(self, group: Range) -> list[tuple[bytes, tuple[Node, ...] | DiskprepError]]:
        found: list[tuple[bytes, tuple[Node, ...] | DiskprepError]] = []
        for blob, plaintext in open_range(self._repository, group):
            if isinstance(plaintext, DiskprepError):
                found.append((blob.id, plaintext))
                continue
            try:
                found.append((blob.id, parse_tree(plaintext)))
            except DataDamaged as error:
                found.append((blob.id, error))
        return found

    def _lose_directories(self, directories: list[_Directory], reason: str) -> None:
        self.lost += [f"{self._target.path(directory.number)}: {reason}" for directory in directories]

    def _take(self, directory: _Directory, node: Node, below: dict[bytes, list[_Directory]]) -> None:
        wanted = directory.wanted
        if wanted and (node.name != wanted[0] or (len(wanted) > 1 and node.type is not NodeType.DIR)):
            return
        if len(wanted) == 1:
            self._wanted_found = True
        parent = directory.number
        if node.type is NodeType.DIR:
            number = self._target.make_directory(parent, node.name)
            self._directories.append((number, node))
            if node.subtree is None:
                self.lost.append(f"{self._target.path(number)}: it has no listing")
            else:
                below.setdefault(node.subtree, []).append(_Directory(number, wanted[1:]))
            return
        if node.links > 1 and node.inode:
            first = self._first.setdefault((node.type, node.device_id, node.inode), (parent, node))
            same = (first[1].content, first[1].linktarget, first[1].device) == (
                node.content,
                node.linktarget,
                node.device,
            )
            if first[1] is not node and same:
                self._links.append(((first[0], first[1].name), parent, node))
                return
        if node.type is NodeType.FILE:
            self._files.append(_File(parent, node, 0))
        elif node.type is NodeType.SOCKET:
            self._target.warn(f"{self._target.path(parent, node.name)}: sockets are not restored")
        else:
            self._specials.append((parent, node))

    # -- the files

    def write_contents(self) -> None:
        needs: dict[BlobLocation, list[tuple[_File, int]]] = {}
        total = 0
        for file in self._files:
            offset = 0
            for blob_id in file.node.content or ():
                location = self._repository.index.find(BlobKind.DATA, blob_id)
                if location is None:
                    file.failed = "a part of it is in no index"
                    break
                needs.setdefault(location, []).append((file, offset))
                offset += location.plaintext_bytes
                file.blobs += 1
            total += offset
            if not file.blobs and not file.failed:
                self._use(file, _nothing)

        def write(group: Range) -> int:
            written = 0
            for blob, plaintext in open_range(self._repository, group):
                for file, offset in needs[blob]:
                    written += self._write_blob(file, plaintext, offset)
            return written

        for written in in_threads(self._repository.store, write, ranges(needs)):
            self._done_bytes += written
            self._emit(Progress(stage=_STAGE, done_bytes=self._done_bytes, total_bytes=total))
        for file in self._files:
            if file.failed:
                self._drop(file)

    def _write_blob(self, file: _File, plaintext: bytes | DiskprepError, offset: int) -> int:
        if isinstance(plaintext, DiskprepError):
            file.failed = file.failed or plaintext.message
        if isinstance(plaintext, DiskprepError) or file.failed:
            return 0

        def write(descriptor: int) -> None:
            if write_sparse(descriptor, plaintext, offset):
                file.holes = True

        self._use(file, write)
        return len(plaintext)

    def _use(self, file: _File, work: Callable[[int], None]) -> None:
        """Run `work` on the file's descriptor; after the last blob, finish the file and close it."""
        with self._lock:
            if file.descriptor is None:
                opened = self._target.reopen if file.created else self._target.create
                file.descriptor = opened(file.directory, file.node.name)
                file.created = True
                self._open_files += 1
            file.users += 1
            descriptor = file.descriptor
        try:
            work(descriptor)
        finally:
            with self._lock:
                file.users -= 1
                file.blobs -= 1
                complete = file.blobs <= 0
                idle = file.users == 0 and (complete or self._open_files > _OPEN_FILES)
                if idle:
                    file.descriptor = None
                    self._open_files -= 1
            if idle:
                try:
                    if complete and not file.failed:
                        self._finish(file, descriptor)
                finally:
                    os.close(descriptor)

    def _finish(self, file: _File, descriptor: int) -> None:
        if file.holes:
            find = self._repository.index.find
            located = [find(BlobKind.DATA, blob_id) for blob_id in file.node.content or ()]
            os.ftruncate(descriptor, sum(blob.plaintext_bytes for blob in located if blob))
        self._target.finish(descriptor, file.node, partial(self._target.path, file.directory, file.node.name))

    def _drop(self, file: _File) -> None:
        """Leave no half file behind."""
        if file.descriptor is not None:
            os.close(file.descriptor)
            file.descriptor = None
        if file.created:
            self._target.remove(file.directory, file.node.name)
        self.lost.append(f"{self._target.path(file.directory, file.node.name)}: {file.failed}")

    def close(self) -> None:
        for file in self._files:
            if file.descriptor is not None:
                os.close(file.descriptor)
                file.descriptor = None

    # -- the rest

    def make_others(self) -> None:
        for directory, node in self._specials:
            self._target.make_special(directory, node)
        missing = {(file.directory, file.node.name) for file in self._files if file.failed}
        for origin, directory, node in self._links:
            if origin in missing:
                self.lost.append(f"{self._target.path(directory, node.name)}: the file it is linked with is lost")
                continue
            try:
                self._target.link(origin, directory, node.name)
            except FileNotFoundError:  # a device that we may not make
                self._target.warn(f"{self._target.path(directory, node.name)}: what it is linked with is not there")

    def finish_directories(self) -> None:
        for number, node in reversed(self._directories):
            self._target.finish_directory(number, node)


def _nothing(_descriptor: int) -> None:
    """What is written into an empty file."""

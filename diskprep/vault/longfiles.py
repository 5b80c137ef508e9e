"""Files of several blobs, hard links, and what else concerns several directories: made by the parent of a restore.

Each wanted range of a pack is read once, in the order of the files that need it, by threads, and each blob is written
to all places that need it.

Memory: 1.5 KB a file and 150 bytes a blob of a window of a million blobs, and what reading holds (see `reading`).
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from diskprep.durable import Buffer
from diskprep.errors import DiskprepError
from diskprep.repository.pack import BlobKind, BlobLocation
from diskprep.repository.repository import Repository
from diskprep.repository.tree import Node, NodeType
from diskprep.vault.filling import Answer
from diskprep.vault.metadata import write_sparse
from diskprep.vault.reading import Range, borrow_range, in_threads, ranges
from diskprep.vault.target import OF_ONE_ENTRY, Target

WINDOW_BLOBS, WINDOW_FILES = 1 << 20, 1 << 18
_OPEN_FILES = 256
_Key = tuple[NodeType, int, int]


@dataclass(slots=True, eq=False)
class _File:
    """A file on its way: `blobs` counts what is still to be written, `size` what it will have."""

    directory: int
    node: Node
    spot: bytes = b""
    blobs: int = 0
    size: int = 0
    descriptor: int | None = None
    users: int = 0
    created: bool = False
    holes: bool = False
    failed: str = ""
    damaged: bool = True


class LongFiles:
    """`take` entries; `write` makes all that were taken so far. `told` counts what was made, and lists what was not."""

    def __init__(self, repository: Repository, target: Target, on_bytes: Callable[[int], None]) -> None:
        self._repository, self._target, self._on_bytes = repository, target, on_bytes
        self._files: list[_File] = []
        self._specials: list[tuple[int, Node]] = []
        self._links: list[tuple[_Key, int, Node]] = []
        self._origins: dict[_Key, tuple[int, bytes, bytes]] = {}  # where, and a digest of what it is
        self._blobs = 0
        self._lock = threading.Lock()
        self._open_files = 0
        self.told = Answer()

    @property
    def is_full(self) -> bool:
        return self._blobs > WINDOW_BLOBS or len(self._files) + len(self._links) > WINDOW_FILES

    def take(self, directory: int, node: Node) -> None:
        """Note an entry. Raises OSError."""
        size = node.size if node.type is NodeType.FILE else 0
        if self._target.keeps(directory, node.name, stat.S_IFMT(node.unix_mode), size, node.mtime):
            self.told.kept.append((directory, node.name))
            return
        if node.links > 1 and node.inode:
            key = (node.type, node.device_id, node.inode)
            what = _what(node)
            origin = self._origins.setdefault(key, (directory, node.name, what))
            if origin[:2] != (directory, node.name) and origin[2] == what:
                self._links.append((key, directory, node))
                return
        if node.type is NodeType.FILE:
            self._files.append(_File(directory, node))
            self._blobs += len(node.content or ())
        else:
            self._specials.append((directory, node))

    def write(self) -> None:
        """Make what was taken. Raises OSError and what the store raises; then nothing half-made remains open."""
        try:
            if self._target.dry_run:
                self._count()
            else:
                self._write_contents()
                self._make_others()
        finally:
            for file in self._files:
                if file.descriptor is not None:
                    os.close(file.descriptor)
                    file.descriptor = None
            self._files, self._specials, self._links, self._blobs = [], [], [], 0

    def _count(self) -> None:
        find = self._repository.index.find
        for file in self._files:
            located = [find(BlobKind.DATA, blob) for blob in file.node.content or ()]
            if None in located:
                self.told.lost.append((file.directory, file.node.name, "a part of it is in no index", True))
                continue
            self._made(file.directory, file.node, sum(blob.plaintext_bytes for blob in located if blob))
        for directory, node in [*self._specials, *((directory, node) for _, directory, node in self._links)]:
            self._made(directory, node, 0)

    def _made(self, directory: int, node: Node, size: int, *, replaced: bool | None = None) -> None:
        self.told.replaced += self._target.has(directory, node.name) if replaced is None else replaced
        self.told.bytes_ += size
        if node.type is NodeType.FILE:
            self.told.files += 1
        else:
            self.told.others += 1

    # -- contents

    def _write_contents(self) -> None:
        needs: dict[BlobLocation, list[tuple[_File, int]]] = {}
        find = self._repository.index.find
        for file in self._files:
            for blob_id in file.node.content or ():
                location = find(BlobKind.DATA, blob_id)
                if location is None:
                    file.failed = "a part of it is in no index"
                    break
                needs.setdefault(location, []).append((file, file.size))
                file.size += location.plaintext_bytes
                file.blobs += 1
            if not file.blobs and not file.failed:
                self._use(file, _nothing)

        def write(group: Range) -> int:
            written = 0
            for blob, plaintext in borrow_range(self._repository, group):
                for file, offset in needs[blob]:
                    written += self._write_blob(file, plaintext, offset)
            return written

        for written in in_threads(self._repository.store, write, _apart(list(ranges(needs)))):
            self._on_bytes(written)
        for file in self._files:
            if file.failed:
                self._drop(file)
            else:
                self._made(file.directory, file.node, file.size, replaced=file.spot != file.node.name)

    def _write_blob(self, file: _File, plaintext: Buffer | DiskprepError, offset: int) -> int:
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
                try:
                    if not file.created:
                        file.spot = self._target.spot(file.directory, file.node.name)
                    opened = self._target.reopen if file.created else self._target.create
                    file.descriptor = opened(file.directory, file.spot)
                except OSError as error:
                    self._refuse(file, error)
                    return
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
            os.ftruncate(descriptor, file.size)
        name = file.node.name
        self._target.finish(descriptor, file.node, partial(self._target.path, file.directory, name))
        try:
            self._target.settle(file.directory, file.spot, name)
        except OSError as error:
            self._refuse(file, error)

    def _refuse(self, file: _File, error: OSError) -> None:
        """A file that what is there does not make room for. Raises `error` when it is about more than that."""
        if error.errno not in OF_ONE_ENTRY:
            raise error
        file.failed, file.damaged = error.strerror or str(error), False

    def _drop(self, file: _File) -> None:
        """Leave no half file behind."""
        if file.descriptor is not None:
            os.close(file.descriptor)
            file.descriptor = None
        if file.created:
            self._target.remove(file.directory, file.spot)
        self.told.lost.append((file.directory, file.node.name, file.failed, file.damaged))

    # -- the rest

    def _make_others(self) -> None:
        for directory, node in self._specials:
            had = self._target.has(directory, node.name)
            try:
                self._target.make_special(directory, node)
                self._made(directory, node, 0, replaced=had)
            except OSError as error:
                self._lose(directory, node, error)
        missing = {(file.directory, file.node.name) for file in self._files if file.failed}
        for key, directory, node in self._links:
            origin = self._origins[key][:2]
            if origin in missing:
                why = "the file it is linked with is lost"
                self.told.lost.append((directory, node.name, why, True))
                continue
            had = self._target.has(directory, node.name)
            try:
                self._target.link(origin, directory, node.name)
                self._made(directory, node, 0, replaced=had)
            except FileNotFoundError:  # a device that we may not make, or a file that was lost before
                self._target.warn(f"{self._target.path(directory, node.name)}: what it is linked with is not there")
            except OSError as error:
                self._lose(directory, node, error)

    def _lose(self, directory: int, node: Node, error: OSError) -> None:
        if error.errno not in OF_ONE_ENTRY:
            raise error
        self.told.lost.append((directory, node.name, error.strerror or str(error), False))


def _apart(groups: list[Range]) -> Iterator[Range]:
    """The ranges of several stretches in turn, so that threads that work on neighbours write to different files: a file
    lets one write at a time, and the others spin."""
    stretches = max(1, os.cpu_count() or 1)
    length = -(-len(groups) // stretches)
    for place in range(length):
        for start in range(0, len(groups), length):
            if start + place < min(len(groups), start + length):
                yield groups[start + place]


def _what(node: Node) -> bytes:
    """All that hard links of each other have in common, and that tells whether they are."""
    return hashlib.sha256(repr((node.content, node.linktarget, node.device)).encode()).digest()


def _nothing(_descriptor: int) -> None:
    """What is written into an empty file."""

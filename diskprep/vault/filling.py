"""Filling directories: what one worker of a restore does, and what it is told and tells.

A worker is given directories. It reads their listings, makes them, makes all small files in them and all else that one
blob or none makes, and tells of what it leaves to the parent: directories below, long files, hard links.

Memory: the listings it was given, and of files a window of 16 MiB of blobs.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from diskprep import durable
from diskprep.durable import Buffer
from diskprep.errors import DataDamaged, DiskprepError, NotFound
from diskprep.repository.pack import BlobKind, BlobLocation
from diskprep.repository.repository import Repository
from diskprep.repository.tree import Node, NodeType
from diskprep.vault.choice import Choice, Verdict
from diskprep.vault.listing import Document, documents, file_of, kind_of, node_of
from diskprep.vault.metadata import SPARSE_BYTES, Described, write_sparse
from diskprep.vault.reading import open_range, ranges
from diskprep.vault.target import OF_ONE_ENTRY, Entered, Target

SMALL_BYTES = 1 << 20  # longer files, and those of several blobs, are for the parent's threads
_WINDOW_BYTES, _WINDOW_FILES = 16 << 20, 4096
_SLICE = 512  # entries of one directory that go to one worker, when it is shared


class Step(NamedTuple):
    """A directory on the way to one: its number, name, modification time, and whether this restore has made it."""

    number: int
    name: bytes
    mtime: int
    new: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A directory to fill, the last of `way`, which begins below the root; empty for the root itself. `take`: it is
    chosen, else it is only looked through. `part` of `parts`: which of its entries. `skip`: names not to look at."""

    way: tuple[Step, ...]
    tree: bytes
    take: bool
    part: int = 0
    parts: int = 1
    skip: tuple[bytes, ...] = ()

    @property
    def number(self) -> int:
        return self.way[-1].number if self.way else 0


@dataclass(slots=True, kw_only=True)
class Answer:
    """What was done, and what is left to do. Directories are numbers, with the name of an entry where there is one.

    `below`: directories to go on with, and whether they are chosen. `rest`: entries for the parent. `lost`: what could
    not be restored, why, and whether stored data is to blame. `kept`: what was there and stays. `met`: paths that were
    found. `files`, `others` and `bytes_` are of what was made (or verified, or, in a dry run, would be)."""

    made: list[int] = field(default_factory=list)
    entered: list[int] = field(default_factory=list)
    below: list[tuple[int, Document, bool]] = field(default_factory=list)
    rest: list[tuple[int, Document]] = field(default_factory=list)
    lost: list[tuple[int, bytes, str, bool]] = field(default_factory=list)
    kept: list[tuple[int, bytes]] = field(default_factory=list)
    met: list[int] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    files: int = 0
    others: int = 0
    replaced: int = 0
    bytes_: int = 0


def encode_tasks(tasks: list[Task], *, verify: bool = False) -> bytes:
    listed = []
    for task in tasks:
        way = [(step.number, os.fsdecode(step.name), step.mtime, step.new) for step in task.way]
        skip = [os.fsdecode(name) for name in task.skip]
        listed.append((way, task.tree.hex(), task.take, task.part, task.parts, skip))
    return json.dumps([verify, listed]).encode()


def _decode_tasks(message: bytes) -> tuple[bool, list[Task]]:
    verify, listed = json.loads(message)
    tasks = []
    for way, tree, take, part, parts, skip in listed:
        steps = tuple(Step(n, os.fsencode(name), mtime, new) for n, name, mtime, new in way)
        names = tuple(os.fsencode(name) for name in skip)
        tasks.append(Task(way=steps, tree=bytes.fromhex(tree), take=take, part=part, parts=parts, skip=names))
    return verify, tasks


def _encode_answer(answer: Answer) -> bytes:
    fields: dict[str, Any] = {name: getattr(answer, name) for name in Answer.__slots__}
    fields["lost"] = [(number, os.fsdecode(name), why, damaged) for number, name, why, damaged in answer.lost]
    fields["kept"] = [(number, os.fsdecode(name)) for number, name in answer.kept]
    return json.dumps(fields).encode()


def decode_answer(text: bytes) -> Answer:
    answer = Answer(**json.loads(text))
    answer.lost = [(number, os.fsencode(name), why, damaged) for number, name, why, damaged in answer.lost]
    answer.kept = [(number, os.fsencode(name)) for number, name in answer.kept]
    return answer


_Listing = Iterator[tuple[bytes, Document]]
_Chosen = tuple[bytes, Document, NodeType, bool]


class _Waiting(NamedTuple):
    """A file that waits for its blob."""

    number: int
    file: Described
    name: bytes


class Filler:
    """A worker: `target` is its own. Answers `Task`s."""

    def __init__(self, repository: Repository, target: Target, choice: Choice) -> None:
        self._repository, self._target, self._choice = repository, target, choice
        self._all = choice.is_everything
        self._answer = Answer()
        self._waiting: dict[BlobLocation, list[_Waiting]] = {}
        self._waiting_files = self._waiting_bytes = 0

    def answer(self, message: bytes) -> bytes:
        verify, tasks = _decode_tasks(message)
        self._answer = Answer()
        self._target.forget_places()
        trees: dict[bytes, list[Task]] = {}
        for task in tasks:
            above = 0
            for step in task.way:
                self._target.place(step.number, above, step.name, new=step.new)
                above = step.number
            trees.setdefault(task.tree, []).append(task)
        work = self._verify if verify else self._fill
        for tree, listing in self._listings(list(trees)):
            for task in trees[tree]:
                try:
                    if isinstance(listing, DiskprepError):
                        raise listing
                    work(task, self._components(task), documents(listing))
                except (DataDamaged, NotFound) as error:
                    self._lose(task.number, b"", error.message)
        self._flush()
        self._answer.warnings = self._target.take_warnings()
        return _encode_answer(self._answer)

    def close(self) -> None:
        self._target.close()

    def _listings(self, trees: list[bytes]) -> Iterator[tuple[bytes, Buffer | DiskprepError]]:
        locations = []
        for tree in trees:
            location = self._repository.index.find(BlobKind.TREE, tree)
            if location is None:
                yield tree, NotFound("no index names its listing")
            else:
                locations.append(location)
        for group in ranges(locations):
            for location, listing in open_range(self._repository, group):
                yield location.id, listing

    @staticmethod
    def _components(task: Task) -> tuple[bytes, ...]:
        return tuple(step.name for step in task.way)

    def _chosen(self, task: Task, above: tuple[bytes, ...], listing: _Listing) -> Iterator[_Chosen]:
        """The entries that are this task's, and whether they are chosen; others are directories to look through."""
        judge, everything = self._choice.judge, self._all
        for place, (name, document) in enumerate(listing):
            if task.parts > 1 and place // _SLICE % task.parts != task.part:
                continue
            kind = kind_of(document)
            if everything:
                yield name, document, kind, True
                continue
            verdict = judge(above, name, is_directory=kind is NodeType.DIR)
            if verdict is not Verdict.LEAVE:
                if self._choice.wanted:
                    self._answer.met += self._choice.met(above, name)
                yield name, document, kind, verdict is Verdict.TAKE

    # -- filling

    def _fill(self, task: Task, above: tuple[bytes, ...], listing: _Listing) -> None:
        number, answer = task.number, self._answer
        entered = False
        if task.take and not (entered := self._enter(task)):
            return
        for name, document, kind, take in self._chosen(task, above, listing):
            if kind is NodeType.DIR:
                answer.below.append((number, document, take))
                continue
            if not entered and not (entered := self._enter(task)):
                return
            try:
                if kind is NodeType.FILE:
                    self._file(number, name, document)
                else:
                    self._special(number, name, document)
            except DataDamaged as error:
                self._lose(number, name, error.message)
            except OSError as error:
                self._refuse(number, name, error)

    def _enter(self, task: Task) -> bool:
        """Have the directory and all above it; False when something else has its name and stays."""
        for step in task.way:
            try:
                entered = self._target.enter(step.number, step.mtime)
            except OSError as error:
                self._refuse(step.number, b"", error)
                return False
            if entered is Entered.KEPT:
                self._answer.kept.append((step.number, b""))
                return False
            if entered is Entered.MADE:
                self._answer.made.append(step.number)
        self._answer.entered.append(task.number)
        return True

    def _file(self, number: int, name: bytes, document: Document) -> None:
        file: Described | None
        file = quick = file_of(name, document)
        if quick is not None:
            content, size, mtime = quick.content, quick.size, quick.mtime
        else:
            node = node_of(document)
            if node.links > 1 and node.inode:
                self._answer.rest.append((number, document))
                return
            file, content, size, mtime = node, node.content or (), node.size, node.mtime
        location = None
        if content:
            location = self._repository.index.find(BlobKind.DATA, content[0])
            if len(content) > 1 or (location is not None and location.plaintext_bytes > SMALL_BYTES):
                self._answer.rest.append((number, document))
                return
        if self._target.keeps(number, name, stat.S_IFREG, size, mtime):
            self._answer.kept.append((number, name))
            return
        assert file is not None
        if content and location is None:
            self._lose(number, name, "a part of it is in no index")
        elif location is None:
            self._make(_Waiting(number, file, name), b"")
        elif self._target.dry_run:
            self._count(number, name, location.plaintext_bytes)
        else:
            self._waiting.setdefault(location, []).append(_Waiting(number, file, name))
            self._waiting_files += 1
            self._waiting_bytes += location.plaintext_bytes
            if self._waiting_bytes > _WINDOW_BYTES or self._waiting_files > _WINDOW_FILES:
                self._flush()

    def _flush(self) -> None:
        """Make the files whose blobs are to be read."""
        waiting, self._waiting = self._waiting, {}
        self._waiting_files = self._waiting_bytes = 0
        for group in ranges(waiting):
            for location, plaintext in open_range(self._repository, group):
                for one in waiting[location]:
                    if isinstance(plaintext, DiskprepError):
                        self._lose(one.number, one.name, plaintext.message)
                        continue
                    try:
                        self._make(one, plaintext)
                    except OSError as error:
                        self._refuse(one.number, one.name, error)

    def _make(self, one: _Waiting, plaintext: Buffer) -> None:
        number, file, name = one
        target = self._target
        if target.dry_run:
            self._count(number, name, 0)
            return
        if len(plaintext) < SPARSE_BYTES and not file.xattrs and target.is_new(number) and file.unix_mode & 0o7000 == 0:
            target.make_small(number, name, plaintext, file)
            self._answer.files += 1
            self._answer.bytes_ += len(plaintext)
            return
        spot = target.spot(number, name)
        descriptor = target.create(number, spot)
        try:
            try:
                if plaintext and write_sparse(descriptor, plaintext, 0):
                    os.ftruncate(descriptor, len(plaintext))
                target.finish(descriptor, file, partial(target.path, number, name))
            finally:
                os.close(descriptor)
        except BaseException:
            target.remove(number, spot)
            raise
        if spot != name:
            target.settle(number, spot, name)
            self._answer.replaced += 1
        self._answer.files += 1
        self._answer.bytes_ += len(plaintext)

    def _special(self, number: int, name: bytes, document: Document) -> None:
        node = node_of(document)
        if node.type is NodeType.SOCKET:
            self._target.warn(f"{self._target.path(number, name)}: sockets are not restored")
        elif node.links > 1 and node.inode:
            self._answer.rest.append((number, document))
        elif self._target.keeps(number, name, stat.S_IFMT(node.unix_mode), 0, node.mtime):
            self._answer.kept.append((number, name))
        else:
            self._answer.replaced += self._target.has(number, name)
            self._answer.others += 1
            if not self._target.dry_run:
                self._target.make_special(number, node)

    def _count(self, number: int, name: bytes, size: int) -> None:
        self._answer.replaced += self._target.has(number, name)
        self._answer.files += 1
        self._answer.bytes_ += size

    # -- verifying

    def _verify(self, task: Task, above: tuple[bytes, ...], listing: _Listing) -> None:
        skip = frozenset(task.skip)
        for name, document, kind, _ in self._chosen(task, above, listing):
            if kind in (NodeType.DIR, NodeType.SOCKET) or name in skip:
                continue
            try:
                file = file_of(name, document)
                if file is not None:
                    wrong = self._content_differs(task.number, name, file.content)
                else:
                    wrong = self._differs(task.number, name, node_of(document))
            except PermissionError:  # its mode, or that of a folder above it, lets only root look
                self._target.warn(f"{self._target.path(task.number, name)}: it may not be read back")
                continue
            except OSError as error:
                wrong = error.strerror or str(error)
            if wrong:
                self._answer.lost.append((task.number, name, wrong, False))

    def _differs(self, number: int, name: bytes, node: Node) -> str:
        """What is wrong with an entry as it was written; empty: nothing."""
        found = self._target.look(number, name)
        if found is None:
            return "it is not there"
        status, points_to = found
        if stat.S_IFMT(status.st_mode) != stat.S_IFMT(node.unix_mode):
            return "it is of another type"
        if node.type is not NodeType.FILE:
            self._answer.others += 1
            return "it points elsewhere" if points_to != node.linktarget else ""
        return self._content_differs(number, name, node.content or ())

    def _content_differs(self, number: int, name: bytes, content: tuple[bytes, ...]) -> str:
        self._answer.files += 1
        descriptor = self._target.read_back(number, name)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                return "it is of another type"
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)  # what is read is what was stored
            offset = 0
            for blob in content:
                location = self._repository.index.find(BlobKind.DATA, blob)
                length = 0 if location is None else location.plaintext_bytes
                data = os.pread(descriptor, length, offset)
                offset += length
                if hashlib.sha256(data).digest() != blob:
                    return "its content is not what was stored"
            self._answer.bytes_ += offset
            return "" if status.st_size == offset else "it has another length"
        finally:
            os.close(descriptor)

    # -- what went wrong

    def _lose(self, number: int, name: bytes, why: str) -> None:
        self._answer.lost.append((number, name, why, True))

    def _refuse(self, number: int, name: bytes, error: OSError) -> None:
        """One entry that cannot be made. Raises `error` when others could not be either."""
        if error.errno not in OF_ONE_ENTRY:
            raise refusal(error, self._target.path(number, name)) from error
        self._answer.lost.append((number, name, error.strerror or str(error), False))


def refusal(error: OSError, what: str) -> DiskprepError:
    """What ends a restore."""
    return durable.storage_error(error, f"restore into the target: {what}")

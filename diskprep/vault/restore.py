"""Restore: a recovery point, or what is chosen of it, written below a directory under the original absolute paths.

The parent keeps the books: which directories there are, and who does what next. Workers fill directories (`filling`),
threads of the parent make long files and hard links (`longfiles`), and at last the parent gives the directories their
metadata, deepest first. New directories have mode 0700 until then. What is restored is not synced to stable storage,
unless it is verified.

Memory: the index; 0.7 KB for each directory of the recovery point; 0.4 KB for each group of hard links; what workers
and long files hold; when something is overwritten or verified, 0.2 KB for each entry that stays as it was.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from diskprep import durable
from diskprep.errors import DataDamaged, DiskprepError, NotFound, RestoreDiffers
from diskprep.events import Emit, Note, Progress
from diskprep.repository.pack import BlobKind
from diskprep.repository.repository import Repository
from diskprep.repository.snapshot import Snapshot
from diskprep.source.source import display
from diskprep.vault.choice import EVERYTHING, Choice
from diskprep.vault.filling import Answer, Filler, Step, Task, decode_answer, encode_tasks
from diskprep.vault.hands import Hands, hands
from diskprep.vault.listing import Document, node_of
from diskprep.vault.longfiles import LongFiles
from diskprep.vault.target import Overwrite, Target

_STAGE = "restore"
_TOGETHER = 32  # directories in one message
_TOGETHER_BYTES = 256 << 10  # of their listings
_SHARED_BYTES = 4 << 20  # a longer listing is shared by all workers
_WARNINGS_MAX = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreResult:
    """What was restored, or would be after a dry run. `replaced` of the entries took the place of others, `kept` stayed
    by the rule. `verified`: files that were read back. `warnings`: metadata that this file system or our rights did not
    allow (at most 1000)."""

    directories: int
    files: int
    others: int
    bytes_restored: int
    replaced: int = 0
    kept: int = 0
    verified: int = 0
    warnings: tuple[str, ...] = ()


def restore(
    repository: Repository,
    snapshot: Snapshot | str,
    target: Path,
    *,
    emit: Emit,
    choice: Choice = EVERYTHING,
    overwrite: Overwrite | None = None,
    verify: bool = False,
    dry_run: bool = False,
    subpath: str | None = None,
) -> RestoreResult:
    """Restore a snapshot, or what `choice` says of it (and `subpath`, one more path of it), into `target`.

    `target` must be absent or an empty directory, or `overwrite` says what becomes of what is there: UsageError
    otherwise. `verify`: all is synced and read back afterwards. Raises NotFound for an unknown snapshot or a path that
    it does not have, StorageFull, StorageUnavailable. When stored data is damaged or missing, all that can be restored
    is, and then DataDamaged names what could not; RestoreDiffers where what is there did not make room, or where what
    was read back is something else.
    """
    if isinstance(snapshot, str):
        snapshot = repository.snapshot(snapshot)
    if subpath is not None:
        absolute = os.fsencode(f"/{subpath.lstrip('/')}")
        choice = Choice(
            paths=(*choice.paths, absolute),
            include=choice.include,
            iinclude=choice.iinclude,
            exclude=choice.exclude,
            iexclude=choice.iexclude,
        )
    _ = repository.index  # read it before anything is made, and before there are workers
    place = Target(target, overwrite=overwrite, dry_run=dry_run)
    try:
        crew: Hands[list[Task]] = hands(repository.store, lambda: Filler(repository, place.twin(), choice))
        try:
            run = _Restore(repository, place, crew, choice, emit, keeps_metadata=overwrite is Overwrite.NEVER)
            run.fill(snapshot.tree)
            run.finish_directories()
            if verify and not dry_run:
                run.verify()
        finally:
            crew.close()
    except OSError as error:
        raise durable.storage_error(error, f"restore into {target}") from error
    finally:
        place.close()
    return run.result(target)


@dataclass(slots=True, eq=False)
class _Directory:
    """A directory of the recovery point, below another one. `meta` is its entry as JSON."""

    parent: int
    name: bytes
    mtime: int
    tree: bytes | None
    take: bool
    meta: bytes
    made: bool = False
    entered: bool = False


class _Restore:
    def __init__(
        self,
        repository: Repository,
        target: Target,
        crew: Hands[list[Task]],
        choice: Choice,
        emit: Emit,
        *,
        keeps_metadata: bool,
    ) -> None:
        self._repository, self._target, self._crew, self._choice = repository, target, crew, choice
        self._emit, self._keeps_metadata = emit, keeps_metadata
        self._directories: list[_Directory] = []  # number 1 is the first
        self._root = Task(way=(), tree=b"", take=False)
        self._stack: list[Task] = []
        self._done_bytes = 0
        self._long = LongFiles(repository, target, self._tell_bytes)
        self._all = Answer()
        self._met: set[int] = set()
        self._apart: defaultdict[int, list[bytes]] = defaultdict(list)  # not made by us: not to be verified
        self._differing: list[str] = []
        self._verified = 0

    # -- contents

    def fill(self, root: bytes) -> None:
        """Make everything but the metadata of directories."""
        self._root = Task(way=(), tree=root, take=self._choice.is_everything)
        self._push(self._root)
        for answer in self._answers(verify=False):
            self._merge(answer)
            for number, document, take in answer.below:
                self._add(number, document, take=take)
            for number, document in answer.rest:
                try:
                    self._long.take(number, node_of(document))
                except DataDamaged as error:
                    self._all.lost.append((number, b"", error.message, True))
            if self._long.is_full:
                self._write_long()
        self._write_long()
        missing = [self._choice.wanted[n] for n in range(len(self._choice.wanted)) if n not in self._met]
        if missing and not self._all.lost:
            raise NotFound(f"the recovery point has no {display(b'/' + b'/'.join(missing[0]))}")

    def _answers(self, *, verify: bool) -> Iterator[Answer]:
        while self._stack or self._crew.is_busy:
            while self._stack and self._crew.has_room:
                tasks = self._batch()
                self._crew.submit(tasks, encode_tasks(tasks, verify=verify))
            _, text = self._crew.collect()
            yield decode_answer(text)

    def _batch(self) -> list[Task]:
        """Some directories from the top of the stack: fewer when there is little for everybody."""
        fair = max(1, min(_TOGETHER, len(self._stack) // (2 * self._crew.count)))
        tasks: list[Task] = []
        size = 0
        while self._stack and len(tasks) < fair and size < _TOGETHER_BYTES:
            task = self._stack.pop()
            location = self._repository.index.find(BlobKind.TREE, task.tree)
            size += location.plaintext_bytes if location else 0
            tasks.append(task)
        return tasks

    def _push(self, task: Task) -> None:
        location = self._repository.index.find(BlobKind.TREE, task.tree)
        parts = self._crew.count if location is not None and location.plaintext_bytes > _SHARED_BYTES else 1
        for part in range(parts):
            self._stack.append(
                Task(way=task.way, tree=task.tree, take=task.take, part=part, parts=parts, skip=task.skip)
            )

    def _add(self, parent: int, document: Document, *, take: bool) -> None:
        """Note a directory, and that it is to be filled."""
        try:
            node = node_of(document)
        except DataDamaged as error:
            self._all.lost.append((parent, b"", error.message, True))
            return
        meta = json.dumps(document, separators=(",", ":")).encode()
        self._directories.append(_Directory(parent, node.name, node.mtime, node.subtree, take, meta))
        number = len(self._directories)
        self._target.place(number, parent, node.name)
        if node.subtree is None:
            self._all.lost.append((number, b"", "it has no listing", True))
        else:
            self._push(Task(way=self._way(number), tree=node.subtree, take=take))

    def _way(self, number: int) -> tuple[Step, ...]:
        steps = []
        while number:
            directory = self._directories[number - 1]
            steps.append(Step(number, directory.name, directory.mtime, directory.made))
            number = directory.parent
        return tuple(reversed(steps))

    def _write_long(self) -> None:
        self._long.write()
        told, self._long.told = self._long.told, Answer()
        self._merge(told, bytes_are_told=True)

    def _merge(self, answer: Answer, *, bytes_are_told: bool = False) -> None:
        total = self._all
        total.files += answer.files
        total.others += answer.others
        total.replaced += answer.replaced
        total.bytes_ += answer.bytes_
        total.lost += answer.lost
        total.warnings += answer.warnings[: _WARNINGS_MAX - len(total.warnings)]
        self._met.update(answer.met)
        for number in answer.made:
            self._directories[number - 1].made = True
            self._target.mark_new(number)
        for number in answer.entered:
            if number:
                self._directories[number - 1].entered = True
        for number, name in answer.kept:
            self._apart[number].append(name)
        for number, name, _, _ in answer.lost:
            self._apart[number].append(name)
        if not bytes_are_told:
            self._tell_bytes(answer.bytes_)

    def _tell_bytes(self, count: int) -> None:
        self._done_bytes += count
        self._emit(Progress(stage=_STAGE, done_bytes=self._done_bytes))

    # -- directories

    def finish_directories(self) -> None:
        for number in range(len(self._directories), 0, -1):
            directory = self._directories[number - 1]
            if directory.entered or directory.made:
                self._mark_above(directory.parent)
            if self._target.dry_run or not (directory.made or (directory.entered and not self._keeps_metadata)):
                continue
            self._target.finish_directory(number, node_of(json.loads(directory.meta)))
        self._all.warnings += self._target.warnings[: _WARNINGS_MAX - len(self._all.warnings)]

    def _mark_above(self, number: int) -> None:
        """A directory above one that was entered was entered, too; numbers above are lower, and come later."""
        if number:
            self._directories[number - 1].entered = True

    # -- reading back

    def verify(self) -> None:
        """Compare everything that was made with what is stored."""
        self._emit(Note(stage=_STAGE, text="everything is synced, and then read back"))
        os.sync()
        root = self._root
        self._push(Task(way=(), tree=root.tree, take=root.take, skip=tuple(self._apart[0])))
        for number, directory in enumerate(self._directories, start=1):
            if directory.entered and directory.tree is not None and b"" not in self._apart[number]:
                skip = tuple(self._apart[number])
                self._push(Task(way=self._way(number), tree=directory.tree, take=directory.take, skip=skip))
        done = 0
        for answer in self._answers(verify=True):
            self._verified += answer.files
            self._all.warnings += answer.warnings[: _WARNINGS_MAX - len(self._all.warnings)]
            done += answer.bytes_
            self._differing += [f"{self._target.path(number, name)}: {why}" for number, name, why, _ in answer.lost]
            self._emit(Progress(stage="verify", done_bytes=done, total_bytes=self._done_bytes))

    # -- the end

    def result(self, target: Path) -> RestoreResult:
        """Raises DataDamaged or RestoreDiffers when something is missing or wrong."""
        lost = self._all.lost
        told = [f"{self._target.path(number, name)}: {why}" for number, name, why, _ in lost]
        if lost:
            kind: type[DiskprepError] = DataDamaged if any(damaged for *_, damaged in lost) else RestoreDiffers
            hint = (
                "`diskprep vault check` tells what is damaged"
                if kind is DataDamaged
                else "restore into a new directory, or make room for what is named"
            )
            raise kind(
                f"{len(lost)} entries could not be restored, all others are in {target}: {'; '.join(told[:3])}",
                hint=hint,
            )
        if self._differing:
            raise RestoreDiffers(
                f"{len(self._differing)} entries were read back and are not what is stored: "
                f"{'; '.join(self._differing[:3])}",
                hint="the disk or share below the target may be failing; restore again, to another one",
            )
        return RestoreResult(
            directories=sum(directory.made or directory.entered for directory in self._directories),
            files=self._all.files,
            others=self._all.others,
            bytes_restored=self._all.bytes_,
            replaced=self._all.replaced,
            kept=sum(map(len, self._apart.values())),
            verified=self._verified,
            warnings=tuple(self._all.warnings),
        )

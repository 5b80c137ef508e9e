"""The walker: one thread that walks the sources, deals out the work, and keeps the books.

Directories are walked depth first. Files up to 512 KiB go to the workers in batches, one directory's at a time; longer
ones are read and cut here, and their chunks go to the workers. A directory is finished when all its entries are, which
gives its tree and so its entry in the directory above. Of the directories on the way down only some stay open; one that
is needed again is opened anew and must be the same.

Invariant: only the walker's thread touches its state; what a worker found out comes back as a continuation.
"""

from __future__ import annotations

import itertools
import stat
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from diskprep import clock
from diskprep.errors import DiskprepError, NotBuilt, NotFound, UsageError
from diskprep.events import Emit, Note, Progress
from diskprep.repository.chunker import MAX_BYTES, Chunker
from diskprep.repository.pack import TREE_MAX_BYTES
from diskprep.repository.tree import Node, NodeType, encode_node, join_nodes
from diskprep.source import Entry, EntryUnreadable, Item, OpenDirectory, OpenFile, Source, ancestor, describe, display
from diskprep.staging.batch import Batch, BatchItem, BatchResult, Unchanged, node_of
from diskprep.staging.blobs import BlobSession, PackStream
from diskprep.staging.workers import Workers

BATCH_ENTRIES = 32
_BUFFER_BYTES = 2 * MAX_BYTES
_BUFFERS = 4
_OUTSTANDING = 64
OPEN_DIRECTORIES = 128  # beside those that workers and long files use
_PROGRESS_INTERVAL_S = 0.2


@dataclass(slots=True)
class Counts:
    """What was met on the way; paths are the original ones."""

    files: int = 0
    dirs: int = 0
    files_unmodified: int = 0
    bytes_processed: int = 0
    sockets: int = 0
    unreadable: list[tuple[bytes, str]] = field(default_factory=list)
    changed: list[bytes] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Directory:
    """A directory whose entries are being collected. `pending`: entries and batches that are still out; `users`:
    batches and long files among them, which need it open."""

    parent: _Directory | None
    name: bytes
    path: bytes
    entry: Entry | None = None  # None: the root of the snapshot
    location: bytes | None = None  # of a source
    opened: OpenDirectory | None = None
    identity: tuple[int, int] | None = None
    held: list[OpenDirectory] = field(default_factory=list)  # around sources that are files; to be closed at the end
    base: Mapping[bytes, Node] = field(default_factory=dict)
    nodes: list[tuple[bytes, bytes]] = field(default_factory=list)
    pending: int = 0
    users: int = 0

    def path_of(self, name: bytes) -> bytes:
        return self.path.rstrip(b"/") + b"/" + name


@dataclass(slots=True, eq=False)
class _Buffer:
    data: bytearray
    users: int = 0


@dataclass(slots=True, eq=False)
class _LongFile:
    """A file whose chunks are being stored. `pending` counts them, and the reading itself."""

    directory: _Directory
    name: bytes
    entry: Entry
    content: list[bytes] = field(default_factory=list)
    pending: int = 1
    size_bytes: int = 0
    failed: bool = False


@dataclass(frozen=True, slots=True)
class _Visit:
    """A directory still to be opened, as `name` in `parent`; `location` when it is a source itself."""

    parent: _Directory
    name: bytes
    location: bytes | None = None


class Walker:
    """One walk over some sources. `run` once."""

    def __init__(
        self,
        *,
        session: BlobSession,
        workers: Workers,
        trees: PackStream,
        chunker: Chunker,
        load_tree: Callable[[bytes], tuple[Node, ...]],
        exclude: Collection[bytes],
        exclude_identities: Collection[tuple[int, int]],
        ignore_ctime: bool,
        ignore_inode: bool,
        emit: Emit,
        total_bytes: int | None,
    ) -> None:
        self._session, self._workers, self._trees, self._chunker = session, workers, trees, chunker
        self._load_tree, self._exclude, self._emit, self._total_bytes = load_tree, exclude, emit, total_bytes
        self._exclude_identities = exclude_identities
        self._unchanged = Unchanged(session=session, ignore_ctime=ignore_ctime, ignore_inode=ignore_inode)
        self.counts = Counts()
        self._visits: list[_Visit] = []
        self._open: dict[_Directory, None] = {}  # oldest first
        self._long_files: deque[tuple[_Directory, OpenDirectory, BatchItem]] = deque()
        self._buffers = [_Buffer(bytearray(_BUFFER_BYTES)) for _ in range(_BUFFERS)]
        self._root_tree: bytes | None = None
        self._done_bytes = 0
        self._told_s = 0.0

    def run(self, sources: Sequence[Source], base_tree: bytes | None) -> bytes:
        """Store all trees and file contents; return the root tree's id."""
        self._plant(sources, base_tree)
        while True:
            while self._workers.collect(wait=False):
                pass
            if self._long_files:
                self._read_long(*self._long_files.popleft())
            elif self._workers.outstanding >= _OUTSTANDING:
                self._workers.collect(wait=True)
            elif self._visits:
                self._visit(self._visits.pop())
            elif not self._workers.collect(wait=True):
                break
        assert self._root_tree is not None
        self._trees.flush()
        self._progress(0, force=True)
        return self._root_tree

    # -- directories

    def _plant(self, sources: Sequence[Source], base_tree: bytes | None) -> None:
        """Make the directories that lead to the sources, and line the sources up."""
        root = _Directory(parent=None, name=b"", path=b"/", base=self._nodes(base_tree), pending=1)
        planted: dict[bytes, _Directory] = {b"/": root}
        for source in reversed(sources):
            above = root
            for name in source.components[:-1]:
                path = above.path_of(name)
                if path not in planted:
                    base = self._base_of(above, name)
                    planted[path] = _Directory(parent=above, name=name, path=path, entry=_ancestor(path), base=base)
                    above.pending += 1
                    self.counts.dirs += 1
                above = planted[path]
            above.pending += 1
            self._line_up(source, above)
        self._settle(root)

    def _line_up(self, source: Source, above: _Directory) -> None:
        location = source.location
        if not source.components:
            self._visits.append(_Visit(above, b"", location))
        elif stat.S_ISDIR(describe(location).stat.st_mode):
            self._visits.append(_Visit(above, source.components[-1], location))
        else:
            folder, _, name = location.rpartition(b"/")
            opened = OpenDirectory.at(folder or b"/", follow=True)
            above.held.append(opened)
            regular = stat.S_ISREG(describe(location).stat.st_mode)
            # The entry may be read under another name than the tree shows.
            self._submit(above, opened, [BatchItem(name, source.components[-1], regular)])

    def _visit(self, visit: _Visit) -> None:
        """Open a directory and deal out its entries."""
        above = visit.parent
        path = above.path_of(visit.name) if visit.name else above.path
        try:
            if visit.location is not None:
                opened = OpenDirectory.at(visit.location)
            else:
                opened = self._reopened(above).directory(visit.name)
        except EntryUnreadable as error:
            self._unreadable(path, error.message)
            self._settle(above)
            return
        if opened.identity in self._exclude_identities:
            opened.close()
            self._leave_out(path, visit)
            return
        if visit.name:
            directory = _Directory(
                parent=above,
                name=visit.name,
                path=path,
                entry=opened.entry,
                base=self._base_of(above, visit.name),
                pending=1,
            )
            self.counts.dirs += 1
        else:
            directory = above
        directory.location, directory.identity = visit.location, opened.identity
        self._keep_open(directory, opened)
        try:
            items = opened.list()
        except EntryUnreadable as error:
            self._unreadable(path, f"its entries are missing: {error.message}")
            items = []
        if self._exclude:
            items = [item for item in items if directory.path_of(item.name) not in self._exclude]
        self._deal(directory, items)

    def _leave_out(self, path: bytes, visit: _Visit) -> None:
        if visit.location is not None:
            raise UsageError(f"the source {display(path)} is the place that the backup is written to")
        self._emit(Note(stage="stage", text=f"{display(path)} is left out: the backup is written there"))
        self._settle(visit.parent)

    def _keep_open(self, directory: _Directory, opened: OpenDirectory) -> None:
        """Enter a directory as open, and close those that have been idle longest when there are too many."""
        directory.opened = opened
        self._open[directory] = None
        surplus = len(self._open) - OPEN_DIRECTORIES
        if surplus > 0:
            idle = (other for other in self._open if not other.users and other is not directory)
            for other in list(itertools.islice(idle, surplus)):
                self._close(other)

    def _close(self, directory: _Directory) -> None:
        if directory.opened is not None:
            directory.opened.close()
            directory.opened = None
            del self._open[directory]

    def _reopened(self, directory: _Directory) -> OpenDirectory:
        """The open directory; one closed meanwhile is reached from the nearest open one above it, and must be the
        same as before. Raises EntryUnreadable."""
        way: list[_Directory] = []
        step: _Directory | None = directory
        while step is not None and step.opened is None:
            way.append(step)
            step = None if step.location is not None else step.parent
        if not way:
            assert directory.opened is not None
            return directory.opened
        passed = None if step is None else step.opened
        for below in reversed(way):
            if passed is None:
                assert below.location is not None
                opened = OpenDirectory.at(below.location)
            else:
                try:
                    opened = passed.directory(below.name)
                finally:
                    if step is None or passed is not step.opened:
                        passed.close()
            passed = opened
        assert passed is not None
        if passed.identity != directory.identity:
            passed.close()
            raise EntryUnreadable("the directory it is in was replaced while it was being read")
        self._keep_open(directory, passed)
        return passed

    def close(self) -> None:
        """Close what a run that failed left open, after the workers have ended."""
        for directory in list(self._open):
            self._close(directory)

    def _deal(self, directory: _Directory, items: Sequence[Item]) -> None:
        folders = [item.name for item in items if item.is_directory]
        directory.pending += len(folders)
        self._visits.extend(_Visit(directory, name) for name in reversed(folders))
        others = [BatchItem(item.name, item.name, item.is_regular) for item in items if not item.is_directory]
        opened = directory.opened
        assert opened is not None
        for start in range(0, len(others), BATCH_ENTRIES):
            while self._workers.outstanding >= _OUTSTANDING:
                self._workers.collect(wait=True)
            directory.pending += 1
            self._submit(directory, opened, others[start : start + BATCH_ENTRIES])
        self._settle(directory)

    def _submit(self, directory: _Directory, opened: OpenDirectory, items: Sequence[BatchItem]) -> None:
        directory.users += 1
        batch = Batch(opened=opened, items=tuple(items), base=directory.base, unchanged=self._unchanged)

        def work(stream: PackStream) -> Callable[[], None]:
            result = batch.run(stream)
            return lambda: self._take(directory, opened, result)

        self._workers.submit(work)

    def _take(self, directory: _Directory, opened: OpenDirectory, result: BatchResult) -> None:
        """Enter what a batch brought."""
        counts = self.counts
        directory.nodes.extend(result.nodes)
        counts.files += result.files
        counts.files_unmodified += result.files_unmodified
        counts.bytes_processed += result.size_bytes
        counts.sockets += result.sockets
        for name, reason in result.unreadable:
            self._unreadable(directory.path_of(name), reason)
        for name in result.changed:
            self._changed(directory.path_of(name))
        directory.users += len(result.long_files) - 1
        for item in result.long_files:
            directory.pending += 1
            self._long_files.append((directory, opened, item))
        self._progress(result.size_bytes)
        self._settle(directory)

    def _settle(self, directory: _Directory) -> None:
        """One thing less is pending in `directory`; finish it, and those above it, when it was the last."""
        below: _Directory | None = directory
        while below is not None:
            below.pending -= 1
            if below.pending:
                return
            self._close(below)
            for opened in below.held:
                opened.close()
            below.nodes.sort()
            encoded = join_nodes([node for _, node in below.nodes])
            if len(encoded) > TREE_MAX_BYTES:
                raise NotBuilt(
                    f"the directory {display(below.path)} has so many entries that its listing takes "
                    f"{len(encoded)} bytes; {TREE_MAX_BYTES} can be read back",
                    hint="spread its entries over several directories",
                )
            tree = self._trees.save(encoded)
            below.nodes.clear()
            if below.parent is None:
                self._root_tree = tree
            else:
                assert below.entry is not None
                node = node_of(below.name, below.entry, NodeType.DIR, subtree=tree)
                below.parent.nodes.append((below.name, encode_node(node)))
            below = below.parent

    def _base_of(self, above: _Directory, name: bytes) -> Mapping[bytes, Node]:
        node = above.base.get(name)
        return self._nodes(node.subtree) if node is not None else {}

    def _nodes(self, tree: bytes | None) -> Mapping[bytes, Node]:
        """A directory of the base; empty when it is lost, for then everything below is read."""
        if tree is None:
            return {}
        try:
            return {node.name: node for node in self._load_tree(tree)}
        except DiskprepError as error:
            self._emit(Note(stage="stage", text=f"a directory of the base snapshot is lost: {error.message}"))
            return {}

    # -- long files

    def _read_long(self, directory: _Directory, opened: OpenDirectory, item: BatchItem) -> None:
        directory.users -= 1  # nothing else is opened before this returns
        try:
            file = opened.file(item.name)
        except EntryUnreadable as error:
            self._unreadable(directory.path_of(item.shown), error.message)
            self._settle(directory)
            return
        long_file = _LongFile(directory, item.shown, file.entry)
        try:
            self._cut(file, long_file)
            if file.changed():
                self._changed(directory.path_of(item.shown))
        except EntryUnreadable as error:
            long_file.failed = True
            self._unreadable(directory.path_of(item.shown), error.message)
        finally:
            file.close()
        self._chunk_done(long_file)

    def _cut(self, file: OpenFile, long_file: _LongFile) -> None:
        """Read a file to its end and send its chunks to the workers."""
        rest = memoryview(b"")
        buffer: _Buffer | None = None
        try:
            while True:
                previous, buffer = buffer, self._take_buffer()
                view = memoryview(buffer.data)
                view[: len(rest)] = rest
                filled = len(rest)
                if previous is not None:
                    self._release(previous)
                filled += file.read_into(view[filled:])
                final = filled < len(view)
                start = 0
                while (end := self._chunker.cut(buffer.data, start, filled, final=final)) is not None:
                    self._store_chunk(view[start:end], buffer, long_file)
                    start = end
                rest = view[start:filled]
                long_file.size_bytes += start
                if final:
                    return
        finally:
            if buffer is not None:
                self._release(buffer)

    def _store_chunk(self, chunk: memoryview, buffer: _Buffer, long_file: _LongFile) -> None:
        position = len(long_file.content)
        long_file.content.append(b"")
        long_file.pending += 1
        buffer.users += 1

        def work(stream: PackStream) -> Callable[[], None]:
            blob_id = stream.save(chunk)

            def entered() -> None:
                long_file.content[position] = blob_id
                self._progress(len(chunk))
                self._release(buffer)
                self._chunk_done(long_file)

            return entered

        self._workers.submit(work)

    def _chunk_done(self, long_file: _LongFile) -> None:
        long_file.pending -= 1
        if long_file.pending:
            return
        if not long_file.failed:
            content = tuple(long_file.content)
            node = node_of(
                long_file.name, long_file.entry, NodeType.FILE, content=content, size_bytes=long_file.size_bytes
            )
            long_file.directory.nodes.append((long_file.name, encode_node(node)))
            self.counts.files += 1
            self.counts.bytes_processed += long_file.size_bytes
        self._settle(long_file.directory)

    def _take_buffer(self) -> _Buffer:
        while not self._buffers:
            self._workers.collect(wait=True)
        buffer = self._buffers.pop()
        buffer.users = 1
        return buffer

    def _release(self, buffer: _Buffer) -> None:
        buffer.users -= 1
        if not buffer.users:
            self._buffers.append(buffer)

    # -- telling

    def _unreadable(self, path: bytes, reason: str) -> None:
        self.counts.unreadable.append((path, reason))
        self._emit(Note(stage="stage", text=f"cannot read {display(path)}: {reason}"))

    def _changed(self, path: bytes) -> None:
        self.counts.changed.append(path)
        self._emit(Note(stage="stage", text=f"{display(path)} changed while it was read"))

    def _progress(self, more_bytes: int, *, force: bool = False) -> None:
        self._done_bytes += more_bytes
        now_s = clock.monotonic_s()
        if force or now_s - self._told_s >= _PROGRESS_INTERVAL_S:
            self._told_s = now_s
            self._emit(Progress(stage="stage", done_bytes=self._done_bytes, total_bytes=self._total_bytes))


def _ancestor(path: bytes) -> Entry:
    try:
        return ancestor(path)
    except EntryUnreadable as error:
        raise NotFound(f"cannot look at {display(path)}, which leads to a source: {error.message}") from None

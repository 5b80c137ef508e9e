"""The walker: one thread that walks the sources, deals out the work, and keeps the books.

Directories are walked depth first. Files up to 512 KiB go to others in batches, one directory's at a time; longer ones
are read and cut here. A directory is finished when all its entries are, which gives its tree and so its entry in the
directory above. Of the directories on the way down only some stay open; one that is needed again is opened anew and
must be the same.

Invariant: only the walker's thread touches its state; what others found out comes back as a continuation.
"""

from __future__ import annotations

import itertools
import stat
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from diskprep.errors import DiskprepError, NotBuilt, NotFound, UsageError
from diskprep.repository.pack import TREE_MAX_BYTES
from diskprep.repository.tree import Base, NodeType, encode_node
from diskprep.source import (
    Entry,
    EntryUnreadable,
    Item,
    OpenDirectory,
    Selection,
    Source,
    ancestor,
    describe,
    display,
)
from diskprep.staging.batch import SMALL_BYTES, Batch, BatchItem, BatchResult, FileRule, node_of
from diskprep.staging.blobs import PackStream
from diskprep.staging.blocks import BlockRule
from diskprep.staging.books import Books, Counts, Directory
from diskprep.staging.crew import MESSAGE_BYTES
from diskprep.staging.cutting import LateCutter
from diskprep.staging.dispatch import Dispatcher
from diskprep.staging.longfiles import LongFiles

BATCH_ENTRIES = 128
_BATCH_BYTES = MESSAGE_BYTES // 2
_ITEM_BYTES = 64  # of a message, beside names and ids
_BASE_CHUNKS = 8  # a small file of more is read again
_BASE_ENTRIES = 4 * BATCH_ENTRIES
_LOST = "a directory of the base snapshot is lost: {}"
_READY_BATCHES = 8
_READY_LONG_FILES = 64
OPEN_DIRECTORIES = 128  # beside those that others and long files use


@dataclass(frozen=True, slots=True)
class _Visit:
    """A directory still to be opened, as `name` in `parent`; `location` when it is a source itself."""

    parent: Directory
    name: bytes
    location: bytes | None = None


@dataclass(frozen=True, slots=True)
class _Ready:
    """A batch that waits for somebody to do it."""

    directory: Directory
    opened: OpenDirectory
    items: tuple[BatchItem, ...]
    has_base: bool = False  # the items themselves tell it


class Walker:
    """One walk over some sources. `run` once."""

    def __init__(
        self,
        *,
        dispatcher: Dispatcher,
        trees: PackStream,
        cutter: LateCutter,
        rule: FileRule,
        block_rule: BlockRule | None,
        selection: Selection,
        exclude: Collection[bytes],
        exclude_identities: Collection[tuple[int, int]],
        books: Books,
    ) -> None:
        self._dispatcher, self._trees, self._load_base, self._books = dispatcher, trees, rule.load_base, books
        self._selection, self._exclude, self._exclude_identities = selection, exclude, exclude_identities
        self._visits: list[_Visit] = []
        self._batches: deque[_Ready] = deque()
        self._open: dict[Directory, None] = {}  # oldest first
        self._root_tree: bytes | None = None
        self._long_files = LongFiles(
            dispatcher=dispatcher,
            books=books,
            rule=rule,
            block_rule=block_rule,
            cutter=cutter,
            base_of=self._base,
            settle=self._settle,
            feed=self._feed,
        )

    @property
    def counts(self) -> Counts:
        return self._books.counts

    def run(self, sources: Sequence[Source], base_tree: bytes | None) -> bytes:
        """Store all trees and file contents; return the root tree's id."""
        self._plant(sources, base_tree)
        while True:
            self._feed()
            idle = not self._dispatcher.outstanding
            if self._long_files and (idle or (self._long_files.is_ready() and self._dispatcher.has_room_for_chunks)):
                self._long_files.read_next()
            elif idle:
                break
            else:
                self._dispatcher.collect(wait=True)
        assert self._root_tree is not None
        self._trees.flush()
        self._books.progress(0, force=True)
        return self._root_tree

    def _feed(self) -> None:
        """Take in what has come back, and keep everybody busy."""
        while True:
            while self._dispatcher.collect(wait=False):
                pass
            while self._batches and self._dispatcher.has_room_for_batches:
                self._submit(self._batches.popleft())
            enough = len(self._batches) >= _READY_BATCHES or len(self._long_files) >= _READY_LONG_FILES
            if enough or not self._visits:
                return
            self._visit(self._visits.pop())

    # -- directories

    def _plant(self, sources: Sequence[Source], base_tree: bytes | None) -> None:
        """Make the directories that lead to the sources, and line the sources up."""
        root = Directory(parent=None, name=b"", path=b"/", base_tree=base_tree, pending=1)
        planted: dict[bytes, Directory] = {b"/": root}
        for source in reversed(sources):
            if self._selection.leaves_out(source.path):
                self._books.note(f"the source {display(source.path)} is left out by a pattern")
                continue
            above = root
            for name in source.components[:-1]:
                path = above.path_of(name)
                if path not in planted:
                    tree = self._base(above).subtrees.get(name)
                    planted[path] = Directory(parent=above, name=name, path=path, entry=_ancestor(path), base_tree=tree)
                    above.pending += 1
                    self.counts.dirs += 1
                above = planted[path]
            above.pending += 1
            self._line_up(source, above)
        self._settle(root)

    def _line_up(self, source: Source, above: Directory) -> None:
        location = source.location
        if not source.components:
            self._visits.append(_Visit(above, b"", location))
        elif stat.S_ISDIR(describe(location).stat.st_mode):
            self._visits.append(_Visit(above, source.components[-1], location))
        else:
            folder, _, name = location.rpartition(b"/")
            opened = OpenDirectory.at(folder or b"/", follow=True)
            above.held.append(opened)
            mode = describe(location).stat.st_mode
            if stat.S_ISLNK(mode):
                self._books.note(f"the source {display(source.path)} is a symlink: the link is stored, not its target")
            # The entry may be read under another name than the tree shows.
            item = BatchItem(name, source.components[-1], stat.S_ISREG(mode))
            above.users += 1
            self._batches.append(_Ready(above, opened, (item,)))

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
            self._books.unreadable(path, error.message)
            self._settle(above)
            return
        if opened.identity in self._exclude_identities:
            opened.close()
            self._leave_out(path, visit)
            return
        if visit.name:
            directory = Directory(
                parent=above,
                name=visit.name,
                path=path,
                entry=opened.entry,
                device=above.device,
                base_tree=self._base(above).subtrees.get(visit.name),
                pending=1,
            )
            self.counts.dirs += 1
        else:
            directory = above
        if visit.location is not None:
            directory.location, directory.device = visit.location, opened.entry.stat.st_dev
        directory.identity = opened.identity
        self._keep_open(directory, opened)
        self._deal(directory, self._entries(directory, opened))

    def _entries(self, directory: Directory, opened: OpenDirectory) -> list[Item]:
        """The entries that are not left out."""
        if self._selection.one_file_system and opened.entry.stat.st_dev != directory.device:
            return []  # a mount point is kept, as an empty directory
        try:
            items = opened.list()
        except EntryUnreadable as error:
            self._books.unreadable(directory.path, f"its entries are missing: {error.message}")
            return []
        if self._exclude:
            own = {item.name for item in items if directory.path_of(item.name) in self._exclude}
            for name in own:
                self._note_own(directory.path_of(name))
            items = [item for item in items if item.name not in own]
        kept, selection = items, self._selection
        if selection.has_patterns:
            leaves_out, path_of = selection.leaves_out, directory.path_of
            kept = [item for item in kept if not leaves_out(path_of(item.name))]
        if selection.tags:
            names = {item.name for item in items}
            stays = selection.marked(opened, names, path=directory.path, emit=self._books.emit)
            if stays is not None:
                kept = [item for item in kept if item.name in stays]
        self.counts.left_out += len(items) - len(kept)
        return kept

    def _leave_out(self, path: bytes, visit: _Visit) -> None:
        if visit.location is not None:
            raise UsageError(f"the source {display(path)} is the place that the backup is written to")
        self._note_own(path)
        self._settle(visit.parent)

    def _note_own(self, path: bytes) -> None:
        self._books.note(f"{display(path)} is left out: the backup is written there")

    def _keep_open(self, directory: Directory, opened: OpenDirectory) -> None:
        """Enter a directory as open, and close those that have been idle longest when there are too many."""
        directory.opened = opened
        self._open[directory] = None
        surplus = len(self._open) - OPEN_DIRECTORIES
        if surplus > 0:
            idle = (other for other in self._open if not other.users and other is not directory)
            for other in list(itertools.islice(idle, surplus)):
                self._close(other)

    def _close(self, directory: Directory) -> None:
        if directory.opened is not None:
            directory.opened.close()
            directory.opened = None
            del self._open[directory]

    def _reopened(self, directory: Directory) -> OpenDirectory:
        """The open directory; one closed meanwhile is reached from the nearest open one above it, and must be the
        same as before. Raises EntryUnreadable."""
        way: list[Directory] = []
        step: Directory | None = directory
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
        """Close what is left open, after the others have ended."""
        self._long_files.close()
        for directory in list(self._open):
            self._close(directory)

    def _deal(self, directory: Directory, items: Sequence[Item]) -> None:
        """Line up the directories among the entries to be visited, and all others in batches."""
        opened = directory.opened
        assert opened is not None
        batch: list[BatchItem] = []
        size_bytes = 0
        folders = []
        # A long base is read here once, and not by everybody who does a batch of it.
        here = directory.base_tree is not None and len(items) > _BASE_ENTRIES
        for name, is_directory, is_regular in items:
            if is_directory:
                folders.append(_Visit(directory, name))
                continue
            length = 2 * len(name) + _ITEM_BYTES
            if here:
                entry = self._item(directory, name, name, is_regular=is_regular)
                length += 0 if entry.base is None else _ITEM_BYTES * (1 + len(entry.base.content))
            else:
                entry = BatchItem(name, name, is_regular)
            if batch and (len(batch) == BATCH_ENTRIES or size_bytes + length > _BATCH_BYTES):
                self._line_up_batch(directory, opened, batch, has_base=here)
                batch, size_bytes = [], 0
            batch.append(entry)
            size_bytes += length
        if batch:
            self._line_up_batch(directory, opened, batch, has_base=here)
        directory.pending += len(folders)
        self._visits.extend(reversed(folders))
        self._settle(directory)

    def _line_up_batch(
        self, directory: Directory, opened: OpenDirectory, items: list[BatchItem], *, has_base: bool
    ) -> None:
        directory.pending += 1
        directory.users += 1
        self._batches.append(_Ready(directory, opened, tuple(items), has_base))

    def _item(self, directory: Directory, name: bytes, shown: bytes, *, is_regular: bool) -> BatchItem:
        base = self._base(directory).files.get(shown) if is_regular else None
        if base is not None and (base.size > SMALL_BYTES or len(base.content) > _BASE_CHUNKS):
            base = None
        return BatchItem(name, shown, is_regular, base)

    def _submit(self, ready: _Ready) -> None:
        directory = ready.directory
        device = directory.device if self._selection.one_file_system else None
        batch = Batch(ready.items, device, None if ready.has_base else directory.base_tree)
        self._dispatcher.submit_batch(ready.opened, batch, lambda result: self._take(ready, result))

    def _take(self, ready: _Ready, result: BatchResult) -> None:
        """Enter what a batch brought."""
        counts, directory = self.counts, ready.directory
        if result.lost_base:
            self._books.note(_LOST.format(result.lost_base))
        directory.nodes.extend(result.nodes)
        counts.files += result.files
        counts.files_unmodified += result.files_unmodified
        counts.left_out += result.left_out
        counts.bytes_processed += result.size_bytes
        counts.sockets += result.sockets
        for name, reason in result.unreadable:
            self._books.unreadable(directory.path_of(name), reason)
        for name in result.changed:
            self._books.changed(directory.path_of(name))
        directory.users += len(result.long_files) - 1
        directory.pending += len(result.long_files)
        for number in result.long_files:
            self._long_files.add(directory, ready.opened, ready.items[number])
        self._books.progress(result.size_bytes)
        self._settle(directory)

    def _settle(self, directory: Directory) -> None:
        """One thing less is pending in `directory`; finish it, and those above it, when it was the last."""
        below: Directory | None = directory
        while below is not None:
            below.pending -= 1
            if below.pending:
                return
            self._close(below)
            for opened in below.held:
                opened.close()
            tree = self._save_tree(below)
            if below.parent is None:
                self._root_tree = tree
            else:
                assert below.entry is not None
                node = node_of(below.name, below.entry, NodeType.DIR, subtree=tree)
                below.parent.nodes.append((below.name, encode_node(node)))
            below = below.parent

    def _save_tree(self, directory: Directory) -> bytes:
        directory.nodes.sort()
        nodes = [node for _, node in directory.nodes]
        directory.nodes.clear()
        length = sum(map(len, nodes)) + len(nodes)
        if length > TREE_MAX_BYTES:
            raise NotBuilt(
                f"the directory {display(directory.path)} has so many entries that its listing takes "
                f"{length} bytes; {TREE_MAX_BYTES} can be read back",
                hint="spread its entries over several directories",
            )
        return self._trees.save_tree(nodes)

    def _base(self, directory: Directory) -> Base:
        """The directory in the base snapshot; empty when it is lost, for then everything below is read."""
        if directory.base is None:
            directory.base = Base()
            if directory.base_tree is not None:
                try:
                    directory.base = self._load_base(directory.base_tree)
                except DiskprepError as error:
                    self._books.note(_LOST.format(error.message))
        return directory.base


def _ancestor(path: bytes) -> Entry:
    try:
        return ancestor(path)
    except EntryUnreadable as error:
        raise NotFound(f"cannot look at {display(path)}, which leads to a source: {error.message}") from None

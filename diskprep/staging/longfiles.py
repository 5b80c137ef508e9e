"""Long files: read and cut by the thread that keeps the books, their chunks stored by threads.

Holes are not read: zeros are cut into equal chunks, so a hole is one chunk, many times over. Memory: the buffers.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from diskprep.repository.chunker import MAX_BYTES
from diskprep.repository.tree import Base, BaseFile, encode_file
from diskprep.source import Entry, EntryUnreadable, OpenDirectory, OpenFile
from diskprep.staging.batch import BatchItem, FileRule, owner_text
from diskprep.staging.blobs import PackStream
from diskprep.staging.blocks import BlockRule
from diskprep.staging.books import Books, Directory
from diskprep.staging.cutting import Cutter, LateCutter
from diskprep.staging.dispatch import Dispatcher

_BUFFER_BYTES = 2 * MAX_BYTES
_BUFFERS = 3
_READ_BYTES = 2 << 20  # at once, so that it is cut while it is in the processor's cache
_HOLE_BYTES = 2 << 20  # shorter holes are read


@dataclass(slots=True, eq=False)
class _Buffer:
    """Memory that is not touched before it is used."""

    data: mmap.mmap = field(default_factory=lambda: mmap.mmap(-1, _BUFFER_BYTES))
    users: int = 0


@dataclass(slots=True, eq=False)
class _LongFile:
    """A file whose chunks are being stored. `pending` counts them, and the reading itself."""

    directory: Directory
    name: bytes
    entry: Entry
    content: list[bytes] = field(default_factory=list)
    pending: int = 1
    size_bytes: int = 0
    failed: bool = False


class _ReadAhead:
    """Reads a piece of a file while the one before it is being cut."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="read ahead")

    def pieces(
        self, file: OpenFile, view: memoryview, filled: int, limit: int, offset: int
    ) -> Generator[tuple[int, bool], None, None]:
        """Read into `view[filled:limit]`, whose beginning is at `offset` of the file; yields how far it is filled, and
        whether the file ends there. To be closed: until then the file and the view are in use."""
        stop = min(limit, filled + _READ_BYTES)
        reading: Future[int] | None = self._thread.submit(file.read_into, view[filled:stop], offset + filled)
        try:
            while reading is not None:
                filled += reading.result()
                final = filled < stop
                reading = None
                if not final and stop < limit:
                    stop = min(limit, filled + _READ_BYTES)
                    reading = self._thread.submit(file.read_into, view[filled:stop], offset + filled)
                yield filled, final
        finally:
            if reading is not None:
                wait((reading,))

    def close(self) -> None:
        self._thread.shutdown()


class LongFiles:
    """The queue of long files, and the one that is being read."""

    def __init__(
        self,
        *,
        dispatcher: Dispatcher,
        books: Books,
        rule: FileRule,
        block_rule: BlockRule | None,
        cutter: LateCutter,
        base_of: Callable[[Directory], Base],
        settle: Callable[[Directory], None],
        feed: Callable[[], None],
    ) -> None:
        """`base_of` gives a directory of the base snapshot; `settle` hears of each file that is done; `feed` is called
        now and then, to keep the others busy."""
        self._dispatcher, self._books, self._rule, self._settle, self._feed = dispatcher, books, rule, settle, feed
        self._block_rule, self._cutter, self._base_of = block_rule, cutter, base_of
        self._queue: deque[tuple[Directory, OpenDirectory, BatchItem]] = deque()
        self._buffers = [_Buffer() for _ in range(_BUFFERS)]
        self._ahead = _ReadAhead()
        self._zeros: dict[int, bytes] = {}  # length of a chunk of zeros that is stored -> its id

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, directory: Directory, opened: OpenDirectory, item: BatchItem) -> None:
        """Line a file up; `directory` counts it as pending and as a user already."""
        self._queue.append((directory, opened, item))

    def close(self) -> None:
        self._ahead.close()

    def is_ready(self) -> bool:
        """Whether all is there that cutting needs; it is being made from the first question on."""
        return self._cutter.is_ready()

    def read_next(self) -> None:
        """Read the next file to its end, unless it is unchanged. Raises what storing raises."""
        directory, opened, item = self._queue.popleft()
        path = directory.path_of(item.shown)
        try:
            file = opened.file(item.name)
        except EntryUnreadable as error:
            self._books.unreadable(path, error.message)
            directory.users -= 1
            self._settle(directory)
            return
        long_file = _LongFile(directory, item.shown, file.entry)
        try:
            if self._rule.leaves_out(file.entry.stat.st_size):
                long_file.failed = True
                self._books.counts.left_out += 1
            elif not self._take_over(long_file, self._base_of(directory).files.get(item.shown)):
                self._cut(file, long_file, self._choose(file, path))
                if file.changed():
                    self._books.changed(path)
        except EntryUnreadable as error:
            long_file.failed = True
            self._books.unreadable(path, error.message)
        finally:
            file.close()
            directory.users -= 1  # it may be closed from now on
        self._done(long_file)

    def _take_over(self, long_file: _LongFile, base: BaseFile | None) -> bool:
        content = self._rule.content(long_file.entry.stat, base)
        if content is None:
            return False
        long_file.content.extend(content)
        long_file.size_bytes = long_file.entry.stat.st_size
        self._books.counts.files_unmodified += 1
        self._books.progress(long_file.size_bytes)
        return True

    def _choose(self, file: OpenFile, path: bytes) -> Cutter:
        if self._block_rule is not None:
            head = bytearray(self._block_rule.HEAD_BYTES)
            count = file.read_into(memoryview(head), 0)
            chosen = self._block_rule.choose(path, file.entry.stat.st_size, bytes(head[:count]))
            if chosen is not None:
                self._books.fixed_blocks(path, chosen.reason)
                return chosen.cutter
        return self._cutter.get()

    def _cut(self, file: OpenFile, long_file: _LongFile, cutter: Cutter) -> None:
        """Read a file to its end and send its chunks to the workers."""
        sparse = file.may_have_holes
        rest = memoryview(b"")
        buffer: _Buffer | None = None
        offset = 0  # of the chunk that comes next, where `rest` begins
        try:
            while True:
                if sparse:
                    skipped = self._skip_hole(file, long_file, cutter, offset)
                    if skipped:
                        offset += skipped
                        rest = memoryview(b"")  # zeros, too
                previous, buffer = buffer, self._take_buffer()
                view = memoryview(buffer.data)
                view[: len(rest)] = rest
                filled = len(rest)
                if previous is not None:
                    self._release(previous)
                limit = len(view)
                if sparse:
                    hole = _next_long_hole(file, offset, limit)
                    limit = min(limit, max(filled + 1, hole + cutter.reach_bytes - offset))
                start, clear, final = 0, 0, True
                with contextlib.closing(self._ahead.pieces(file, view, filled, limit, offset)) as pieces:
                    for filled, final in pieces:
                        while (end := cutter.cut(view, start, filled, final=final, clear=clear)) is not None:
                            self._store(view[start:end], buffer, long_file)
                            start = end
                        clear = filled
                rest = view[start:filled]
                offset += start
                if final:
                    return
                self._feed()
        finally:
            long_file.size_bytes = offset
            if buffer is not None:
                self._release(buffer)

    def _skip_hole(self, file: OpenFile, long_file: _LongFile, cutter: Cutter, offset: int) -> int:
        """Store the zeros of a hole that begins at or before `offset`, as far as whole chunks go; their length."""
        length = cutter.zero_bytes
        whole = count = max(0, file.next_data(offset) - offset) // length
        if not count:
            return 0
        if length not in self._zeros:
            zeros = bytes(length)
            self._zeros[length] = hashlib.sha256(zeros).digest()
            self._store(memoryview(zeros), None, long_file)
            count -= 1
        long_file.content.extend([self._zeros[length]] * count)
        self._books.progress(count * length)
        return whole * length

    def _store(self, chunk: memoryview, buffer: _Buffer | None, long_file: _LongFile) -> None:
        position = len(long_file.content)
        long_file.content.append(b"")
        long_file.pending += 1
        if buffer is not None:
            buffer.users += 1

        def work(stream: PackStream) -> Callable[[], None]:
            blob_id = stream.save(chunk)

            def entered() -> None:
                long_file.content[position] = blob_id
                self._books.progress(len(chunk))
                if buffer is not None:
                    self._release(buffer)
                self._done(long_file)

            return entered

        self._dispatcher.submit_chunk(work)

    def _done(self, long_file: _LongFile) -> None:
        long_file.pending -= 1
        if long_file.pending:
            return
        directory, entry = long_file.directory, long_file.entry
        if not long_file.failed:
            status = entry.stat
            node = encode_file(
                long_file.name,
                status,
                owner=owner_text(status.st_uid, status.st_gid),
                xattrs=entry.xattrs,
                content=tuple(long_file.content),
                size_bytes=long_file.size_bytes,
            )
            directory.nodes.append((long_file.name, node))
            self._books.counts.files += 1
            self._books.counts.bytes_processed += long_file.size_bytes
        self._settle(directory)

    def _take_buffer(self) -> _Buffer:
        while not self._buffers:
            self._dispatcher.collect(wait=True)
            self._feed()
        buffer = self._buffers.pop()
        buffer.users = 1
        return buffer

    def _release(self, buffer: _Buffer) -> None:
        buffer.users -= 1
        if not buffer.users:
            self._buffers.append(buffer)


def _next_long_hole(file: OpenFile, offset: int, look_bytes: int) -> int:
    """Where the next hole that is worth skipping begins, or at least `look_bytes` further."""
    limit = offset + look_bytes
    while offset < limit:
        hole = file.next_hole(offset)
        data = file.next_data(hole)
        if data - hole >= _HOLE_BYTES or data == hole:
            return hole
        offset = data
    return offset

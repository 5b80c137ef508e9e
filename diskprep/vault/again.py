"""Storing lost blobs again: out of the source where it is unchanged, and out of packs that are damaged in part.

A blob is its content: what is read counts when it has the SHA-256 that names the blob, wherever it was read. So nothing
has to be believed of a file's times, and a file that was written to in places still gives its other blobs.

Where a blob stood in its file follows from the lengths of those before it, which the index tells of lost ones too. Only
that part of the file is read. Where it is not found there - something was put in before it - or its length is not
known, the file is cut anew, as the repository does it, and what comes out is compared.

Write order: packs, then the index file that names them; see `repair` for the rest.
"""

from __future__ import annotations

import contextlib
import hashlib
import stat
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain

from diskprep import clock
from diskprep.errors import DataDamaged, NotFound
from diskprep.repository.chunker import MAX_BYTES, Chunker
from diskprep.repository.pack import BlobKind, PackEntry
from diskprep.repository.packwriter import PackWriter
from diskprep.repository.repository import Repository
from diskprep.source import EntryUnreadable, OpenDirectory, OpenFile, Source
from diskprep.vault.lost import Need, Sound
from diskprep.vault.reading import RANGE_BYTES, in_threads, open_range, ranges

_INDEX_PACKS = 64
_INDEX_INTERVAL_S = 600.0
_WRITERS = 4


class Storing:
    """Takes blobs that are lost, makes packs and index files of them, and tells `sound`. One thread's; packs are
    written by others while it goes on, at most so many at a time. Ends with `close`."""

    def __init__(self, repository: Repository, sound: Sound) -> None:
        self._repository, self._sound = repository, sound
        self._writers: dict[BlobKind, PackWriter] = {}
        self._taken: set[tuple[BlobKind, bytes]] = set()
        self._pool = ThreadPoolExecutor(_WRITERS, thread_name_prefix="pack")
        self._writing: deque[Future[PackEntry]] = deque()
        self._durable: list[PackEntry] = []
        self._indexed_s = clock.monotonic_s()
        self.blobs = self.plaintext_bytes = self.packs = 0

    def wants(self, kind: BlobKind, blob_id: bytes) -> bool:
        """Whether the blob can be read nowhere, and was not given either."""
        return (kind, blob_id) not in self._taken and self._sound.find(kind, blob_id) is None

    def add(self, kind: BlobKind, blob_id: bytes, plaintext: bytes) -> None:
        """Store a blob unless it is there; `plaintext` has this id as its SHA-256."""
        if not self.wants(kind, blob_id):
            return
        writer = self._writers.get(kind)
        if writer is None:
            writer = self._writers[kind] = PackWriter(kind, self._repository.key, self._repository.pack_size_bytes)
        writer.add(blob_id, plaintext)
        self._taken.add((kind, blob_id))
        self.blobs += 1
        self.plaintext_bytes += len(plaintext)
        if writer.size_bytes >= self._repository.pack_size_bytes or writer.is_full_of_entries:
            self._commit(writer)
        if len(self._durable) >= _INDEX_PACKS or clock.monotonic_s() - self._indexed_s > _INDEX_INTERVAL_S:
            self.save_index()

    def finish(self) -> None:
        """Write what is left, and name it in the index."""
        for writer in self._writers.values():
            if len(writer):
                self._commit(writer)
        self.save_index()

    def save_index(self) -> None:
        """Name the packs that are durable in an index file; what they hold can be read from then on."""
        while self._writing:
            self._durable.append(self._writing.popleft().result())
        self._repository.save_index(self._durable)
        for entry in self._durable:
            self._sound.add(entry)
        self._durable = []
        self._indexed_s = clock.monotonic_s()

    def close(self) -> None:
        """Wait for the packs that are being written; they stay, and the next repair takes them in."""
        self._pool.shutdown(cancel_futures=True)

    def _commit(self, writer: PackWriter) -> None:
        finished = writer.finish()
        while len(self._writing) >= _WRITERS:
            self._durable.append(self._writing.popleft().result())
        # A copy, for the writer goes on in the same memory.
        self._writing.append(self._pool.submit(self._write, finished.entry, bytes(finished.data)))
        self.packs += 1

    def _write(self, entry: PackEntry, data: bytes) -> PackEntry:
        self._repository.save_pack(entry, data)
        return entry


def salvage(repository: Repository, damaged: Iterable[PackEntry], storing: Storing) -> None:
    """Store again every blob that still opens in packs that are damaged or too short."""
    wanted = (blob for entry in damaged for blob in entry.blobs if storing.wants(blob.kind, blob.id))
    for group in in_threads(repository.store, lambda g: list(open_range(repository, g)), ranges(wanted)):
        for blob, plaintext in group:
            if isinstance(plaintext, bytes):
                storing.add(blob.kind, blob.id, plaintext)
            elif not isinstance(plaintext, (DataDamaged, NotFound)):
                raise plaintext


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """Neighbouring blobs of a file that are wanted: ids, and where each begins and how long it is."""

    need: Need
    blobs: tuple[tuple[bytes, int, int], ...]


@dataclass(slots=True)
class _Read:
    need: Need
    found: list[tuple[bytes, bytes]] = field(default_factory=list)  # id, plaintext
    differs: bool = False


def store_from_sources(
    repository: Repository, needs: Iterable[Need], sources: Sequence[Source], sound: Sound, storing: Storing
) -> None:
    """Store the lost blobs of `needs` that the sources still have. What cannot be read is passed over: it stays lost.

    Memory: some ranges of 8 MiB, an open pack and those being written, and the needs whose files have changed.
    """
    changed: dict[bytes, Need] = {}
    covered = (need for need in needs if _source_of(need.path, sources) is not None)
    pieces = chain.from_iterable(_pieces(need, sound, storing, changed) for need in covered)
    for read in in_threads(repository.store, lambda piece: _read_piece(piece, sources), pieces):
        for blob_id, plaintext in read.found:
            storing.add(BlobKind.DATA, blob_id, plaintext)
        if read.differs:
            changed[read.need.path] = read.need
    left = {path: need for path, need in changed.items() if _is_wanted(need.content, storing)}
    if not left:
        return
    chunker = Chunker(repository.polynomial)
    for need in left.values():
        content = frozenset(need.content)
        with contextlib.suppress(EntryUnreadable), _opened(need.path, sources) as file:
            for chunk in _cut(file, chunker):
                blob_id = hashlib.sha256(chunk).digest()
                is_missed = blob_id in content or sound.length_of(blob_id) is not None
                if is_missed and storing.wants(BlobKind.DATA, blob_id):
                    storing.add(BlobKind.DATA, blob_id, bytes(chunk))


def _is_wanted(content: Iterable[bytes], storing: Storing) -> bool:
    return any(storing.wants(BlobKind.DATA, blob) for blob in content)


def _pieces(need: Need, sound: Sound, storing: Storing, changed: dict[bytes, Need]) -> Iterator[_Piece]:
    """The wanted parts of a file, each of neighbouring blobs and not much longer than 8 MiB. A file in which the place
    of a wanted blob is not known goes to `changed`."""
    lengths: list[int | None] = [sound.length_of(blob) for blob in need.content]
    if lengths.count(None) == 1:  # then it is what the others leave
        rest = need.size_bytes - sum(length for length in lengths if length is not None)
        lengths[lengths.index(None)] = rest if 0 < rest <= MAX_BYTES else None
    offset = total = 0
    run: list[tuple[bytes, int, int]] = []
    for blob, length in zip(need.content, lengths, strict=True):
        if length is None:
            changed[need.path] = need
            break
        if storing.wants(BlobKind.DATA, blob):
            run.append((blob, offset, length))
            total += length
        if run and (run[-1][0] != blob or total >= RANGE_BYTES):
            yield _Piece(need=need, blobs=tuple(run))
            run, total = [], 0
        offset += length
    if run:
        yield _Piece(need=need, blobs=tuple(run))


def _read_piece(piece: _Piece, sources: Sequence[Source]) -> _Read:
    read = _Read(piece.need)
    start = piece.blobs[0][1]
    data = bytearray(piece.blobs[-1][1] + piece.blobs[-1][2] - start)
    try:
        with _opened(piece.need.path, sources) as file:
            count = file.read_into(memoryview(data), start)
    except EntryUnreadable:
        return read
    view = memoryview(data)[:count]
    for blob_id, offset, length in piece.blobs:
        plaintext = bytes(view[offset - start : offset - start + length])
        if hashlib.sha256(plaintext).digest() == blob_id:
            read.found.append((blob_id, plaintext))
        else:
            read.differs = True
    return read


def _cut(file: OpenFile, chunker: Chunker) -> Iterator[memoryview]:
    """All chunks of a file, as the repository cuts it. Each is good until the next one is asked for."""
    buffer = bytearray(2 * MAX_BYTES)
    view = memoryview(buffer)
    offset = filled = 0  # `buffer` begins at `offset` of the file
    final = False
    while not final:
        filled += file.read_into(view[filled:], offset + filled)
        final = filled < len(buffer)
        start = 0
        while (end := chunker.cut(buffer, start, filled, final=final)) is not None:
            yield view[start:end]
            start = end
        view[: filled - start] = bytes(view[start:filled])
        offset, filled = offset + start, filled - start


def _source_of(path: bytes, sources: Sequence[Source]) -> Source | None:
    """The source that `path`, absolute and as recovery points show it, is or lies in."""
    parts = tuple(part for part in path.split(b"/") if part)
    return next((s for s in sources if parts[: len(s.components)] == s.components), None)


@contextlib.contextmanager
def _opened(path: bytes, sources: Sequence[Source]) -> Iterator[OpenFile]:
    """The regular file at `path` of its source; no link below the source is followed, and nothing but a regular file is
    opened. Raises EntryUnreadable."""
    source = _source_of(path, sources)
    if source is None:
        raise EntryUnreadable("no source holds it")
    above, _, base = source.location.rpartition(b"/")
    inside = [part for part in path.split(b"/") if part][len(source.components) :]
    *folders, name = [part for part in (base, *inside) if part]
    with contextlib.ExitStack() as stack:
        directory = OpenDirectory.at(above or b"/", follow=True)
        stack.callback(directory.close)
        for folder in folders:
            directory = directory.directory(folder)
            stack.callback(directory.close)
        if not stat.S_ISREG(directory.describe(name).stat.st_mode):
            raise EntryUnreadable("it is no regular file any more")
        file = directory.file(name)
        stack.callback(file.close)
        yield file

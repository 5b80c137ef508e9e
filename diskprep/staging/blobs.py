"""Storing blobs: dedup, packing, and the order in which packs and index files become durable.

Write order: a pack is durable before its entry is kept for the index; an index file is written for every 50,000 blobs
or 10 minutes, so that little is lost when the process dies. Each thread and each worker process fills packs of its own
(`PackStream`), which also spreads neighbouring blobs over several packs; each process writes index files of its own.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from diskprep import clock
from diskprep.repository import codec
from diskprep.repository.blobset import BlobSet
from diskprep.repository.index import blob_ids, parse_index
from diskprep.repository.locations import Locations
from diskprep.repository.pack import BlobKind, PackEntry
from diskprep.repository.packwriter import FinishedPack, PackWriter
from diskprep.repository.repository import Repository
from diskprep.repository.tree import join_nodes, tree_parts

INDEX_BLOBS = 50_000
INDEX_INTERVAL_S = 600.0
_LARGE_TREE_ENTRIES = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """The blobs of a repository, as a backup needs them: which there are, and where the trees lie. `sets` is shared
    with forked processes."""

    sets: dict[BlobKind, BlobSet]
    trees: Locations

    def close(self) -> None:
        for found in self.sets.values():
            found.close()


def load_known(repository: Repository, *, new_data: int, new_trees: int, scratch: Path | None = None) -> Known:
    """Read the index files, one at a time, with room for as many new blobs as are expected. Memory: about 40 bytes a
    blob, and 48 a tree. Raises DataDamaged, StorageFull."""
    stored = repository.count_index_bytes() // codec.INDEX_BLOB_BYTES
    sets = {
        BlobKind.DATA: BlobSet(stored + new_data, scratch),
        BlobKind.TREE: BlobSet(stored // 8 + new_trees, scratch),
    }
    trees = Locations(BlobKind.TREE)
    for document in repository.index_documents():
        sets[BlobKind.DATA].update(blob_ids(document))
        entries = parse_index(document, only=BlobKind.TREE)
        sets[BlobKind.TREE].update(blob.id for entry in entries for blob in entry.blobs)
        trees.add(entries)
    trees.sort()
    return Known(sets=sets, trees=trees)


class Stored(NamedTuple):
    """What was stored: bytes of plaintext that were new, and of the packs they became."""

    added_bytes: int
    stored_bytes: int


class BlobSession:
    """What one process adds to a repository during a backup. All methods are safe from any thread."""

    def __init__(self, repository: Repository, known: Known, pack_size_bytes: int) -> None:
        self._repository, self._known, self.pack_size_bytes = repository, known, pack_size_bytes
        self._mutex = threading.Lock()
        self._index_mutex = threading.Lock()
        self._durable: list[PackEntry] = []
        self._durable_blobs = 0
        self._indexed_s = clock.monotonic_s()
        self._streams: list[PackStream] = []
        self._stored_bytes = 0

    @property
    def stored(self) -> Stored:
        return Stored(sum(stream.added_bytes for stream in self._streams), self._stored_bytes)

    def stream(self, kind: BlobKind) -> PackStream:
        stream = PackStream(self, kind)
        self._streams.append(stream)
        return stream

    def has(self, kind: BlobKind, blob_id: bytes) -> bool:
        """Whether the blob is stored already, or is being stored in this backup."""
        return blob_id in self._known.sets[kind]

    def adder(self, kind: BlobKind) -> Callable[[bytes], bool]:
        """What says of a blob's id whether the caller must store it. Of two threads that ask at one moment both may be
        told so."""
        return self._known.sets[kind].add

    def new_writer(self, kind: BlobKind) -> PackWriter:
        return PackWriter(kind, self._repository.key, self.pack_size_bytes)

    def commit(self, finished: FinishedPack) -> None:
        """Write a pack durably and note it for the index."""
        self._repository.save_pack(finished.entry, finished.data)
        with self._mutex:
            self._durable.append(finished.entry)
            self._durable_blobs += len(finished.entry.blobs)
            self._stored_bytes += finished.entry.size_bytes
            due = self._durable_blobs >= INDEX_BLOBS or clock.monotonic_s() - self._indexed_s > INDEX_INTERVAL_S
        if due:
            self.save_index()

    def save_index(self) -> None:
        """Write an index file for all packs that have become durable since the last one."""
        with self._index_mutex:
            with self._mutex:
                entries, self._durable, self._durable_blobs = self._durable, [], 0
                self._indexed_s = clock.monotonic_s()
            self._repository.save_index(entries)


class PackStream:
    """One thread's way of storing blobs of one kind. `flush` before the session's last `save_index`."""

    def __init__(self, session: BlobSession, kind: BlobKind) -> None:
        self._session = session
        self._writer = session.new_writer(kind)
        self._must_store = session.adder(kind)
        self._limit_bytes = session.pack_size_bytes
        self.added_bytes = 0  # of plaintext that was new

    def save(self, data: bytes | memoryview) -> bytes:
        """Store `data` unless it is known; return its id."""
        blob_id = hashlib.sha256(data).digest()
        if self._must_store(blob_id):
            self.added_bytes += len(data)
            self._writer.add(blob_id, data)
            if self._writer.size_bytes >= self._limit_bytes or self._writer.is_full_of_entries:
                self.flush()
        return blob_id

    def save_tree(self, nodes: Sequence[bytes]) -> bytes:
        """Store the tree of encoded nodes unless it is known; return its id. The text of a large
        one is never in memory as a whole."""
        if len(nodes) < _LARGE_TREE_ENTRIES:
            data = join_nodes(nodes)
            return self.save(data)
        whole, length = hashlib.sha256(), 0
        for part in tree_parts(nodes):
            whole.update(part)
            length += len(part)
        blob_id = whole.digest()
        if self._must_store(blob_id):
            self.added_bytes += length
            self._writer.add_frame(blob_id, codec.compress_parts(tree_parts(nodes), length), length)
            self.flush()
        return blob_id

    def flush(self) -> None:
        """Write the open pack, if there is one."""
        if len(self._writer):
            self._session.commit(self._writer.finish())

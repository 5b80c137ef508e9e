"""Storing blobs: dedup, packing, and the order in which packs and index files become durable.

Write order: a pack is durable before its entry is kept for the index; an index file is written for every 50,000 blobs
or 10 minutes, so that little is lost when the process dies. Each thread fills packs of its own (`PackStream`), which
also spreads neighbouring blobs over several packs.
"""

from __future__ import annotations

import hashlib
import threading

from diskprep import clock
from diskprep.durable import Buffer
from diskprep.repository.index import Index
from diskprep.repository.pack import BlobKind, FinishedPack, PackEntry, PackWriter
from diskprep.repository.repository import Repository

INDEX_BLOBS = 50_000
INDEX_INTERVAL_S = 600.0


class BlobSession:
    """What one backup adds to a repository. All methods are safe from any thread.

    Memory: what the index takes for a new blob, beside the open packs of the streams.
    """

    def __init__(self, repository: Repository, pack_size_bytes: int) -> None:
        self._repository, self.pack_size_bytes = repository, pack_size_bytes
        self._index: Index = repository.index
        self._mutex = threading.Lock()
        self._index_mutex = threading.Lock()
        self._claimed: dict[BlobKind, set[bytes]] = {kind: set() for kind in BlobKind}  # and not yet in the index
        self._durable: list[PackEntry] = []
        self._durable_blobs = 0
        self._indexed_s = clock.monotonic_s()
        self.added_bytes = 0
        self.stored_bytes = 0

    def stream(self, kind: BlobKind) -> PackStream:
        return PackStream(self, kind)

    def has(self, kind: BlobKind, blob_id: bytes) -> bool:
        """Whether the blob is stored already, or is being stored in this session."""
        return blob_id in self._claimed[kind] or self._index.has(kind, blob_id)

    def claim(self, kind: BlobKind, blob_id: bytes, length: int) -> bool:
        """Whether the caller must store this blob of `length` bytes; nobody else is told so afterwards."""
        with self._mutex:
            if self.has(kind, blob_id):
                return False
            self._claimed[kind].add(blob_id)
            self.added_bytes += length
        return True

    def new_writer(self, kind: BlobKind) -> PackWriter:
        return PackWriter(kind, self._repository.key)

    def commit(self, finished: FinishedPack) -> None:
        """Write a pack durably and note it for the index."""
        self._repository.save_pack(finished)
        with self._mutex:
            self._durable.append(finished.entry)
            self._durable_blobs += len(finished.entry.blobs)
            self.stored_bytes += finished.entry.size_bytes
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
            with self._mutex:
                for entry in entries:
                    self._claimed[entry.kind].difference_update(blob.id for blob in entry.blobs)


class PackStream:
    """One thread's way of storing blobs of one kind. `flush` before the session's last `save_index`."""

    def __init__(self, session: BlobSession, kind: BlobKind) -> None:
        self._session, self._kind = session, kind
        self._writer: PackWriter | None = None

    def save(self, data: Buffer) -> bytes:
        """Store `data` unless it is known; return its id."""
        blob_id = hashlib.sha256(data).digest()
        if self._session.claim(self._kind, blob_id, len(data)):
            writer = self._writer
            if writer is None:
                writer = self._writer = self._session.new_writer(self._kind)
            writer.add(blob_id, data)
            if writer.size_bytes >= self._session.pack_size_bytes or writer.full_of_entries:
                self.flush()
        return blob_id

    def flush(self) -> None:
        """Write the open pack, if there is one."""
        writer, self._writer = self._writer, None
        if writer is not None:
            self._session.commit(writer.finish())

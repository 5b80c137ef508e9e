"""Writing packs: blobs are compressed and sealed into one buffer, which is the file.

Small blobs wait for each other and are sealed together, for which each costs a third of the time.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from diskprep.durable import Buffer
from diskprep.repository import codec, manyseals
from diskprep.repository.crypto import OVERHEAD_BYTES, SEAL_ROOM_BYTES, DataKey
from diskprep.repository.pack import HEADER_ENTRIES, BlobKind, PackEntry, encode_header, encode_tail, pack_entry

_HASH_BYTES = 256 << 10  # hashed at once, while it is still in the processor's cache
_TOGETHER_BYTES = 4 << 10  # blobs up to this length wait for others
_WAITING = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedPack:
    """A pack ready to be written. `data` is the file, in the writer's buffer: it lasts until the next blob is added."""

    entry: PackEntry
    data: memoryview


class PackWriter:
    """Collects blobs of one kind in memory and makes packs of them, one after the other. Used by one thread.

    Memory: the largest pack so far, with its last blob.
    """

    def __init__(self, kind: BlobKind, key: DataKey, expected_bytes: int = 16 << 20) -> None:
        """`expected_bytes`: how long packs will be, so that the buffer need not grow."""
        self.kind = kind
        self._key = key
        self._expected_bytes = expected_bytes
        compressors = codec.Compressors()
        self._compress, self._compress_tiny = compressors.compress, compressors.compress_tiny
        self._buffer = bytearray()
        self._view = memoryview(self._buffer)
        self._start()

    def _start(self) -> None:
        self.size_bytes = 0
        self._blobs: list[tuple[bytes, int, int | None]] = []
        self._waiting: list[Buffer] = []  # the last blobs, not sealed yet
        self._sealed_bytes = 0
        self._hash = hashlib.sha256()
        self._hashed = 0

    def __len__(self) -> int:
        return len(self._blobs)

    @property
    def is_full_of_entries(self) -> bool:
        return len(self._blobs) >= HEADER_ENTRIES

    def add(self, blob_id: bytes, plaintext: bytes | memoryview) -> None:
        """Compress, seal and append a blob; it is stored as it is when that is not longer."""
        length = len(plaintext)
        if length < codec.TINY_BYTES:  # most blobs of most sources
            frame = self._compress_tiny(plaintext)
            gains = len(frame) < length
            data = frame if gains else bytes(plaintext)
            self._blobs.append((blob_id, len(data) + OVERHEAD_BYTES, length if gains else None))
            self.size_bytes += len(data) + OVERHEAD_BYTES
            self._waiting.append(data)
            if len(self._waiting) >= _WAITING:
                self._seal_waiting()
        elif codec.is_compressible(plaintext) and len(frame := self._compress(plaintext)) < length:
            self._append(blob_id, frame, length)
        else:
            self._append(blob_id, plaintext, None)

    def add_frame(self, blob_id: bytes, frame: bytes, uncompressed_length: int) -> None:
        """Seal and append a blob that is compressed already."""
        self._append(blob_id, frame, uncompressed_length)

    def _append(self, blob_id: bytes, data: bytes | memoryview, uncompressed_length: int | None) -> None:
        length = len(data)
        self._blobs.append((blob_id, length + OVERHEAD_BYTES, uncompressed_length))
        self.size_bytes += length + OVERHEAD_BYTES
        if length <= _TOGETHER_BYTES:
            self._waiting.append(data if isinstance(data, bytes) else bytes(data))
            if len(self._waiting) >= _WAITING:
                self._seal_waiting()
            return
        self._seal_waiting()
        self._make_room(self._sealed_bytes + length + SEAL_ROOM_BYTES)
        self._sealed_bytes += self._key.seal_into(self._view[self._sealed_bytes :], data)
        self._hash_sealed(_HASH_BYTES)

    def _seal_waiting(self) -> None:
        if self._waiting:
            sealed = manyseals.seal_many(self._key, self._waiting)
            self._waiting.clear()
            self._place(sealed)
            self._hash_sealed(_HASH_BYTES)

    def finish(self) -> FinishedPack:
        """Close the pack; the next blob begins another one, in the same memory."""
        self._seal_waiting()
        assert self._sealed_bytes == self.size_bytes
        self._place(encode_tail(self._key.seal(encode_header(self.kind, self._blobs))))
        self._hash_sealed(0)
        entry = pack_entry(self._hash.hexdigest(), self.kind, self._blobs)
        finished = FinishedPack(entry=entry, data=self._view[: self._sealed_bytes])
        self._start()
        return finished

    def _place(self, data: bytes) -> None:
        end = self._sealed_bytes + len(data)
        self._make_room(end)
        self._view[self._sealed_bytes : end] = data
        self._sealed_bytes = end

    def _hash_sealed(self, at_least_bytes: int) -> None:
        if self._sealed_bytes - self._hashed >= at_least_bytes:
            self._hash.update(self._view[self._hashed : self._sealed_bytes])
            self._hashed = self._sealed_bytes

    def _make_room(self, room_bytes: int) -> None:
        if room_bytes <= len(self._buffer):
            return
        bigger = bytearray(max(room_bytes + (room_bytes >> 3), self._expected_bytes))
        bigger[: self._sealed_bytes] = self._view[: self._sealed_bytes]
        self._buffer, self._view = bigger, memoryview(bigger)

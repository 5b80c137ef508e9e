"""Opened blobs that are kept for a while: each is loaded once, by one thread of a pool, whoever waits for it.

Memory: `limit_bytes` of plaintext, one blob at the least, and what is just being loaded.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial

from diskprep.repository.pack import BlobLocation


class BlobCache:
    """Safe to use from many threads. What could not be loaded is not kept: it is tried again at the next use."""

    def __init__(self, load: Callable[[BlobLocation], bytes], pool: Executor, limit_bytes: int) -> None:
        self._load, self._pool, self._limit_bytes = load, pool, limit_bytes
        self._blobs: OrderedDict[bytes, Future[bytes]] = OrderedDict()  # the one used last comes last
        self._sizes: dict[bytes, int] = {}  # of those that are loaded
        self._held_bytes = 0
        self._lock = threading.Lock()

    def want(self, location: BlobLocation) -> Future[bytes]:
        """The blob, perhaps later: its result raises what loading it raised."""
        with self._lock:
            known = self._blobs.get(location.id)
            if known is not None:
                return known
            future = self._blobs[location.id] = self._pool.submit(self._load, location)
        future.add_done_callback(partial(self._loaded, location.id))
        return future

    def find(self, blob_id: bytes) -> Future[bytes] | None:
        """The blob when it is here or on its way."""
        with self._lock:
            known = self._blobs.get(blob_id)
            if known is not None:
                self._blobs.move_to_end(blob_id)
            return known

    def has(self, blob_id: bytes) -> bool:
        """Whether the blob is here or on its way."""
        return blob_id in self._blobs

    def _loaded(self, blob_id: bytes, future: Future[bytes]) -> None:
        with self._lock:
            if future.cancelled() or future.exception() is not None:
                del self._blobs[blob_id]
                return
            self._sizes[blob_id] = len(future.result())
            self._held_bytes += self._sizes[blob_id]
            while self._held_bytes > self._limit_bytes and len(self._sizes) > 1:
                oldest = next(one for one in self._blobs if one in self._sizes)
                del self._blobs[oldest]
                self._held_bytes -= self._sizes.pop(oldest)

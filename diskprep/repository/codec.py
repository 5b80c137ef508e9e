"""Compression of blobs, and the sealed JSON files (index, snapshot, lock) made with it.

A zstd frame is decompressed only up to a length known beforehand, so no stored file can demand unbounded memory.
Contexts are kept per thread.
"""

from __future__ import annotations

import json
import math
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable
from typing import Any

import zstandard

from diskprep.durable import Buffer
from diskprep.errors import DataDamaged

LEVEL = 3
TINY_BYTES = 2 << 10
#: Blobs shorter than the limit are compressed with what stands beside it. Each is on zstd's curve between level 1 and 3
#: where the next percent of size costs more than a tenth of the time; a level's meaning depends on the input's length.
_COMPRESSORS: tuple[tuple[float, Callable[[], zstandard.ZstdCompressor]], ...] = (
    (TINY_BYTES, lambda: zstandard.ZstdCompressor(level=3)),
    (16 << 10, lambda: zstandard.ZstdCompressor(level=1)),
    (512 << 10, lambda: zstandard.ZstdCompressor(level=2)),
    (math.inf, lambda: zstandard.ZstdCompressor(compression_params=_long_blobs())),
)
_SAMPLED_BYTES = 256 << 10  # shorter blobs are not sampled
_SAMPLES, _SAMPLE_BYTES = 12, 4 << 10
_LIMITS = [limit for limit, _ in _COMPRESSORS[:-1]]
INDEX_BLOB_BYTES = 47  # what a blob takes in an index file: hardly more than its id, which does not compress
JSON_MAX_BYTES = 1 << 30
_COMPRESSED = 0x02
_local = threading.local()


def _long_blobs() -> zstandard.ZstdCompressionParameters:
    """Level 3 with smaller hash tables, which stay in the processor's second cache."""
    return zstandard.ZstdCompressionParameters(
        window_log=21,
        chain_log=14,
        hash_log=16,
        search_log=1,
        min_match=5,
        strategy=zstandard.STRATEGY_DFAST,
    )


class Compressors:
    """The contexts of one thread. `compress_tiny` is what `compress` does for less than `TINY_BYTES`."""

    def __init__(self) -> None:
        self._compressors = [make() for _, make in _COMPRESSORS]
        self.compress_tiny: Callable[[Buffer], bytes] = self._compressors[0].compress

    def compress(self, data: Buffer) -> bytes:
        """One zstd frame with the content's size in its header."""
        return self._compressors[bisect_right(_LIMITS, len(data))].compress(data)


def is_compressible(data: Buffer) -> bool:
    """Whether compressing `data` can be worth the time: false when samples all over a long blob gain nothing, as with
    encrypted or already compressed files."""
    length = len(data)
    if length < _SAMPLED_BYTES:
        return True
    view = memoryview(data)
    sampler: zstandard.ZstdCompressor | None = getattr(_local, "sampler", None)
    if sampler is None:
        sampler = _local.sampler = zstandard.ZstdCompressor(level=1)
    step = (length - _SAMPLE_BYTES) // (_SAMPLES - 1)
    starts = range(0, step * _SAMPLES, step)
    return any(len(sampler.compress(view[start : start + _SAMPLE_BYTES])) < _SAMPLE_BYTES for start in starts)


def compress(data: Buffer) -> bytes:
    """One zstd frame with the content's size in its header."""
    compressors: Compressors | None = getattr(_local, "compressors", None)
    if compressors is None:
        compressors = _local.compressors = Compressors()
    return compressors.compress(data)


def compress_parts(parts: Iterable[bytes], length: int) -> bytes:
    """One zstd frame of the joined parts, `length` bytes together."""
    stream = zstandard.ZstdCompressor(level=LEVEL).compressobj(size=length)
    frame = [stream.compress(part) for part in parts]
    return b"".join([*frame, stream.flush()])


def decompress(frame: Buffer, limit_bytes: int) -> bytes:
    """The content of exactly one frame, at most `limit_bytes`. Raises DataDamaged."""
    decompressor: zstandard.ZstdDecompressor | None = getattr(_local, "decompressor", None)
    if decompressor is None:
        decompressor = _local.decompressor = zstandard.ZstdDecompressor()
    try:
        # The library allocates what the header says, whatever limit it is given.
        if zstandard.frame_content_size(frame) > limit_bytes:
            raise DataDamaged("compressed data is longer than announced")
        return decompressor.decompress(frame, max_output_size=max(limit_bytes, 1), allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise DataDamaged(f"compressed data is damaged: {error}") from None


def encode_json(document: dict[str, Any]) -> bytes:
    """The plaintext of an index, snapshot or lock file: a version byte and a zstd frame of compact JSON."""
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False)
    return encode_text(text.encode("utf-8", "replace") + b"\n")


def encode_text(text: bytes) -> bytes:
    """The plaintext of a sealed file whose JSON is `text`."""
    return bytes((_COMPRESSED,)) + compress(text)


def decode_json(plaintext: bytes) -> dict[str, Any]:
    """The inverse of `encode_json`; also reads the uncompressed form of format 1. Raises DataDamaged."""
    if plaintext[:1] == bytes((_COMPRESSED,)):
        plaintext = decompress(memoryview(plaintext)[1:], JSON_MAX_BYTES)
    elif plaintext[:1] not in (b"{", b"["):
        raise DataDamaged("a sealed file is of an unknown encoding")
    try:
        document = json.loads(plaintext)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise DataDamaged("a sealed file is not a JSON object")
    return document

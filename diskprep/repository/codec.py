"""Compression of blobs, and the sealed JSON files (index, snapshot, lock) made with it.

A zstd frame is decompressed only up to a length known beforehand, so no stored file can demand unbounded memory.
Contexts are kept per thread.
"""

from __future__ import annotations

import json
import threading
from typing import Any

import zstandard

from diskprep.durable import Buffer
from diskprep.errors import DataDamaged

LEVEL = 3
JSON_MAX_BYTES = 1 << 30
_COMPRESSED = 0x02
_local = threading.local()


def compress(data: Buffer) -> bytes:
    """One zstd frame with the content's size in its header."""
    compressor: zstandard.ZstdCompressor | None = getattr(_local, "compressor", None)
    if compressor is None:
        compressor = _local.compressor = zstandard.ZstdCompressor(level=LEVEL)
    return compressor.compress(data)


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
    return bytes((_COMPRESSED,)) + compress(text.encode("utf-8", "replace") + b"\n")


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

"""Many small seals at once: what `DataKey.seal` does, for a list of plaintexts.

Counter mode is a keystream of encrypted counters, so the counters of all plaintexts are encrypted by one call, and all
bytes added to them by another; only the tags are made one by one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from cryptography.hazmat.primitives.poly1305 import Poly1305

from diskprep.durable import Buffer
from diskprep.repository.crypto import IV_BYTES, DataKey

_BLOCK = 16
_PADDING = [bytes(-length % _BLOCK) for length in range(_BLOCK)]


def seal_many(key: DataKey, plaintexts: Sequence[Buffer]) -> bytes:
    """The seals of all plaintexts, one after the other, each with an IV of its own."""
    lengths = [len(plaintext) for plaintext in plaintexts]
    if not any(lengths):  # no counter at all
        return b"".join([key.seal(plaintext) for plaintext in plaintexts])
    ivs, addends = key.fresh_ivs(len(lengths))
    blocks = [(length + _BLOCK - 1) // _BLOCK for length in lengths]
    counters = _counters(ivs, np.array(blocks, dtype=np.int64))
    padded = b"".join([part for text in plaintexts for part in (text, _PADDING[len(text) % _BLOCK])])
    stream = key.encrypt_blocks(counters.data.cast("B"))
    mixed = np.bitwise_xor(np.frombuffer(padded, dtype=np.uint64), np.frombuffer(stream, dtype=np.uint64))
    ciphertexts = mixed.data.cast("B")
    generate_tag, mac_r = Poly1305.generate_tag, key.mac_r
    sealed: list[Buffer] = []
    start = at = 0
    for length, count in zip(lengths, blocks, strict=True):
        ciphertext = ciphertexts[start : start + length]
        end = at + IV_BYTES
        sealed += (ivs[at:end], ciphertext, generate_tag(mac_r + addends[at:end], ciphertext))
        start, at = start + count * _BLOCK, end
    return b"".join(sealed)


def _counters(ivs: bytes, blocks: np.ndarray) -> np.ndarray:
    """The counter blocks of all texts: each IV, counted up as a number of 128 bits, big end first."""
    first = np.frombuffer(ivs, dtype=">u8").astype(np.uint64).reshape(-1, 2)
    ends = np.cumsum(blocks)
    total = int(ends[-1])
    text = np.repeat(np.arange(len(blocks)), blocks)
    step = (np.arange(total) - (ends - blocks)[text]).astype(np.uint64)
    low = first[:, 1][text] + step  # wraps
    counters = np.empty((total, 2), dtype=">u8")
    counters[:, 1] = low
    counters[:, 0] = first[:, 0][text] + (low < step)
    return counters

"""XTS-AES over many sectors at once.

The tweak of sector n is AES(key2, n as 128-bit little-endian) times powers of alpha in GF(2^128) (IEEE 1619). All
tweaks of a block of sectors are laid out as one mask, so that the sectors go through AES in a single call:
output = AES(key1, input xor mask) xor mask. Everything that costs time runs without the interpreter's lock; buffers
and contexts belong to the calling thread.
"""

from __future__ import annotations

import threading

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

from diskprep.compiled import compiled
from diskprep.durable import Buffer
from diskprep.secrets import Secret

BLOCK_BYTES = 256 * 1024  # mask and scratch of a block stay in the processor's cache

_ONE = np.uint64(1)
_TOP = np.uint64(63)
_POLYNOMIAL = np.uint64(0x87)


@compiled
def _spread(tweaks: NDArray[np.uint64], mask: NDArray[np.uint64], sectors: int, sector_words: int) -> None:
    """Fill `mask` with the running tweaks of `sectors` sectors of `sector_words` 64-bit words."""
    at = 0
    for sector in range(sectors):
        low, high = tweaks[2 * sector], tweaks[2 * sector + 1]
        for _ in range(0, sector_words, 2):
            mask[at] = low
            mask[at + 1] = high
            at += 2
            carry = high >> _TOP
            high = (high << _ONE) | (low >> _TOP)
            low = (low << _ONE) ^ (carry * _POLYNOMIAL)


class _Lane(threading.local):
    """One thread's contexts and buffers."""

    def __init__(self, data_key: Secret[bytes], tweak_key: Secret[bytes], sector_bytes: int) -> None:
        data = Cipher(algorithms.AES(data_key.reveal()), modes.ECB())  # noqa: S305  the block cipher XTS is made of
        tweak = Cipher(algorithms.AES(tweak_key.reveal()), modes.ECB())  # noqa: S305
        self.encryptor: CipherContext = data.encryptor()
        self.decryptor: CipherContext = data.decryptor()
        self.tweaker: CipherContext = tweak.encryptor()
        self.mask = np.empty(BLOCK_BYTES // 8, np.uint64)
        self.white = np.empty(BLOCK_BYTES, np.uint8)
        self.raw = np.empty(BLOCK_BYTES + 16, np.uint8)  # the AES call wants room for one block more
        self.numbers = np.zeros(2 * (BLOCK_BYTES // sector_bytes), np.uint64)
        self.tweaks = np.empty(self.numbers.nbytes + 16, np.uint8)


class Xts:
    """Encrypts and decrypts whole sectors of one volume. `key`: data key and tweak key, 32 or 64 bytes together."""

    def __init__(self, key: Secret[bytes], sector_bytes: int) -> None:
        half = len(key.reveal()) // 2
        self._sector_bytes = sector_bytes
        self._lane = _Lane(Secret(key.reveal()[:half]), Secret(key.reveal()[half:]), sector_bytes)

    def encrypt(self, data: Buffer, out: memoryview, offset_bytes: int) -> None:
        """Encrypt `data`, whole sectors that lie at `offset_bytes` of the volume, into `out`, which may be `data`."""
        self._run(self._lane.encryptor, data, out, offset_bytes)

    def decrypt(self, data: Buffer, out: memoryview, offset_bytes: int) -> None:
        """The inverse of `encrypt`."""
        self._run(self._lane.decryptor, data, out, offset_bytes)

    def _run(self, context: CipherContext, data: Buffer, out: memoryview, offset_bytes: int) -> None:
        lane, size = self._lane, self._sector_bytes
        source, target = np.frombuffer(data, np.uint8), np.frombuffer(out, np.uint8)
        assert not len(source) % size
        assert not offset_bytes % size
        for at in range(0, len(source), BLOCK_BYTES):
            part = source[at : at + BLOCK_BYTES]
            count = len(part) // size
            first = (offset_bytes + at) // size
            lane.numbers[0 : 2 * count : 2] = np.arange(first, first + count, dtype=np.uint64)
            lane.tweaker.update_into(lane.numbers[: 2 * count].data.cast("B"), lane.tweaks.data)
            _spread(lane.tweaks[: 16 * count].view(np.uint64), lane.mask, count, size // 8)
            mask = lane.mask.view(np.uint8)[: len(part)]
            white = lane.white[: len(part)]
            np.bitwise_xor(part, mask, out=white)
            context.update_into(white.data, lane.raw.data)
            np.bitwise_xor(lane.raw[: len(part)], mask, out=target[at : at + len(part)])

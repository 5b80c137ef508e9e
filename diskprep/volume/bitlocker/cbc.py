"""AES-CBC as BitLocker uses it, over many sectors at once.

The initial vector of a sector is AES(key, byte offset of the sector in the volume as 128-bit little-endian); there is
no padding. Decryption is one AES call for many sectors. Encryption is a chain inside a sector, so the first cipher
block of all sectors goes through AES together, then the second, and so on.
"""

from __future__ import annotations

import threading

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

from diskprep.durable import Buffer
from diskprep.secrets import Secret

BLOCK_BYTES = 1024 * 1024  # many sectors, because a call has one sixteen-byte piece of each


class _Lane(threading.local):
    """One thread's contexts and buffers."""

    def __init__(self, key: Secret[bytes]) -> None:
        cipher = Cipher(algorithms.AES(key.reveal()), modes.ECB())  # noqa: S305  the block cipher CBC is made of
        self.encryptor: CipherContext = cipher.encryptor()
        self.decryptor: CipherContext = cipher.decryptor()
        self.raw = np.empty(BLOCK_BYTES + 16, np.uint8)


class Cbc:
    """Encrypts and decrypts whole sectors of one volume. `key`: 16 or 32 bytes."""

    def __init__(self, key: Secret[bytes], sector_bytes: int) -> None:
        self._sector_bytes, self._lane = sector_bytes, _Lane(key)

    def encrypt(self, data: Buffer, out: memoryview, offset_bytes: int) -> None:
        """Encrypt `data`, whole sectors that lie at `offset_bytes` of the volume, into `out`, which may be `data`."""
        for source, target, at in self._blocks(data, out):
            previous = self._vectors(offset_bytes + at, len(source))
            for step in range(source.shape[1]):
                mixed = np.bitwise_xor(source[:, step], previous)
                count = self._lane.encryptor.update_into(mixed.data.cast("B"), self._lane.raw.data)
                previous = self._lane.raw[:count].view(np.uint64).reshape(-1, 2).copy()
                target[:, step] = previous

    def decrypt(self, data: Buffer, out: memoryview, offset_bytes: int) -> None:
        """The inverse of `encrypt`."""
        for source, target, at in self._blocks(data, out):
            chained = np.empty_like(source)
            chained[:, 0] = self._vectors(offset_bytes + at, len(source))
            chained[:, 1:] = source[:, :-1]
            whole = np.ascontiguousarray(source)
            count = self._lane.decryptor.update_into(whole.data.cast("B"), self._lane.raw.data)
            np.bitwise_xor(self._lane.raw[:count].view(np.uint64).reshape(source.shape), chained, out=target)

    def _blocks(self, data: Buffer, out: memoryview) -> list[tuple[NDArray[np.uint64], NDArray[np.uint64], int]]:
        """Input and output in blocks, as arrays of (sector, cipher block, half), with each block's offset."""
        assert not len(data) % self._sector_bytes
        shape = (-1, self._sector_bytes // 16, 2)
        source, target = np.frombuffer(data, np.uint64), np.frombuffer(out, np.uint64)
        step = BLOCK_BYTES // 8
        return [
            (source[at : at + step].reshape(shape), target[at : at + step].reshape(shape), at * 8)
            for at in range(0, len(source), step)
        ]

    def _vectors(self, offset_bytes: int, sectors: int) -> NDArray[np.uint64]:
        places = np.zeros((sectors, 2), np.uint64)
        places[:, 0] = np.arange(sectors, dtype=np.uint64) * np.uint64(self._sector_bytes) + np.uint64(offset_bytes)
        count = self._lane.encryptor.update_into(places.data.cast("B"), self._lane.raw.data)
        return self._lane.raw[:count].view(np.uint64).reshape(-1, 2).copy()

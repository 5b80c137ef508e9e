"""XTS-AES over many sectors at once.

The tweak of sector n is AES(key2, n as 128-bit little-endian) times powers of alpha in GF(2^128) (IEEE 1619). All
tweaks of a block of sectors are laid out as one mask, so that the sectors go through AES in a single call:
output = AES(key1, input xor mask) xor mask. Everything that costs time runs without the interpreter's lock; buffers
and contexts belong to the calling thread.

The masks are made, and the input whitened in the same pass, by one compiled loop; on a computer without numba by numpy,
at less than half the speed. Both multiply by alpha^j in closed form, which has no carry from one j to the next: of the
128-bit tweak (high, low), the j bits that leave `high` come back at the low end, times alpha^7 + alpha^2 + alpha + 1.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

from diskprep.durable import Buffer
from diskprep.secrets import Secret

BLOCK_BYTES: Final = 256 * 1024  # mask, input and output of a block stay in the processor's cache

Words = NDArray[np.uint64]

#: `whiten(tweaks, data, mask, white, room)`: `tweaks` has the first tweak of each sector, low and high; the others are
#: rows of 64 words. `mask` becomes the tweak of each 16 bytes, `white` becomes data xor mask; `room` is spoiled.
Whiten = Callable[[Words, Words, Words, Words, Words], None]

_ROW_BYTES: Final = 512  # what one run of the loops covers: 32 cipher blocks, so that at most 31 bits leave `high`
_ROW_TWEAKS: Final = _ROW_BYTES // 16
_ROW_WORDS: Final = _ROW_BYTES // 8

_ONE, _TWO, _FIVE, _SEVEN = np.uint64(1), np.uint64(2), np.uint64(5), np.uint64(7)
_TOP = np.uint64(63)
_ROW = np.uint64(_ROW_TWEAKS)
_FORTH = np.arange(_ROW_TWEAKS, dtype=np.uint64)
_BACK = np.uint64(64) - _FORTH


def _whiten(tweaks: Words, data: Words, mask: Words, white: Words, _room: Words) -> None:
    rows = len(data) // (len(tweaks) // 2)
    for sector in range(len(tweaks) // 2):
        low, high = tweaks[2 * sector], tweaks[2 * sector + 1]
        for row in range(sector * rows, (sector + 1) * rows):
            # Whole rows as arrays of their own, and no value taken from the round before: so it becomes vectors.
            source, tweak, target = data[row], mask[row], white[row]
            for step in range(_ROW_TWEAKS):
                power = np.uint64(step)
                left = (high >> _ONE) >> (_TOP - power)
                first = (low << power) ^ left ^ (left << _ONE) ^ (left << _TWO) ^ (left << _SEVEN)
                second = (high << power) | ((low >> _ONE) >> (_TOP - power))
                tweak[2 * step] = first
                tweak[2 * step + 1] = second
                target[2 * step] = source[2 * step] ^ first
                target[2 * step + 1] = source[2 * step + 1] ^ second
            left = high >> _ROW
            high = (high << _ROW) | (low >> _ROW)
            low = (low << _ROW) ^ left ^ (left << _ONE) ^ (left << _TWO) ^ (left << _SEVEN)


def whiten_by_numpy(tweaks: Words, data: Words, mask: Words, white: Words, room: Words) -> None:
    """The same for a computer without numba."""
    sectors = len(tweaks) // 2
    rows = len(data) // sectors
    starts = np.empty((sectors, rows, 2), np.uint64)
    starts[:, 0] = tweaks.reshape(-1, 2)
    for row in range(1, rows):
        low, high = starts[:, row - 1, 0], starts[:, row - 1, 1]
        left = high >> _ROW
        starts[:, row, 0] = (low << _ROW) ^ left ^ (left << _ONE) ^ (left << _TWO) ^ (left << _SEVEN)
        starts[:, row, 1] = (high << _ROW) | (low >> _ROW)
    lows, highs = starts[:, :, 0].reshape(-1, 1), starts[:, :, 1].reshape(-1, 1)
    left, half = room[: len(data)], room[len(data) : 2 * len(data)]
    pairs = mask.reshape(-1, _ROW_TWEAKS, 2)
    np.right_shift(highs, _BACK, out=left)  # a shift by 64 gives zero here
    np.left_shift(lows, _FORTH, out=half)
    np.bitwise_xor(half, left, out=half)
    for more in (_ONE, _ONE, _FIVE):
        np.left_shift(left, more, out=left)
        np.bitwise_xor(half, left, out=half)
    pairs[:, :, 0] = half
    np.right_shift(lows, _BACK, out=left)
    np.left_shift(highs, _FORTH, out=half)
    np.bitwise_or(left, half, out=pairs[:, :, 1])
    np.bitwise_xor(data, mask, out=white)


try:
    from diskprep.compiled import compiled
except ImportError:  # a computer without numba
    WHITEN: Whiten = whiten_by_numpy
else:
    WHITEN = compiled(_whiten)


class _Lane(threading.local):
    """One thread's contexts and buffers."""

    def __init__(self, data_key: Secret[bytes], tweak_key: Secret[bytes], sector_bytes: int) -> None:
        data = Cipher(algorithms.AES(data_key.reveal()), modes.ECB())  # noqa: S305  the block cipher XTS is made of
        tweak = Cipher(algorithms.AES(tweak_key.reveal()), modes.ECB())  # noqa: S305
        rows = BLOCK_BYTES // _ROW_BYTES
        self.encryptor: CipherContext = data.encryptor()
        self.decryptor: CipherContext = data.decryptor()
        self.tweaker: CipherContext = tweak.encryptor()
        self.mask = np.empty((rows, _ROW_WORDS), np.uint64)
        self.white = np.empty((rows + 1, _ROW_WORDS), np.uint64)  # the AES call wants room for one block more
        self.room = np.empty((2 * rows, _ROW_TWEAKS), np.uint64)
        self.numbers = np.zeros((BLOCK_BYTES // sector_bytes, 2), np.uint64)
        self.tweaks = np.empty(self.numbers.size + 2, np.uint64)


class Xts:
    """Encrypts and decrypts whole sectors of one volume. `key`: data key and tweak key, 32 or 64 bytes together."""

    def __init__(self, key: Secret[bytes], sector_bytes: int, whiten: Whiten = WHITEN) -> None:
        half = len(key.reveal()) // 2
        assert not sector_bytes % _ROW_BYTES
        self._sector_bytes, self._whiten = sector_bytes, whiten
        data_key, tweak_key = Secret(key.reveal()[:half]), Secret(key.reveal()[half:])
        self._lane = _Lane(data_key, tweak_key, sector_bytes)

    def encrypt(self, data: Buffer, out: memoryview, offset_bytes: int) -> None:
        """Encrypt `data`, whole sectors that lie at `offset_bytes` of the volume, into `out`, which may be `data`."""
        self._run(self._lane.encryptor, data, out, offset_bytes)

    def decrypt(self, data: Buffer, out: memoryview, offset_bytes: int) -> None:
        """The inverse of `encrypt`."""
        self._run(self._lane.decryptor, data, out, offset_bytes)

    def _run(self, context: CipherContext, data: Buffer, out: memoryview, offset_bytes: int) -> None:
        lane, size = self._lane, self._sector_bytes
        assert not len(data) % size
        assert not offset_bytes % size
        source = np.frombuffer(data, np.uint64).reshape(-1, _ROW_WORDS)
        target = np.frombuffer(out, np.uint64).reshape(-1, _ROW_WORDS)
        step = BLOCK_BYTES // _ROW_BYTES
        for at in range(0, len(source), step):
            part = source[at : at + step]
            rows = len(part)
            count = rows * _ROW_BYTES // size
            first = (offset_bytes + at * _ROW_BYTES) // size
            lane.numbers[:count, 0] = np.arange(first, first + count, dtype=np.uint64)
            lane.tweaker.update_into(lane.numbers[:count].data.cast("B"), lane.tweaks.data.cast("B"))
            mask, white = lane.mask[:rows], lane.white[:rows]
            self._whiten(lane.tweaks[: 2 * count], part, mask, white, lane.room)
            context.update_into(white.data.cast("B"), lane.white.data.cast("B"))  # in place
            np.bitwise_xor(white, mask, out=target[at : at + rows])

"""The chunker: cuts a byte stream at places its content decides, exactly where restic cuts it.

A chunk that starts at s ends at the first e >= s + 512 KiB at which the 64 bytes before e, read as a polynomial over
GF(2) modulo the repository's polynomial, have their low 20 bits zero; else at s + 8 MiB; else at the end of the stream.
"""

from __future__ import annotations

import os

from diskprep.durable import Buffer
from diskprep.errors import DataDamaged

MIN_BYTES = 512 << 10
MAX_BYTES = 8 << 20
DEGREE = 53
_WINDOW = 64
_A_POLYNOMIAL = 0x3DA3358B4DC173  # irreducible


def random_polynomial() -> int:
    """A random irreducible polynomial of degree 53."""
    while True:
        candidate = int.from_bytes(os.urandom(8), "little") & ((1 << (DEGREE + 1)) - 1) | 1 << DEGREE | 1
        if is_irreducible(candidate):
            return candidate


def is_irreducible(polynomial: int) -> bool:
    """Ben-Or's test for polynomials of degree 53 over GF(2)."""
    if polynomial.bit_length() != DEGREE + 1:
        return False
    power = 2  # x
    for _ in range(DEGREE // 2):
        power = _mod(_square(power), polynomial)
        if _gcd(polynomial, power ^ 2) != 1:
            return False
    return True


def preload() -> None:
    """Load the compiled loop, which takes half a second, while something else is being waited for."""
    Chunker(_A_POLYNOMIAL)


class Chunker:
    """Finds cuts for one polynomial. Has no state of a stream, so threads may share it; releases the GIL."""

    def __init__(self, polynomial: int) -> None:
        """Raises DataDamaged unless `polynomial` is irreducible and of degree 53."""
        if not is_irreducible(polynomial):
            raise DataDamaged("the repository's chunker polynomial is not irreducible of degree 53")
        import numpy as np  # noqa: PLC0415 - numba costs a second; readers of a repository never chunk

        from diskprep.repository import rolling  # noqa: PLC0415

        self._find, self._frombuffer, self._uint8 = rolling.find, np.frombuffer, np.uint8
        self._outs = np.array([_mod(byte << (8 * _WINDOW), polynomial) for byte in range(256)], dtype=np.uint64)
        self._mods = np.array(
            [(top << DEGREE) | _mod(top << DEGREE, polynomial) for top in range(256)], dtype=np.uint64
        )
        self._find(np.zeros(_WINDOW, np.uint8), _WINDOW, _WINDOW, self._outs, self._mods)  # which loads it

    def cut(self, data: Buffer, start: int, stop: int, *, final: bool, clear: int = 0) -> int | None:
        """The end of the chunk that starts at `start`, when `data[:stop]` is there; `final` says that the stream ends
        at `stop`, `clear` that an earlier look has found no end up to there. None: more data is needed to tell."""
        if stop - start >= MIN_BYTES:
            limit = min(stop, start + MAX_BYTES)
            view = self._frombuffer(data, dtype=self._uint8)
            # F(stop) is known too, for all its 64 bytes are there; a cut at the 8 MiB limit needs no look.
            end = int(self._find(view, max(start + MIN_BYTES, clear + 1), limit + 1, self._outs, self._mods))
            if end >= 0:
                return end
            if limit - start == MAX_BYTES:
                return limit
        return stop if final and stop > start else None

    def split(self, data: Buffer) -> list[int]:
        """The ends of all chunks of a whole stream."""
        ends: list[int] = []
        while (end := self.cut(data, ends[-1] if ends else 0, len(data), final=True)) is not None:
            ends.append(end)
        return ends


def _mod(value: int, modulus: int) -> int:
    degree = modulus.bit_length()
    while (excess := value.bit_length() - degree) >= 0:
        value ^= modulus << excess
    return value


def _square(value: int) -> int:
    return int(format(value, "b"), 4)  # squaring over GF(2) puts a zero between the bits


def _gcd(a: int, b: int) -> int:
    while b:
        a, b = b, _mod(a, b)
    return a

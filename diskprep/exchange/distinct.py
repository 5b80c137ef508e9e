"""Names that may come only once, remembered in few bytes, however many there are."""

from __future__ import annotations

import hashlib
import secrets
import struct
from array import array

_PAIR = struct.Struct("QQ")


class Names:
    """Which names were there already. Each is kept as 127 bits of a hash with a random key, in a table with gaps.

    So a name takes 24 to 48 bytes (while the table grows, half more), and no document can be made up to be slow. That
    two different names agree is to be expected once in 10^19 names.
    """

    def __init__(self) -> None:
        self._key = secrets.token_bytes(16)
        self._count = 0
        self._table = _empty(1 << 10)

    def add(self, name: str) -> bool:
        """Whether the name is new."""
        first, second = _PAIR.unpack(hashlib.blake2b(name.encode(), digest_size=16, key=self._key).digest())
        if not _put(self._table, first, second | 1):  # no second half is 0: that marks a gap
            return False
        self._count += 1
        if self._count * 3 > len(self._table):  # two thirds of the places, each of which is two numbers
            self._grow()
        return True

    def _grow(self) -> None:
        old, self._table = self._table, _empty(len(self._table))
        for place in range(0, len(old), 2):
            if old[place + 1]:
                _put(self._table, old[place], old[place + 1])


def _empty(places: int) -> array[int]:
    return array("Q", (0,)) * (2 * places)


def _put(table: array[int], first: int, second: int) -> bool:
    """Whether the pair is new. It goes to the first gap from where its first half points; a power of two of places."""
    mask = len(table) - 1
    place = first * 2 & mask
    while held := table[place + 1]:
        if held == second and table[place] == first:
            return False
        place = place + 2 & mask
    table[place], table[place + 1] = first, second
    return True

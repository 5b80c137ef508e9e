"""The compiled loop of the chunker. Importing this module loads numba (a second, 100 MB); only `chunker` does it.

F(e) is the polynomial of the 64 bytes before e, modulo P. It depends on these bytes alone, so four neighbouring pieces
can be rolled in one loop, which hides the latency of the table look-ups; the smallest hit wins.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from diskprep.compiled import compiled

_WINDOW = 64
_PIECE = 8192
_MASK = (1 << 20) - 1


def _warm(data: Any, at: Any, mods: Any) -> Any:
    digest = np.uint64(0)
    for i in range(at - _WINDOW, at):
        digest = ((digest << np.uint64(8)) ^ np.uint64(data[i])) ^ mods[digest >> np.uint64(45)]
    return digest


_warmed = compiled(_warm)


def _find(data: Any, first: Any, stop: Any, outs: Any, mods: Any) -> Any:  # noqa: PLR0912 - one loop, four lanes
    """Smallest e in [first, stop) with the low 20 bits of F(e) zero, or -1. `first` is at least 64, `stop` at most
    len(data)."""
    mask, eight, high = np.uint64(_MASK), np.uint64(8), np.uint64(45)
    none = np.uint64(_PIECE)
    base = first
    while stop - base > 4 * _PIECE:  # so that every candidate of the piece has a byte after it
        a, b = data[base - _WINDOW :], data[base - _WINDOW + _PIECE :]
        c, d = data[base - _WINDOW + 2 * _PIECE :], data[base - _WINDOW + 3 * _PIECE :]
        fa, fb = _warmed(data, base, mods), _warmed(data, base + _PIECE, mods)
        fc, fd = _warmed(data, base + 2 * _PIECE, mods), _warmed(data, base + 3 * _PIECE, mods)
        hit_a = hit_b = hit_c = hit_d = none
        for step in range(_PIECE):
            i = np.uint64(step)
            j = i + np.uint64(_WINDOW)
            if (fa & mask) == 0:
                hit_a = i
                break
            if (fb & mask) == 0 and hit_b == none:
                hit_b = i
            if (fc & mask) == 0 and hit_c == none:
                hit_c = i
            if (fd & mask) == 0 and hit_d == none:
                hit_d = i
            fa = ((fa << eight) ^ np.uint64(a[j]) ^ outs[a[i]]) ^ mods[fa >> high]
            fb = ((fb << eight) ^ np.uint64(b[j]) ^ outs[b[i]]) ^ mods[fb >> high]
            fc = ((fc << eight) ^ np.uint64(c[j]) ^ outs[c[i]]) ^ mods[fc >> high]
            fd = ((fd << eight) ^ np.uint64(d[j]) ^ outs[d[i]]) ^ mods[fd >> high]
        if hit_a != none:
            return base + np.int64(hit_a)
        if hit_b != none:
            return base + _PIECE + np.int64(hit_b)
        if hit_c != none:
            return base + 2 * _PIECE + np.int64(hit_c)
        if hit_d != none:
            return base + 3 * _PIECE + np.int64(hit_d)
        base += 4 * _PIECE
    if base < stop:
        digest = _warmed(data, base, mods)
        for e in range(base, stop):
            if (digest & mask) == 0:
                return np.int64(e)
            if e + 1 < stop:
                digest = ((digest << eight) ^ np.uint64(data[e]) ^ outs[data[e - _WINDOW]]) ^ mods[digest >> high]
    return np.int64(-1)


find = compiled(_find)

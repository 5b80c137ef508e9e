"""Compiled loops: functions that numba turns into machine code, without the GIL, kept for the next process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def compiled(function: Callable[..., Any]) -> Any:
    """`function`, compiled at its first call for each set of argument types. Importing this module takes 0.2 s."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # neither the package nor the home directory can keep a compiled copy
        return numba.njit(nogil=True)(function)

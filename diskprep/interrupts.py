"""Interrupts: Ctrl-C and its like, kept off from calls that must not be broken into.

A signal's handler runs between two instructions of the main thread, also inside a callback that a C library makes;
an exception there would be lost, or leave the library's memory in disorder. Such calls are made within `held`: the
signal is remembered and raised when the call is over. A second signal while one is remembered ends the process.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_EXIT_CODE = 130
_depth = 0
_remembered = False


def install() -> None:
    """Turn SIGINT, SIGTERM and SIGHUP into KeyboardInterrupt; those that were ignored (nohup) stay so."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _handle)


@contextmanager
def held() -> Iterator[None]:
    """Let no interrupt into the block; one that came is raised at its end. In threads nothing needs to be held."""
    global _depth, _remembered  # noqa: PLW0603  a process has one set of signal handlers
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        if _remembered and not _depth:
            _remembered = False
            raise KeyboardInterrupt


def _handle(_number: int, _frame: FrameType | None) -> None:
    global _remembered  # noqa: PLW0603
    if not _depth:
        raise KeyboardInterrupt
    if _remembered:
        os._exit(_EXIT_CODE)
    _remembered = True

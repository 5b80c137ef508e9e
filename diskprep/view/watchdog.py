"""The watchdog: a process of its own that freezes file systems, and thaws them whatever becomes of who asked.

    python watchdog.py PID LIMIT_S DESCRIPTOR...

Freezes the file systems of the descriptors in order and prints `frozen` for each, or `failed INDEX ERRNO`. Thaws them
in reverse order when told to by a line on stdin, when stdin ends, when process PID is no longer its parent, when
LIMIT_S seconds are over, and on SIGTERM; then prints `thawed` and why. Standard library only, and nothing is imported
or written to a file while anything is frozen, so that it cannot wait for what it holds.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import sys
from collections.abc import Sequence
from types import FrameType

FREEZE = 0xC0045877  # FIFREEZE of linux/fs.h
THAW = 0xC0045878
_POLL_S = 0.25


def main(arguments: Sequence[str]) -> None:
    parent, limit_s, descriptors = int(arguments[0]), float(arguments[1]), [int(text) for text in arguments[2:]]
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _stop)
    frozen: list[int] = []
    reason = "stopped"
    try:
        for index, descriptor in enumerate(descriptors):
            frozen.append(descriptor)
            try:
                fcntl.ioctl(descriptor, FREEZE, 0)
            except OSError as error:
                frozen.pop()
                reason = f"failed {index} {error.errno}"
                return
            _say("frozen")
        reason = _wait(parent, limit_s)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for descriptor in reversed(frozen):
            with contextlib.suppress(OSError):
                fcntl.ioctl(descriptor, THAW, 0)
        _say(reason if reason.startswith("failed") else f"thawed {reason}")


def _wait(parent: int, limit_s: float) -> str:
    """Wait for the first reason to thaw. Waits are counted, not timed: a clock may be set."""
    left = max(1, round(limit_s / _POLL_S))
    while left and os.getppid() == parent:
        if select.select([0], [], [], _POLL_S)[0]:
            return "asked" if os.read(0, 1) else "alone"
        left -= 1
    return "limit" if not left else "alone"


def _say(line: str) -> None:
    with contextlib.suppress(OSError):
        os.write(1, line.encode("ascii") + b"\n")


def _stop(_number: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit(0)


if __name__ == "__main__":
    main(sys.argv[1:])

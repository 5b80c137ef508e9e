"""What a program tells of a disk, whatever its exit status.

smartctl's is a set of flags; blkid's says that it found nothing.
"""

from __future__ import annotations

import contextlib

from diskprep import clock, process
from diskprep.errors import DiskprepError


def told(*argv: str, timeout_s: float) -> str | None:
    """What the program prints on stdout; None when there is no such program or it takes longer. Never fails."""
    if process.find(argv[0]) is None:
        return None
    with contextlib.suppress(DiskprepError):
        child = process.Companion(argv)
        lines: list[str] = []
        deadline = clock.monotonic_s() + timeout_s
        try:
            while line := child.line(max(0.0, deadline - clock.monotonic_s())):
                lines.append(line)
            return None if line is None else "\n".join(lines)
        finally:
            child.end(1.0)
    return None

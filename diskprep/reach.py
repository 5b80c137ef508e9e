"""Paths that are longer than a system call takes (4096 bytes): trees may be deeper than that."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_LIMIT_BYTES = 3800
_OPEN = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def reachable(top: bytes, path: bytes) -> Iterator[bytes]:
    """A name for `path` below `top` (b"": `top` itself) that every call takes, valid inside the block.

    Links below `top` are not followed on the way. Raises OSError.
    """
    whole = os.path.join(top, path) if path else top  # noqa: PTH118  bytes
    if len(whole) < _LIMIT_BYTES:
        yield whole
        return
    *directories, name = path.split(b"/")
    descriptor = os.open(top, _OPEN)
    try:
        while directories:
            step = [directories.pop(0)]
            while directories and len(b"/".join(step)) + len(directories[0]) < _LIMIT_BYTES:
                step.append(directories.pop(0))
            deeper = os.open(b"/".join(step), _OPEN, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = deeper
        yield b"/proc/self/fd/%d/%s" % (descriptor, name)
    finally:
        os.close(descriptor)

"""A mount that is measured while others use it: its server's memory and CPU time, and a mount point free afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from diskruns import Family
from harness import SAMPLE_S, Failed, metered

__all__ = ["SAMPLE_S", "Mounted", "mounted"]

_READY_S = 120.0
_END_S = 30.0


@dataclass(slots=True, kw_only=True)
class Mounted:
    """`family`: what the serving processes have used so far. `failure`: why they ended, when they failed."""

    family: Family = field(default_factory=Family)
    pid: int = 0
    failure: str = ""

    def look(self, pids: Sequence[int]) -> None:
        self.pid = pids[0]
        self.family.look(pids)

    def what(self) -> str:
        return self.failure or "the mount is served still"


@contextmanager
def mounted(
    command: Sequence[str], point: Path, *, environment: Mapping[str, str], limit_s: float
) -> Iterator[Mounted]:
    """Serve `point`, which is made, with `command`; however the block ends, nothing is mounted there afterwards.

    Raises Failed when the server does not start, or fails.
    """
    if not Path("/dev/fuse").exists():
        raise Failed("this computer has no FUSE: /dev/fuse is missing")
    mount = Mounted()
    point.mkdir(exist_ok=True)

    def serve() -> None:
        try:
            metered(command, environment=environment, limit_s=limit_s, look=mount.look)
        except Failed as error:
            mount.failure = str(error)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        _wait(point, thread, mount)
        yield mount
    finally:
        _end(point, thread, mount)
    if mount.failure:
        raise Failed(mount.failure)


def _wait(point: Path, thread: threading.Thread, mount: Mounted) -> None:
    deadline = time.monotonic() + _READY_S
    while not os.path.ismount(point):
        if not thread.is_alive() or time.monotonic() > deadline:
            raise Failed(f"nothing was mounted: {mount.failure or 'in time'}")
        time.sleep(0.02)


def _end(point: Path, thread: threading.Thread, mount: Mounted) -> None:
    """Unmount; when somebody still has files open there, end the server, then let go of what it leaves."""
    _unmount(point)
    thread.join(_END_S)
    if thread.is_alive():
        with suppress(ProcessLookupError):
            if mount.pid:
                os.kill(mount.pid, signal.SIGTERM)
        thread.join(_END_S)
    if thread.is_alive() and mount.pid:
        with suppress(ProcessLookupError):
            os.killpg(mount.pid, signal.SIGKILL)
        thread.join(_END_S)
    _unmount(point, "-z")


def _unmount(point: Path, *options: str) -> None:
    subprocess.run(
        ["fusermount3", "-u", *options, str(point)], stdin=subprocess.DEVNULL, capture_output=True, check=False
    )

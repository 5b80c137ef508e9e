"""Owner: whose a snapshot or mount is, told by its name alone, so that also what outlived a reboot can be judged.

    diskprep-<machine>-<boot>-<pid namespace>-<pid>-<start of the process>-<random>[-<number>]

A name is dead only when it surely is: of this machine, and of an earlier boot or of a process that is gone. What
another computer or another container made is nobody's business here.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from functools import cache
from pathlib import Path

_NAME = re.compile(
    r"diskprep-(?P<machine>[0-9a-f]{8})-(?P<boot>[0-9a-f]{8})-(?P<space>[0-9a-f]+)"
    r"-(?P<pid>\d+)-(?P<start>\d+)-[0-9a-f]{6}(?:-\d+)?"
)


def new_token() -> str:
    """A name that no other run has, and that says which process it belongs to."""
    pid = os.getpid()
    return f"diskprep-{_machine()}-{_boot()}-{_space()}-{pid}-{_start(pid)}-{secrets.token_hex(3)}"


def is_ours(name: str) -> bool:
    """Whether some run of diskprep gave this name."""
    return _NAME.fullmatch(name) is not None


def is_dead(name: str) -> bool:
    """Whether the process that gave this name is surely gone; False for names that diskprep did not give."""
    match = _NAME.fullmatch(name)
    if match is None or match["machine"] != _machine():
        return False
    if match["boot"] != _boot():
        return True
    return match["space"] == _space() and _start(int(match["pid"])) != int(match["start"])


def _start(pid: int) -> int:
    """When the process started, in clock ticks since boot; -1 when it is gone or waits to be reaped."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return -1
    fields = text.rpartition(")")[2].split()
    return -1 if fields[0] in "ZXx" else int(fields[19])


@cache
def _machine() -> str:
    """Eight digits that stand for this computer; the id itself is nothing to spread."""
    return hashlib.sha256(b"diskprep" + _text("/etc/machine-id").encode()).hexdigest()[:8]


@cache
def _boot() -> str:
    return _text("/proc/sys/kernel/random/boot_id").replace("-", "")[:8].rjust(8, "0")


def _space() -> str:
    """The process namespace: a number of another one means another process."""
    try:
        return f"{int(os.readlink('/proc/self/ns/pid').strip('pid:[]')):x}"  # noqa: PTH115  no file is named so
    except (OSError, ValueError):
        return "0"


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return ""

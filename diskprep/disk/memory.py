"""Memory: recovery passwords of disks that are being prepared, for the same command to go on after it was broken off.

They are in files of a file system that is the computer's memory, owned by this user and closed to others: no medium
ever holds them, and a restart forgets them. Where there is no such file system nothing is kept, and a disk that was
broken off is started over, unless the passphrase opens the escrow.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from diskprep import durable
from diskprep.secrets import Secret

_IN_MEMORY = ("tmpfs", "ramfs")
_SHARED = Path("/dev/shm")  # noqa: S108  a folder of one's own in there, checked; where /run is not memory


def place() -> Path | None:
    """The folder for this user's passwords; None where there is no memory to keep them in."""
    user = os.geteuid()
    own = Path("/run") if user == 0 else Path(os.environ.get("XDG_RUNTIME_DIR") or "/nowhere")
    try:
        if _is_memory(own):
            return _closed(own / "diskprep")
        return _closed(_SHARED / f"diskprep-{user}") if _is_memory(_SHARED) else None
    except OSError:
        return None


def _closed(folder: Path) -> Path | None:
    """`folder`, made where it does not exist, when it is in memory, this user's, and closed to others."""
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077
    return folder if ours and _is_memory(folder) else None  # a disk may be mounted right there


def keep(folder: Path | None, volume: str, password: Secret[str]) -> None:
    """Remember the password of a volume, named by its identifier. Raises StorageFull or StorageUnavailable."""
    if folder is not None:
        durable.write_file(folder / volume, password.reveal().encode("ascii"))


def recall(folder: Path | None, volume: str) -> Secret[str] | None:
    """The password of a volume, or None."""
    if folder is None:
        return None
    try:
        return Secret((folder / volume).read_text("ascii"))
    except (OSError, ValueError):
        return None


def forget(folder: Path | None, volume: str) -> None:
    """Remove it: the escrow alone has it from now on."""
    if folder is not None:
        with contextlib.suppress(OSError):
            (folder / volume).unlink()


def _is_memory(path: Path) -> bool:
    try:
        number = path.stat().st_dev
    except FileNotFoundError:
        return False
    wanted = f"{os.major(number)}:{os.minor(number)}"
    for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
        fields = line.split(" ")
        if fields[2] == wanted:
            return fields[fields.index("-") + 1] in _IN_MEMORY
    return False

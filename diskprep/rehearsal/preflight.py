"""Preflight: what a rehearsal needs, checked before its first byte: source, folder, tools, free space."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from diskprep import durable, process
from diskprep.errors import NotFound, StorageFull, UsageError
from diskprep.seed import Staging

#: Trees any Debian has, the most interesting first; the first of a fitting size is rehearsed when none is named.
DEFAULT_SOURCES = ("/usr", "/usr/lib", "/usr/share", "/usr/bin", "/etc")
_FITTING_BYTES = range(150_000_000, 700_000_000)

#: No real subscription: what it marks is a rehearsal's.
SUBSCRIPTION = "00000000-0000-4000-8000-000000000000"

_OCTAL = re.compile(r"\\([0-7]{3})")  # how mountinfo writes spaces
_MARK = ".diskprep-rehearsal"
_REMOVING = ".removing-"
_OWN = ("staging", "disks", "container", "vault", "restored", "restored-later", "source-copy", "journals", "account")
_OWN_FILES = ("passphrase", "summary.json", "certificate.json", "datacenter.sqlite", "datacenter.sqlite-*")


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeSize:
    """What a tree holds: bytes of regular files (each hard-linked file once), and entries of all kinds."""

    size_bytes: int
    entries: int


def measure(root: Path, *, limit_bytes: int | None = None) -> TreeSize:
    """The size of a tree, without following symlinks; what cannot be read counts nothing. Stops past `limit_bytes`."""
    size = entries = 0
    seen: set[tuple[int, int]] = set()
    pending = [os.fsencode(root)]
    while pending and (limit_bytes is None or size <= limit_bytes):
        path = pending.pop()
        try:
            status = os.lstat(path)
            if stat.S_ISDIR(status.st_mode):
                pending.extend(entry.path for entry in os.scandir(path))
        except OSError:
            continue
        entries += 1
        if stat.S_ISREG(status.st_mode) and (status.st_dev, status.st_ino) not in seen:
            if status.st_nlink > 1:
                seen.add((status.st_dev, status.st_ino))
            size += status.st_size
    return TreeSize(size_bytes=size, entries=entries)


def default_source() -> Path:
    """A tree of a few hundred MB that this computer has."""
    sizes = {}
    for name in DEFAULT_SOURCES:
        path = Path(name)
        if path.is_dir() and not path.is_symlink():
            sizes[path] = measure(path, limit_bytes=_FITTING_BYTES.stop).size_bytes
            if sizes[path] in _FITTING_BYTES:
                return path
    below = {path: size for path, size in sizes.items() if size < _FITTING_BYTES.start}
    if below:
        return max(below, key=lambda path: below[path])
    raise UsageError("no tree of a fitting size was found", hint="name one: diskprep rehearse SOURCE")


def check_source(source: Path) -> Path:
    """The source as an absolute path without symlinks. Raises NotFound or UsageError."""
    try:
        resolved = source.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise NotFound(f"there is no source {source}: {getattr(error, 'strerror', error)}") from None
    if not resolved.is_dir():
        raise UsageError(f"{resolved} is not a folder", hint="name a folder; it is only read")
    return resolved


@contextmanager
def workdir_for(workdir: Path | None, source: Path) -> Iterator[Path]:
    """The folder the rehearsal works in, alone: new, empty, or of an earlier rehearsal, whose results are then removed.

    Raises UsageError when it holds anything else, or when it and the source lie in each other's way; Locked when
    another rehearsal is in it; StorageUnavailable where it cannot be told.
    """
    if workdir is None:
        root = Path(tempfile.mkdtemp(prefix="diskprep-rehearsal-", dir="/var/tmp"))
    else:
        root = _check_workdir(workdir.absolute().resolve(), source)
    mark = root / _MARK
    used = mark.exists()
    if not used:
        durable.write_file(mark, b"This folder was made by diskprep rehearse. The next rehearsal here removes it.\n")
    with durable.only_process(mark, busy=f"another rehearsal is working in {root}", hint="choose another --workdir"):
        if used:
            clear(root)
        yield root


def _check_workdir(root: Path, source: Path) -> Path:
    if root == source or root.is_relative_to(source):
        raise UsageError(f"the working folder {root} is inside the source", hint="choose one outside: --workdir DIR")
    if any(source == root / name or source.is_relative_to(root / name) for name in _OWN):
        raise UsageError(
            f"the source {source} is where the rehearsal keeps its results", hint="choose another --workdir"
        )
    if not root.exists():
        durable.make_directory(root)
    elif not root.is_dir():
        raise UsageError(f"{root} is not a folder")
    elif not (root / _MARK).exists():
        others = [child for child in root.iterdir() if child != source and not source.is_relative_to(child)]
        if others:
            raise UsageError(f"the working folder {root} is not empty", hint="name a new one; nothing was removed")
    return root


def clear_one(root: Path, name: str) -> None:
    """Remove one of the folders that a rehearsal made. Raises StorageUnavailable."""
    assert name in _OWN, "only a rehearsal's own folders are removed"
    try:
        _remove_tree(root / name)
    except OSError as error:
        raise durable.storage_error(error, f"remove {root / name}") from error


def clear(root: Path, *, keep: tuple[str, ...] = ()) -> None:
    """Remove what a rehearsal left in its folder, and nothing else. Raises UsageError when something else is in it."""
    _check_clearable(root)
    try:
        for name in _OWN:
            if name not in keep and (root / name).exists():
                _remove_tree(root / name)
        for name in _OWN_FILES:
            if name not in keep:
                for path in root.glob(name):
                    path.unlink()
    except OSError as error:
        raise durable.storage_error(error, f"clear {root}") from error


def remove_workdir(root: Path) -> None:
    """Remove the mark, and the folder when nothing else is in it."""
    with contextlib.suppress(OSError):
        (root / _MARK).unlink()
        root.rmdir()


def check_space(root: Path, size: TreeSize) -> None:
    """Refuse before the first byte when the folder's file system cannot hold the journey.

    At worst (nothing compresses) it holds the source seven times: staging, disks, container, vault, the copy that is
    changed, two restored trees; and a few KiB for each entry.
    """
    need = 7 * size.size_bytes + size.entries * 16384 + (256 << 20)
    free = shutil.disk_usage(root).free
    if free < need:
        raise StorageFull(
            f"a rehearsal of {size.size_bytes / 1e9:.2f} GB may need {need / 1e9:.2f} GB in {root}; "
            f"{free / 1e9:.2f} GB are free",
            hint="choose a smaller SOURCE, or another place with --workdir DIR",
        )


def check_tools() -> None:
    """Raise ToolMissing before the first byte, not after an hour."""
    process.require("mkntfs")


def _remove_tree(top: Path) -> None:
    """Remove a tree of any depth, also folders without permissions, without following links.

    A folder in a folder is moved up to `top` first, so that no path gets long and nothing is entered recursively.
    """
    pending, number = [top], 0
    while pending:
        directory = pending.pop()
        directory.chmod(0o700)
        with os.scandir(directory) as found:
            entries = list(found)
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                Path(entry.path).chmod(0o700)  # or it may not be moved
                number += 1
                moved = top / f"{_REMOVING}{os.getpid()}-{number}"
                Path(entry.path).rename(moved)
                pending.append(moved)
            else:
                Path(entry.path).unlink()
        if directory != top:
            directory.rmdir()
    top.rmdir()


def _check_clearable(root: Path) -> None:
    """Refuse to remove what is no rehearsal's: a staging of a real job, or anything that is mounted in the folder."""
    seed = Staging(root / "staging").seed_file
    if seed.exists() and durable.read_json(seed).get("subscription_id") != SUBSCRIPTION:
        raise UsageError(f"{seed.parent} is the staging of a real job", hint="choose another --workdir")
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        point = Path(_OCTAL.sub(lambda found: chr(int(found[1], 8)), line.split(" ")[4]))
        if point != root and point.is_relative_to(root):
            raise UsageError(f"{point} is mounted inside the working folder", hint=f"umount {point}")

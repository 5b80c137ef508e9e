"""Durable files: whole or absent, on stable storage before the call returns.

Write order: temporary name in the same directory, write, fsync, rename, fsync of the directory. A failed fsync is
final: the temporary file is removed, the error goes up, nothing is retried on the same descriptor.

Several of them that change together are one process's at a time, by a lock on a file beside them (`only_process`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from diskprep import clock
from diskprep.errors import DataDamaged, DiskprepError, Locked, NotFound, StorageFull, StorageUnavailable

Buffer = bytes | bytearray | memoryview

TEMPORARY_PREFIX = ".tmp-"
_LOCK_STEP_S = 0.05
_NOT_SUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)
#: A disk or share that is gone, or fails; ECONNABORTED is what FUSE says to a call that was under way.
_AWAY = (
    *(errno.EIO, errno.ENODEV, errno.ESTALE, errno.ENOTCONN, errno.ECONNABORTED, errno.ECONNRESET),
    *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ETIMEDOUT),
)


def storage_error(error: OSError, doing: str) -> DiskprepError:
    """`error` as one of ours; `doing` completes the sentence "cannot ..."."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StorageFull(f"cannot {doing}: {error.strerror}", hint="make room, then give the same command again")
    if error.errno == errno.ENOENT:
        return NotFound(f"cannot {doing}: {error.strerror}")
    hint = "see that the disk or share is there and well, then give the same command again"
    return StorageUnavailable(f"cannot {doing}: {error.strerror or error}", hint=hint if error.errno in _AWAY else "")


def exists(path: Path) -> bool:
    """Whether there is something at `path`. Raises StorageUnavailable where that cannot be told."""
    try:
        return path.exists()
    except OSError as error:
        raise storage_error(error, f"look at {path}") from error


def fsync_directory(path: Path) -> None:
    """Make renames and removals inside `path` durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:  # some network file systems have nothing to sync, and say so
            raise
    finally:
        os.close(descriptor)


def set_mode(descriptor: int, mode: int) -> None:
    """Give an open file its mode, where the file system has modes. Raises OSError."""
    try:
        os.fchmod(descriptor, mode)
    except PermissionError:  # a share that has them and lets nobody change them
        return
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise


def write_all(descriptor: int, parts: Iterable[Buffer]) -> None:
    """Write every byte of `parts`; short writes are continued."""
    for part in parts:
        view = memoryview(part).cast("B")
        while view:
            view = view[os.write(descriptor, view) :]


def write_file(path: Path, data: Buffer | Iterable[Buffer], *, mode: int = 0o600) -> None:
    """Create or replace `path` with `data`, durably; it never exists half-written.

    Raises StorageFull or StorageUnavailable; `path` is then what it was before.
    """
    parts: Iterable[Buffer] = (data,) if isinstance(data, (bytes, bytearray, memoryview)) else data
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            try:
                write_all(descriptor, parts)
                if mode != 0o600:
                    set_mode(descriptor, mode)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        fsync_directory(path.parent)
    except OSError as error:
        raise storage_error(error, f"write {path}") from error


def move_file(source: Path, target: Path, *, mode: int) -> None:
    """Make `source`, a finished file of the same file system, durable under the name `target`.

    Raises StorageFull or StorageUnavailable; `target` is then what it was before.
    """
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            set_mode(descriptor, mode)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        source.replace(target)
        fsync_directory(target.parent)
    except OSError as error:
        raise storage_error(error, f"write {target}") from error


def make_directory(path: Path, *, mode: int = 0o700) -> None:
    """Create `path` and its missing parents, durably; an existing directory is left as it is."""
    missing = []
    step = path
    try:
        while not step.is_dir():
            missing.append(step)
            step = step.parent
        for directory in reversed(missing):
            directory.mkdir(mode=mode, exist_ok=True)
            fsync_directory(directory.parent)
    except OSError as error:
        raise storage_error(error, f"create the directory {path}") from error


def write_json(path: Path, document: dict[str, Any]) -> None:
    """`write_file` of `document` as indented JSON with sorted keys. Text that is no UTF-8 keeps its escapes."""
    write_file(path, (json.dumps(document, indent=2, sort_keys=True) + "\n").encode("ascii"))


def read_json(path: Path, *, limit_bytes: int = 1 << 30) -> dict[str, Any]:
    """The JSON object in `path`. Raises NotFound, StorageUnavailable or DataDamaged."""
    try:
        with path.open("rb") as stream:
            fits = os.fstat(stream.fileno()).st_size <= limit_bytes
            text = stream.read() if fits else b""
    except OSError as error:
        raise storage_error(error, f"read {path}") from error
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise DataDamaged(f"{path} is not a JSON object", hint="restore it from a copy, or start this stage over")
    return document


@contextlib.contextmanager
def only_process(path: Path, *, busy: str, hint: str, wait_s: float = 0.0) -> Iterator[None]:
    """Be the one process inside: by a lock on the file `path`, which is made when it is missing, and stays.

    The lock ends with the process, however that ends; children it has forked keep it until they have ended, too.
    Raises Locked(busy, hint) when another holds it for `wait_s` seconds more; NotFound, StorageFull or
    StorageUnavailable when the file cannot be opened, or the file system has no locks: nothing runs without one.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise storage_error(error, f"open {path}") from error
    try:
        until_s = clock.monotonic_s() + wait_s
        while not _lock(descriptor, path):
            if clock.monotonic_s() >= until_s:
                raise Locked(busy, hint=hint)
            clock.sleep(_LOCK_STEP_S)
        yield
    finally:
        with contextlib.suppress(OSError):  # of a share that is gone, which is told already
            os.close(descriptor)


def _lock(descriptor: int, path: Path) -> bool:
    """Lock an open file; False when another process has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise storage_error(error, f"lock {path}") from error
        return False
    return True

"""Files of a journal: the one that decides, and an optional mirror. See the package for the promises.

Write order of `append`: the frame, fdatasync; the mirror's frame, fdatasync; then both marks, not synced. A mark is on
the medium with the next record at the latest, and never ahead of the records, because they were synced before it.
Write order of `create`: a temporary file, fsync, link to its name (which must be free), fsync of the directory.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from journal import frames
from journal.frames import JournalDamaged, JournalError, Mark, Record, Replay

_IDENTITY = "journal"
_SIZE_LIMIT_BYTES = 1 << 30


class JournalLocked(JournalError):
    """Another process has the journal open for appending."""


class JournalFailed(JournalError, OSError):
    """The operating system refused a read, write or sync. `errno` is the system's."""


class _File:
    """One file of a journal, locked and open for reading and writing. After a failed write or sync it refuses all."""

    def __init__(self, path: Path) -> None:
        self._path, self._failed = path, False
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._descriptor)
            if error.errno != errno.EWOULDBLOCK:
                raise
            raise JournalLocked(f"the journal {path} is open in another process") from None

    def read(self) -> bytes:
        return _read_descriptor(self._descriptor)

    def append(self, frame: bytes, offset: int) -> None:
        self._write(frame, offset)
        self.sync()

    def mark(self, journal_id: bytes, mark: Mark) -> None:
        self._write(frames.encode_mark(journal_id, mark), frames.mark_offset(mark.count))

    def cut(self, end: int) -> None:
        os.ftruncate(self._descriptor, end)
        self.sync()

    def sync(self) -> None:
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            self._fail(error, "sync")

    def close(self) -> None:
        """Sync the last mark, unless something failed before, and let go of the lock."""
        if self._descriptor < 0:
            return
        try:
            if not self._failed:
                self.sync()
        finally:
            os.close(self._descriptor)
            self._descriptor = -1

    def _write(self, data: bytes, offset: int) -> None:
        if self._failed or self._descriptor < 0:
            raise JournalFailed(errno.EBADF, f"the journal {self._path} is closed, or failed before; open it again")
        view = memoryview(data)
        try:
            while view:
                count = os.pwrite(self._descriptor, view, offset)
                view, offset = view[count:], offset + count
        except OSError as error:
            self._fail(error, "write")

    def _fail(self, error: OSError, doing: str) -> None:
        # After a failed sync the kernel calls the lost pages clean: a second sync would say that all is well.
        self._failed = True
        raise JournalFailed(error.errno, f"cannot {doing} {self._path}: {error.strerror}") from error


class Journal:
    """A journal open for appending, by one process at a time. Made by `create` and `open`; not for several threads."""

    def __init__(self, path: Path, file: _File, replay: Replay) -> None:
        self._path, self._file = path, file
        self._id, self._end, self._chain = replay.journal_id, replay.end, replay.chain
        self._records = list(replay.records)
        self._mirror: _File | None = None
        self._mirror_error = ""
        self._broken: Path | None = None

    @classmethod
    def create(cls, path: Path, identity: Mapping[str, Any], *, mirror: Path | None = None) -> Self:
        """A new journal for `identity`. A file in the mirror's place is moved aside: it belonged to an older journal.

        Raises JournalFailed (an OSError), also when `path` exists.
        """
        journal_id = secrets.token_bytes(16)
        header = frames.encode_header(journal_id)
        start = frames.header_chain(header)
        frame, chain = frames.encode_frame(0, frames.encode_payload(_IDENTITY, identity), start)
        marks = (Mark(1, frames.FIRST_FRAME + len(frame), chain), Mark(0, frames.FIRST_FRAME, start))
        pages = {frames.mark_offset(mark.count): frames.encode_mark(journal_id, mark) for mark in marks}
        data = header + b"".join(pages[offset] for offset in sorted(pages)) + frame
        with _translated(f"create the journal {path}"):
            _write_durably(path, data, exclusive=True)
            if mirror is not None and mirror.exists():
                mirror.rename(_free_name(mirror, ".old"))
        return cls.open(path, mirror=mirror)

    @classmethod
    def open(cls, path: Path, *, mirror: Path | None = None) -> Self:
        """Replay a journal and go on with it.

        A torn tail is cut; the file as it was is kept beside it (see `broken`). The mirror is brought up to date.
        Raises JournalDamaged, JournalLocked, or JournalFailed (an OSError).
        """
        with _translated(f"open the journal {path}"):
            file = _File(path)
            try:
                data = file.read()
                replay = _replay(path, data)
                journal = cls(path, file, replay)
                if replay.tail:
                    journal._broken = _keep(path, data, ".broken")
                    file.cut(replay.end)
                file.sync()  # whole records that were not acknowledged count from now on
                file.mark(replay.journal_id, Mark(len(replay.records), replay.end, replay.chain))
                if mirror is not None:
                    journal._open_mirror(mirror, file.read())
            except BaseException:
                with contextlib.suppress(OSError):
                    file.close()
                raise
        return journal

    @property
    def identity(self) -> Mapping[str, Any]:
        """What the journal was created for."""
        return self._records[0].fields

    @property
    def records(self) -> tuple[Record, ...]:
        """All records after the identity, in order."""
        return tuple(self._records[1:])

    @property
    def broken(self) -> Path | None:
        """The copy of the file with the torn tail that opening cut off; None when there was no torn tail."""
        return self._broken

    @property
    def mirror_error(self) -> str:
        """Why the mirror is not written any more; empty while it is, or when there is none."""
        return self._mirror_error

    def append(self, type_: str, /, **fields: Any) -> int:
        """Add a record and return its number once it is on the medium.

        A failure of the file is final: JournalFailed (an OSError) now and for every later call. A failure of the
        mirror is not: it is left alone until the next `open`, and `mirror_error` says why.
        """
        sequence = len(self._records)
        payload = frames.encode_payload(type_, fields)
        frame, chain = frames.encode_frame(sequence, payload, self._chain)
        self._file.append(frame, self._end)
        mark = Mark(sequence + 1, self._end + len(frame), chain)
        if self._mirror is not None:
            try:
                self._mirror.append(frame, self._end)
                self._mirror.mark(self._id, mark)
            except OSError as error:
                self._drop_mirror(error)
        self._file.mark(self._id, mark)
        self._records.append(frames.decode_payload(sequence, payload))
        self._end, self._chain = mark.end, chain
        return sequence

    def close(self) -> None:
        """Let go of the files. Records are durable already; this makes the last mark durable too."""
        try:
            if self._mirror is not None:
                self._mirror.close()
        except OSError as error:
            self._mirror_error = str(error)
        finally:
            self._mirror = None
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open_mirror(self, path: Path, data: bytes) -> None:
        """Make the mirror equal to the journal. Raises JournalDamaged when it holds what the journal does not."""
        try:
            old = _read(path) if path.exists() else None
            if old is not None:
                self._compare(path, old)
            if old != data:
                _write_durably(path, data, exclusive=False)
            self._mirror = _File(path)
        except OSError as error:
            self._drop_mirror(error)

    def _compare(self, path: Path, data: bytes) -> None:
        try:
            other = frames.replay(data)
        except JournalDamaged:
            _keep(path, data, ".broken")
            return
        if other.journal_id != self._id:
            raise JournalDamaged(f"{path} mirrors journal {other.journal_id.hex()}; {self._path} is {self._id.hex()}")
        common = min(len(other.records), len(self._records))
        if other.records[:common] != self._records[:common]:
            raise JournalDamaged(f"{path} and {self._path} have different records")
        if len(other.records) > common:
            raise JournalDamaged(
                f"{self._path} ends after {common} records, its mirror {path} after {len(other.records)}: "
                "the former is an old copy"
            )

    def _drop_mirror(self, error: OSError) -> None:
        self._mirror_error = str(error)
        if self._mirror is not None:
            with contextlib.suppress(OSError):
                self._mirror.close()
            self._mirror = None


def read(path: Path) -> list[Record]:
    """The records of a journal, which is not touched or locked; the first one is its identity.

    A torn tail is left out. Raises JournalDamaged or JournalFailed (an OSError).
    """
    with _translated(f"read the journal {path}"):
        return _replay(path, _read(path)).records


@contextlib.contextmanager
def _translated(doing: str) -> Iterator[None]:
    try:
        yield
    except JournalFailed:
        raise
    except OSError as error:
        raise JournalFailed(error.errno, f"cannot {doing}: {error.strerror}") from error


def _replay(path: Path, data: bytes) -> Replay:
    try:
        replay = frames.replay(data)
    except JournalDamaged as error:
        raise JournalDamaged(f"{path}: {error}") from None
    if not replay.records or replay.records[0].type != _IDENTITY:
        raise JournalDamaged(f"{path}: the journal does not say what it was created for")
    return replay


def _read(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        return _read_descriptor(descriptor)
    finally:
        os.close(descriptor)


def _read_descriptor(descriptor: int) -> bytes:
    size = os.fstat(descriptor).st_size
    if size > _SIZE_LIMIT_BYTES:
        raise JournalDamaged(f"a journal of {size} bytes; the limit is {_SIZE_LIMIT_BYTES}")
    data = bytearray()
    while part := os.pread(descriptor, 1 << 20, len(data)):
        data += part
    return bytes(data)


def _keep(path: Path, data: bytes, suffix: str) -> Path:
    kept = _free_name(path, suffix)
    _write_durably(kept, data, exclusive=False)
    return kept


def _free_name(path: Path, suffix: str) -> Path:
    candidate, number = path.with_name(path.name + suffix), 2
    while candidate.exists():
        candidate, number = path.with_name(f"{path.name}{suffix}-{number}"), number + 1
    return candidate


def _write_durably(path: Path, data: bytes, *, exclusive: bool) -> None:
    """Make `path` hold `data`, whole or not at all; with `exclusive` it must not exist."""
    temporary = path.with_name(f".tmp-{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if exclusive:
            path.hardlink_to(temporary)
        else:
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)

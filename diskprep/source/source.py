"""Source: one path to back up, and how much there is of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from diskprep.durable import storage_error
from diskprep.errors import UsageError


@dataclass(frozen=True, slots=True)
class Source:
    """A directory, file or symlink to back up. `path` is its absolute path, which the snapshot shows; `read_from` is
    where it is really read, for example in a snapshot of the file system (None: at `path`)."""

    path: bytes
    read_from: bytes | None = None

    def __post_init__(self) -> None:
        for value in (self.path, self.read_from):
            if value is not None and (not value.startswith(b"/") or b"\0" in value):
                raise UsageError(f"{display(value)} is not an absolute path")
        object.__setattr__(self, "path", _clean(self.path))
        if self.read_from is not None:
            object.__setattr__(self, "read_from", _clean(self.read_from))

    @property
    def location(self) -> bytes:
        """Where the source is read."""
        return self.path if self.read_from is None else self.read_from

    @property
    def components(self) -> tuple[bytes, ...]:
        return tuple(part for part in self.path.split(b"/") if part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """An estimate, from what directories say: files that change or cannot be looked at make it wrong."""

    files: int
    size_bytes: int
    has_long_files: bool = True  # longer than 512 KiB, which one chunk can be


def check_sources(sources: Sequence[Source]) -> None:
    """Raise UsageError without a source or when one lies inside another, NotFound when one does not exist."""
    if not sources:
        raise UsageError("no source is named")
    for source in sources:
        try:
            os.lstat(source.location)
        except OSError as error:
            raise storage_error(error, f"read the source {display(source.location)}") from error
        for other in sources:
            if other is not source and source.components[: len(other.components)] == other.components:
                raise UsageError(
                    f"the source {display(source.path)} lies inside the source {display(other.path)}",
                    hint="name the outer one only",
                )


def measure(sources: Iterable[Source], exclude: Collection[bytes] = ()) -> Measure:
    """Count regular files and their sizes in bytes, without `exclude` (absolute original paths)."""
    files = size_bytes = 0
    for source in sources:
        pending = [source.location]
        cut = len(source.location.rstrip(b"/"))
        while pending:
            path = pending.pop()
            if source.path.rstrip(b"/") + path[cut:] in exclude:
                continue
            try:
                with os.scandir(path) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            pending.append(entry.path)
                        elif entry.is_file(follow_symlinks=False):
                            files += 1
                            size_bytes += entry.stat(follow_symlinks=False).st_size
            except NotADirectoryError:
                files += 1
                with contextlib.suppress(OSError):
                    size_bytes += os.lstat(path).st_size
            except OSError:
                continue  # told by the backup itself
    return Measure(files=files, size_bytes=size_bytes)


def display(path: bytes) -> str:
    """`path` for messages and records: UTF-8 stays, all else and everything unprintable is escaped."""
    text = path.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def public_path(path: bytes) -> str:
    """`path` as snapshots list it: U+FFFD for each byte that is not UTF-8."""
    text = path.decode("utf-8", "surrogateescape")
    return "".join("\ufffd" if 0xDC80 <= ord(sign) <= 0xDCFF else sign for sign in text)


def _clean(path: bytes) -> bytes:
    return b"/" + os.path.normpath(path).lstrip(b"/")

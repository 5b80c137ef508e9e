"""The nouns of a view: kinds, hooks, the view itself, and what each way of taking snapshots does for it.

A place is one file system's tree inside one source: the source's own, and one for each file system mounted below it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from diskprep import process
from diskprep.errors import DiskprepError
from diskprep.events import Emit, Note
from diskprep.source import Source
from diskprep.view.mounts import Mount, inside, relative
from diskprep.view.room import Room

STAGE = "view"


class ViewKind(StrEnum):
    """How the sources are kept still. AUTO as the kind of a view that was taken: several kinds together."""

    AUTO = "auto"
    BTRFS = "btrfs"
    LVM = "lvm"
    ZFS = "zfs"
    FREEZE = "freeze"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """Command lines, split as a shell splits them and run without one; empty: nothing is run."""

    pre: str = ""
    post: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """`sources`: the ones that were asked for, with the place to read them from. `consistency`: what it is worth, for
    people."""

    sources: tuple[Source, ...]
    kind: ViewKind
    consistency: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A file system's tree in a source, beginning at `at` (a path without symlinks) on `mount`. `top`: where the source
    itself begins, likewise without symlinks."""

    source: Source
    top: bytes
    at: bytes
    mount: Mount
    excluded: frozenset[bytes] = frozenset()
    one_file_system: bool = False

    @property
    def inner(self) -> bytes:
        """The path of `at` from the root of the file system."""
        return join(self.mount.root, relative(self.at, self.mount.point))

    @property
    def is_source(self) -> bool:
        return self.at == self.top

    def is_excluded(self, at: bytes) -> bool:
        """Whether a path of this place is left out of the backup anyway."""
        original = join(self.source.path, relative(at, self.top))
        return any(inside(original, path) for path in self.excluded)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What belongs at `at` of `place`'s source is read at `location`."""

    place: Place
    at: bytes
    location: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a way of taking snapshots works with. `token` begins the name of everything it makes; `cleanup` takes back
    what it made, last first."""

    token: str
    room: Room
    cleanup: ExitStack
    emit: Emit

    def clear(self, name: str, how: Callable[[], object] | Sequence[str]) -> None:
        """Remove what a dead run left, by a call or a command, and tell of it. A failure does not stop this run."""
        try:
            if callable(how):
                how()
            else:
                process.run(how, own_session=True)
        except DiskprepError as error:
            self.emit(Note(stage=STAGE, text=f"cannot remove {name}, which a dead run had left: {error.message}"))
        else:
            self.emit(Note(stage=STAGE, text=f"removed {name}, which a dead run had left"))


class Snapshots(Protocol):
    """One way of taking snapshots, for all places it can do. Each step raises DiskprepError."""

    def prepare(self) -> None:
        """Remove what dead runs left, and find out all that can be found out before."""

    def take(self) -> None:
        """Take the snapshots, in as little time as possible."""

    def show(self) -> list[Shown]:
        """Make them readable."""

    def check(self) -> None:
        """After the reading: raise when the snapshots did not last until then."""

    @property
    def count(self) -> int:
        """How many snapshots there are."""

    @property
    def one_moment(self) -> bool:
        """Whether all of them are of the same moment."""


def join(*parts: bytes) -> bytes:
    """Path components below the first part, with one slash between them; empty ones are dropped."""
    path = parts[0].rstrip(b"/")
    for part in parts[1:]:
        if stripped := part.strip(b"/"):
            path += b"/" + stripped
    return path or b"/"


def is_directory(path: bytes) -> bool:
    """Whether there is a directory at `path` itself, not behind a symlink."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False


def listing(names: Iterable[str], most: int = 3) -> str:
    """The first names of many, for a message."""
    found = list(dict.fromkeys(names))
    rest = f" and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(found[:most]) + rest

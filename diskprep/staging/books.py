"""The books of a walk: what was met, and the directories whose entries are being collected."""

from __future__ import annotations

from dataclasses import dataclass, field

from diskprep import clock
from diskprep.events import Emit, Note, Progress
from diskprep.repository.tree import Base
from diskprep.source import Entry, OpenDirectory, display

_PROGRESS_INTERVAL_S = 0.2


@dataclass(slots=True)
class Counts:
    """What was met on the way; paths are the original ones. `fixed_blocks`: files that were cut in blocks of one size,
    and why."""

    files: int = 0
    dirs: int = 0
    files_unmodified: int = 0
    left_out: int = 0
    bytes_processed: int = 0
    sockets: int = 0
    unreadable: list[tuple[bytes, str]] = field(default_factory=list)
    changed: list[bytes] = field(default_factory=list)
    fixed_blocks: list[tuple[bytes, str]] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Directory:
    """A directory whose entries are being collected. `pending`: entries and batches that are still out; `users`:
    batches and long files among them, which need it open."""

    parent: Directory | None
    name: bytes
    path: bytes
    entry: Entry | None = None  # None: the root of the snapshot
    location: bytes | None = None  # of a source
    device: int | None = None  # of the source it belongs to
    opened: OpenDirectory | None = None
    identity: tuple[int, int] | None = None
    held: list[OpenDirectory] = field(default_factory=list)  # around sources that are files; to be closed at the end
    base_tree: bytes | None = None  # of the same directory in the base snapshot
    base: Base | None = None  # its content, once it was needed here
    nodes: list[tuple[bytes, bytes]] = field(default_factory=list)
    pending: int = 0
    users: int = 0

    def path_of(self, name: bytes) -> bytes:
        return self.path.rstrip(b"/") + b"/" + name


class Books:
    """Counts, and tells what is worth telling."""

    def __init__(self, emit: Emit, total_bytes: int | None) -> None:
        self.counts = Counts()
        self.emit, self._total_bytes = emit, total_bytes
        self._done_bytes = 0
        self._told_s = 0.0

    def note(self, text: str) -> None:
        self.emit(Note(stage="stage", text=text))

    def unreadable(self, path: bytes, reason: str) -> None:
        self.counts.unreadable.append((path, reason))
        self.note(f"cannot read {display(path)}: {reason}")

    def changed(self, path: bytes) -> None:
        self.counts.changed.append(path)
        self.note(f"{display(path)} changed while it was read")

    def fixed_blocks(self, path: bytes, reason: str) -> None:
        self.counts.fixed_blocks.append((path, reason))
        self.note(f"{display(path)}: {reason}")

    def progress(self, more_bytes: int, *, force: bool = False) -> None:
        self._done_bytes += more_bytes
        now_s = clock.monotonic_s()
        if force or now_s - self._told_s >= _PROGRESS_INTERVAL_S:
            self._told_s = now_s
            self.emit(Progress(stage="stage", done_bytes=self._done_bytes, total_bytes=self._total_bytes))

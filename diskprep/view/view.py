"""A consistent view of the sources, for as long as they are read.

Order: what dead runs left is removed; pre-hook; all snapshots, one right after the other; post-hook; the snapshots are
mounted in a private room, each where the source has it; the caller reads; everything is taken back, last first. All
names carry the run's owner (owner.py), and every removal is entered before its snapshot is taken: so whatever breaks a
run off, the next one of the same kind removes what is left.

A view that is no snapshot: FREEZE makes the file systems stand still meanwhile, NONE does nothing; the post-hook then
runs after the reading.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from diskprep import clock, interrupts
from diskprep.errors import DiskprepError, SourceIncomplete, StorageUnavailable, UsageError
from diskprep.events import Emit, Note, silent
from diskprep.source import Source, check_sources, display
from diskprep.view import freeze
from diskprep.view.btrfs import BtrfsSnapshots, clear_room
from diskprep.view.choice import Choice, choose, find_places, original
from diskprep.view.hooks import HookRun
from diskprep.view.lvm import LvmSnapshots
from diskprep.view.model import (
    STAGE,
    Hooks,
    Place,
    Setting,
    Shown,
    Snapshots,
    View,
    ViewKind,
    join,
    listing,
)
from diskprep.view.mounts import Mount, relative
from diskprep.view.owner import new_token
from diskprep.view.room import Room, close_room, dead_rooms, run_directory
from diskprep.view.zfs import ZfsSnapshots

#: How long file systems stand still at most, in seconds: who writes to them waits for so long.
FREEZE_LIMIT_S = 300.0

_WAYS: dict[ViewKind, type[BtrfsSnapshots] | type[LvmSnapshots] | type[ZfsSnapshots]] = {
    ViewKind.LVM: LvmSnapshots,
    ViewKind.ZFS: ZfsSnapshots,
    ViewKind.BTRFS: BtrfsSnapshots,
}
_HOOK_TEXT = "; application-consistent as far as the pre-hook provides for it"


@contextmanager
def consistent_view(
    sources: Sequence[Source],
    *,
    kind: ViewKind = ViewKind.AUTO,
    hooks: Hooks = Hooks(),  # noqa: B008  a frozen value
    exclude: Collection[bytes] = (),
    one_file_system: bool = False,
    writes_to: Sequence[Path] = (),
    freeze_limit_s: float = FREEZE_LIMIT_S,
    run_root: Path | None = None,
    emit: Emit = silent,
) -> Iterator[View]:
    """Keep `sources` still inside the block, by `kind`.

    `exclude`: absolute original paths that the backup leaves out; what is mounted there needs no snapshot.
    `one_file_system`: the backup does not go into other file systems and subvolumes. `writes_to`: what the caller
    writes to meanwhile (staging, vault, state), which must not be frozen. `run_root`: where the private room is made.

    Raises UsageError when the kind is not possible here or would make this process wait for itself, DiskprepError when
    a hook fails, and what the programs of a kind say; at the end of the block SourceIncomplete or StorageFull when the
    view did not last until then. What cannot be removed is told in a Note: the next run removes it.
    """
    check_sources(sources)
    run = HookRun(hooks)
    find = _Finder(tuple(dict.fromkeys(sources)), tuple(exclude), one_file_system)
    choice = find.choice(kind)
    kept = tuple(os.fsencode(path.absolute()) for path in writes_to)
    if choice.kind is ViewKind.FREEZE:
        _to_freeze(choice, kept)
    failed = True
    try:
        run.pre()
        if run.has_pre:
            choice = find.choice(kind)  # it may have mounted something, or made a subvolume
        if choice.refused:
            emit(Note(stage=STAGE, text=f"{choice.refused}; the files are read as they are, while they may change"))
        opened: AbstractContextManager[View]
        if choice.kind is ViewKind.FREEZE:
            opened = _frozen(choice, kept, freeze_limit_s, run, emit)
        elif choice.by_kind:
            opened = _snapshots(choice, run, run_root or run_directory(), emit)
        else:
            opened = contextlib.nullcontext(_plain(choice, run))
        with opened as view:
            yield view
        failed = False
    finally:
        _settle_hooks(run, failed=failed, emit=emit)


@dataclass(frozen=True, slots=True)
class _Finder:
    sources: tuple[Source, ...]
    exclude: tuple[bytes, ...]
    one_file_system: bool

    def choice(self, kind: ViewKind) -> Choice:
        """NONE looks at no mount; AUTO does without a snapshot where none can be seen: in a chroot or a container."""
        if kind is ViewKind.NONE:
            return Choice(kind=kind, sources=self.sources)
        try:
            places = find_places(self.sources, exclude=self.exclude, one_file_system=self.one_file_system)
        except StorageUnavailable as error:
            if kind is not ViewKind.AUTO:
                raise UsageError(f"--snapshot {kind}: {error.message}", hint="use --snapshot auto or none") from None
            return Choice(kind=ViewKind.NONE, sources=self.sources, refused=f"no snapshot is possible: {error.message}")
        return choose(kind, places)


def _settle_hooks(run: HookRun, *, failed: bool, emit: Emit) -> None:
    """Run the post-hook where it is still owed. After a failure its own is told, and the first one goes up."""
    with interrupts.held():
        try:
            run.post()
        except DiskprepError as error:
            if not failed:
                raise
            emit(Note(stage=STAGE, text=error.message))


def _plain(choice: Choice, run: HookRun) -> View:
    text = "none: files are read one after the other, while programs may write to them"
    if choice.places and all(place.mount.is_fixed for place in choice.places):
        text = "the file systems are read-only: nothing changes"
    return View(sources=choice.sources, kind=ViewKind.NONE, consistency=text + (_HOOK_TEXT if run.has_pre else ""))


@contextmanager
def _frozen(choice: Choice, writes_to: Sequence[bytes], limit_s: float, run: HookRun, emit: Emit) -> Iterator[View]:
    mounts = _to_freeze(choice, writes_to)
    _tell_as_they_are([place for place in choice.places if place.mount.is_in_memory], emit)
    names = listing(display(mount.point) for mount in mounts)
    count = f"{len(mounts)} file systems stand" if len(mounts) > 1 else "the file system stands"
    with freeze.frozen([mount.point for mount in mounts], limit_s=limit_s) as held:
        emit(Note(stage=STAGE, text=f"{names}: frozen for at most {limit_s:.0f} s"))
        yield View(
            sources=choice.sources,
            kind=ViewKind.FREEZE,
            consistency=f"crash-consistent: {count} still while it is read" + (_HOOK_TEXT if run.has_pre else ""),
        )
    if not held.lasted:
        raise SourceIncomplete(
            f"{names}: thawed before the reading had ended, for it took longer than {limit_s:.0f} s",
            hint="what was stored is not of one moment: use a snapshot, or name less to back up",
        )


@contextmanager
def _snapshots(choice: Choice, run: HookRun, run_root: Path, emit: Emit) -> Iterator[View]:
    """The view through snapshots. AUTO goes on without them when they cannot be taken after all."""
    cleanup = ExitStack()
    ways: tuple[Snapshots, ...] = ()
    try:
        try:
            with interrupts.held():
                taken = _take(choice, cleanup, run_root, emit)
            run.post()
            with interrupts.held():
                view = _assemble(choice, taken, run, emit)
            ways = tuple(taken.ways.values())
        except DiskprepError as error:
            if choice.kind is not ViewKind.AUTO or (run.has_any and not run.owed):
                raise
            _take_back(cleanup, emit)
            emit(Note(stage=STAGE, text=f"no snapshot: {error.message}; the files are read while they may change"))
            view = _plain(choice, run)
        yield view
        for way in ways:
            way.check()
    finally:
        _take_back(cleanup, emit)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Taken:
    """Snapshots that were taken, the first and the last `span_s` seconds apart."""

    room: Room
    ways: dict[ViewKind, Snapshots]
    span_s: float


def _take(choice: Choice, cleanup: ExitStack, run_root: Path, emit: Emit) -> _Taken:
    """Take all snapshots. Whatever happens, `cleanup` then removes what there is."""
    token = new_token()
    room = Room(token, run_root)
    cleanup.callback(room.close)
    room.open()
    setting = Setting(token=token, room=room, cleanup=cleanup, emit=emit)
    for path in dead_rooms(run_root):
        clear_room(path, setting)
        with contextlib.suppress(DiskprepError):
            close_room(path)
    ways: dict[ViewKind, Snapshots] = {
        kind: way(choice.by_kind[kind], setting) for kind, way in _WAYS.items() if kind in choice.by_kind
    }
    for way in ways.values():
        way.prepare()
    begun_s = clock.monotonic_s()
    for way in ways.values():
        way.take()
    span_s = clock.monotonic_s() - begun_s
    cleanup.callback(room.clear)  # what uses a snapshot goes before it
    return _Taken(room=room, ways=ways, span_s=span_s)


def _assemble(choice: Choice, taken: _Taken, run: HookRun, emit: Emit) -> View:
    """Put the pieces of each source together, and say where it is to be read."""
    pieces = [piece for way in taken.ways.values() for piece in way.show()]
    pieces += [Shown(place=place, at=place.at, location=place.at) for place in choice.as_they_are]
    _tell_as_they_are(choice.as_they_are, emit)
    found: list[Source] = []
    for source in choice.sources:
        own = sorted((piece for piece in pieces if piece.place.source == source), key=lambda piece: piece.at)
        first, *others = own
        location = first.location
        if others:
            location = taken.room.bind_source(len(found), location)
            for piece in others:
                taken.room.lay(piece.location, join(location, relative(piece.at, first.at)))
        found.append(Source(source.path, location))
    kinds = list(taken.ways)
    return View(
        sources=tuple(found),
        kind=kinds[0] if len(kinds) == 1 else ViewKind.AUTO,
        consistency=_consistency(taken) + (_HOOK_TEXT if run.has_pre else ""),
    )


def _take_back(cleanup: ExitStack, emit: Emit) -> None:
    with interrupts.held():
        try:
            cleanup.close()
        except DiskprepError as error:
            emit(Note(stage=STAGE, text=f"not all of the view could be removed, the next run will: {error.message}"))


def _consistency(taken: _Taken) -> str:
    counts = [f"{way.count} {kind} snapshot{'s' if way.count > 1 else ''}" for kind, way in taken.ways.items()]
    text = f"crash-consistent: {' and '.join(counts)}"
    if len(taken.ways) == 1 and all(way.one_moment for way in taken.ways.values()):
        return text + " of one moment"
    return f"{text}, each of its own moment, taken within {max(taken.span_s, 0.01):.2f} s"


def _tell_as_they_are(places: Sequence[Place], emit: Emit) -> None:
    """Of memory only what holds files is worth a word."""
    live = [display(original(place, place.at)) for place in places if place.mount.fstype in ("tmpfs", "ramfs")]
    if live:
        emit(Note(stage=STAGE, text=f"{listing(live)}: in memory, read as it is"))


def _to_freeze(choice: Choice, writes_to: Sequence[bytes]) -> list[Mount]:
    """One mount of each file system to be frozen, in order. Raises UsageError when one must not be."""
    mounts = [place.mount for place in choice.places if not place.mount.is_in_memory and not place.mount.is_fixed]
    if not mounts:
        raise UsageError("--snapshot freeze: there is no file system to freeze", hint="use --snapshot none")
    freeze.refuse(mounts, writes_to)
    return freeze.freezing_order(mounts)

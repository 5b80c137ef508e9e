"""Repair of a vault: packs that its index names and that are missing or damaged.

The best answer is the pack itself, from the staging: it has its name again, and nothing else changes. What no staging
has is stored anew, blob by blob (`again`); the lost packs then leave the index, as other programs and the next backup
would count on them. So a blob that nobody has any more is in no index, and a later backup that meets it stores it.

Write order: packs, index files that name them, the list of what is dropped, index files without the dropped packs, old
index files gone, damaged packs gone. After a kill at any point everything that could be read before can be read; packs
that no index names yet are taken in by the next repair, so it goes on where this one ended.

Storing needs a lock like any backup's, and holds of disks in transit may be there. Dropping wants the repository alone
but for holds: a backup that runs meanwhile could count on what is dropped. Which packs still travel the repository
cannot know; the caller names those that are lost.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from diskprep import clock
from diskprep.errors import DataDamaged, Interrupted, Locked, NotFound
from diskprep.events import Emit, Note, Progress, silent
from diskprep.repository import lock as locks
from diskprep.repository.pack import BlobKind, PackEntry, object_name, verify_pack
from diskprep.repository.repository import Repository, hash_names
from diskprep.source import Source
from diskprep.store import Store
from diskprep.vault.again import Storing, salvage, store_from_sources
from diskprep.vault.lost import LostEntry, Sound, TreeMap
from diskprep.vault.reading import in_threads
from diskprep.vault.settings import write_in_tier

_STAGE = "repair"
_DROPPED = "x-seed/dropped-"
_FORMAT, _VERSION = "diskprep-dropped", 1


class Flaw(StrEnum):
    """What is wrong with a pack."""

    MISSING = "missing"
    WRONG_SIZE = "of the wrong size"
    DAMAGED = "damaged"


@dataclass(frozen=True, slots=True, kw_only=True)
class BadPack:
    """A pack of the index that is not whole. `pack` has 64 hexadecimal digits, `name` is its object's; `size_bytes`:
    what it should have."""

    pack: str
    kind: BlobKind
    flaw: Flaw
    size_bytes: int

    @property
    def name(self) -> str:
        return object_name(self.pack)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mended:
    """What a repair did. `sent`: packs from the staging; `adopted`: packs that were there and in no index; `stored`:
    blobs that were stored anew, `stored_bytes` of plaintext; `dropped`: packs that left the index; `left`: packs that
    are as they were; `lost`: what recovery points cannot give back now."""

    sent: int = 0
    sent_bytes: int = 0
    adopted: int = 0
    stored: int = 0
    stored_bytes: int = 0
    dropped: int = 0
    left: tuple[BadPack, ...] = ()
    lost: tuple[LostEntry, ...] = ()


def find_bad_packs(repository: Repository, *, read_data: bool = False, emit: Emit = silent) -> tuple[BadPack, ...]:
    """Packs of the index that are missing or have another size; with `read_data` every other one is read, and its blobs
    opened, too. Changes nothing. Raises Locked, DataDamaged, StorageUnavailable."""
    with repository.lock():
        repository.reload_index()
        sizes = {stored.name: stored.size_bytes for stored in repository.store.list("data/")}
        found, there = [], []
        for entry in repository.index.packs.values():
            size_bytes = sizes.get(object_name(entry.pack))
            if size_bytes == entry.size_bytes:
                there.append(entry)
            else:
                found.append(_bad(entry, Flaw.MISSING if size_bytes is None else Flaw.WRONG_SIZE))
        if read_data:
            done, total = 0, sum(entry.size_bytes for entry in there)
            for entry, flaw in in_threads(repository.store, lambda e: (e, _flaw_of(repository, e)), there):
                done += entry.size_bytes
                found += [_bad(entry, flaw)] if flaw else []
                emit(Progress(stage=_STAGE, done_bytes=done, total_bytes=total))
    return tuple(sorted(found, key=lambda bad: bad.pack))


def find_lost(repository: Repository, bad: Collection[BadPack]) -> tuple[LostEntry, ...]:
    """Files and directories that need a blob which only these packs have, or none. Changes nothing."""
    with repository.lock():
        points = repository.snapshots()
        repository.reload_index()
        trees = TreeMap(repository, Sound(repository.index, {pack.pack for pack in bad}))
        trees.read(points)
        return trees.lost(points)


def repair(
    repository: Repository,
    bad: Sequence[BadPack],
    *,
    staging: Store | None = None,
    sources: Sequence[Source] = (),
    drop: bool = False,
    emit: Emit = silent,
) -> Mended:
    """Send `bad` again from the repository in `staging`; what it does not have whole is stored again from what can be
    read in damaged packs and in `sources`, under their original paths. With sources, or with `drop`, packs that could
    not be sent leave the index. The same call again goes on.

    Raises Locked when somebody has the repository alone, or writes to it when packs are to be dropped: what could be
    stored is stored then. Raises StorageFull, StorageUnavailable, DataDamaged.
    """
    with repository.lock():
        write_in_tier(repository, emit)
        points = repository.snapshots()  # before the index: what a backup adds meanwhile is then in the index
        repository.reload_index()
        bad = [pack for pack in bad if pack.pack in repository.index.packs]  # another repair may have been faster
        sent = _send(repository, bad, staging, emit) if staging is not None else frozenset()
        left = [pack for pack in bad if pack.pack not in sent]
        sound = Sound(repository.index, {pack.pack for pack in left})
        adopted = _adopt(repository, sound, emit)
        trees = TreeMap(repository, sound)
        storing = Storing(repository, sound)
        try:
            if sources or drop:
                there = [repository.index.packs[pack.pack] for pack in left if pack.flaw is not Flaw.MISSING]
                salvage(repository, there, storing)
                storing.finish()
            trees.read(points)
            if sources:
                store_from_sources(repository, trees.needs(points), sources, sound, storing)
                storing.finish()
        except (KeyboardInterrupt, Interrupted):
            storing.save_index()
            raise
        finally:
            storing.close()
        lost = trees.lost(points)
        stored = {each.name for each in repository.store.list("data/")}
    dropped: frozenset[str] = frozenset()
    if left and (sources or drop):
        dropped = _drop(repository, left, sound, stored)
        emit(Note(stage=_STAGE, text=f"{len(dropped)} packs left the index"))
    repository.forget_index()
    return Mended(
        sent=len(sent),
        sent_bytes=sum(pack.size_bytes for pack in bad if pack.pack in sent),
        adopted=adopted,
        stored=storing.blobs,
        stored_bytes=storing.plaintext_bytes,
        dropped=len(dropped),
        left=tuple(pack for pack in left if pack.pack not in dropped),
        lost=lost,
    )


def dropped_packs(store: Store) -> frozenset[str]:
    """Names of the packs that repairs of this vault have dropped from its index, or were about to. Such a pack is not
    awaited any more when no index names it. Raises DataDamaged."""
    found: set[str] = set()
    for item in list(store.list("x-seed/")):
        if item.name.startswith(_DROPPED):
            try:
                document = json.loads(store.read(item.name))
                if (document["format"], document["version"]) != (_FORMAT, _VERSION):
                    raise ValueError("another format")
                found.update(str(pack) for pack in document["packs"])
            except (ValueError, KeyError, TypeError, RecursionError):
                raise DataDamaged(f"{item.name} in {store.location} is damaged") from None
    return frozenset(found)


def _bad(entry: PackEntry, flaw: Flaw) -> BadPack:
    return BadPack(pack=entry.pack, kind=entry.kind, flaw=flaw, size_bytes=entry.size_bytes)


def _flaw_of(repository: Repository, entry: PackEntry) -> Flaw | None:
    try:
        verify_pack(entry.pack, repository.store.read(object_name(entry.pack)), repository.key, entry)
    except NotFound:
        return Flaw.MISSING
    except DataDamaged:
        return Flaw.DAMAGED
    return None


def _send(repository: Repository, bad: Sequence[BadPack], staging: Store, emit: Emit) -> frozenset[str]:
    """Write the packs that the staging has whole under their names; which these were."""

    def send(pack: BadPack) -> bool:
        try:
            data = staging.read(pack.name)
        except (NotFound, DataDamaged):
            return False
        if hashlib.sha256(data).hexdigest() != pack.pack:
            return False
        repository.save_pack(repository.index.packs[pack.pack], data)
        return True

    done, total = 0, sum(pack.size_bytes for pack in bad)
    sent = set()
    named = [pack for pack in bad if pack.pack in repository.index.packs]
    for pack, is_sent in in_threads(repository.store, lambda p: (p, send(p)), named):
        done += pack.size_bytes
        emit(Progress(stage=_STAGE, done_bytes=done, total_bytes=total))
        if is_sent:
            sent.add(pack.pack)
    if len(sent) < len(bad):
        emit(Note(stage=_STAGE, text=f"{len(bad) - len(sent)} packs are not whole in {staging.location}"))
    return frozenset(sent)


def _adopt(repository: Repository, sound: Sound, emit: Emit) -> int:
    """Name whole packs that no index names, when they have blobs that can be read nowhere else: a repair that was
    killed left them, or a disk brought them that was given up."""
    named = repository.index.packs
    strange = [name for name in hash_names(repository.store, "data/") if name not in named]

    def look(name: str) -> PackEntry | None:
        try:
            return verify_pack(name, repository.store.read(object_name(name)), repository.key, None)
        except (DataDamaged, NotFound):
            return None

    adopted = []
    for entry in in_threads(repository.store, look, strange):
        if entry is not None and any(sound.find(blob.kind, blob.id) is None for blob in entry.blobs):
            adopted.append(entry)
            sound.add(entry)
    repository.save_index(adopted)
    if adopted:
        emit(Note(stage=_STAGE, text=f"{len(adopted)} packs that no index named have what was missed"))
    return len(adopted)


def _drop(repository: Repository, bad: Iterable[BadPack], sound: Sound, there: Collection[str]) -> frozenset[str]:
    """Take these packs out of the index, but for those that have come back meanwhile; which these were. `there`: names
    of the packs that the store had a moment ago; others that have a lost blob, too, still travel."""
    counted_on = {
        object_name(found.pack)
        for pack in bad
        for blob in repository.index.packs[pack.pack].blobs
        if (found := sound.find(blob.kind, blob.id)) is not None
    } & set(there)
    directory = locks.LockDirectory(repository.store, repository.key)
    with locks.locked(directory, exclusive=True, tolerate_holds=True) as lock:
        sizes = {stored.name: stored.size_bytes for stored in repository.store.list("data/")}
        flaws = {pack.pack: pack.flaw for pack in bad if not _came_back(repository, pack, sizes)}
        if not flaws:
            return frozenset()
        if gone := counted_on - sizes.keys():  # nobody held the repository for a moment
            raise Locked(
                f"{len(gone)} packs that have the lost blobs were removed meanwhile, {min(gone)} among them",
                hint="give the same command again; nothing was dropped",
            )
        lock.require_held()
        _note_dropped(repository.store, flaws)
        for name, entries in repository.index_files():
            kept = [entry for entry in entries if entry.pack not in flaws]
            if len(kept) == len(entries):
                continue
            lock.require_held()
            repository.save_index(kept)
            lock.require_held()
            repository.store.delete(name)
        for pack, flaw in flaws.items():
            if flaw is not Flaw.MISSING:
                lock.require_fresh()
                repository.store.delete(object_name(pack))
    return frozenset(flaws)


def _came_back(repository: Repository, pack: BadPack, sizes: Mapping[str, int]) -> bool:
    """Whether somebody has sent the pack again: it was found hours ago, and may be certified by now."""
    if sizes.get(pack.name) != pack.size_bytes:
        return False
    return pack.flaw is not Flaw.DAMAGED or _flaw_of(repository, repository.index.packs[pack.pack]) is None


def _note_dropped(store: Store, packs: Collection[str]) -> None:
    document = {
        "format": _FORMAT,
        "version": _VERSION,
        "created": clock.rfc3339(clock.now()),
        "packs": sorted(packs),
    }
    data = json.dumps(document, indent=1, sort_keys=True).encode()
    store.write(f"{_DROPPED}{hashlib.sha256(data).hexdigest()[:16]}.json", [data])

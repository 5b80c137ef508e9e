"""Prune: packs that no recovery point needs are deleted, and those that are needed in part are packed anew.

Write order, under an exclusive lock, each step durable before the next begins:

    1. new packs with what is needed of the old ones; each is read back and every blob in it opened
    2. new index files in place of those that name a pack which goes
    3. a second look: what all index files but the replaced ones name, in packs that are there and stay, is all that
       recovery points need; no index file or snapshot has come from anybody else meanwhile
    4. the replaced index files are deleted
    5. the packs are deleted

So a crash leaves packs too many, or index files that say the same twice, and the next prune clears them away. When the
lock turns out to be lost, as after sleep, nothing more is deleted. Between 4 and 5 it must never have been lost: who
comes later reads an index without the packs that go, and counts on none of them.

Refused while a hold is there, for packs still travel; while a cleanup is outstanding, for the certificate would cover
nothing any more (see `outstanding`); when anything that recovery points need cannot be found or read; and when there is
no recovery point, for then a folder that is not mounted looks like one that needs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import numpy as np

from diskprep.errors import CleanupRefused, DataDamaged, DiskprepError, Locked, UsageError
from diskprep.events import Emit, Note, Progress, silent
from diskprep.repository.lock import Lock
from diskprep.repository.pack import BlobKind, BlobLocation, PackEntry, object_name, verify_pack
from diskprep.repository.packwriter import PackWriter
from diskprep.repository.repository import Repository, hash_names, is_object_name
from diskprep.vault.forget import refuse_hold
from diskprep.vault.holdings import Holdings, note_needs, read_holdings
from diskprep.vault.outstanding import give_up, outstanding
from diskprep.vault.reading import Range, in_threads, open_range, ranges
from diskprep.vault.settings import write_in_tier

_STAGE = "prune"
INDEX_BLOBS = 50_000  # restic's own number
_PACKS_AT_ONCE = 64
_PACK_PREFIX = "data/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much to pack anew. Packs are taken until what is not needed in the others is at most `unused_share` of all,
    or `unused_bytes` when that is given, and at most `repack_bytes` have been written. Either may be infinite."""

    unused_share: float = 0.05
    unused_bytes: float | None = None
    repack_bytes: float = float("inf")

    def unused_allowed(self, needed_bytes: float) -> float:
        if self.unused_bytes is not None:
            return self.unused_bytes
        return float("inf") if self.unused_share >= 1 else needed_bytes * self.unused_share / (1 - self.unused_share)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunePlan:
    """What a prune does. Packs: `kept` as they are, `unneeded` and `unindexed` (left by somebody who was cut off) are
    deleted, `repacked` are deleted after their `moved_bytes` are in new ones; `lost` are named by the index, not there,
    and not needed. `unused_bytes` stay, in packs that are kept."""

    points: int
    kept: int
    kept_bytes: int
    unneeded: int
    unneeded_bytes: int
    unindexed: int
    unindexed_bytes: int
    repacked: int
    repacked_bytes: int
    moved_bytes: int
    lost: int
    unused_bytes: int
    index_files: int
    index_files_replaced: int

    @property
    def freed_bytes(self) -> int:
        return self.unneeded_bytes + self.unindexed_bytes + self.repacked_bytes - self.moved_bytes

    @property
    def is_empty(self) -> bool:
        return not (self.unneeded or self.unindexed or self.repacked or self.index_files_replaced)


@dataclass(slots=True)
class _Work:
    """What a plan was made of, and what it comes to. `goes`: whether a pack is deleted, by its number."""

    points: frozenset[str]
    holdings: Holdings
    chosen: dict[BlobKind, np.ndarray]  # the place of each needed blob that is counted on
    goes: np.ndarray
    moves: np.ndarray  # whether a pack that goes is needed in part
    doomed: tuple[tuple[str, int], ...]  # objects to delete, and their sizes
    replaced: frozenset[str]
    plan: PrunePlan


def prune(
    repository: Repository,
    limits: Limits | None = None,
    *,
    dry_run: bool = False,
    before_cleanup: bool = False,
    forgotten: Collection[str] = (),
    tell: Callable[[PrunePlan], None] = lambda _: None,
    emit: Emit = silent,
) -> PrunePlan:
    """Free what no recovery point needs; `tell` is given the plan before anything is written.

    `dry_run`: only plan, beside backups, as if the recovery points `forgotten` were gone. `before_cleanup`: also while
    a cleanup is outstanding, which is then given up. Raises Locked, CleanupRefused, DataDamaged, UsageError,
    StorageFull, StorageUnavailable; whatever is raised and whenever it is killed, all that recovery points need is
    there. Memory: 60 bytes a blob, and twice as much more while the index is sorted.
    """
    limits = limits or Limits()
    if dry_run:
        with repository.lock():
            work = _plan(repository, limits, frozenset(forgotten), emit)
        tell(work.plan)
        return work.plan
    refuse_hold(repository)
    repository.remove_stale_locks()  # of a run that was killed
    with repository.lock(exclusive=True) as lock:
        if not before_cleanup:
            _refuse_outstanding(repository)
        work = _plan(repository, limits, frozenset(), emit)
        tell(work.plan)
        if before_cleanup:
            give_up(repository.store)
        if not work.plan.is_empty:
            write_in_tier(repository, emit)
            try:
                _Run(repository, lock, work, emit).run()
            finally:
                repository.forget_index()  # it is another one now
    emit(Note(stage=_STAGE, text=f"{work.plan.freed_bytes / 1e6:.1f} MB were freed"))
    return work.plan


def _refuse_outstanding(repository: Repository) -> None:
    jobs = sorted(outstanding(repository.store))
    if jobs:
        raise CleanupRefused(
            f"the cleanup of job {jobs[0]} is outstanding: a prune now would make its certificate worthless, and with "
            "it the permission to empty its staging and container",
            hint="nothing was deleted; run `diskprep cleanup` first. When there is nothing to clean up, or you will do "
            "that yourself, add --before-cleanup",
        )


# -- the plan


def _plan(repository: Repository, limits: Limits, forgotten: frozenset[str], emit: Emit) -> _Work:
    points = repository.snapshots()
    roots = {point.tree for point in points if point.id not in forgotten}
    if not roots:
        raise UsageError(
            f"{repository.store.location} has no recovery point that would stay: nothing in it would be needed",
            hint="nothing was deleted; see that the right folder is mounted. A vault that is wanted no more, delete it",
        )
    stored = _stored_packs(repository)
    holdings = read_holdings(repository, stored)
    note_needs(repository, holdings, roots, emit)
    chosen = {kind: _choose(repository, holdings, kind) for kind in BlobKind}
    used, unused = _usage(holdings, chosen)
    moves = _to_repack(used, unused, limits)
    goes = (used == 0) | moves
    names = [object_name(pack) for pack in holdings.packs]
    known = set(names)
    unindexed = [name for name in stored if name not in known]
    unneeded = [names[number] for number in np.flatnonzero(goes & ~moves) if names[number] in stored]
    repacked = [names[number] for number in np.flatnonzero(moves)]
    replaced = _to_replace(holdings, goes)
    plan = PrunePlan(
        points=len(points) - len(forgotten),
        kept=int((~goes).sum()),
        kept_bytes=sum(stored[names[number]] for number in np.flatnonzero(~goes)),
        unneeded=len(unneeded),
        unneeded_bytes=sum(stored[name] for name in unneeded),
        unindexed=len(unindexed),
        unindexed_bytes=sum(stored[name] for name in unindexed),
        repacked=len(repacked),
        repacked_bytes=sum(stored[name] for name in repacked),
        moved_bytes=int(used[moves].sum()),
        lost=sum(name not in stored for name in names),
        unused_bytes=int(unused[~goes].sum()),
        index_files=len(holdings.files),
        index_files_replaced=len(replaced),
    )
    return _Work(
        points=frozenset(point.id for point in points),
        holdings=holdings,
        chosen=chosen,
        goes=goes,
        moves=moves,
        doomed=tuple((name, stored[name]) for name in [*unindexed, *unneeded, *repacked]),
        replaced=replaced,
        plan=plan,
    )


def _stored_packs(repository: Repository) -> dict[str, int]:
    """Name and size of the packs that are there; what only lies beside them is not ours to delete."""
    return {
        stored.name: stored.size_bytes for stored in repository.store.list(_PACK_PREFIX) if is_object_name(stored.name)
    }


def _choose(repository: Repository, holdings: Holdings, kind: BlobKind) -> np.ndarray:
    """A place of each needed blob. Where there are several, one that was read and opened: the others may go, and of two
    copies only one may be whole. Raises DataDamaged when none is."""
    places = holdings.places[kind]
    needed = places.needed_blobs()
    chosen = needed.copy()
    # Where most of the needed bytes are, the fewest will have to move.
    share = np.bincount(places.pack_of(needed), weights=places.lengths(needed), minlength=len(holdings.packs))
    waiting: dict[int, list[int]] = {}
    for blob in places.several().tolist():
        copies = np.array(places.copies(blob))
        waiting[blob] = copies[np.argsort(share[places.pack_of(copies)], kind="stable")].tolist()
    while waiting:
        tried: dict[BlobLocation, tuple[int, int]] = {}
        for blob, left in waiting.items():
            if not left:
                raise DataDamaged(
                    f"no copy of the {kind} blob {holdings.location(kind, blob).id.hex()}, which is needed, is whole",
                    hint="nothing was deleted; `diskprep vault check --read-data` tells more",
                )
            place = left.pop()
            tried[holdings.location(kind, place)] = blob, place
        for whole in in_threads(repository.store, lambda group: _opened(repository, group), ranges(tried)):
            for location in whole:
                blob, place = tried[location]
                chosen[np.searchsorted(needed, blob)] = place
                del waiting[blob]
    return chosen


def _opened(repository: Repository, group: Range) -> list[BlobLocation]:
    """Which blobs of the group are whole."""
    return [blob for blob, plaintext in open_range(repository, group) if not isinstance(plaintext, DiskprepError)]


def _usage(holdings: Holdings, chosen: dict[BlobKind, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Of each pack: bytes of the blobs that are counted on in it, and of the others."""
    used, total = np.zeros(len(holdings.packs), dtype=np.int64), np.zeros(len(holdings.packs), dtype=np.int64)
    for kind, places in holdings.places.items():
        for sums, some in ((used, chosen[kind]), (total, np.arange(len(places)))):
            np.add.at(sums, places.pack_of(some), places.lengths(some))
    return used, total - used


def _to_repack(used: np.ndarray, unused: np.ndarray, limits: Limits) -> np.ndarray:
    """Whether each pack is to be packed anew: those that free most for what has to be moved come first."""
    found = np.zeros(len(used), dtype=bool)
    candidates = np.flatnonzero((used > 0) & (unused > 0))
    order = candidates[np.argsort(-unused[candidates] / used[candidates], kind="stable")]
    left, moved = int(unused[candidates].sum()), 0
    allowed = limits.unused_allowed(int(used.sum()))
    for number in order.tolist():
        if left > allowed and moved + int(used[number]) <= limits.repack_bytes:
            found[number] = True
            left -= int(unused[number])
            moved += int(used[number])
    return found


def _to_replace(holdings: Holdings, goes: np.ndarray) -> frozenset[str]:
    """The index files that name a pack which goes, or one that another names too: left by a prune that was cut off."""
    named = np.zeros(len(goes), dtype=bool)
    replaced = []
    for name, numbers in holdings.files.items():
        packs = np.array(numbers, dtype=np.int64)
        if goes[packs].any() or named[packs].any() or not len(packs):
            replaced.append(name)
        else:
            named[packs] = True
    return frozenset(replaced)


# -- its execution


class _Run:
    """The five steps."""

    def __init__(self, repository: Repository, lock: Lock, work: _Work, emit: Emit) -> None:
        self._repository, self._lock, self._work, self._emit = repository, lock, work, emit
        self._done_bytes = 0
        self._total_bytes = work.plan.moved_bytes + sum(size for _, size in work.doomed)

    def run(self) -> None:
        fresh = self._repack()
        written = self._write_index(fresh)
        self._look_again(written)
        self._delete_index()
        self._lock.require_held()  # whoever comes from now on sees the new index only
        self._delete_packs()

    def _repack(self) -> list[PackEntry]:
        """Store what is needed of the packs that move; return the new packs."""
        holdings, fresh = self._work.holdings, []
        for kind in BlobKind:
            writer = PackWriter(kind, self._repository.key, self._repository.pack_size_bytes)
            for some in self._moving(kind):
                locations = (holdings.location(kind, int(place)) for place in some)
                groups = in_threads(self._repository.store, self._open_all, ranges(locations))
                for blob, plaintext in (found for group in groups for found in group):
                    writer.add(blob.id, plaintext)
                    self._progress(blob.length)
                    if writer.size_bytes >= self._repository.pack_size_bytes or writer.is_full_of_entries:
                        fresh.append(self._save(writer))
            if len(writer):
                fresh.append(self._save(writer))
        return fresh

    def _moving(self, kind: BlobKind) -> Iterator[np.ndarray]:
        """The places that move, those of some packs at a time."""
        places, chosen = self._work.holdings.places[kind], self._work.chosen[kind]
        packs = places.pack_of(chosen)
        moving = np.flatnonzero(self._work.moves)
        for start in range(0, len(moving), _PACKS_AT_ONCE):
            some = chosen[np.isin(packs, moving[start : start + _PACKS_AT_ONCE])]
            if len(some):
                yield some

    def _open_all(self, group: Range) -> list[tuple[BlobLocation, bytes]]:
        found = []
        for blob, plaintext in open_range(self._repository, group):
            if isinstance(plaintext, DiskprepError):
                raise DataDamaged(
                    f"a blob that is to be packed anew cannot be read: {plaintext.message}",
                    hint="nothing was deleted; `diskprep vault check --read-data` tells more",
                )
            found.append((blob, plaintext))
        return found

    def _save(self, writer: PackWriter) -> PackEntry:
        """Write a pack and read it back: what it holds is about to have no other copy."""
        finished = writer.finish()
        self._repository.save_pack(finished.entry, finished.data)
        data = self._repository.store.read(object_name(finished.entry.pack))
        verify_pack(finished.entry.pack, data, self._repository.key, finished.entry)
        return finished.entry

    def _write_index(self, fresh: list[PackEntry]) -> set[str]:
        """Write what the replaced index files say of packs that stay, and the new packs; return the files' names."""
        written: set[str] = set()
        waiting: list[PackEntry] = []
        blobs = 0
        for entry in self._entries(fresh):
            waiting.append(entry)
            blobs += len(entry.blobs)
            if blobs >= INDEX_BLOBS:
                written.add(f"index/{self._repository.save_index(waiting)}")
                waiting, blobs = [], 0
        if waiting:
            written.add(f"index/{self._repository.save_index(waiting)}")
        return written

    def _entries(self, fresh: list[PackEntry]) -> Iterator[PackEntry]:
        holdings, replaced = self._work.holdings, self._work.replaced
        wanted = ~self._work.goes
        for name, numbers in holdings.files.items():
            if name not in replaced:
                wanted[np.array(numbers, dtype=np.int64)] = False
        stays = {holdings.packs[number] for number in np.flatnonzero(wanted)}
        for name, entries in self._repository.index_files():
            for entry in entries if name in replaced else ():
                if entry.pack in stays:
                    stays.remove(entry.pack)  # once is enough
                    yield entry
        yield from fresh

    def _look_again(self, written: set[str]) -> None:
        """See that all is in place before the first deletion. Raises Locked, DataDamaged; nothing was deleted then."""
        repository, work = self._repository, self._work
        doomed = {name for name, _ in work.doomed}
        stored = _stored_packs(repository)
        places = work.holdings.places
        covered = {kind: np.zeros(len(places[kind]), dtype=bool) for kind in BlobKind}
        there: set[str] = set()
        for name, entries in repository.index_files():
            there.add(name)
            for entry in entries if name not in work.replaced else ():
                pack = object_name(entry.pack)
                if pack not in doomed and stored.get(pack) == entry.size_bytes:
                    found, _ = places[entry.kind].find([blob.id for blob in entry.blobs])
                    covered[entry.kind][found] = True
        if there != work.holdings.files.keys() | written or work.points != set(
            hash_names(repository.store, "snapshots/")
        ):
            raise Locked(
                f"somebody else writes to {repository.store.location} without minding the lock",
                hint="nothing was deleted; see who it is, then give the same command again",
            )
        lost = sum(int((places[kind].needed & ~covered[kind]).sum()) for kind in BlobKind)
        if lost:
            raise DataDamaged(
                f"{lost} blobs that recovery points need would be lost: what was written is not all there",
                hint="nothing was deleted; this must not happen, please report it",
            )
        self._lock.require_held()

    def _delete_index(self) -> None:
        for name in sorted(self._work.replaced):
            self._lock.require_held()
            self._repository.store.delete(name)

    def _delete_packs(self) -> None:
        for size_bytes in in_threads(self._repository.store, self._delete, self._work.doomed):
            self._progress(size_bytes)

    def _delete(self, pack: tuple[str, int]) -> int:
        name, size_bytes = pack
        self._lock.require_fresh()
        self._repository.store.delete(name)
        return size_bytes

    def _progress(self, more_bytes: int) -> None:
        self._done_bytes += more_bytes
        self._emit(Progress(stage=_STAGE, done_bytes=self._done_bytes, total_bytes=self._total_bytes))

"""Nothing that a recovery point needs is ever lost: whatever is pruned, whenever it is cut off, whoever else writes."""

from __future__ import annotations

import random
import shutil
from datetime import timedelta
from pathlib import Path

import pytest
from blobserver import Azurite
from support import need, run
from trip import flip_middle, overwrite
from vaults import (
    PASSPHRASE,
    CutOff,
    History,
    assert_whole,
    change,
    in_child,
    kill,
    listing,
    new_history,
    take_point,
)

from diskprep import clock
from diskprep.errors import DataDamaged, Locked, UsageError
from diskprep.repository import lock as locks
from diskprep.repository.pack import BlobKind, object_name, open_blob
from diskprep.repository.packwriter import PackWriter
from diskprep.repository.repository import Repository
from diskprep.repository.snapshot import Snapshot
from diskprep.store.directory import DirectoryStore
from diskprep.vault.forget import Wish, forget
from diskprep.vault.prune import Limits, prune
from diskprep.vault.retention import KeepPolicy

ALL = Limits(unused_bytes=0)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "SETTLE_S", 0.01)


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> History:
    """A vault of five recovery points, not to be changed."""
    folder = tmp_path_factory.mktemp("history")
    (folder / "vault").mkdir()
    return new_history(DirectoryStore(folder / "vault"), folder / "source")


@pytest.fixture
def vault(history: History, tmp_path: Path) -> Repository:
    return history.copied(tmp_path / "vault")


@pytest.fixture
def restic(tmp_path: Path) -> Restic:
    return Restic(tmp_path)


class Restic:
    def __init__(self, folder: Path) -> None:
        self._password, self._cache = folder / "passphrase", folder / "cache"
        self._password.write_text(PASSPHRASE)

    def __call__(self, repository: Repository, *words: str | Path) -> str:
        options = ("--password-file", self._password, "--cache-dir", self._cache, "-r", repository.store.location)
        return run(need("restic"), *options, *words)

    def check(self, repository: Repository, *words: str) -> None:
        self(repository, "unlock")
        assert "no errors were found" in self(repository, "check", *words)


def drop(repository: Repository, *places: int) -> None:
    """Forget some recovery points, by their place in the order of time."""
    points = repository.snapshots()
    forget(repository, Wish(ids=tuple(points[place].id for place in places)))


def test_what_no_recovery_point_needs_goes_and_all_else_stays(
    history: History, vault: Repository, restic: Restic
) -> None:
    ids = [point.id for point in vault.snapshots()]
    drop(vault, 0, 2)
    before = sum(item.size_bytes for item in listing(vault.store))
    planned = prune(vault, ALL, dry_run=True)
    assert sum(item.size_bytes for item in listing(vault.store)) == before
    done = prune(vault, ALL)
    assert (done, done.repacked > 0, done.unneeded > 0) == (planned, True, True)
    after = sum(item.size_bytes for item in listing(vault.store))
    assert before - after == pytest.approx(done.freed_bytes, rel=0.02)
    assert done.freed_bytes > 3_000_000  # two of the long files, at least
    assert_whole(history, vault, points=[ids[1], ids[3], ids[4]])
    restic.check(vault, "--read-data")
    assert prune(vault, ALL).is_empty
    assert list(vault.store.list("locks/")) == []


def test_restic_finds_nothing_to_prune_after_us_nor_we_after_restic(
    history: History, vault: Repository, tmp_path: Path, restic: Restic
) -> None:
    drop(vault, 1, 3)
    theirs = history.over(DirectoryStore(tmp_path / "theirs"))
    shutil.copytree(vault.store.location, theirs.store.location)
    prune(vault, ALL)
    said = " ".join(restic(vault, "prune", "--dry-run", "--max-unused", "0").split())
    assert "this removes: 0 blobs / 0 B" in said
    assert "to delete: 0 blobs / 0 B" in said
    restic(theirs, "prune", "--max-unused", "0")
    done = prune(theirs, ALL)
    assert (done.unneeded, done.unindexed, done.repacked) == (0, 0, 0)
    for repository in (vault, theirs):
        assert_whole(history, repository)
    sizes = [sum(item.size_bytes for item in each.store.list("data/")) for each in (vault, theirs)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)


def test_killed_before_any_write_or_delete_nothing_needed_is_lost_and_the_next_run_ends_it(
    history: History, vault: Repository, tmp_path: Path, restic: Restic
) -> None:
    drop(vault, 0, 2)
    ids = [point.id for point in vault.snapshots()]
    shutil.copytree(vault.store.location, tmp_path / "whole")
    prune(vault, ALL)
    want = _blobs(vault)
    phases: set[str] = set()
    index = {item.name for item in DirectoryStore(tmp_path / "whole").list("index/")}
    for at in range(1000):
        folder = tmp_path / "cut"
        shutil.copytree(tmp_path / "whole", folder)
        cut = history.over(CutOff(DirectoryStore(folder), at, kill))
        status = in_child(lambda repository=cut: prune(repository, ALL))  # type: ignore[misc]
        opened = history.over(DirectoryStore(folder))
        phases.add(_phase(opened, index))
        assert_whole(history, opened, points=ids)
        restic.check(opened)
        done = prune(opened, ALL)
        assert_whole(history, opened, points=ids)
        assert _blobs(opened) == want
        assert prune(opened, ALL).is_empty
        shutil.rmtree(folder)
        if status == 0:
            assert done.is_empty
            break
        assert status == -9
    assert at > 15
    assert phases == {"nothing", "new packs", "both indexes", "old index going"}


def test_killed_again_and_again_it_ends_all_the_same(history: History, vault: Repository) -> None:
    drop(vault, 0, 2)
    ids = [point.id for point in vault.snapshots()]
    rng = random.Random(9)
    for _ in range(200):
        cut = history.over(CutOff(vault.store, rng.randrange(14), kill))
        status = in_child(lambda repository=cut: prune(repository, ALL))  # type: ignore[misc]
        assert_whole(history, vault, points=ids)
        if status == 0:
            break
    assert status == 0
    assert prune(vault, ALL).is_empty


def _blobs(repository: Repository) -> set[tuple[BlobKind, bytes]]:
    """Every blob that the index names; none twice."""
    blobs = [(blob.kind, blob.id) for _, entries in repository.index_files() for e in entries for blob in e.blobs]
    assert len(blobs) == len(set(blobs))
    return set(blobs)


def _phase(repository: Repository, index: set[str]) -> str:
    """How far a run came that was cut off; `index`: the index files that there were."""
    named = [entry.pack for _, entries in repository.index_files() for entry in entries]
    if not index <= {item.name for item in repository.store.list("index/")}:
        return "old index going"
    if len(named) > len(set(named)):
        return "both indexes"
    there = {item.name.rpartition("/")[2] for item in repository.store.list("data/")}
    return "new packs" if there - set(named) else "nothing"


def test_random_histories_of_both_programs_lose_nothing(tmp_path: Path, restic: Restic) -> None:
    rng = random.Random(5)
    (tmp_path / "vault").mkdir()
    source = tmp_path / "source"
    history = new_history(DirectoryStore(tmp_path / "vault"), source, points=2)
    vault = history.repository
    for number in range(2, 10):
        change(source, rng, number)
        if rng.random() < 0.5:
            before = {point.id for point in vault.snapshots()}
            restic(vault, "backup", "--host", "host", source)
            (new,) = {point.id for point in vault.snapshots()} - before
            take_point(history, source)
            history.contents[new] = history.contents[vault.snapshots()[-1].id]
        else:
            take_point(history, source)
        assert_whole(history, vault)
        points = [point.id for point in vault.snapshots()]
        gone = rng.sample(points, min(rng.randrange(3), len(points) - 2))
        if gone and rng.random() < 0.5:
            restic(vault, "forget", *gone)
        elif gone:
            forget(vault, Wish(ids=tuple(gone)))
        if rng.random() < 0.3:
            restic(vault, "prune", "--max-unused", "10%")
        else:
            prune(vault, Limits(unused_share=rng.choice((0, 0.05, 0.5, 1)), repack_bytes=rng.choice((9e9, 2e5))))
        assert_whole(history, vault, points=[point for point in points if point not in gone])
        restic.check(vault)


def test_a_container_is_pruned_as_a_folder_is(azurite: Azurite, tmp_path: Path) -> None:
    history = new_history(azurite.fresh_container(), tmp_path / "source", points=3)
    vault = history.repository
    drop(vault, 0)
    done = prune(vault, ALL)
    assert done.unneeded > 0
    assert done.repacked > 0
    assert_whole(history, vault, points=list(history.contents)[1:])
    assert prune(vault, ALL).is_empty


# -- how much is packed anew


def test_what_may_stay_unused_stays(history: History, vault: Repository) -> None:
    drop(vault, 0, 2)
    planned = prune(vault, ALL, dry_run=True)
    idle = prune(vault, Limits(unused_share=1), dry_run=True)
    assert (idle.repacked, idle.moved_bytes, idle.unneeded) == (0, 0, planned.unneeded)
    some = prune(vault, Limits(unused_bytes=idle.unused_bytes // 2), dry_run=True)
    assert 0 < some.repacked < planned.repacked
    assert some.unused_bytes <= idle.unused_bytes // 2
    few = prune(vault, Limits(unused_bytes=0, repack_bytes=planned.moved_bytes - 1), dry_run=True)
    assert 0 < few.moved_bytes < planned.moved_bytes
    prune(vault, Limits(unused_share=1))
    assert_whole(history, vault)


def test_packs_of_somebody_who_was_cut_off_go_and_foreign_objects_stay(history: History, vault: Repository) -> None:
    writer = PackWriter(BlobKind.DATA, vault.key)
    writer.add(bytes(32), b"of a backup that was killed")
    finished = writer.finish()
    vault.save_pack(finished.entry, finished.data)
    for name in ("data/notes.txt", "x-seed/note", "data/ab/short"):
        vault.store.write(name, [b"mine"])
    names = {item.name for item in listing(vault.store)}
    done = prune(vault)
    assert (done.unindexed, done.unneeded) == (1, 0)
    assert names - {item.name for item in listing(vault.store)} == {object_name(finished.entry.pack)}
    assert_whole(history, vault)


# -- damage: nothing is deleted when anything is in doubt


def refused(repository: Repository, error: type[Exception], match: str, limits: Limits = ALL) -> None:
    before = listing(repository.store)
    with pytest.raises(error, match=match):
        prune(repository, limits)
    kept = {item.name for item in listing(repository.store)}
    assert {item.name for item in before} <= kept
    assert list(repository.store.list("locks/")) == []


def entries(repository: Repository, kind: BlobKind) -> list[str]:
    repository.reload_index()
    return sorted(name for name, entry in repository.index.packs.items() if entry.kind is kind)


def test_a_vault_that_lacks_or_cannot_read_what_is_needed_is_left_alone(history: History, tmp_path: Path) -> None:
    for number, kind in enumerate((BlobKind.DATA, BlobKind.TREE)):
        vault = history.copied(tmp_path / f"missing {number}")
        vault.store.delete(object_name(entries(vault, kind)[0]))
        refused(vault, DataDamaged, "nowhere in the vault; 1 packs are missing")
        vault = history.copied(tmp_path / f"short {number}")
        path = Path(vault.store.location) / object_name(entries(vault, kind)[0])
        overwrite(path, path.read_bytes()[:-1])
        refused(vault, DataDamaged, "nowhere in the vault; 1 packs")
    vault = history.copied(tmp_path / "tree")
    flip_middle(Path(vault.store.location) / object_name(entries(vault, BlobKind.TREE)[0]))
    refused(vault, DataDamaged, "a directory cannot be read")
    for number, area in enumerate(("snapshots", "index")):
        vault = history.copied(tmp_path / f"sealed {number}")
        flip_middle(next((Path(vault.store.location) / area).iterdir()))
        refused(vault, DataDamaged, f"{area}/")
    vault = history.copied(tmp_path / "index")
    vault.store.delete(next(iter(vault.store.list("index/"))).name)
    refused(vault, DataDamaged, "nowhere in the vault")


def test_a_blob_that_is_damaged_stops_the_packing_before_anything_goes(history: History, vault: Repository) -> None:
    drop(vault, 0, 2)
    for name in entries(vault, BlobKind.DATA):
        path = Path(vault.store.location) / object_name(name)
        data = bytearray(path.read_bytes())
        for blob in vault.index.packs[name].blobs:
            data[blob.offset + 20] ^= 1
        overwrite(path, bytes(data))
    refused(vault, DataDamaged, "packed anew cannot be read")
    prune(vault, Limits(unused_share=1))  # what is not needed at all may still go


def test_a_pack_that_is_lost_and_not_needed_is_forgotten(history: History, vault: Repository, restic: Restic) -> None:
    packs = set(entries(vault, BlobKind.DATA))
    drop(vault, 0, 2)
    shutil.copytree(vault.store.location, f"{vault.store.location}-2")
    other = history.over(DirectoryStore(Path(f"{vault.store.location}-2")))
    prune(other, Limits(unused_share=1))
    unneeded = sorted(packs - set(entries(other, BlobKind.DATA)))
    vault.store.delete(object_name(unneeded[0]))
    done = prune(vault, Limits(unused_share=1))
    assert done.lost == 1
    assert_whole(history, vault)
    restic.check(vault)


def test_of_two_copies_the_whole_one_stays(history: History, tmp_path: Path, restic: Restic) -> None:
    for damaged in (0, 1):
        vault = history.copied(tmp_path / f"copies {damaged}")
        vault.reload_index()
        name = entries(vault, BlobKind.DATA)[0]
        writer = PackWriter(BlobKind.DATA, vault.key)
        data = vault.store.read(object_name(name))
        for blob in vault.index.packs[name].blobs:
            writer.add(blob.id, open_blob(data[blob.offset : blob.offset + blob.length], blob, vault.key))
        finished = writer.finish()
        vault.save_pack(finished.entry, finished.data)
        vault.save_index([finished.entry])
        spoilt = (name, finished.entry.pack)[damaged]
        flip_first_blobs(vault, spoilt)
        prune(vault, ALL)
        assert vault.store.stat(object_name(spoilt)) is None
        assert_whole(history, vault)
        restic.check(vault, "--read-data")


def flip_first_blobs(repository: Repository, name: str) -> None:
    path = Path(repository.store.location) / object_name(name)
    data = bytearray(path.read_bytes())
    for blob in repository.index.packs[name].blobs:
        data[blob.offset + 20] ^= 1
    overwrite(path, bytes(data))


def test_a_vault_without_recovery_points_is_left_alone(vault: Repository) -> None:
    for item in list(vault.store.list("snapshots/")):
        vault.store.delete(item.name)
    refused(vault, UsageError, "no recovery point that would stay")


# -- others at work


def test_prune_and_backups_keep_each_other_out(history: History, vault: Repository) -> None:
    drop(vault, 0)
    with vault.lock():
        before = listing(vault.store)
        with pytest.raises(Locked):
            prune(vault)
        with pytest.raises(Locked):
            forget(vault, Wish(policy=KeepPolicy(last=1)))
        assert prune(vault, dry_run=True).unneeded > 0
        assert listing(vault.store) == before


@pytest.mark.parametrize("lifetime_s", [60.0, -86400.0])
def test_a_hold_keeps_prune_and_forget_out_even_when_nobody_renewed_it(vault: Repository, lifetime_s: float) -> None:
    drop(vault, 0)
    hold = vault.hold("the job", lifetime_s=lifetime_s)
    before = listing(vault.store)
    for action in (lambda: prune(vault), lambda: forget(vault, Wish(policy=KeepPolicy(last=1)))):
        with pytest.raises(Locked, match="held for 'the job'"):
            action()
    assert listing(vault.store) == before
    hold.release()
    assert prune(vault).unneeded > 0


@pytest.mark.parametrize("what", ["snapshots", "index"])
def test_somebody_who_does_not_mind_locks_is_noticed_before_anything_goes(
    history: History, vault: Repository, what: str
) -> None:
    drop(vault, 0, 2)

    def intrude(_: str, name: str) -> None:
        if what == "snapshots":
            vault.save_snapshot(Snapshot(id="", time=clock.now(), tree=vault.snapshots()[0].tree, paths=("/x",)))
        else:
            vault.save_index([vault.index.packs[entries(vault, BlobKind.TREE)[0]]])

    before = {item.name for item in listing(vault.store)}
    with pytest.raises(Locked, match="without minding the lock"):
        prune(history.over(CutOff(vault.store, 2, intrude)), ALL)
    assert before <= {item.name for item in listing(vault.store)}


def test_a_lock_that_is_lost_ends_it_before_the_next_deletion(history: History, vault: Repository) -> None:
    """As after sleep: another computer took the lock for stale, backed up, and counted on what was to go."""
    drop(vault, 0, 2)
    shutil.copytree(vault.store.location, f"{vault.store.location}-0")
    changes = CutOff(DirectoryStore(Path(f"{vault.store.location}-0")), -1, kill)
    prune(history.over(changes), ALL)
    packs = {item.name for item in vault.store.list("data/")}
    deletions = [n for n, (what, name) in enumerate(changes.done) if what == "delete" and name.startswith("index/")]
    for at in (1, 3, deletions[0], deletions[-1], deletions[-1] + 1):
        folder = Path(f"{vault.store.location}-{at}")
        shutil.copytree(vault.store.location, folder)
        store = DirectoryStore(folder)

        def unlock(_what: str, _name: str, store: DirectoryStore = store) -> None:
            for item in list(store.list("locks/")):
                store.delete(item.name)

        cut = CutOff(store, at, unlock)
        if at <= deletions[-1]:
            with pytest.raises(Locked):
                prune(history.over(cut), ALL)
            assert packs <= {item.name for item in store.list("data/")}
        else:  # nobody who came later counts on what goes now
            prune(history.over(cut), ALL)
        gone = [name for what, name in cut.done[at + 1 :] if what == "delete" and name.startswith("index/")]
        assert gone == []


def test_a_lock_that_grows_old_stops_the_deletion_of_packs(
    history: History, vault: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop(vault, 0, 2)
    real = clock.now

    def sleep(what: str, name: str) -> None:
        monkeypatch.setattr(clock, "now", lambda: real() + timedelta(hours=1))

    shutil.copytree(vault.store.location, f"{vault.store.location}-0")
    changes = CutOff(DirectoryStore(Path(f"{vault.store.location}-0")), -1, kill)
    prune(history.over(changes), ALL)
    first = next(n for n, (what, name) in enumerate(changes.done) if what == "delete" and name.startswith("data/"))
    cut = CutOff(vault.store, first, sleep)
    with pytest.raises(Locked):
        prune(history.over(cut), ALL)
    assert sum(what == "delete" and name.startswith("data/") for what, name in cut.done) <= 4  # those under way
    monkeypatch.setattr(clock, "now", real)
    assert_whole(history, vault)

"""Packs that are lost come back from the staging or out of the source; and what stays lost is named."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trip import JOB, PASSPHRASE, Seeded, Trip, below, flip_middle, new_trip, overwrite, restic

from diskprep.compare import differences, fingerprint
from diskprep.errors import Locked
from diskprep.events import silent
from diskprep.repository import lock as locks
from diskprep.repository import repository as repositories
from diskprep.repository.pack import BlobKind
from diskprep.seal import FileKind
from diskprep.secrets import Secret
from diskprep.source import Source
from diskprep.store.directory import DirectoryStore
from diskprep.vault import repair as repairs
from diskprep.vault.lost import Sound
from diskprep.vault.repair import Flaw, Mended, dropped_packs, find_bad_packs, find_lost, repair
from diskprep.vault.restore import restore


@pytest.fixture(autouse=True)
def _nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """No wait for others who take a lock at the same moment."""
    monkeypatch.setattr(locks, "SETTLE_S", 0.0)


@pytest.fixture
def arrived(trip: Trip) -> Trip:
    """A vault with all packs, and a source of its own that a test may change."""
    source = trip.folder / "source"
    shutil.copytree(trip.source, source, symlinks=True, copy_function=shutil.copy2, ignore=_sockets)
    trip.publish()
    for file in trip.seal.data_packs:
        trip.vault.write(file.name, [DirectoryStore(trip.staging.repository).read(file.name)])
    return trip


def _sockets(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if Path(folder, name).is_socket() or Path(folder, name).is_fifo()]


def vault_path(trip: Trip, name: str = "") -> Path:
    return trip.folder / "vault" / name


def lose(trip: Trip, every: int = 2) -> list[str]:
    """Remove data packs from the vault; their names."""
    names = [file.name for file in trip.seal.data_packs][::every]
    for name in names:
        trip.vault.delete(name)
    return names


def sources(trip: Trip, *, copied: bool = False) -> list[Source]:
    """The source; `copied`: read from the test's own copy."""
    path = os.fsencode(trip.source)
    return [Source(path, os.fsencode(trip.folder / "source")) if copied else Source(path)]


def mend(trip: Trip, **more: Any) -> Mended:
    repository = trip.open()
    return repair(repository, find_bad_packs(repository, read_data=more.pop("read_data", False)), **more)


def assert_whole(trip: Trip) -> None:
    """By restic's word, and by what a restore of ours gives back."""
    restic(vault_path(trip), trip.password_file, "check", "--read-data")
    target = trip.folder / "restored"
    restore(trip.open(), "latest", target, emit=silent)
    assert differences(fingerprint(trip.source), fingerprint(below(target, trip.source))) == []


def test_a_whole_vault_is_left_as_it_is(arrived: Trip) -> None:
    before = {stored.name for stored in arrived.vault.list()}
    done = mend(arrived, staging=DirectoryStore(arrived.staging.repository), sources=sources(arrived), read_data=True)
    assert done == Mended()
    assert {stored.name for stored in arrived.vault.list()} == before


def test_missing_short_and_damaged_packs_are_named_and_sent_again_from_the_staging(arrived: Trip) -> None:
    before = {stored.name for stored in arrived.vault.list()}
    one, two, three = [file.name for file in arrived.seal.data_packs][:3]
    arrived.vault.delete(one)
    overwrite(vault_path(arrived, two), vault_path(arrived, two).read_bytes()[:-1])
    flip_middle(vault_path(arrived, three))
    tree = arrived.seal.of_kind(FileKind.TREE)[0].name
    arrived.vault.delete(tree)
    quick = {bad.name: bad.flaw for bad in find_bad_packs(arrived.open())}
    assert quick == {one: Flaw.MISSING, two: Flaw.WRONG_SIZE, tree: Flaw.MISSING}
    found = find_bad_packs(arrived.open(), read_data=True)
    assert {bad.name: bad.flaw for bad in found} == {**quick, three: Flaw.DAMAGED}
    done = repair(arrived.open(), found, staging=DirectoryStore(arrived.staging.repository))
    assert (done.sent, done.left, done.lost, done.dropped) == (4, (), (), 0)
    assert {stored.name for stored in arrived.vault.list()} == before
    assert_whole(arrived)


def test_what_the_staging_has_damaged_is_not_sent(arrived: Trip) -> None:
    (name, *_) = lose(arrived)
    flip_middle(arrived.staging.repository / name)
    done = mend(arrived, staging=DirectoryStore(arrived.staging.repository))
    assert [bad.name for bad in done.left] == [name]
    assert done.lost
    assert arrived.vault.stat(name) is None


def test_without_a_staging_lost_content_is_stored_again_from_the_source(arrived: Trip) -> None:
    names = lose(arrived)
    done = mend(arrived, sources=sources(arrived))
    assert (done.dropped, done.left, done.lost) == (len(names), (), ())
    assert done.stored > 0
    assert dropped_packs(arrived.vault) == {name.rpartition("/")[2] for name in names}
    assert not {name.rpartition("/")[2] for name in names} & arrived.open().index.packs.keys()
    assert_whole(arrived)
    assert mend(arrived, sources=sources(arrived)) == Mended()


def test_what_the_source_has_no_more_stays_lost_and_is_named(arrived: Trip) -> None:
    for file in arrived.seal.data_packs:
        arrived.vault.delete(file.name)
    gone, changed = "folder 0/deep/random-0.bin", "folder 1/deep/random-1.bin"
    (arrived.folder / "source" / gone).unlink()
    (arrived.folder / "source" / changed).write_bytes(os.urandom(700_000))
    told = mend(arrived, sources=sources(arrived, copied=True)).lost
    point = arrived.open().snapshot().id
    assert {os.fsdecode(entry.path) for entry in told} == {f"{arrived.source}/{gone}", f"{arrived.source}/{changed}"}
    assert all(entry.points == (point,) and not entry.is_directory for entry in told)
    restic(vault_path(arrived), arrived.password_file, "check", ok=False)
    # A later backup counts on nothing that is lost, and so makes the old recovery point whole where it still can.
    restic(vault_path(arrived), arrived.password_file, "backup", "--host", "other", arrived.source)
    restic(vault_path(arrived), arrived.password_file, "check", "--read-data")


def test_a_file_that_something_was_put_into_still_gives_its_other_blobs(trip: Trip, tmp_path: Path) -> None:
    source = tmp_path / "long"
    source.mkdir()
    content = os.urandom(24 << 20)
    (source / "file").write_bytes(content)
    vault = tmp_path / "own"
    restic(vault, trip.password_file, "init")
    restic(vault, trip.password_file, "backup", source)
    repository = repositories.open_repository(DirectoryStore(vault), Secret(PASSPHRASE))
    chunks = sum(entry.kind is BlobKind.DATA and len(entry.blobs) for entry in repository.index.packs.values())
    for entry in repository.index.packs.values():
        if entry.kind is BlobKind.DATA:
            (vault / "data" / entry.pack[:2] / entry.pack).unlink()
    (source / "file").write_bytes(b"put in before" + content)
    done = repair(repository, find_bad_packs(repository), sources=[Source(os.fsencode(source))])
    assert chunks - 1 <= done.stored < chunks + 1
    assert [os.fsdecode(entry.path) for entry in done.lost] == [f"{source}/file"]
    # The same once more, when no index tells the lengths of what is lost any more.
    (source / "file").write_bytes(content)
    again = repair(repository, (), sources=[Source(os.fsencode(source))])
    assert (again.stored, again.lost) == (chunks - done.stored, ())
    restic(vault, trip.password_file, "check", "--read-data")


def test_blobs_that_still_open_are_taken_out_of_damaged_packs(arrived: Trip) -> None:
    tree = arrived.seal.of_kind(FileKind.TREE)[0].name
    blobs = {blob.id for blob in arrived.open().index.packs[tree.rpartition("/")[2]].blobs}
    overwrite(vault_path(arrived, tree), vault_path(arrived, tree).read_bytes()[:-1])  # only the header is gone
    data = max(arrived.seal.data_packs, key=lambda file: len(arrived.open().index.packs[file.sha256].blobs))
    flip_middle(vault_path(arrived, data.name))
    done = mend(arrived, sources=sources(arrived), read_data=True)
    assert (done.dropped, done.lost) == (2, ())
    repository = arrived.open()
    assert all(repository.index.has(BlobKind.TREE, blob) for blob in blobs)
    assert arrived.vault.stat(tree) is None
    assert_whole(arrived)


def test_a_lost_directory_is_named_with_the_recovery_points_that_have_it(arrived: Trip) -> None:
    repository = arrived.open()
    for file in arrived.seal.of_kind(FileKind.TREE):
        arrived.vault.delete(file.name)
    bad = find_bad_packs(repository)
    before = {stored.name for stored in arrived.vault.list()}
    (lost,) = find_lost(repository, bad)
    assert (lost.path, lost.is_directory, lost.points) == (b"/", True, (repository.snapshot().id,))
    assert {stored.name for stored in arrived.vault.list()} == before


def test_a_blob_that_lies_in_another_pack_too_is_not_lost(arrived: Trip) -> None:
    repository = arrived.open()
    first = repository.index.packs[arrived.seal.data_packs[0].sha256]
    sound = Sound(repository.index, {first.pack})
    assert sound.find(BlobKind.DATA, first.blobs[0].id) is None
    other = repositories.pack.pack_entry("f" * 64, BlobKind.DATA, [(first.blobs[0].id, 100, None)])
    sound.add(other)
    found = sound.find(BlobKind.DATA, first.blobs[0].id)
    assert found is not None
    assert found.pack == other.pack


def test_the_hold_of_travelling_disks_is_no_hindrance_and_stays(arrived: Trip) -> None:
    hold = arrived.open().hold(JOB)
    lose(arrived)
    assert mend(arrived, sources=sources(arrived)).lost == ()
    assert [found.name for found in arrived.open().find_holds()] == [hold.name]
    hold.release()
    assert_whole(arrived)


def test_nothing_is_dropped_while_a_backup_runs_but_what_was_stored_stays(arrived: Trip) -> None:
    names = lose(arrived)
    repository = arrived.open()
    bad = find_bad_packs(repository)
    with arrived.open().lock(), pytest.raises(Locked):
        repair(repository, bad, sources=sources(arrived))
    assert {name.rpartition("/")[2] for name in names} <= arrived.open().index.packs.keys()
    done = mend(arrived, sources=sources(arrived))
    assert (done.stored, done.dropped) == (0, len(names))
    assert_whole(arrived)


def test_nothing_is_dropped_when_what_was_stored_was_removed_meanwhile(
    arrived: Trip, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = lose(arrived)
    before = {stored.name for stored in arrived.vault.list("data/")}
    real = repairs._drop

    def drop(*arguments: Any) -> Any:
        for stored in list(arrived.vault.list("data/")):
            if stored.name not in before:
                arrived.vault.delete(stored.name)
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(repairs, "_drop", drop)
        with pytest.raises(Locked, match="removed meanwhile"):
            mend(arrived, sources=sources(arrived))
    assert {name.rpartition("/")[2] for name in names} <= arrived.open().index.packs.keys()
    assert mend(arrived, sources=sources(arrived)).lost == ()
    assert_whole(arrived)


def test_a_disk_that_turns_up_after_it_was_given_up_gives_what_is_lost(arrived: Trip) -> None:
    names = lose(arrived)
    packs = {name: DirectoryStore(arrived.staging.repository).read(name) for name in names}
    assert mend(arrived, drop=True).lost
    for name, data in packs.items():
        arrived.vault.write(name, [data])
    arrived.vault.write("data/ff/" + "f" * 64, [b"not a pack"])
    done = mend(arrived)
    assert (done.adopted, done.lost) == (len(names), ())
    arrived.vault.delete("data/ff/" + "f" * 64)
    assert_whole(arrived)


class _CutOff(BaseException):
    """Stands for kill -9: nothing of ours runs after it."""


def _cut_after(monkeypatch: pytest.MonkeyPatch, count: int) -> Callable[[], bool]:
    """Let `count` writes and deletions of packs and index files happen, then none; whether it came to that."""
    left, hit = [count], [False]
    write, delete = DirectoryStore.write, DirectoryStore.delete

    def spend(name: str) -> None:
        if name.startswith("locks/"):
            return
        if left[0] <= 0:
            hit[0] = True
            raise _CutOff
        left[0] -= 1

    def cut_write(self: DirectoryStore, name: str, parts: Any) -> None:
        spend(name)
        write(self, name, parts)

    def cut_delete(self: DirectoryStore, name: str) -> None:
        spend(name)
        delete(self, name)

    monkeypatch.setattr(DirectoryStore, "write", cut_write)
    monkeypatch.setattr(DirectoryStore, "delete", cut_delete)
    return lambda: hit[0]


def test_a_repair_killed_at_any_write_loses_nothing_and_goes_on(arrived: Trip, monkeypatch: pytest.MonkeyPatch) -> None:
    lose(arrived, every=3)
    flip_middle(vault_path(arrived, arrived.seal.data_packs[1].name))
    shutil.copytree(vault_path(arrived), arrived.folder / "before")
    readable = _readable(arrived)
    for count in range(100):
        shutil.rmtree(vault_path(arrived))
        shutil.copytree(arrived.folder / "before", vault_path(arrived))
        repository = arrived.open()
        bad = find_bad_packs(repository, read_data=True)
        with monkeypatch.context() as patch:
            was_cut = _cut_after(patch, count)
            with contextlib.suppress(_CutOff):
                repair(repository, bad, sources=sources(arrived))
            if not was_cut():
                break
        assert readable <= _readable(arrived), f"cut after {count}"
        assert mend(arrived, sources=sources(arrived), read_data=True).lost == ()
        assert find_bad_packs(arrived.open(), read_data=True) == ()
    assert count > 6
    assert_whole(arrived)


def _readable(trip: Trip) -> set[bytes]:
    """Ids of all blobs that a reader of index and packs can open."""
    found = set()
    repository = trip.open()
    bad = {pack.pack for pack in find_bad_packs(repository, read_data=True)}
    for pack, entry in repository.index.packs.items():
        if pack not in bad:
            found |= {blob.id for blob in entry.blobs}
    return found


def test_a_vault_in_a_blob_service_is_repaired_too(azurite: Any, restic_seeded: Seeded, tmp_path: Path) -> None:
    trip = new_trip(restic_seeded, tmp_path, azurite.fresh_container(), azurite.fresh_container())
    trip.publish()
    done = mend(trip, sources=sources(trip))
    assert (done.dropped, done.lost) == (len(trip.seal.data_packs), ())
    restore(trip.open(), "latest", tmp_path / "restored", emit=silent)
    assert differences(fingerprint(trip.source), fingerprint(below(tmp_path / "restored", trip.source))) == []
    assert find_bad_packs(trip.open(), read_data=True) == ()


def test_a_link_or_another_file_in_the_place_of_a_source_file_gives_nothing(arrived: Trip) -> None:
    for file in arrived.seal.data_packs:
        arrived.vault.delete(file.name)
    folder, victim = arrived.folder / "source/folder 0", arrived.folder / "source/folder 1/deep/random-1.bin"
    folder.rename(arrived.folder / "elsewhere")
    folder.symlink_to(arrived.folder / "elsewhere")
    victim.unlink()
    os.mkfifo(victim)  # opening it would wait for ever
    lost = {os.fsdecode(entry.path) for entry in mend(arrived, sources=sources(arrived, copied=True)).lost}
    assert f"{arrived.source}/folder 1/deep/random-1.bin" in lost
    assert f"{arrived.source}/folder 0/deep/random-0.bin" in lost


def test_a_damaged_pack_that_was_sent_again_meanwhile_is_not_dropped(
    arrived: Trip, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = arrived.seal.data_packs[0].name
    flip_middle(vault_path(arrived, name))
    real = repairs._drop

    def drop(*arguments: Any) -> Any:  # reading the sources took hours; another computer has the staging
        assert mend(arrived, staging=DirectoryStore(arrived.staging.repository), read_data=True).sent == 1
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(repairs, "_drop", drop)
        assert mend(arrived, sources=sources(arrived), read_data=True).dropped == 0
    assert arrived.vault.stat(name) is not None
    assert name.rpartition("/")[2] in arrived.open().index.packs
    assert_whole(arrived)


def test_packs_that_another_repair_has_dropped_since_they_were_found_are_passed_over(arrived: Trip) -> None:
    lose(arrived)
    repository = arrived.open()
    bad = find_bad_packs(repository)
    assert mend(arrived, sources=sources(arrived)).dropped == len(bad)
    assert repair(repository, bad, sources=sources(arrived)) == Mended()
    assert_whole(arrived)

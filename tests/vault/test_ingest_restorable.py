"""Which recovery points can be restored while disks travel: by the index, the trees and one listing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from trip import Seeded, Trip, flip_middle, new_trip, overwrite, restic

from diskprep.errors import DataDamaged
from diskprep.repository.pack import BlobKind
from diskprep.repository.packwriter import PackWriter
from diskprep.seal import FileKind
from diskprep.store.directory import DirectoryStore
from diskprep.vault.check import check
from diskprep.vault.restorable import Restorable, restorable


def names(trip: Trip) -> tuple[str, ...]:
    return tuple(sorted(pack.sha256 for pack in trip.seal.data_packs))


def back_up(trip: Trip, folder: str, data: bytes) -> str:
    """Another recovery point, taken by restic; its id."""
    place = trip.folder / folder
    place.mkdir()
    (place / "file").write_bytes(data)
    before = {point.id for point in trip.open().snapshots()}
    restic(trip.folder / "vault", trip.password_file, "backup", "--host", "host", place)
    (new,) = {point.id for point in trip.open().snapshots()} - before
    return new


def test_what_was_published_lacks_every_data_pack_and_what_came_since_lacks_none(trip: Trip) -> None:
    trip.publish()
    later = back_up(trip, "later", b"taken while the disks travel")
    found = restorable(trip.open())
    assert found[trip.seal.snapshot].missing_packs == names(trip)
    assert found[trip.seal.snapshot].missing_bytes == sum(pack.size_bytes for pack in trip.seal.data_packs)
    assert not found[trip.seal.snapshot].is_whole
    assert found[later] == Restorable()
    trip.deliver()
    trip.ingest()
    assert set(restorable(trip.open()).values()) == {Restorable()}


def test_packs_are_counted_off_one_by_one_and_a_short_one_is_missing(trip: Trip) -> None:
    trip.publish()
    local = DirectoryStore(trip.staging.repository)
    left = list(trip.seal.data_packs)
    while len(left) > 1:
        pack = left.pop()
        trip.vault.write(pack.name, [local.read(pack.name)])
        assert restorable(trip.open())[trip.seal.snapshot].missing_packs == tuple(sorted(p.sha256 for p in left))
    last = left.pop()
    trip.vault.write(last.name, [local.read(last.name)[:-1]])
    assert restorable(trip.open())[trip.seal.snapshot].missing_packs == (last.sha256,)


def test_no_data_is_read(trip: Trip, monkeypatch: pytest.MonkeyPatch) -> None:
    trip.publish()
    trip.deliver()
    trip.ingest()
    data = {pack.name for pack in trip.seal.data_packs}
    read, real = set(), DirectoryStore.read

    def record(self: DirectoryStore, name: str, *more: Any) -> bytes:
        read.add(name)
        return real(self, name, *more)

    monkeypatch.setattr(DirectoryStore, "read", record)
    assert restorable(trip.open())[trip.seal.snapshot].is_whole
    assert read
    assert not read & data


def test_a_pack_that_one_point_needs_is_missing_for_that_one_only(trip: Trip) -> None:
    trip.publish()
    trip.deliver()
    trip.ingest()
    before = set(trip.open().index.packs)
    point = back_up(trip, "own", os.urandom(50_000))
    new = [entry for name, entry in trip.open().index.packs.items() if name not in before and entry.kind == "data"]
    (entry,) = new
    trip.vault.delete(f"data/{entry.pack[:2]}/{entry.pack}")
    found = restorable(trip.open())
    assert found[point] == Restorable(missing_packs=(entry.pack,), missing_bytes=entry.size_bytes)
    assert found[trip.seal.snapshot].is_whole


def test_a_blob_that_is_in_another_pack_too_is_not_missed(trip: Trip) -> None:
    trip.publish()
    trip.deliver()
    trip.ingest()
    repository = trip.open()
    needed = next(entry for entry in repository.index.packs.values() if entry.kind == "data")
    writer = PackWriter(BlobKind.DATA, trip.opened.key)
    for blob in needed.blobs:
        writer.add(blob.id, repository.load_blob(BlobKind.DATA, blob.id))
    twin = writer.finish()
    repository.save_pack(twin.entry, twin.data)
    trip.vault.delete(f"data/{needed.pack[:2]}/{needed.pack}")
    assert restorable(trip.open())[trip.seal.snapshot].missing_packs == (needed.pack,)
    repository.save_index([twin.entry])
    assert restorable(trip.open())[trip.seal.snapshot].is_whole


def test_what_no_index_names_is_told_although_no_pack_is_missing(trip: Trip) -> None:
    trip.publish()
    trip.deliver()
    trip.ingest()
    index = next(file for file in trip.seal.of_kind(FileKind.INDEX))
    trip.vault.delete(index.name)
    found = restorable(trip.open())[trip.seal.snapshot]
    assert found.missing_packs == ()
    assert found.unknown_blobs > 0
    assert not found.is_whole


def test_missing_and_damaged_directories_are_no_error(trip: Trip) -> None:
    trip.publish()
    trip.deliver()
    trip.ingest()
    trees = trip.seal.of_kind(FileKind.TREE)
    path = Path(trip.folder / "vault" / trees[0].name)
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    overwrite(path, bytes(data))
    assert restorable(trip.open())[trip.seal.snapshot].unknown_blobs > 0
    trip.vault.delete(trees[0].name)
    found = restorable(trip.open())[trip.seal.snapshot]
    assert trees[0].sha256 in found.missing_packs
    assert check(trip.open()).problems != ()


def test_an_index_file_that_is_damaged_is_an_error(trip: Trip) -> None:
    trip.publish()
    flip_middle(trip.folder / "vault" / trip.seal.of_kind(FileKind.INDEX)[0].name)
    with pytest.raises(DataDamaged):
        restorable(trip.open())


def test_it_is_told_of_a_blob_service_too(azurite: Any, restic_seeded: Seeded, tmp_path: Path) -> None:
    trip = new_trip(restic_seeded, tmp_path, azurite.fresh_container(), azurite.fresh_container("vault/"))
    trip.publish()
    assert restorable(trip.open())[trip.seal.snapshot].missing_packs == names(trip)

"""Index files come with the packs on the disks, and online too: nothing minds them, and they go with the rest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from trip import SERIALS, Trip, flip_middle, overwrite, restic

from diskprep import cleanup
from diskprep.cleanup import Place
from diskprep.disk import plan as plans
from diskprep.errors import CleanupRefused, DataDamaged, IngestIncomplete
from diskprep.events import Note
from diskprep.seal import FileKind, SealedFile, load_seal, save_seal
from diskprep.store.directory import DirectoryStore
from diskprep.vault import ingest as ingestion
from diskprep.vault.check import check


@pytest.fixture
def telling(trip: Trip) -> Trip:
    """A trip whose seal tells which index file names which pack."""
    named: dict[str, list[str]] = {}
    trip.opened.pack_summaries(named=named)
    data = {file.sha256: place for place, file in enumerate(trip.seal.files) if file.kind is FileKind.DATA}
    found = {index: tuple(sorted(data[pack] for pack in packs if pack in data)) for index, packs in named.items()}
    trip.seal = replace(trip.seal, indexes={index: places for index, places in found.items() if places})
    save_seal(trip.staging.seal_file, trip.seal)
    assert load_seal(trip.staging.seal_file) == trip.seal
    return trip


def on_disks(trip: Trip) -> tuple[SealedFile, ...]:
    """What the disks of the trip carry."""
    share = plans.make_plan(trip.seal, [plans.Offer(serial=SERIALS[0], size_bytes=1 << 30)]).disks[0]
    assert share.indexes
    return tuple(share.files)


@pytest.fixture
def delivered(telling: Trip) -> Trip:
    """The small part is online; packs and their index files are in the container."""
    telling.publish()
    telling.deliver(on_disks(telling))
    return telling


def test_index_files_in_the_container_change_nothing_of_the_certificate(delivered: Trip) -> None:
    proven = delivered.ingest()
    packs = delivered.seal.data_packs
    assert (proven.data_packs, proven.data_bytes) == (len(packs), sum(pack.size_bytes for pack in packs))
    assert proven.files == len(delivered.seal.files)
    assert check(delivered.open(), read_data=True).problems == ()
    restic(delivered.folder / "vault", delivered.password_file, "check", "--read-data")


def test_a_damaged_index_file_in_the_container_does_not_reach_the_vault(delivered: Trip) -> None:
    index = delivered.seal.indexes_of(delivered.seal.data_packs)[0]
    flip_middle(delivered.folder / "container" / index.name)
    delivered.ingest()
    assert delivered.vault.read(index.name) == DirectoryStore(delivered.staging.repository).read(index.name)


def test_index_files_go_from_the_container_with_the_packs(delivered: Trip) -> None:
    proven = delivered.ingest()
    vault = {stored.name: stored.size_bytes for stored in delivered.vault.list()}
    stores = {"container": delivered.container, "vault": delivered.vault}
    made = cleanup.plan(delivered.staging, delivered.seal, proven, **stores)
    sent = on_disks(delivered)
    assert made.size_bytes(Place.CONTAINER) == sum(file.size_bytes for file in sent)
    assert not any("index/" in line for line in made.lines())
    cleanup.run(made, delivered.staging, delivered.seal, proven, places=[Place.CONTAINER], **stores)
    assert list(delivered.container.list()) == []
    assert {stored.name: stored.size_bytes for stored in delivered.vault.list()} == vault


def test_a_short_index_file_in_the_container_stays_and_is_told(delivered: Trip) -> None:
    index = delivered.seal.indexes_of(delivered.seal.data_packs)[0]
    path = delivered.folder / "container" / index.name
    overwrite(path, path.read_bytes()[:-1])
    proven = delivered.ingest()
    stores = {"container": delivered.container, "vault": delivered.vault}
    made = cleanup.plan(delivered.staging, delivered.seal, proven, **stores)
    assert any(index.name in line and "not the" in line for line in made.lines())
    cleanup.run(made, delivered.staging, delivered.seal, proven, places=[Place.CONTAINER], **stores)
    assert [stored.name for stored in delivered.container.list()] == [index.name]


@pytest.fixture(params=["disks first", "online first"])
def in_place(telling: Trip, request: pytest.FixtureRequest) -> Trip:
    """The import job's container is the vault itself. What comes again replaces what is there."""
    telling.container = telling.vault
    steps = [lambda: telling.deliver(on_disks(telling)), telling.publish]
    for step in steps if request.param == "disks first" else steps[::-1]:
        step()
    return telling


def test_index_files_imported_into_the_vault_itself_are_its_own(in_place: Trip) -> None:
    local = DirectoryStore(in_place.staging.repository)
    assert {stored.name for stored in in_place.vault.list()} == {file.name for file in in_place.seal.files}
    for file in in_place.seal.files:
        assert in_place.vault.read(file.name) == local.read(file.name)
    assert in_place.publish() == 0
    proven = in_place.ingest()
    assert proven.files == len(in_place.seal.files)
    assert check(in_place.open(), read_data=True).problems == ()
    restic(in_place.folder / "vault", in_place.password_file, "check", "--read-data")


def test_nothing_is_cleaned_up_where_the_container_is_the_vault(in_place: Trip) -> None:
    proven = in_place.ingest()
    stores = {"container": in_place.container, "vault": in_place.vault}
    before = {stored.name for stored in in_place.vault.list()}
    made = cleanup.plan(in_place.staging, in_place.seal, proven, **stores)
    with pytest.raises(CleanupRefused, match="the vault itself"):
        cleanup.run(made, in_place.staging, in_place.seal, proven, places=[Place.CONTAINER], **stores)
    assert {stored.name for stored in in_place.vault.list()} == before


def test_an_index_file_damaged_in_the_vault_is_published_again(in_place: Trip) -> None:
    index = in_place.seal.indexes_of(in_place.seal.data_packs)[0]
    flip_middle(in_place.folder / "vault" / index.name)
    with pytest.raises(DataDamaged, match=index.name):
        in_place.ingest()
    assert in_place.publish() == index.size_bytes
    in_place.ingest()


def test_packs_that_the_plan_has_on_no_disk_are_told_apart(telling: Trip) -> None:
    telling.publish()
    share = plans.make_plan(telling.seal, [plans.Offer(serial="ONLY", size_bytes=1 << 30)]).disks[0]
    partial = replace(share, packs=share.packs[1:])
    plan_file = telling.staging.plan_file
    plans.save_plan(
        plan_file, plans.Plan(job_name=telling.seal.job_name, seal_digest=telling.seal.digest, disks=(partial,))
    )
    plan = plans.load_plan(plan_file, telling.seal)
    assert (plan.is_complete, list(plan.left)) == (False, [share.packs[0]])
    telling.deliver(tuple(partial.files))
    with pytest.raises(IngestIncomplete, match=r"on no disk of the plan: 1 missing"):
        ingestion.ingest(
            telling.container,
            telling.vault,
            telling.open(),
            telling.seal,
            plan.placement(),
            job_name=telling.seal.job_name,
            certificate_path=None,
            emit=telling.events.append,
        )
    assert any(isinstance(event, Note) and event.item == "no disk" for event in telling.events)
    assert {stored.name for stored in telling.vault.list("data/")} >= {pack.name for pack in partial.packs}
    assert not Path(telling.certificate_path).exists()

"""A vault in a blob container: in which tier its packs lie, and how they come there from another account."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from blobserver import Azurite, tier
from trip import PASSPHRASE, Seeded, Trip, new_trip
from vaults import new_history

from diskprep.cli.ingesting import incremental
from diskprep.events import Event, Note
from diskprep.repository.pack import BlobKind, object_name
from diskprep.repository.repository import Repository, open_repository
from diskprep.seal import FileKind
from diskprep.secrets import Secret
from diskprep.source import Source
from diskprep.staging.writer import BackupOptions
from diskprep.store import AccessTier
from diskprep.store.azure import AzureStore
from diskprep.store.directory import DirectoryStore
from diskprep.vault import ingest as ingestion
from diskprep.vault import settings
from diskprep.vault.check import check
from diskprep.vault.forget import Wish, forget
from diskprep.vault.prune import Limits, prune
from diskprep.vault.repair import find_bad_packs, repair
from diskprep.vault.settings import change_settings, load_settings


def notes(events: list[Event], text: str) -> list[str]:
    return [event.text for event in events if isinstance(event, Note) and text in event.text]


def store_of(trip: Trip) -> AzureStore:
    assert isinstance(trip.vault, AzureStore)
    return trip.vault


def tiers(trip: Trip, *kinds: FileKind) -> set[str]:
    return {tier(store_of(trip), file.name) for file in trip.seal.of_kind(*kinds)}


def assert_whole(trip: Trip) -> None:
    assert check(open_repository(trip.vault, Secret(PASSPHRASE)), read_data=True).problems == ()


@pytest.fixture
def trip(azurite: Azurite, restic_seeded: Seeded, tmp_path: Path) -> Trip:
    """A seed whose packs arrived in another account than its vault's."""
    trip = new_trip(restic_seeded, tmp_path, azurite.container_elsewhere(), azurite.fresh_container("vault/"))
    trip.publish()
    trip.deliver()
    return trip


def backed_up(trip: Trip, folder: Path, emit: list[Event]) -> tuple[set[str], set[str]]:
    """Tiers of the data packs and of all other objects that a backup of six megabytes has written."""
    folder.mkdir()
    for number in range(6):
        (folder / str(number)).write_bytes(os.urandom(1 << 20))
    repository = trip.open()
    before = {found.name for found in trip.vault.list()}
    source = [Source(os.fsencode(folder))]
    incremental(repository, source, options=BackupOptions(pack_size_bytes=5 << 20), emit=emit.append)
    packs = trip.open().index.packs
    data = {object_name(name) for name, entry in packs.items() if entry.kind is BlobKind.DATA}
    new = {found.name for found in trip.vault.list()} - before
    trees = {object_name(name) for name, entry in packs.items() if entry.kind is BlobKind.TREE}
    assert new & data
    assert new & trees
    return {tier(store_of(trip), name) for name in new & data}, {tier(store_of(trip), name) for name in new - data}


def test_packs_come_from_another_account_without_passing_through_here(
    trip: Trip, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with monkeypatch.context() as patch:
        patch.setattr(logging.getLogger("azure"), "propagate", True)
        read = AzureStore.read
        patch.setattr(
            AzureStore,
            "read",
            lambda self, *a: pytest.fail("bytes came here") if self is trip.container else read(self, *a),
        )
        certificate = trip.ingest()
    assert certificate.data_packs == len(trip.seal.data_packs)
    assert certificate.container == trip.container.location
    assert notes(trip.events, "pass through") == []
    assert "x-ms-copy-source" in caplog.text
    assert "sig=" not in caplog.text + repr(trip.events)
    assert_whole(trip)


def test_packs_that_the_service_does_not_copy_pass_through_and_it_is_told_once(
    azurite: Azurite, trip: Trip, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(trip.container, AzureStore)
    trip.container = azurite.unreachable(trip.container)
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(logging.getLogger("azure"), "propagate", True)
    trip.ingest()
    told = notes(trip.events, "pass through")
    assert told == [
        f"the service does not copy from {trip.container.location} (CannotVerifyCopySource): packs pass through here"
    ]
    assert "sig=" not in caplog.text + repr(trip.events)
    assert_whole(trip)


def test_ingested_data_packs_end_in_the_vaults_tier_and_nothing_else_does(trip: Trip) -> None:
    change_settings(trip.open(), access_tier=AccessTier.COOL)
    trip.ingest()
    assert tiers(trip, FileKind.DATA) == {"Cool"}
    assert tiers(trip, FileKind.TREE, FileKind.INDEX, FileKind.SNAPSHOT, FileKind.KEY, FileKind.CONFIG) == {"(Hot)"}
    assert_whole(trip)


def test_a_pack_is_proven_in_hot_before_it_is_moved(trip: Trip, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(trip.container, AzureStore)
    for file in trip.seal.data_packs:  # Azurite lets a copy lie where its source does, unless it is told otherwise
        trip.container.cool(file.name, AccessTier.COOL)
    change_settings(trip.open(), access_tier=AccessTier.COLD)
    seen: dict[str, str] = {}
    verify = ingestion._Bring._verify

    def watched(self: ingestion._Bring, file: ingestion.SealedFile) -> object:
        seen[file.name] = tier(store_of(trip), file.name)
        return verify(self, file)

    monkeypatch.setattr(ingestion._Bring, "_verify", watched)
    trip.ingest()
    assert seen == {file.name: "Hot" for file in trip.seal.data_packs}
    assert tiers(trip, FileKind.DATA) == {"Cold"}


def test_packs_that_were_imported_in_place_are_moved_and_a_cooler_one_stays(trip: Trip) -> None:
    change_settings(trip.open(), access_tier=AccessTier.COOL)
    trip.container = trip.vault
    trip.deliver()
    cold, *others = [file.name for file in trip.seal.data_packs]
    store_of(trip).cool(cold, AccessTier.COLD)
    trip.ingest()
    assert tier(store_of(trip), cold) == "Cold"
    assert {tier(store_of(trip), name) for name in others} == {"Cool"}


def test_a_second_ingestion_moves_what_the_first_has_left_where_it_was(trip: Trip) -> None:
    trip.ingest()
    assert tiers(trip, FileKind.DATA) == {"(Hot)"}
    change_settings(trip.open(), access_tier=AccessTier.COOL)
    trip.ingest()
    assert tiers(trip, FileKind.DATA) == {"Cool"}


@pytest.mark.parametrize(
    ("wanted", "found"), [("default", "(Hot)"), ("hot", "Hot"), ("cool", "Cool"), ("cold", "Cold")]
)
def test_a_backup_writes_its_data_packs_into_the_tier(trip: Trip, wanted: str, found: str) -> None:
    change_settings(trip.open(), access_tier=AccessTier(wanted))
    assert backed_up(trip, trip.folder / "more", trip.events) == ({found}, {"(Hot)"})


def test_a_backup_after_an_ingestion_asks_for_its_own_packs_only(trip: Trip) -> None:
    change_settings(trip.open(), access_tier=AccessTier.COOL)
    trip.ingest()
    assert backed_up(trip, trip.folder / "more", trip.events) == ({"Cool"}, {"(Hot)"})


def test_what_a_repair_sends_again_lies_in_the_tier(trip: Trip) -> None:
    change_settings(trip.open(), access_tier=AccessTier.COOL)
    trip.ingest()
    gone, *_ = trip.seal.data_packs
    trip.vault.delete(gone.name)
    bad = find_bad_packs(trip.open())
    assert [object_name(pack.pack) for pack in bad] == [gone.name]
    repair(trip.open(), bad, staging=DirectoryStore(trip.staging.repository), emit=trip.events.append)
    assert tier(store_of(trip), gone.name) == "Cool"
    assert_whole(trip)


def test_what_a_prune_packs_anew_lies_in_the_tier(azurite: Azurite, tmp_path: Path) -> None:
    store = azurite.fresh_container()
    history = new_history(store, tmp_path / "source")
    repository = history.over(store)
    forget(repository, Wish(ids=tuple(history.contents)[:-1]))
    change_settings(repository, access_tier=AccessTier.COOL)
    before = {found.name for found in store.list("data/")}
    prune(repository, Limits(unused_bytes=0))
    left = {object_name(name): entry.kind for name, entry in history.over(store).index.packs.items()}
    new = {name: kind for name, kind in left.items() if name not in before}
    assert BlobKind.DATA in new.values()
    for name, kind in new.items():
        assert tier(store, name) == ("Cool" if kind is BlobKind.DATA else "(Hot)")


def test_settings_that_cannot_be_read_cost_no_backup(trip: Trip) -> None:
    change_settings(trip.open(), access_tier=AccessTier.COOL)
    trip.vault.write(settings.OBJECT, [b"damaged"])
    assert backed_up(trip, trip.folder / "more", trip.events) == ({"(Hot)"}, {"(Hot)"})
    assert len(notes(trip.events, "the account's own tier")) == 1


def test_a_vault_that_was_copied_to_a_folder_keeps_its_tier_and_does_without(trip: Trip, tmp_path: Path) -> None:
    change_settings(trip.open(), access_tier=AccessTier.COOL)
    folder = DirectoryStore(tmp_path / "folder")
    folder.write(settings.OBJECT, [trip.vault.read(settings.OBJECT)])
    copied = Repository(folder, trip.opened.key, trip.opened.id, trip.opened.polynomial)
    assert load_settings(copied).access_tier is AccessTier.COOL
    assert settings.data_tier(copied, trip.events.append) is AccessTier.DEFAULT
    assert change_settings(copied, access_tier=AccessTier.DEFAULT).access_tier is AccessTier.DEFAULT

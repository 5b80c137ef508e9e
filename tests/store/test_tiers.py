"""In what tier an object lies: as it is asked for when it is written or copied, and as it is moved."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from azure.storage.blob import StandardBlobTier
from blobserver import Azurite, tier

from diskprep.durable import Buffer
from diskprep.errors import NotFound, StorageUnavailable
from diskprep.store import AccessTier, TieredStore
from diskprep.store.azure import AzureStore
from diskprep.store.directory import DirectoryStore

MIB = 1 << 20


def cool_data(name: str, _parts: Sequence[Buffer]) -> AccessTier:
    return AccessTier.COOL if name.startswith("data/") else AccessTier.DEFAULT


@pytest.fixture
def store(azurite: Azurite) -> AzureStore:
    return azurite.fresh_container("some/prefix/")


def test_a_container_has_tiers_and_a_folder_has_none(store: AzureStore, tmp_path: Path) -> None:
    assert isinstance(store, TieredStore)
    assert not isinstance(DirectoryStore(tmp_path), TieredStore)


@pytest.mark.parametrize("size", [10, 9 * MIB])
def test_what_is_written_lies_where_it_was_asked_for(store: AzureStore, size: int) -> None:
    store.write("data/before", [os.urandom(size)])
    store.choose_tiers(cool_data)
    store.write("data/pack", [os.urandom(size)])
    store.write("index", [os.urandom(size)])
    assert [tier(store, name) for name in ("data/before", "data/pack", "index")] == ["(Hot)", "Cool", "(Hot)"]


@pytest.mark.parametrize("place", ["here", "elsewhere"])
def test_a_copy_lies_where_it_was_asked_for(azurite: Azurite, store: AzureStore, place: str) -> None:
    source = azurite.fresh_container() if place == "here" else azurite.container_elsewhere()
    source.write("data/pack", [b"x"])
    store.choose_tiers(cool_data)
    assert store.copy_from(source, "data/pack")
    assert tier(store, "data/pack").strip("()") == "Cool"  # Azurite says of a copy what it said of its source
    assert tier(source, "data/pack") == "(Hot)"
    assert store.read("data/pack") == b"x"


def test_what_is_moved_becomes_cooler_and_never_warmer(store: AzureStore) -> None:
    store.write("object", [b"x"])
    before = store.inspect("object")
    for wanted, found in (("default", "(Hot)"), ("cool", "Cool"), ("cold", "Cold"), ("cool", "Cold"), ("hot", "Cold")):
        store.cool("object", AccessTier(wanted))
        assert tier(store, "object") == found
    assert store.inspect("object") == before  # what was proven of it stays so


def test_what_is_in_archive_is_named_as_such_and_stays_there(store: AzureStore) -> None:
    store.write("object", [b"x"])
    store._client.get_blob_client("some/prefix/object").set_standard_blob_tier(StandardBlobTier.ARCHIVE)
    with pytest.raises(StorageUnavailable, match="in the Archive tier") as caught:
        store.cool("object", AccessTier.COLD)
    assert "rehydrate" in caught.value.hint
    with pytest.raises(StorageUnavailable, match="in the Archive tier"):
        store.read("object")
    assert tier(store, "object") == "Archive"


def test_what_is_missing_cannot_be_moved(store: AzureStore) -> None:
    with pytest.raises(NotFound):
        store.cool("nothing", AccessTier.COOL)

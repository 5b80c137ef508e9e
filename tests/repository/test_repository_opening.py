"""Making, opening and reading repositories; and refusing what is damaged, foreign or too demanding."""

from __future__ import annotations

import hashlib
import json
import os
from datetime import UTC, datetime, timedelta

import pytest
from vaults import load_tree

from diskprep.errors import DataDamaged, FormatTooNew, NotBuilt, NotFound, UsageError, WrongPassphrase
from diskprep.repository import keys
from diskprep.repository.pack import BlobKind
from diskprep.repository.packwriter import PackWriter
from diskprep.repository.repository import Repository, create, open_repository
from diskprep.repository.snapshot import Snapshot
from diskprep.repository.tree import Node, NodeType, encode_tree
from diskprep.secrets import Secret
from diskprep.store.directory import DirectoryStore

PASSPHRASE = Secret("correct horse battery staple")
CHEAP = keys.ScryptCost(n=16, r=1, p=1)


def test_a_repository_opens_with_its_passphrase_only(store: DirectoryStore, repository: Repository) -> None:
    again = open_repository(store, PASSPHRASE)
    assert (again.id, again.polynomial) == (repository.id, repository.polynomial)
    assert again.key.open(repository.key.seal(b"x")) == b"x"
    with pytest.raises(WrongPassphrase):
        open_repository(store, Secret("correct horse battery stapler"))


def test_a_second_key_opens_the_same_data(store: DirectoryStore, repository: Repository) -> None:
    wrapped = keys.wrap(repository.key, Secret("another passphrase, long"), "elsewhere", CHEAP)
    store.write("keys/" + hashlib.sha256(wrapped).hexdigest(), [wrapped])
    assert open_repository(store, Secret("another passphrase, long")).id == repository.id
    assert open_repository(store, PASSPHRASE).id == repository.id


def test_a_repository_is_never_made_over_another_one(store: DirectoryStore, repository: Repository) -> None:
    with pytest.raises(UsageError):
        create(store, PASSPHRASE, cost=CHEAP)
    store.delete("config")
    with pytest.raises(UsageError):
        create(store, PASSPHRASE, cost=CHEAP)


def test_a_short_passphrase_is_refused_before_anything_is_written(store: DirectoryStore) -> None:
    with pytest.raises(UsageError):
        create(store, Secret("too short"), cost=CHEAP)
    assert list(store.list()) == []


def test_no_config_means_no_repository(store: DirectoryStore) -> None:
    with pytest.raises(NotFound):
        open_repository(store, PASSPHRASE)


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({"version": 3}, FormatTooNew),
        ({"version": 1}, NotBuilt),
        ({"version": "two"}, DataDamaged),
        ({"chunker_polynomial": "20000000000001"}, DataDamaged),
        ({"chunker_polynomial": "xyz"}, DataDamaged),
        ({"id": "../../etc"}, DataDamaged),
    ],
)
def test_an_impossible_config_is_refused(
    store: DirectoryStore, repository: Repository, config: dict[str, object], error: type[Exception]
) -> None:
    honest = {"version": 2, "id": repository.id, "chunker_polynomial": f"{repository.polynomial:x}"}
    store.write("config", [repository.key.seal(json.dumps({**honest, **config}).encode())])
    with pytest.raises(error):
        open_repository(store, PASSPHRASE)


@pytest.mark.parametrize(
    "change",
    [
        {"N": 1 << 40},
        {"N": 1000},
        {"N": -16},
        {"p": 1 << 30},
        {"r": 0},
        {"kdf": "md5"},
        {"salt": "AAAA"},
        {"data": "AAAA"},
        {"data": "?"},
        {"N": None},
    ],
)
def test_a_key_file_that_lies_is_refused_before_it_costs_anything(
    store: DirectoryStore, repository: Repository, change: dict[str, object]
) -> None:
    (name,) = [item.name for item in store.list("keys/")]
    document = json.loads(store.read(name))
    store.delete(name)
    store.write(name, [json.dumps({**document, **change}).encode()])
    with pytest.raises((DataDamaged, WrongPassphrase)):
        open_repository(store, PASSPHRASE)


def test_blobs_come_back_and_a_changed_pack_is_noticed(store: DirectoryStore, repository: Repository) -> None:
    tree_id = _save(repository, BlobKind.TREE, encode_tree([_node(b"one"), _node(b"two")]))
    data_id = _save(repository, BlobKind.DATA, os.urandom(1000))
    again = open_repository(store, PASSPHRASE)
    assert [node.name for node in load_tree(again, tree_id)] == [b"one", b"two"]
    location = again.index.find(BlobKind.DATA, data_id)
    assert location is not None
    assert again.index.find(BlobKind.TREE, data_id) is None
    path = store.root / "data" / location.pack[:2] / location.pack
    content = bytearray(path.read_bytes())
    content[location.offset + 20] ^= 1
    path.chmod(0o600)
    path.write_bytes(content)
    with pytest.raises(DataDamaged, match=location.pack):
        again.load_blob(BlobKind.DATA, data_id)
    with pytest.raises(NotFound):
        again.load_blob(BlobKind.DATA, bytes(32))


def test_a_changed_or_renamed_index_is_noticed(store: DirectoryStore, repository: Repository) -> None:
    _save(repository, BlobKind.DATA, b"something")
    (item,) = store.list("index/")
    content = store.read(item.name)
    store.delete(item.name)
    store.write("index/" + "0" * 64, [content])
    with pytest.raises(DataDamaged, match="index/000"):
        open_repository(store, PASSPHRASE).reload_index()


def test_files_with_other_names_are_not_the_repositorys(store: DirectoryStore, repository: Repository) -> None:
    store.write("index/readme", [b"hello"])
    store.write("snapshots/0123", [b"hello"])
    again = open_repository(store, PASSPHRASE)
    assert len(again.index) == 0
    assert again.snapshots() == []


def test_snapshots_are_sorted_by_time_and_found_by_prefix(repository: Repository) -> None:
    moment = datetime(2024, 5, 6, tzinfo=UTC)
    ids = [
        repository.save_snapshot(
            Snapshot(id="", time=moment + timedelta(days=day), tree=bytes(32), paths=("/a/ü",), hostname="h", uid=7)
        )
        for day in (3, 1, 2)
    ]
    found = repository.snapshots()
    assert [snapshot.id for snapshot in found] == [ids[1], ids[2], ids[0]]
    assert repository.snapshot().id == ids[0]
    assert repository.snapshot(ids[1][:12]) == found[0]
    assert (found[0].paths, found[0].uid, found[0].time) == (("/a/ü",), 7, moment + timedelta(days=1))
    for name in ("nothing", "", "0" * 64):
        with pytest.raises(NotFound):
            repository.snapshot(name)


def _node(name: bytes) -> Node:
    return Node(name=name, type=NodeType.FILE, mode=0o644, mtime=0, atime=0, ctime=0, content=())


def _save(repository: Repository, kind: BlobKind, plaintext: bytes) -> bytes:
    blob_id = hashlib.sha256(plaintext).digest()
    writer = PackWriter(kind, repository.key)
    writer.add(blob_id, plaintext)
    finished = writer.finish()
    repository.save_pack(finished.entry, finished.data)
    repository.save_index([finished.entry])
    return blob_id

"""The contract of a store, run against every implementation."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from azure.storage.blob import ExponentialRetry

from diskprep import clock, durable
from diskprep.errors import DataDamaged, DiskprepError, NotFound, NotSignedIn, StorageFull, StorageUnavailable
from diskprep.secrets import Secret
from diskprep.store import Account, BlobStore
from diskprep.store.azure import AzureAccount, AzureStore
from diskprep.store.directory import DirectoryAccount, DirectoryStore

MIB = 1 << 20
Factory = Callable[[], BlobStore]


@pytest.fixture(params=["directory", "azure", "azure-prefix"])
def new_store(request: pytest.FixtureRequest, tmp_path: Path) -> Factory:
    """Makes empty stores of one kind, all in one account."""
    if request.param == "directory":
        numbers = iter(range(100))

        def directory() -> BlobStore:
            path = tmp_path / f"container-{next(numbers)}"
            path.mkdir()
            return DirectoryStore(path)

        return directory
    server = request.getfixturevalue("azurite")
    return lambda: server.fresh_container("some/prefix/" if request.param == "azure-prefix" else "")


@pytest.fixture
def store(new_store: Factory) -> BlobStore:
    return new_store()


@pytest.fixture(params=["directory", "azure"])
def account(request: pytest.FixtureRequest, tmp_path: Path) -> Account:
    if request.param == "directory":
        return DirectoryAccount("someaccount", tmp_path / "account", Secret(os.urandom(32)))
    return request.getfixturevalue("azurite").account  # type: ignore[no-any-return]


def md5(data: bytes) -> bytes:
    return hashlib.md5(data).digest()


def names(store: BlobStore, prefix: str = "") -> list[str]:
    return sorted(found.name for found in store.list(prefix))


@pytest.mark.parametrize("size", [0, 1, 4 * MIB, 4 * MIB + 1, 9 * MIB + 17])
def test_what_is_written_is_read_back_whole(store: BlobStore, size: int) -> None:
    data = os.urandom(size)
    store.write("data/ab/object", [data[: size // 3], memoryview(data)[size // 3 :]])
    assert store.read("data/ab/object") == data
    found = store.stat("data/ab/object")
    assert found is not None
    assert (found.name, found.size_bytes) == ("data/ab/object", size)
    assert found.md5 in (None, md5(data))


def test_the_md5_of_the_whole_is_kept_by_azure(azurite: Any) -> None:
    store = azurite.fresh_container()
    for size in (0, 10, 5 * MIB):
        store.write(f"object-{size}", [b"x" * size])
    assert {found.name: found.md5 for found in store.list()} == {
        f"object-{size}": md5(b"x" * size) for size in (0, 10, 5 * MIB)
    }


def test_an_object_of_the_same_name_is_replaced(store: BlobStore) -> None:
    store.write("config", [b"first, and longer"])
    store.write("config", [b"second"])
    assert store.read("config") == b"second"
    assert names(store) == ["config"]


def test_ranges_are_read_exactly(store: BlobStore) -> None:
    data = os.urandom(3 * MIB)
    store.write("object", [data])
    assert store.read("object", 5, 10) == data[5:15]
    assert store.read("object", MIB) == data[MIB:]
    assert store.read("object", len(data) - 1, 1) == data[-1:]
    assert store.read("object", 100, 0) == b""


@pytest.mark.parametrize(("offset", "length"), [(0, 101), (99, 2), (100, 1), (500, 1)])
def test_a_range_past_the_end_is_damage(store: BlobStore, offset: int, length: int) -> None:
    store.write("object", [b"x" * 100])
    with pytest.raises(DataDamaged):
        store.read("object", offset, length)


def test_listing_by_prefix_takes_whole_path_components(store: BlobStore) -> None:
    for name in ("data/aa/one", "data/bb/two", "data2/three", "index/four", "config"):
        store.write(name, [name.encode()])
    assert names(store) == ["config", "data/aa/one", "data/bb/two", "data2/three", "index/four"]
    assert names(store, "data/") == ["data/aa/one", "data/bb/two"]
    assert names(store, "data/bb/") == ["data/bb/two"]
    assert names(store, "nothing/") == []
    assert {found.name: found.size_bytes for found in store.list("index/")} == {"index/four": 10}


def test_a_missing_object_is_not_found_and_its_deletion_no_error(store: BlobStore) -> None:
    assert store.stat("nothing") is None
    for length in (None, 0, 4):
        with pytest.raises(NotFound):
            store.read("nothing", 0, length)
    store.delete("nothing")
    store.delete("no/such/folder")
    store.write("object", [b"1"])
    store.delete("object")
    assert store.stat("object") is None
    assert names(store) == []


@pytest.mark.parametrize(
    "name", ["", "/absolute", "..", "../up", "a/../b", "a/..", "back\\slash", "a//b", "a/", ".hidden", "a\0b", "a\n"]
)
def test_illegal_names_are_refused_by_every_call(store: BlobStore, name: str) -> None:
    calls: list[Callable[[], object]] = [
        lambda: store.stat(name),
        lambda: store.read(name),
        lambda: store.write(name, [b"1"]),
        lambda: store.delete(name),
        lambda: store.stage_block(name, "1", b"1", md5(b"1")),
        lambda: store.commit_blocks(name, []),
        lambda: store.copy_from(store, name),
    ]
    for call in calls:
        with pytest.raises(DataDamaged):
            call()
    assert names(store) == []


def test_blocks_are_joined_in_the_committed_order_and_invisible_before(store: BlobStore) -> None:
    blocks = {"third": os.urandom(MIB), "first": os.urandom(4 * MIB), "second-with-a-longer-id": b"2"}
    for block_id, data in blocks.items():
        store.stage_block("data/aa/object", block_id, data, md5(data))
    assert store.stat("data/aa/object") is None
    assert names(store) == []
    whole = blocks["first"] + blocks["second-with-a-longer-id"] + blocks["third"]
    store.commit_blocks("data/aa/object", ["first", "second-with-a-longer-id", "third"], md5=md5(whole))
    assert store.read("data/aa/object") == whole
    assert names(store) == ["data/aa/object"]


def test_a_block_with_a_wrong_md5_is_refused_and_cannot_be_committed(store: BlobStore) -> None:
    with pytest.raises(DataDamaged):
        store.stage_block("object", "1", b"data", md5(b"other"))
    with pytest.raises(DiskprepError):
        store.commit_blocks("object", ["1"])
    assert store.stat("object") is None


def test_a_block_that_was_never_staged_is_not_found(store: BlobStore) -> None:
    store.stage_block("object", "1", b"data", md5(b"data"))
    with pytest.raises(NotFound):
        store.commit_blocks("object", ["1", "2"])
    assert store.stat("object") is None


def test_a_copy_inside_the_service_is_equal(new_store: Factory) -> None:
    source, target = new_store(), new_store()
    data = os.urandom(5 * MIB)
    source.write("data/aa/object", [data])
    assert target.copy_from(source, "data/aa/object")
    assert target.read("data/aa/object") == data
    with pytest.raises(NotFound):
        target.copy_from(source, "data/aa/missing")
    assert names(target) == ["data/aa/object"]


def test_a_copy_between_different_services_is_not_possible(azurite: Any, tmp_path: Path) -> None:
    directory, container = DirectoryStore(tmp_path), azurite.fresh_container()
    directory.write("object", [b"1"])
    assert not container.copy_from(directory, "object")
    assert not directory.copy_from(container, "object")


def test_a_copy_from_a_container_that_a_signature_opened(azurite: Any) -> None:
    azurite.account.container("signed-source").write("object", [b"through a signature"])
    sas = azurite.account.container_sas("signed-source", clock.now() + timedelta(hours=1))
    target = azurite.fresh_container()
    assert target.copy_from(azurite.account.open_sas(sas), "object")
    assert target.read("object") == b"through a signature"


def test_several_threads_may_use_one_store(store: BlobStore) -> None:
    data = {f"data/{n:02d}": os.urandom(200_000 + n) for n in range(16)}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda item: store.write(item[0], [item[1]]), data.items()))
        assert dict(zip(data, pool.map(store.read, data), strict=True)) == data


def test_a_right_signature_opens_its_container(account: Account) -> None:
    account.container("container-one").write("object", [b"1"])
    opened = account.open_sas(account.container_sas("container-one", clock.now() + timedelta(hours=1)))
    assert opened.read("object") == b"1"
    opened.write("another", [b"2"])
    assert names(opened) == ["another", "object"]
    opened.delete("another")
    assert names(opened) == ["object"]


def test_forged_expired_and_foreign_signatures_are_refused(account: Account) -> None:
    for name in ("container-one", "container-two"):
        account.container(name)
    right = account.container_sas("container-one", clock.now() + timedelta(hours=1)).reveal()
    expired = account.container_sas("container-one", clock.now() - timedelta(hours=1)).reveal()
    field = "sig="
    at = right.index(field) + len(field)
    forged = right[:at] + ("A" if right[at] != "A" else "B") + right[at + 1 :]
    elsewhere = right.replace("container-one", "container-two", 1)
    for wrong in (expired, forged, elsewhere, "container-one", "container-one?se=1", ""):
        with pytest.raises(NotSignedIn) as caught:
            account.open_sas(Secret(wrong))
        assert "sig=" not in str(caught.value)


def test_a_wrong_account_key_is_named_as_such_and_not_shown(azurite: Any) -> None:
    key = "QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE="
    account = AzureAccount(azurite.url, Secret(key), api_version="2025-11-05")
    with pytest.raises(NotSignedIn) as caught:
        account.container("container-one")
    assert key not in "".join(traceback.format_exception(caught.value)) + repr(account)


def test_a_server_that_is_away_is_unavailable_and_no_signature_is_told(
    azurite: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("diskprep.store.azure.ExponentialRetry", lambda **_: ExponentialRetry(retry_total=0))
    account = AzureAccount("http://127.0.0.1:9/devstoreaccount1", azurite.key)
    sas = account.container_sas("container-one", clock.now() + timedelta(hours=1))
    with pytest.raises(StorageUnavailable) as caught:
        account.open_sas(sas)
    printed = "".join(capfd.readouterr())
    assert "sig=" not in "".join(traceback.format_exception(caught.value)) + printed


def test_a_damaged_object_is_noticed_by_the_md5_kept_with_it(azurite: Any) -> None:
    store: AzureStore = azurite.fresh_container()
    data = os.urandom(1000)
    store.stage_block("object", "1", data, md5(data))
    store.commit_blocks("object", ["1"], md5=md5(b"what it should have been"))
    with pytest.raises(DataDamaged):
        store.read("object")


def test_a_writer_killed_in_mid_write_leaves_nothing_visible(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    store.write("data/aa/kept", [b"before"])
    program = (
        "import sys\nfrom pathlib import Path\nfrom diskprep.store.directory import DirectoryStore\n"
        "def parts():\n    yield b'x' * 100000\n    print('half', flush=True)\n    sys.stdin.read()\n"
        f"DirectoryStore(Path({str(tmp_path)!r})).write(sys.argv[1], parts())\n"
    )
    for name in ("data/aa/kept", "data/bb/new"):
        child = subprocess.Popen(
            [sys.executable, "-c", program, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        too_late = threading.Timer(20, child.kill)
        too_late.start()
        assert child.stdout.readline() == "half\n"
        child.send_signal(signal.SIGKILL)
        child.wait()
        too_late.cancel()
    assert names(store) == ["data/aa/kept"]
    assert store.read("data/aa/kept") == b"before"


def test_a_block_that_failed_cannot_be_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DirectoryStore(tmp_path)
    data = b"x" * 1000
    digest = hashlib.md5(data).digest()
    store.stage_block("a", "1", data, digest)

    def full(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(durable, "write_all", full)
        with pytest.raises(StorageFull):
            store.stage_block("a", "2", data, digest)
    with pytest.raises(NotFound):
        store.commit_blocks("a", ["1", "2"])
    assert store.stat("a") is None


def test_a_folder_that_vanishes_while_it_is_listed_hides_nothing_else(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    for name in ("a/1", "b/2", "c/3"):
        store.write(name, [b"x"])
    found = []
    for item in store.list():
        found.append(item.name)
        if len(found) == 1:
            other = next(name for name in ("a/1", "b/2", "c/3") if name != item.name)
            store.delete(other)
            (tmp_path / other).parent.rmdir()
    assert len(found) == 2


def test_a_copy_between_file_systems_is_left_to_the_caller(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        source, target = DirectoryStore(Path(memory)), DirectoryStore(tmp_path)
        source.write("a", [b"data"])
        if target.copy_from(source, "a"):
            assert target.read("a") == b"data"  # a kernel that can
        else:
            assert list(target.list()) == []


def test_links_in_a_directory_store_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"outside")
    store = DirectoryStore(tmp_path / "store")
    store.write("a", [b"x"])
    (tmp_path / "store/link").symlink_to(tmp_path / "secret")
    assert store.stat("link") is None
    with pytest.raises(StorageUnavailable):
        store.read("link")

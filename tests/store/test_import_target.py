"""What the datacenter needs of a container: page blobs, metadata, properties; the same of every implementation."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from diskprep.errors import DataDamaged, DiskprepError, NotFound, NotSignedIn
from diskprep.secrets import Secret
from diskprep.store import Account, ContentProperties, ImportTarget
from diskprep.store.directory import DirectoryAccount, DirectoryStore

MIB = 1 << 20


@pytest.fixture(params=["directory", "azure", "azure-prefix"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> ImportTarget:
    if request.param == "directory":
        return DirectoryStore(tmp_path / "container")
    azurite = request.getfixturevalue("azurite")
    return azurite.fresh_container("a/prefix/" if request.param == "azure-prefix" else "")  # type: ignore[no-any-return]


def md5(data: bytes) -> bytes:
    return hashlib.md5(data).digest()


def write_pages(target: ImportTarget, name: str, offset: int, data: bytes) -> None:
    target.write_pages(name, offset, data, md5(data))


def test_a_page_blob_has_zeros_where_nothing_was_written(target: ImportTarget) -> None:
    target.create_pages("vm/disk.vhd", 9 * MIB, {})
    first, last = os.urandom(4 * MIB), os.urandom(512)
    write_pages(target, "vm/disk.vhd", MIB, first)
    write_pages(target, "vm/disk.vhd", 9 * MIB - 512, last)
    expected = bytes(MIB) + first + bytes(4 * MIB - 512) + last
    assert target.read("vm/disk.vhd") == expected
    assert target.read("vm/disk.vhd", MIB - 1, 3) == expected[MIB - 1 : MIB + 2]
    assert [(item.name, item.size_bytes) for item in target.list()] == [("vm/disk.vhd", 9 * MIB)]
    state = target.inspect("vm/disk.vhd")
    assert state is not None
    assert (state.is_page_blob, state.size_bytes, state.leased) == (True, 9 * MIB, False)


def test_an_empty_page_blob_and_a_large_one_of_zeros(target: ImportTarget) -> None:
    for size in (0, 1 << 33):
        target.create_pages("pages", size, {"mark": "1"})
        state = target.inspect("pages")
        assert state is not None
        assert (state.size_bytes, dict(state.metadata)) == (size, {"mark": "1"})


@pytest.mark.parametrize(("offset", "size"), [(0, 511), (1, 512), (-512, 512), (1024, 512), (0, 0), (0, 4 * MIB + 512)])
def test_pages_that_do_not_fit_are_refused(target: ImportTarget, offset: int, size: int) -> None:
    target.create_pages("pages", 1024, {})
    with pytest.raises(DiskprepError):
        write_pages(target, "pages", offset, b"x" * size)
    assert target.read("pages") == bytes(1024)


def test_pages_with_a_wrong_md5_and_pages_across_the_end_are_refused(tmp_path: Path) -> None:
    target = DirectoryStore(tmp_path)  # the service looks at both, the emulator at neither
    target.create_pages("pages", 1024, {})
    with pytest.raises(DataDamaged):
        target.write_pages("pages", 0, b"y" * 512, md5(b"other"))
    with pytest.raises(DataDamaged):
        write_pages(target, "pages", 512, b"y" * 1024)
    assert target.read("pages") == bytes(1024)


def test_pages_of_other_blobs_are_refused(target: ImportTarget) -> None:
    target.write("block", [b"x" * 512])
    for name in ("block", "nothing"):
        with pytest.raises(DiskprepError):
            write_pages(target, name, 0, b"y" * 512)
    assert target.read("block") == b"x" * 512
    for size in (-512, 100):
        with pytest.raises(DataDamaged):
            target.create_pages("odd", size, {})
    assert target.inspect("odd") is None


def test_kinds_replace_each_other_and_leave_nothing_of_the_old(target: ImportTarget) -> None:
    target.write("blob", [b"block"])
    target.set_metadata("blob", {"old": "1"})
    target.create_pages("blob", 512, {"new": "2"})
    state = target.inspect("blob")
    assert state is not None
    assert (state.is_page_blob, dict(state.metadata)) == (True, {"new": "2"})
    target.delete("blob")
    assert target.inspect("blob") is None
    target.write("blob", [b"x" * 512])
    state = target.inspect("blob")
    assert state is not None
    assert (state.is_page_blob, dict(state.metadata)) == (False, {})


def put_blocks(target: ImportTarget) -> None:
    target.stage_block("blob", "1", b"new", md5(b"new"))
    target.commit_blocks("blob", ["1"])


REPLACE: dict[str, Callable[[ImportTarget], None]] = {
    "write": lambda target: target.write("blob", [b"new"]),
    "blocks": put_blocks,
}


@pytest.mark.parametrize("how", REPLACE)
def test_metadata_and_properties_are_of_the_content_they_were_given_to(target: ImportTarget, how: str) -> None:
    target.write("blob", [b"old"])
    before = target.inspect("blob")
    target.set_metadata("blob", {"Name": "a & b", "_x1": ""})
    target.set_properties("blob", ContentProperties(content_type="text/plain", content_language="de"))
    state = target.inspect("blob")
    assert before is not None
    assert state is not None
    assert dict(state.metadata) == {"Name": "a & b", "_x1": ""}
    assert (state.properties.content_type, state.properties.content_language) == ("text/plain", "de")
    assert target.read("blob") == b"old"
    REPLACE[how](target)
    after = target.inspect("blob")
    assert after is not None
    assert (dict(after.metadata), after.properties.content_language) == ({}, "")
    assert after.version not in (before.version, "")
    assert [item.name for item in target.list()] == ["blob"]


def test_each_set_replaces_all_and_the_md5_stays_unless_it_is_given(target: ImportTarget) -> None:
    target.write("blob", [b"x"])
    given = ContentProperties(
        content_type="a/b",
        content_encoding="gzip",
        content_language="en",
        cache_control="no-cache",
        content_md5=b"m" * 16,
    )
    target.set_properties("blob", given)
    target.set_metadata("blob", {"a": "1"})
    target.set_metadata("blob", {"b": "2"})
    state = target.inspect("blob")
    assert state is not None
    assert (state.properties, dict(state.metadata)) == (given, {"b": "2"})
    target.set_properties("blob", ContentProperties(content_type="c/d"))
    state = target.inspect("blob")
    assert state is not None
    assert state.properties == replace(ContentProperties(content_type="c/d"), content_md5=b"m" * 16)
    assert dict(state.metadata) == {"b": "2"}


@pytest.mark.parametrize(
    "metadata",
    [{"a-b": "1"}, {"a": "1\r\nb: 2"}, {"a": " 1"}, {"a": "é"}, {"a": "x" * 9000}, {"a": "1", "A": "2"}, {"": "1"}],
)
def test_what_headers_do_not_take_is_refused(target: ImportTarget, metadata: dict[str, str]) -> None:
    target.write("blob", [b"x"])
    with pytest.raises(DataDamaged):
        target.set_metadata("blob", metadata)
    with pytest.raises(DataDamaged):
        target.create_pages("pages", 512, metadata)
    for properties in (ContentProperties(cache_control="a\nb"), ContentProperties(content_md5=b"1")):
        with pytest.raises(DataDamaged):
            target.set_properties("blob", properties)
    assert target.inspect("pages") is None


def test_a_missing_blob_has_nothing_and_takes_nothing(target: ImportTarget) -> None:
    assert target.inspect("nothing") is None
    with pytest.raises(NotFound):
        target.set_metadata("nothing", {"a": "1"})
    with pytest.raises(NotFound):
        target.set_properties("nothing", ContentProperties(content_type="a/b"))


@pytest.mark.parametrize("name", ["", "/x", "../up", "a/../b", ".hidden", "a\nb"])
def test_illegal_names_are_refused_by_every_call(target: ImportTarget, name: str) -> None:
    calls: list[Callable[[], object]] = [
        lambda: target.inspect(name),
        lambda: target.create_pages(name, 512, {}),
        lambda: write_pages(target, name, 0, bytes(512)),
        lambda: target.set_metadata(name, {}),
        lambda: target.set_properties(name, ContentProperties()),
    ]
    for call in calls:
        with pytest.raises(DataDamaged):
            call()


@pytest.fixture(params=["directory", "azure"])
def account_and_key(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Account, Secret[str]]:
    if request.param == "directory":
        key = os.urandom(32)
        return DirectoryAccount("a", tmp_path / "account", Secret(key)), Secret(base64.b64encode(key).decode())
    azurite: Any = request.getfixturevalue("azurite")
    return azurite.account, azurite.key


def test_the_right_key_opens_the_account_and_no_other(account_and_key: tuple[Account, Secret[str]]) -> None:
    account, key = account_and_key
    account.open_key(key).container("keyed").write("a", [b"1"])
    assert account.container("keyed").read("a") == b"1"
    for wrong in ("", "?", "é", base64.b64encode(b"k" * 64).decode(), key.reveal()[:-4]):
        with pytest.raises(NotSignedIn) as caught:
            account.open_key(Secret(wrong))
        assert not wrong or wrong == "?" or wrong not in str(caught.value)


def test_a_sidecar_of_an_earlier_object_says_nothing(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    store.write("blob", [b"old"])
    store.set_metadata("blob", {"a": "1"})
    (tmp_path / "other").write_bytes(b"newer")
    (tmp_path / "other").replace(tmp_path / "blob")  # as by a crash between the two steps
    state = store.inspect("blob")
    assert state is not None
    assert dict(state.metadata) == {}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"object": 1, "name": 2', "{}"])
def test_a_damaged_sidecar_is_told_and_goes_with_its_object(tmp_path: Path, text: str) -> None:
    store = DirectoryStore(tmp_path)
    store.write("blob", [b"x"])
    store.set_metadata("blob", {"a": "1"})
    (sidecar,) = (tmp_path / ".properties").iterdir()
    sidecar.write_text(text)
    with pytest.raises(DataDamaged) as caught:
        store.inspect("blob")
    assert caught.value.hint
    assert store.read("blob") == b"x"
    store.write("blob", [b"y"])
    assert store.inspect("blob") is not None

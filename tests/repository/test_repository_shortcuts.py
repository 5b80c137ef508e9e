"""What is written or read a second way, for speed, is the same as the first way gives."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from test_repository_properties import IDS, NAMES, NUMBERS, TEXTS, TIMES, nodes

from diskprep.errors import DataDamaged
from diskprep.repository import quoting, tree
from diskprep.repository.index import blob_ids, encode_index, parse_index, summarize_index
from diskprep.repository.pack import BlobKind, PackEntry, pack_entry

XATTRS = st.lists(st.tuples(TEXTS.map(str.encode), st.binary(max_size=20)), max_size=3).map(tuple)
#: What may stand where something else is meant.
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**70) | st.floats(allow_nan=False) | TEXTS | st.just("ab" * 32),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=4,
)


# -- trees


@given(
    name=NAMES,
    mode=st.integers(0, 0o7777),
    times=st.tuples(TIMES, TIMES) | TIMES.map(lambda time: (time, time)),
    numbers=st.tuples(*[st.sampled_from([0, 1]) | NUMBERS] * 4),
    owner=st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), TEXTS, TEXTS),
    xattrs=XATTRS,
    content=st.lists(IDS, max_size=4).map(tuple),
)
def test_a_files_entry_is_the_same_without_a_node(
    name: bytes,
    mode: int,
    times: tuple[int, int],
    numbers: tuple[int, int, int, int],
    *,
    owner: tuple[int, int, str, str],
    xattrs: tuple[tuple[bytes, bytes], ...],
    content: tuple[bytes, ...],
) -> None:
    (mtime, ctime), (inode, device_id, size, links), (uid, gid, user, group) = times, numbers, owner
    seconds = (0, mtime // 10**9, ctime // 10**9)
    status = os.stat_result(
        (stat.S_IFREG | mode, inode, device_id, links, uid, gid, 7, *seconds),
        {"st_mtime_ns": mtime, "st_ctime_ns": ctime},
    )
    node = tree.Node(
        name=name,
        type=tree.NodeType.FILE,
        mode=tree.go_mode(stat.S_IFREG | mode),
        mtime=mtime,
        atime=mtime,
        ctime=ctime,
        uid=uid,
        gid=gid,
        user=user,
        group=group,
        inode=inode,
        device_id=device_id,
        size=size,
        links=links,
        xattrs=xattrs,
        content=content,
    )
    owner_text = tree.encode_owner(uid, gid, user, group)
    assert tree.encode_file(
        name, status, owner=owner_text, xattrs=xattrs, content=content, size_bytes=size
    ) == tree.encode_node(node)


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 8, 13])
def test_the_parts_of_a_tree_are_the_tree(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(tree, "_NODES_A_PART", 4)
    encoded = [b'{"node":%d}' % number for number in range(count)]
    whole = b'{"nodes":[' + b",".join(encoded) + b"]}\n"
    assert b"".join(tree.tree_parts(encoded)) == tree.join_nodes(encoded) == whole
    assert [node["node"] for node in json.loads(whole)["nodes"]] == list(range(count))


def base_of(listing: tuple[tree.Node, ...]) -> tree.Base:
    """What `parse_base` must find in a tree of these nodes."""
    files = {
        node.name: tree.BaseFile(
            node.size,
            quoting.format_time(node.mtime),
            quoting.format_time(node.ctime),
            node.inode,
            node.content or (),
        )
        for node in listing
        if node.type is tree.NodeType.FILE
    }
    folders = [node for node in listing if node.type is tree.NodeType.DIR]
    return tree.Base(files=files, subtrees={node.name: node.subtree for node in folders if node.subtree is not None})


@given(st.lists(nodes(), max_size=5, unique_by=lambda node: node.name))
def test_the_base_of_a_tree_is_what_the_tree_says(listing: list[tree.Node]) -> None:
    text = tree.encode_tree(listing)
    base = tree.parse_base(text)
    assert base == base_of(tree.parse_tree(text))
    for node in listing:
        if node.type is tree.NodeType.FILE:
            file = base.files[node.name]
            assert file.has_times(node.mtime, node.ctime)
            assert file.has_times(node.mtime, None)
            assert not file.has_times(node.mtime + 1, None)
            assert not file.has_times(node.mtime, node.ctime - 1)


@given(st.lists(nodes(), min_size=1, max_size=3, unique_by=lambda node: node.name), st.data())
def test_a_damaged_tree_gives_a_base_that_agrees_or_our_error(listing: list[tree.Node], data: st.DataObject) -> None:
    text = bytearray(tree.encode_tree(listing))
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text) - 1))
        text[start : start + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
        assume(text)
    _agree(bytes(text))


@given(nodes(), st.sampled_from(["name", "type", "size", "inode", "mtime", "ctime", "content", "subtree"]), VALUES)
def test_a_field_of_another_kind_gives_a_base_that_agrees_or_our_error(
    node: tree.Node, field: str, value: object
) -> None:
    document = json.loads(tree.encode_node(node)) | {field: value}
    _agree(b'{"nodes":[' + json.dumps(document).encode() + b"]}\n")
    del document[field]
    _agree(b'{"nodes":[' + json.dumps(document).encode() + b"]}\n")


def _agree(text: bytes) -> None:
    """`parse_base` raises nothing but DataDamaged; where `parse_tree` reads a tree, it finds the same or gives up."""
    try:
        base = tree.parse_base(text)
    except DataDamaged:
        return
    for file in base.files.values():  # asked of every file of a later backup: never an error
        assert file.has_times(0, 0) in (True, False)
        assert all(len(blob_id) == 32 for blob_id in file.content)
    try:
        listing = tree.parse_tree(text)
    except DataDamaged:
        return
    wanted = base_of(listing)
    assert base.subtrees.items() <= wanted.subtrees.items()
    for name, file in base.files.items():
        assert (file.size, file.inode, file.content) == (
            wanted.files[name].size,
            wanted.files[name].inode,
            wanted.files[name].content,
        )


# -- index files


@st.composite
def entries(draw: st.DrawFn) -> PackEntry:
    lengths = st.tuples(IDS, st.integers(33, 2**20), st.none() | st.integers(1, 2**20))
    blobs = draw(st.lists(lengths, min_size=1, max_size=4))
    return pack_entry(draw(IDS).hex(), draw(st.sampled_from(BlobKind)), blobs)


@given(st.lists(entries(), max_size=4, unique_by=lambda entry: entry.pack), st.randoms())
def test_the_summary_and_the_ids_of_an_index_file_are_what_it_says(listing: list[PackEntry], rng: Any) -> None:
    document = json.loads(encode_index(listing))
    for found in document["packs"]:
        rng.shuffle(found["blobs"])  # restic lists them in any order
    assert parse_index(document) == listing
    assert summarize_index(document) == {entry.pack: entry.summary for entry in listing}
    data = [entry for entry in listing if entry.kind is BlobKind.DATA]
    assert sorted(blob_ids(document)) == sorted(blob.id for entry in data for blob in entry.blobs)
    trees = parse_index(document, only=BlobKind.TREE)
    assert trees == [entry for entry in listing if entry.kind is BlobKind.TREE]


@given(entries(), entries(), st.sampled_from(["packs", "id", "blobs", "blob", "type", "blob id", "length"]), VALUES)
def test_a_damaged_index_file_is_our_error_whoever_reads_it(
    one: PackEntry, other: PackEntry, place: str, value: object
) -> None:
    document = json.loads(encode_index([one, other]))
    found = document["packs"][1]
    if place == "packs":
        document["packs"] = value
    elif place in ("id", "blobs"):
        found[place] = value
    elif place == "blob":
        found["blobs"][-1] = value
    else:
        found["blobs"][-1][place.removeprefix("blob ")] = value
    read: dict[str, object] = {}
    readers: dict[str, Callable[[dict[str, Any]], object]]
    readers = {"parse_index": parse_index, "summarize_index": summarize_index, "blob_ids": blob_ids}
    for name, reader in readers.items():
        try:
            read[name] = reader(document)
        except DataDamaged:
            continue
    if "parse_index" in read:
        whole: Any = read["parse_index"]
        assert read["summarize_index"] == {entry.pack: entry.summary for entry in whole}
    assert all(len(blob_id) == 32 for blob_id in read.get("blob_ids", ()))  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["AB" * 32, "ab" * 31, "a b" * 21 + "a", "ab " * 21 + "a", "xy" * 32, ["a"] * 64, 64])
def test_what_is_no_id_is_damage(name: object) -> None:
    entry = pack_entry("ab" * 32, BlobKind.DATA, [(b"i" * 32, 40, None)])
    document = json.loads(encode_index([entry]))
    document["packs"][0]["blobs"][0]["id"] = name
    with pytest.raises(DataDamaged):
        parse_index(document)
    with pytest.raises(DataDamaged):
        blob_ids(document)
    document = json.loads(encode_index([entry]))
    document["packs"][0]["id"] = name
    with pytest.raises(DataDamaged):
        parse_index(document)
    with pytest.raises(DataDamaged):
        summarize_index(document)

"""The tree behind a mount, without the kernel: what is read when, what is kept, and what hostile names do."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trip import PASSPHRASE, Seeded

from diskprep.errors import DataDamaged, NotFound
from diskprep.events import Event, silent
from diskprep.repository.locations import Locations
from diskprep.repository.pack import BlobKind, PackEntry, object_name, pack_entry
from diskprep.repository.packwriter import PackWriter
from diskprep.repository.repository import Repository, create
from diskprep.repository.snapshot import Snapshot
from diskprep.repository.tree import Node, NodeType, encode_tree, go_mode, parse_tree
from diskprep.secrets import Secret
from diskprep.store.directory import DirectoryStore
from diskprep.vault import browse, folder
from diskprep.vault.blobcache import BlobCache
from diskprep.vault.browse import Browser
from diskprep.vault.folder import read_listing

_NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def node(name: bytes, kind: NodeType = NodeType.FILE, **fields: object) -> Node:
    mode = {NodeType.DIR: stat.S_IFDIR | 0o750, NodeType.SYMLINK: stat.S_IFLNK | 0o777}.get(kind, stat.S_IFREG | 0o640)
    base = Node(name=name, type=kind, mode=go_mode(mode), mtime=1_700_000_000_123_456_789, atime=5, ctime=-1)
    return replace(base, **fields)  # type: ignore[arg-type]


class Forged:
    """A repository of trees as they are told. `read`: objects that were read from its store, with their ranges."""

    def __init__(self, root: Path) -> None:
        self.read: list[str] = []
        self.store = DirectoryStore(root)
        self.repository: Repository = create(self.store, Secret(PASSPHRASE))
        self._entries: list[PackEntry] = []
        original = self.store.read

        def read(name: str, offset: int = 0, length: int | None = None) -> bytes:
            self.read.append(name)
            return original(name, offset, length)

        self.store.read = read  # type: ignore[method-assign]

    def blob(self, plaintext: bytes, kind: BlobKind = BlobKind.DATA) -> bytes:
        writer = PackWriter(kind, self.repository.key)
        blob_id = hashlib.sha256(plaintext).digest()
        writer.add(blob_id, plaintext)
        finished = writer.finish()
        self.repository.save_pack(finished.entry, finished.data)
        self._entries.append(finished.entry)
        return blob_id

    def tree(self, *nodes: Node) -> bytes:
        return self.blob(encode_tree(nodes), BlobKind.TREE)

    def point(self, root: bytes, *, host: str = "server", tags: tuple[str, ...] = (), time: datetime = _NOON) -> str:
        self.repository.save_index(self._entries)
        self._entries.clear()
        point = Snapshot(id="", time=time, tree=root, paths=("/",), hostname=host, tags=tags)
        return self.repository.save_snapshot(point)


@pytest.fixture
def forged(tmp_path: Path) -> Forged:
    return Forged(tmp_path / "forged")


@pytest.fixture
def pool() -> Iterator[Executor]:
    with ThreadPoolExecutor(2) as threads:
        yield threads


def read_all(browser: Browser, path: bytes, step: int = 100_000) -> bytes:
    file = browser.open(path)
    assert file is not None
    parts = []
    while part := browser.read(file, step, sum(map(len, parts))):
        parts.append(part)
    return b"".join(parts)


def names(browser: Browser, path: bytes) -> list[bytes]:
    directory = browser.directory(path)
    assert directory is not None
    return directory.listing.names


def test_a_file_of_many_blobs_is_read_at_any_offset(forged: Forged, pool: Executor) -> None:
    parts = [os.urandom(size) for size in (10, 1, 70_000, 3, 200_000, 1)]
    data = b"".join(parts)
    tree = forged.tree(node(b"file", size=len(data), content=tuple(map(forged.blob, parts))))
    forged.point(tree)
    browser = Browser(forged.repository, pool, emit=silent)
    path = b"/snapshots/2026-03-01T12:00:00Z/file"
    assert read_all(browser, path) == read_all(browser, path, step=999) == data
    file = browser.open(path)
    assert file is not None
    for offset, size in ((0, 0), (9, 2), (11, 70_000), (len(data) - 1, 10), (len(data), 10), (len(data) + 5, 10)):
        assert browser.read(file, size, offset) == data[offset : offset + size]


def test_a_vault_in_a_container_is_browsed_like_one_in_a_folder(
    azurite: Any, restic_seeded: Seeded, pool: Executor
) -> None:
    container, opened = azurite.fresh_container(), restic_seeded.opened
    for stored in opened.store.list():
        container.write(stored.name, [opened.store.read(stored.name)])
    browser = Browser(Repository(container, opened.key, opened.id, opened.polynomial), pool, emit=silent)
    latest = browser.entry(b"/snapshots/latest")
    assert latest is not None
    for path in (*restic_seeded.source.rglob("random-*.bin"), restic_seeded.source / "odd/holes"):
        there = b"/snapshots/" + latest.value + os.fsencode(path)
        assert read_all(browser, there, step=128 << 10) == path.read_bytes()


def test_looking_reads_no_data_and_no_listing_but_its_own(forged: Forged, pool: Executor) -> None:
    forged.blob(b"x" * 1000)
    deeper = forged.tree(node(b"never looked at"))
    other = forged.tree(
        node(b"file", content=(forged.blob(b"data"),), size=4), node(b"deep", NodeType.DIR, subtree=deeper)
    )
    forged.point(forged.tree(node(b"a", NodeType.DIR, subtree=other), node(b"b", NodeType.DIR, subtree=deeper)))
    browser = Browser(forged.repository, pool, emit=silent)
    forged.read.clear()
    assert names(browser, b"/ids") != []
    assert forged.read == []
    assert names(browser, b"/snapshots/2026-03-01T12:00:00Z/a") == [b"deep", b"file"]
    assert browser.entry(b"/snapshots/2026-03-01T12:00:00Z/a/file") is not None
    assert len(forged.read) == 2
    assert names(browser, b"/hosts/server/2026-03-01T12:00:00Z/a") == [b"deep", b"file"]


def test_points_of_one_second_and_odd_hosts_and_tags_have_names(forged: Forged, pool: Executor) -> None:
    tree = forged.tree(node(b"file"))
    forged.point(tree, host="../../etc", tags=("a/b", "..", "x" * 300))
    forged.point(tree, host="h" * 26)  # with "hosts/" as long as an id
    browser = Browser(forged.repository, pool, emit=silent)
    assert names(browser, b"/") == [b"hosts", b"ids", b"snapshots", b"tags"]
    assert names(browser, b"/snapshots") == [b"2026-03-01T12:00:00Z", b"2026-03-01T12:00:00Z-1", b"latest"]
    assert names(browser, b"/hosts") == [b".._.._etc", b"h" * 26]
    assert names(browser, b"/tags") == [b"_", b"a_b", b"x" * 255]
    assert names(browser, b"/hosts/" + b"h" * 26 + b"/2026-03-01T12:00:00Z") == [b"file"]
    latest = browser.entry(b"/snapshots/latest")
    assert latest is not None
    assert latest.value == b"2026-03-01T12:00:00Z-1"
    for absent in (b"/x", b"/ids/latest", b"/snapshots/latest/file", b"/snapshots/2026-03-01T12:00:00Z/file/x"):
        assert browser.directory(absent) is None
        assert browser.entry(absent + b"/y") is None


def test_points_that_are_added_appear_and_what_they_need_is_found(
    forged: Forged, pool: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    forged.point(forged.tree(node(b"old")))
    browser = Browser(forged.repository, pool, emit=silent)
    forged.point(forged.tree(node(b"new", content=(forged.blob(b"fresh"),), size=5)), time=_NOON.replace(hour=13))
    assert len(names(browser, b"/snapshots")) == 2
    moment = browse.clock.monotonic_s()
    monkeypatch.setattr(browse.clock, "monotonic_s", lambda: moment + 31)
    assert len(names(browser, b"/snapshots")) == 3
    assert read_all(browser, b"/snapshots/2026-03-01T13:00:00Z/new") == b"fresh"
    assert browser.points == 2


def test_what_is_missing_fails_alone_and_is_told_once(forged: Forged, pool: Executor) -> None:
    lost, kept = forged.blob(b"lost"), forged.blob(b"kept")
    unknown = hashlib.sha256(b"never stored").digest()
    tree = forged.tree(
        node(b"lost", content=(lost,), size=4),
        node(b"kept", content=(kept,), size=4),
        node(b"partly", content=(kept, unknown), size=8),
        node(b"no listing", NodeType.DIR),
        node(b"unknown listing", NodeType.DIR, subtree=unknown),
    )
    forged.point(tree)
    told: list[Event] = []
    browser = Browser(forged.repository, pool, emit=told.append)
    location = forged.repository.index.find(BlobKind.DATA, lost)
    assert location is not None
    forged.store.delete(object_name(location.pack))
    root = b"/snapshots/2026-03-01T12:00:00Z/"
    for _ in range(2):
        with pytest.raises(NotFound):
            read_all(browser, root + b"lost")
        with pytest.raises(NotFound):
            browser.open(root + b"partly")
        with pytest.raises(DataDamaged):
            browser.directory(root + b"no listing")
        with pytest.raises(NotFound):
            browser.directory(root + b"unknown listing")
        assert read_all(browser, root + b"kept") == b"kept"
    assert len(told) == 4


def test_a_thousand_errors_are_not_a_thousand_lines(
    forged: Forged, pool: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(browse, "_NOTES", 2)
    forged.point(forged.tree(*(node(b"%d" % number, NodeType.DIR) for number in range(9))))
    told: list[Event] = []
    browser = Browser(forged.repository, pool, emit=told.append)
    for number in range(9):
        with pytest.raises(DataDamaged):
            browser.directory(b"/snapshots/2026-03-01T12:00:00Z/%d" % number)
    assert len(told) == 3
    assert "further" in str(told[-1])


def test_inode_numbers_are_of_places_but_for_hard_links(forged: Forged, pool: Executor) -> None:
    linked = {"links": 2, "inode": 77, "device_id": 5}
    tree = forged.tree(
        node(b"a", **linked), node(b"b", **linked), node(b"c"), node(b"d", links=2, inode=77, device_id=6)
    )
    forged.point(forged.tree(node(b"x", NodeType.DIR, subtree=tree), node(b"y", NodeType.DIR, subtree=tree)))
    forged.point(tree, time=_NOON.replace(hour=13))
    browser = Browser(forged.repository, pool, emit=silent)

    def inode(path: bytes) -> int:
        entry = browser.entry(b"/snapshots/2026-03-01T1" + path)
        assert entry is not None
        return entry.inode

    noon, later = b"2:00:00Z", b"3:00:00Z"
    assert inode(noon + b"/x/a") == inode(noon + b"/x/b") == inode(noon + b"/y/a")
    others = [inode(noon + path) for path in (b"/x/a", b"/x/c", b"/y/c", b"/x/d")]
    assert len({*others, inode(later + b"/a"), inode(later + b"/c")}) == 6


def test_opened_blobs_are_kept_up_to_a_limit_and_loaded_once(pool: Executor) -> None:
    loaded: list[bytes] = []
    (entry,) = [pack_entry("0" * 64, BlobKind.DATA, [(bytes([n]) * 32, 1032, None) for n in range(10)])]

    def load(location: object) -> bytes:
        loaded.append(location.id)  # type: ignore[attr-defined]
        return bytes(1000)

    cache = BlobCache(load, pool, 3500)
    for _ in range(2):
        for blob in entry.blobs[:3]:
            cache.want(blob).result()
    assert len(loaded) == 3
    for blob in entry.blobs:
        cache.want(blob).result()
    pool.submit(int).result()
    assert [blob for blob in entry.blobs if cache.has(blob.id)] == list(entry.blobs[-3:])
    cache.want(entry.blobs[9]).result()
    assert len(loaded) == 10
    cache.want(entry.blobs[0]).result()
    assert len(loaded) == 11


def test_what_could_not_be_loaded_is_tried_again(pool: Executor) -> None:
    answers: Iterator[bytes | Exception] = iter([NotFound("away"), b"there"])

    def load(_: object) -> bytes:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    cache = BlobCache(load, pool, 100)
    (blob,) = pack_entry("0" * 64, BlobKind.DATA, [(bytes(32), 37, None)]).blobs
    with pytest.raises(NotFound):
        cache.want(blob).result()
    assert cache.want(blob).result() == b"there"


def test_lengths_of_blobs_are_told_at_once(tmp_path: Path) -> None:
    locations = Locations(BlobKind.DATA)
    ids = [os.urandom(32) for _ in range(50)]
    twin = ids[0][:8] + os.urandom(24)  # with the same key in the table
    locations.sort()
    assert list(locations.plaintext_lengths(ids[0])) == [-1]
    blobs = [(one, 100 + number, None if number % 2 else 7 + number) for number, one in enumerate([*ids, twin])]
    locations.add([pack_entry("0" * 64, BlobKind.DATA, blobs)])
    locations.sort()
    want = [100 + number - 32 if number % 2 else 7 + number for number in range(51)]
    assert list(locations.plaintext_lengths(b"".join([*ids, twin, os.urandom(32)]))) == [*want, -1]
    assert list(locations.plaintext_lengths(b"")) == []


_NAMES = st.binary(min_size=1, max_size=20).filter(lambda name: name not in (b".", b"..") and not set(name) & {0, 47})
_NODES = st.lists(
    st.builds(
        node,
        _NAMES,
        st.sampled_from([kind for kind in NodeType if kind is not NodeType.DIR]),
        mtime=st.integers(-(10**19), 10**20),
        ctime=st.integers(-(10**19), 10**20),
        uid=st.integers(0, 2**32 - 1),
        gid=st.integers(0, 2**32 - 1),
        links=st.integers(0, 10),
        inode=st.integers(0, 2**64 - 1),
        size=st.integers(0, 2**62),
        device=st.integers(0, 2**32 - 1),
        xattrs=st.lists(st.tuples(st.just(b"user.x"), st.binary(max_size=9)), max_size=1).map(tuple),
    ),
    unique_by=lambda one: one.name,
    max_size=8,
)


@given(_NODES)
@pytest.mark.parametrize("whole_bytes", [0, 1 << 30])
def test_a_packed_listing_says_what_the_tree_says(whole_bytes: int, nodes: list[Node]) -> None:
    text = encode_tree(nodes)
    before, folder._WHOLE_BYTES = folder._WHOLE_BYTES, whole_bytes
    try:
        listing = read_listing(text)
    finally:
        folder._WHOLE_BYTES = before
    tree = parse_tree(text)
    assert listing.names == [one.name for one in tree]
    for number, one in enumerate(tree):
        status = listing.status(number)
        assert (status.mode, status.uid, status.gid, status.inode) == (one.unix_mode, one.uid, one.gid, one.inode)
        assert (status.mtime_s * 10**9 + status.mtime_ns, status.ctime_s * 10**9 + status.ctime_ns) == (
            one.mtime,
            one.ctime,
        )
        assert status.size == (one.size if one.type is NodeType.FILE else 0)
        assert dict(one.xattrs) == listing.xattrs(number)
        assert listing.find(one.name) == number


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b'{"nodes":[{"name":"a"}]}',
        b'{"nodes":[{"name":"a","type":"file","mtime":"x","atime":"x","ctime":"x","content":[]}]}',
        encode_tree([node(b"a")]).replace(b'"a"', b'".."'),
        encode_tree([node(b"a")]).replace(b'"a"', b'"a/b"'),
        encode_tree([node(b"a", uid=7)]).replace(b'"uid":7', b'"uid":-7'),
        encode_tree([node(b"a", size=7)]).replace(b'"size":7', b'"size":9223372036854775808'),
        encode_tree([node(b"a"), node(b"b")]).replace(b'"b"', b'"a"'),
    ],
)
def test_a_malformed_tree_is_damage(text: bytes) -> None:
    with pytest.raises(DataDamaged):
        read_listing(text)


def test_an_unordered_tree_is_browsed_all_the_same() -> None:
    text = encode_tree([node(b"a"), node(b"b")]).replace(b'"a"', b'"z"')
    listing = read_listing(text)
    assert listing.names == [b"b", b"z"]
    assert listing.find(b"z") == 1

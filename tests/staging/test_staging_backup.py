"""Backups: what is stored, what is not read again, and what is told."""

from __future__ import annotations

import hashlib
import os
import random
import stat
import threading
from pathlib import Path

import pytest
from support import make_tree
from vaults import load_tree

from diskprep.errors import Interrupted, Locked, StorageFull
from diskprep.events import Event, Note, Progress
from diskprep.repository.chunker import Chunker
from diskprep.repository.index import BlobKind
from diskprep.repository.pack import PackEntry, object_name, verify_pack
from diskprep.repository.repository import Repository
from diskprep.repository.tree import Node, NodeType
from diskprep.source import Source
from diskprep.staging.dispatch import Manpower
from diskprep.staging.writer import BackupOptions, BackupResult, backup

MIB = 1 << 20


def run(repository: Repository, *paths: Path, **more: object) -> BackupResult:
    return backup(repository, [Source(os.fsencode(path)) for path in paths], hostname="host", **more)  # type: ignore[arg-type]


def listing(repository: Repository, snapshot: str, path: Path | bytes) -> dict[bytes, Node]:
    """The nodes below a directory of a snapshot, by name."""
    tree: bytes | None = repository.snapshot(snapshot).tree
    for part in os.fsencode(path).split(b"/"):
        if part:
            assert tree is not None
            tree = {node.name: node for node in load_tree(repository, tree)}[part].subtree
    assert tree is not None
    return {node.name: node for node in load_tree(repository, tree)}


def content(repository: Repository, node: Node) -> bytes:
    assert node.content is not None
    return b"".join(repository.load_blob(BlobKind.DATA, blob) for blob in node.content)


def compare_all(repository: Repository, snapshot: str, path: bytes) -> int:
    """Compare a whole directory with the snapshot; returns the number of entries."""
    nodes = listing(repository, snapshot, path)
    names = [item.name for item in os.scandir(path) if not stat.S_ISSOCK(item.stat(follow_symlinks=False).st_mode)]
    assert sorted(nodes) == sorted(names)
    count = len(nodes)
    for name, node in nodes.items():
        below = path + b"/" + name
        status = os.lstat(below)
        assert node.unix_mode == status.st_mode, below
        assert (node.mtime, node.ctime, node.uid, node.gid) == (
            status.st_mtime_ns,
            status.st_ctime_ns,
            status.st_uid,
            status.st_gid,
        )
        assert (node.inode, node.device_id) == (status.st_ino, status.st_dev)
        if node.type is NodeType.DIR:
            count += compare_all(repository, snapshot, below)
        elif node.type is NodeType.SYMLINK:
            assert node.linktarget == os.fsencode(Path(os.fsdecode(below)).readlink())
        elif node.type is NodeType.FILE:
            assert node.size == status.st_size
            assert node.links == status.st_nlink
            with open(below, "rb") as stream:  # noqa: PTH123  names are bytes
                assert content(repository, node) == stream.read()
    return count


def test_everything_a_tree_may_hold_is_stored(tmp_path: Path, repository: Repository) -> None:
    root = make_tree(tmp_path / "tree", megabytes=4)
    result = run(repository, root)
    assert result.unreadable == ()
    assert result.changed == ()
    assert result.skipped_sockets == 1
    assert compare_all(repository, result.snapshot, os.fsencode(root)) > 300
    assert result.files == sum(stat.S_ISREG(path.lstat().st_mode) for path in root.rglob("*"))
    snapshot = repository.snapshot(result.snapshot)
    assert (snapshot.paths, snapshot.hostname, snapshot.parent) == ((str(root),), "host", None)


def test_packs_are_whole_of_one_kind_and_as_large_as_asked(tmp_path: Path, repository: Repository) -> None:
    root = make_tree(tmp_path / "tree", megabytes=8)
    result = run(repository, root, options=BackupOptions(pack_size_bytes=MIB))
    repository.reload_index()
    packs = repository.index.packs
    stored = {item.name: item.size_bytes for item in repository.store.list("data/")}
    assert stored == {object_name(name): entry.size_bytes for name, entry in packs.items()}
    assert sum(stored.values()) == result.bytes_stored
    # 5.6 MB that do not compress; a pack is closed after the blob of at most 0.7 MB that reaches 1 MiB
    assert sum(entry.kind is BlobKind.DATA for entry in packs.values()) >= 4
    for name, entry in packs.items():
        verify_pack(name, repository.store.read(object_name(name)), repository.key, entry)


def test_ancestors_carry_their_own_metadata(tmp_path: Path, repository: Repository) -> None:
    folder = tmp_path / "one" / "two"
    folder.mkdir(parents=True)
    (folder / "file").write_bytes(b"x")
    (tmp_path / "one").chmod(0o710)
    result = run(repository, folder)
    node = listing(repository, result.snapshot, tmp_path)[b"one"]
    assert node.unix_mode == stat.S_IFDIR | 0o710
    assert node.inode == (tmp_path / "one").stat().st_ino
    assert list(listing(repository, result.snapshot, b"/")) == [os.fsencode(tmp_path).split(b"/")[1]]


def test_several_sources_share_their_ancestors_and_may_be_files(tmp_path: Path, repository: Repository) -> None:
    for name in ("a/x", "a/y", "b"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").write_bytes(name.encode())
    (tmp_path / "a" / "link").symlink_to("x")
    (tmp_path / "a" / "long").write_bytes(random.Random(1).randbytes(MIB))
    sources = [tmp_path / "a/x", tmp_path / "b/file", tmp_path / "a/y/file", tmp_path / "a/link", tmp_path / "a/long"]
    result = run(repository, *sources)
    assert sorted(listing(repository, result.snapshot, tmp_path)) == [b"a", b"b"]
    assert sorted(listing(repository, result.snapshot, tmp_path / "a")) == [b"link", b"long", b"x", b"y"]
    assert content(repository, listing(repository, result.snapshot, tmp_path / "a/y")[b"file"]) == b"a/y"
    assert repository.snapshot(result.snapshot).paths == tuple(map(str, sources))


def test_a_source_read_elsewhere_appears_under_its_own_path(tmp_path: Path, repository: Repository) -> None:
    original, copy = tmp_path / "original", tmp_path / "somewhere" / "copy"
    original.mkdir()
    copy.mkdir(parents=True)
    (copy / "file").write_bytes(b"from the copy")
    (copy / "left out").write_bytes(b"x")
    (copy / "deep").mkdir()
    source = Source(os.fsencode(original), read_from=os.fsencode(copy))
    options = BackupOptions(exclude=frozenset({os.fsencode(original / "left out")}))
    result = backup(repository, [source], hostname="h", options=options)
    nodes = listing(repository, result.snapshot, original)
    assert sorted(nodes) == [b"deep", b"file"]
    assert content(repository, nodes[b"file"]) == b"from the copy"
    single = Source(os.fsencode(original / "renamed"), read_from=os.fsencode(copy / "file"))
    result = backup(repository, [single], hostname="h")
    assert content(repository, listing(repository, result.snapshot, original)[b"renamed"]) == b"from the copy"


def test_the_same_content_is_stored_once(tmp_path: Path, repository: Repository) -> None:
    data = random.Random(2).randbytes(3 * MIB)
    (tmp_path / "tree").mkdir()
    for number in range(4):
        (tmp_path / "tree" / str(number)).write_bytes(data)
    result = run(repository, tmp_path / "tree")
    assert result.bytes_processed == 12 * MIB
    assert 3 * MIB <= result.bytes_added < 3 * MIB + 100_000
    again = run(repository, tmp_path / "tree")
    assert again.files_unmodified == 0
    assert again.bytes_added < 100_000  # directories above the source, in which other programs work too
    assert listing(repository, again.snapshot, tmp_path / "tree") == listing(
        repository, result.snapshot, tmp_path / "tree"
    )


def test_unchanged_files_are_not_read(tmp_path: Path, repository: Repository) -> None:
    """Their content is changed behind the metadata's back: had they been read, the new content would be stored."""
    root = make_tree(tmp_path / "tree", megabytes=2)
    first = run(repository, root)
    victims = [root / "folder 0" / "deep" / "random-0.bin", root / "folder 1" / "small-0"]
    for path in victims:
        before = path.stat()
        with path.open("r+b") as stream:
            stream.write(b"!")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    base = repository.snapshot(first.snapshot)
    blind = run(repository, root, base=base, options=BackupOptions(ignore_ctime=True))
    assert blind.files_unmodified == blind.files == first.files
    assert blind.bytes_processed == first.bytes_processed
    nodes = listing(repository, blind.snapshot, root / "folder 1")
    assert not content(repository, nodes[b"small-0"]).startswith(b"!")
    assert repository.snapshot(blind.snapshot).parent == first.snapshot
    seeing = run(repository, root, base=base)
    assert seeing.files - seeing.files_unmodified == 2
    assert compare_all(repository, seeing.snapshot, os.fsencode(root))


def test_an_index_that_changed_before_the_lock_is_read_again(tmp_path: Path, repository: Repository) -> None:
    """A prune between two backups of one process: what it removed must not be taken for stored."""
    root = make_tree(tmp_path / "tree", megabytes=2)
    first = run(repository, root)
    assert len(repository.index) > 0
    for item in [*repository.store.list("index/"), *repository.store.list("data/")]:
        repository.store.delete(item.name)
    again = run(repository, root, base=repository.snapshot(first.snapshot))
    assert again.files_unmodified <= 4
    assert compare_all(repository, again.snapshot, os.fsencode(root))


@pytest.mark.parametrize("lost", ["pack of a file", "pack of a directory"])
def test_a_file_whose_chunks_are_lost_is_read_again(tmp_path: Path, repository: Repository, lost: str) -> None:
    root = make_tree(tmp_path / "tree", megabytes=2)
    first = run(repository, root)
    kind = BlobKind.DATA if lost == "pack of a file" else BlobKind.TREE
    base = repository.snapshot(first.snapshot)
    kept = [entry for entry in repository.index.packs.values() if entry.kind is not kind]
    assert kept
    for item in list(repository.store.list("index/")):
        repository.store.delete(item.name)
    repository.forget_index()
    repository.save_index(kept)
    assert list(repository.index.packs) == [entry.pack for entry in kept]
    again = run(repository, root, base=base)
    # An empty file has no chunk to lose, and of equal files it is enough to read one.
    assert again.files_unmodified <= (4 if kind is BlobKind.DATA else 0)
    repository.reload_index()
    assert compare_all(repository, first.snapshot, os.fsencode(root))
    assert compare_all(repository, again.snapshot, os.fsencode(root))


def test_what_cannot_be_read_is_told_and_the_rest_is_complete(
    tmp_path: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "tree"
    (root / "closed").mkdir(parents=True)
    for name in ("fine", "vanishing", "broken", "long", "closed/x"):
        (root / name).write_bytes(name.encode() * (200_000 if name == "long" else 1))
    open_really = os.open

    def open_(path: bytes, flags: int, *args: object, **more: object) -> int:
        if path == b"vanishing":
            raise FileNotFoundError(2, "No such file or directory")
        if path in (b"broken", b"closed"):
            raise PermissionError(13, "Permission denied")
        return open_really(path, flags, *args, **more)  # type: ignore[arg-type]

    preadv_really = os.preadv

    def preadv(descriptor: int, buffers: object, offset: int) -> int:
        if Path(f"/proc/self/fd/{descriptor}").readlink().name == "long":
            raise OSError(5, "Input/output error")
        return preadv_really(descriptor, buffers, offset)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "preadv", preadv)
    result = run(repository, root)
    monkeypatch.undo()
    assert result.unreadable == (
        (f"{root}/broken", "Permission denied"),
        (f"{root}/closed", "Permission denied"),
        (f"{root}/long", "Input/output error"),
        (f"{root}/vanishing", "it vanished"),
    )
    assert list(listing(repository, result.snapshot, root)) == [b"fine"]


def test_files_that_change_while_they_are_read_are_told(
    tmp_path: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "tree"
    root.mkdir()
    (root / "calm").write_bytes(b"x")
    (root / "log").write_bytes(b"one line\n")
    (root / "long").write_bytes(bytes(2 * MIB))
    read_really = os.read

    def read(descriptor: int, count: int) -> bytes:
        data = read_really(descriptor, count)
        if Path(f"/proc/self/fd/{descriptor}").readlink().name == "log":
            with (root / "log").open("ab") as stream:
                stream.write(b"another\n")
        return data

    monkeypatch.setattr(os, "read", read)
    result = run(repository, root)
    monkeypatch.undo()
    assert result.changed == (f"{root}/log",)
    node = listing(repository, result.snapshot, root)[b"log"]
    assert content(repository, node) == b"one line\n"
    assert node.size == 9


def test_progress_ends_with_everything_and_never_goes_back(tmp_path: Path, repository: Repository) -> None:
    root = make_tree(tmp_path / "tree", megabytes=2)
    events: list[Event] = []
    result = run(repository, root, emit=events.append)
    steps = [event for event in events if isinstance(event, Progress)]
    assert steps[-1].done_bytes == steps[-1].total_bytes == result.bytes_processed
    assert [step.done_bytes for step in steps] == sorted(step.done_bytes for step in steps)


@pytest.mark.parametrize("error", [StorageFull("full"), Interrupted("stopped"), KeyboardInterrupt()])
def test_a_backup_that_ends_early_leaves_a_whole_repository_without_a_snapshot(
    tmp_path: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    root = make_tree(tmp_path / "tree", megabytes=6)
    save, written = repository.save_pack, list[str]()

    def save_pack(entry: PackEntry, data: memoryview) -> None:
        if len(written) == 2:
            raise error
        written.append(entry.pack)
        save(entry, data)

    monkeypatch.setattr(repository, "save_pack", save_pack)
    with pytest.raises(type(error)):
        run(repository, root, options=BackupOptions(pack_size_bytes=MIB, manpower=Manpower(threads=1, processes=0)))
    monkeypatch.undo()
    assert repository.snapshots() == []
    assert list(repository.store.list("locks/")) == []
    repository.reload_index()
    stored = [item.name for item in repository.store.list("data/")]
    assert sorted(stored) == sorted(object_name(name) for name in repository.index.packs)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("backup")]
    result = run(repository, root, options=BackupOptions(pack_size_bytes=MIB))
    assert compare_all(repository, result.snapshot, os.fsencode(root))


def test_a_backup_waits_for_nobody_with_an_exclusive_lock(tmp_path: Path, repository: Repository) -> None:
    (tmp_path / "tree").mkdir()
    with repository.lock(exclusive=True), pytest.raises(Locked):
        run(repository, tmp_path / "tree")
    hold = repository.hold("job")
    run(repository, tmp_path / "tree")
    hold.release()


def test_a_directory_of_many_entries_and_a_deep_one(tmp_path: Path, repository: Repository) -> None:
    wide, deep = tmp_path / "wide", tmp_path / "deep"
    wide.mkdir()
    for number in range(3000):
        (wide / f"{number:04d}").write_bytes(b"%d" % (number % 10))
    path = deep
    for _ in range(300):
        path /= "d"
    path.mkdir(parents=True)
    (path / "leaf").write_bytes(b"leaf")
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    result = run(repository, wide, deep)
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors
    assert result.files == 3001
    assert len(listing(repository, result.snapshot, wide)) == 3000
    assert content(repository, listing(repository, result.snapshot, path)[b"leaf"]) == b"leaf"


def test_long_files_are_cut_the_same_whatever_the_buffers(tmp_path: Path, repository: Repository) -> None:
    data = random.Random(9).randbytes(40 * MIB) + bytes(20 * MIB)
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "long").write_bytes(data)
    result = run(repository, tmp_path / "tree")
    node = listing(repository, result.snapshot, tmp_path / "tree")[b"long"]
    ends = Chunker(repository.polynomial).split(data)
    expected = [hashlib.sha256(data[a:b]).digest() for a, b in zip([0, *ends], ends, strict=False)]
    assert list(node.content or ()) == expected


def test_a_source_that_is_a_symlink_is_stored_as_the_link_and_that_is_told(
    tmp_path: Path, repository: Repository
) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target/file").write_text("content")
    (tmp_path / "link").symlink_to("target")
    told: list[Event] = []
    result = run(repository, tmp_path / "link", emit=told.append)
    assert result.files == 0
    assert any(isinstance(event, Note) and "the link is stored, not its target" in event.text for event in told)

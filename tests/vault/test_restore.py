"""A restore is what the source was, and never touches anything outside its target."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from support import need_root, run
from trip import PASSPHRASE, Trip, below, flip_middle

from diskprep import clock
from diskprep.compare import differences, fingerprint
from diskprep.errors import DataDamaged, NotFound, StorageFull, UsageError
from diskprep.events import silent
from diskprep.repository.pack import BlobKind, PackEntry
from diskprep.repository.packwriter import PackWriter
from diskprep.repository.repository import Repository, create
from diskprep.repository.snapshot import Snapshot
from diskprep.repository.tree import Node, NodeType, encode_node, encode_tree, go_mode
from diskprep.secrets import Secret
from diskprep.store.directory import DirectoryStore
from diskprep.vault import listing
from diskprep.vault.filling import Filler
from diskprep.vault.metadata import write_sparse
from diskprep.vault.restore import restore
from diskprep.vault.target import Target


@pytest.fixture
def vaulted(trip: Trip) -> Trip:
    trip.publish()
    trip.deliver()
    trip.ingest()
    return trip


def test_everything_that_restic_stored_comes_back_equal(vaulted: Trip) -> None:
    target = vaulted.folder / "restored"
    result = restore(vaulted.open(), "latest", target, emit=silent)
    restored = below(target, vaulted.source)
    assert differences(fingerprint(vaulted.source), fingerprint(restored)) == []
    assert result.warnings == ()
    assert result.files > 300
    holes = restored / "odd/holes"
    assert holes.stat().st_blocks * 512 < (2 << 20) < holes.stat().st_size
    assert stat.S_IMODE(target.stat().st_mode) == 0o700


def test_a_subpath_is_restored_alone_under_its_original_path(vaulted: Trip) -> None:
    repository = vaulted.open()
    one = vaulted.folder / "one"
    restore(repository, "latest", one, emit=silent, subpath=f"{vaulted.source}/folder 1/deep")
    assert (
        differences(
            fingerprint(vaulted.source / "folder 1/deep"), fingerprint(below(one, vaulted.source) / "folder 1/deep")
        )
        == []
    )
    assert entries(below(one, vaulted.source)) == ["folder 1"]
    single = vaulted.folder / "single"
    result = restore(repository, "latest", single, emit=silent, subpath=f"{vaulted.source}/odd/suid")
    assert (result.files, entries(below(single, vaulted.source) / "odd")) == (1, ["suid"])
    for missing in ("/no/such/path", f"{vaulted.source}/odd/suid/below a file"):
        with pytest.raises(NotFound):
            restore(repository, "latest", vaulted.folder / "nothing", emit=silent, subpath=missing)
        _empty(vaulted.folder / "nothing")


def entries(path: Path) -> list[str]:
    return [entry.name for entry in path.iterdir()]


def _empty(path: Path) -> None:
    for directory, _, _ in os.walk(path, topdown=False):
        Path(directory).rmdir()


def test_a_target_that_is_not_empty_is_left_alone(vaulted: Trip) -> None:
    target = vaulted.folder / "full"
    target.mkdir()
    (target / "mine").write_text("precious")
    with pytest.raises(UsageError):
        restore(vaulted.open(), "latest", target, emit=silent)
    assert entries(target) == ["mine"]


def test_damage_costs_only_the_files_it_is_in_and_is_told(vaulted: Trip) -> None:
    flip_middle(vaulted.folder / "vault" / vaulted.seal.data_packs[0].name)
    vaulted.vault.delete(vaulted.seal.data_packs[1].name)
    target = vaulted.folder / "restored"
    with pytest.raises(DataDamaged, match="could not be restored, all others are in"):
        restore(vaulted.open(), "latest", target, emit=silent)
    want, have = fingerprint(vaulted.source), fingerprint(below(target, vaulted.source))
    lost = want.entries.keys() - have.entries.keys()
    assert 0 < len(lost) < len(want.entries)
    assert differences(want, have, ignore=lost, limit=5) == []


def test_long_runs_of_zeros_become_holes(tmp_path: Path) -> None:
    data = b"a" * 70_000 + bytes(300_000) + b"b" * 10 + bytes(200_000)
    with (tmp_path / "file").open("wb") as stream:
        assert write_sparse(stream.fileno(), data, 100)
        os.ftruncate(stream.fileno(), 100 + len(data))
    assert (tmp_path / "file").read_bytes() == bytes(100) + data
    assert (tmp_path / "file").stat().st_blocks * 512 < 350_000


# -- repositories that somebody with the key made to do harm


def node(name: bytes, kind: NodeType = NodeType.FILE, **fields: object) -> Node:
    modes = {NodeType.DIR: stat.S_IFDIR | 0o755, NodeType.SYMLINK: stat.S_IFLNK | 0o777}
    base = Node(
        name=name,
        type=kind,
        mode=go_mode(modes.get(kind, stat.S_IFREG | 0o644)),
        mtime=1_700_000_000_000_000_000,
        atime=1_700_000_000_000_000_000,
        ctime=1_700_000_000_000_000_000,
        uid=os.geteuid(),
        gid=os.getegid(),
        content=() if kind is NodeType.FILE else None,
    )
    return replace(base, **fields)  # type: ignore[arg-type]


class Forge:
    """Writes trees as they are told."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.repository: Repository = create(DirectoryStore(folder), Secret(PASSPHRASE))
        self._entries: list[PackEntry] = []

    def blob(self, kind: BlobKind, plaintext: bytes) -> bytes:
        writer = PackWriter(kind, self.repository.key)
        blob_id = hashlib.sha256(plaintext).digest()
        writer.add(blob_id, plaintext)
        finished = writer.finish()
        self.repository.save_pack(finished.entry, finished.data)
        self._entries.append(finished.entry)
        return blob_id

    def tree(self, *nodes: Node) -> bytes:
        return self.blob(BlobKind.TREE, encode_tree(nodes))

    def snapshot(self, root: bytes) -> Snapshot:
        self.repository.save_index(self._entries)
        self.repository.reload_index()
        name = self.repository.save_snapshot(Snapshot(id="", time=clock.now(), tree=root, paths=("/",)))
        return self.repository.snapshot(name)


@pytest.fixture
def forge(tmp_path: Path) -> Forge:
    return Forge(tmp_path / "forged")


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """What must never change."""
    path = tmp_path / "outside"
    path.mkdir()
    (path / "precious").write_text("precious")
    return path


@pytest.mark.parametrize("name", [b"..", b".", b"../outside/precious", b"/etc/evil", b"a/b", b"a\0b", b""])
@pytest.mark.parametrize("kind", [NodeType.FILE, NodeType.DIR, NodeType.SYMLINK])
def test_names_that_lead_out_are_refused(
    forge: Forge, tmp_path: Path, outside: Path, name: bytes, kind: NodeType
) -> None:
    before = fingerprint(outside)
    subtree = forge.tree() if kind is NodeType.DIR else None
    evil = node(name, kind, subtree=subtree, linktarget=b"x" if kind is NodeType.SYMLINK else b"")
    snapshot = forge.snapshot(forge.tree(evil, node(b"innocent")))
    with pytest.raises(DataDamaged):
        restore(forge.repository, snapshot, tmp_path / "target", emit=silent)
    assert differences(before, fingerprint(outside)) == []
    assert sorted(entries(tmp_path)) == ["forged", "outside", "target"]


def test_names_that_lead_out_are_refused_again_where_they_are_used(
    forge: Forge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second lock: even a parser that let such names through would not be followed."""
    evil = [(name, json.loads(encode_node(node(b"innocent")))) for name in (b"../escaped", b"innocent")]
    monkeypatch.setattr("diskprep.vault.filling.documents", lambda _plaintext: iter(evil))
    with pytest.raises(DataDamaged):
        restore(forge.repository, forge.snapshot(forge.tree()), tmp_path / "target", emit=silent)
    assert sorted(entries(tmp_path)) == ["forged", "target"]


def test_a_link_never_redirects_what_follows(
    forge: Forge, tmp_path: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link and a directory of one name: files of the directory must not go where the link points."""
    below_it = forge.tree(node(b"precious", content=(forge.blob(BlobKind.DATA, b"evil"),)))
    link = node(b"door", NodeType.SYMLINK, linktarget=os.fsencode(outside))
    door = node(b"door", NodeType.DIR, subtree=below_it)
    snapshot = forge.snapshot(forge.tree(link, door))
    with pytest.raises(DataDamaged, match="twice"):
        restore(forge.repository, snapshot, tmp_path / "one", emit=silent)
    real = listing.documents
    listed = [(entry.name, json.loads(encode_node(entry))) for entry in (link, door)]
    root = b'"door"'
    monkeypatch.setattr(
        "diskprep.vault.filling.documents", lambda text: iter(listed) if text.count(root) == 2 else real(text)
    )
    with pytest.raises(Exception, match=r"restore into|twice"):
        restore(forge.repository, snapshot, tmp_path / "two", emit=silent)
    assert (outside / "precious").read_text() == "precious"


@pytest.mark.parametrize("before", ["_flush", "_make"])
def test_a_directory_swapped_for_a_link_while_restoring_is_not_followed(
    forge: Forge, tmp_path: Path, outside: Path, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    inner = forge.tree(node(b"precious", content=(forge.blob(BlobKind.DATA, b"evil"),)))
    snapshot = forge.snapshot(forge.tree(node(b"door", NodeType.DIR, subtree=inner)))
    target = tmp_path / "target"
    real = getattr(Filler, before)

    def swap(self: Filler, *rest: object) -> None:
        if (target / "door").is_dir() and not (target / "door").is_symlink():
            (target / "door").rename(target / "elsewhere")
            (target / "door").symlink_to(outside)
        real(self, *rest)

    monkeypatch.setattr(Filler, before, swap)
    mode, inside = outside.stat().st_mode, fingerprint(outside)
    with pytest.raises(Exception, match="restore into"):
        restore(forge.repository, snapshot, target, emit=silent)
    assert differences(inside, fingerprint(outside)) == []
    assert outside.stat().st_mode == mode


def test_links_may_point_anywhere_but_are_only_made(forge: Forge, tmp_path: Path, outside: Path) -> None:
    link = node(b"link", NodeType.SYMLINK, linktarget=os.fsencode(outside / "precious"), mtime=5, atime=5)
    before = fingerprint(outside)
    restore(forge.repository, forge.snapshot(forge.tree(link)), tmp_path / "target", emit=silent)
    assert (tmp_path / "target/link").lstat().st_mtime_ns == 5
    assert differences(before, fingerprint(outside)) == []


def test_hard_links_that_disagree_become_files_of_their_own(forge: Forge, tmp_path: Path) -> None:
    same = {"inode": 7, "device_id": 1, "links": 2}
    one, two = (forge.blob(BlobKind.DATA, data) for data in (b"one", b"two"))
    nodes = [node(b"a", content=(one,), **same), node(b"b", content=(two,), **same), node(b"c", content=(one,), **same)]
    restore(forge.repository, forge.snapshot(forge.tree(*nodes)), tmp_path / "target", emit=silent)
    assert [(tmp_path / "target" / name).read_bytes() for name in "abc"] == [b"one", b"two", b"one"]
    assert (tmp_path / "target/a").samefile(tmp_path / "target/c")


def test_a_file_whose_blob_no_index_names_is_told_and_not_left_half(forge: Forge, tmp_path: Path) -> None:
    known = forge.blob(BlobKind.DATA, b"known")
    nodes = (node(b"half", content=(known, b"\1" * 32)), node(b"whole", content=(known,)))
    with pytest.raises(DataDamaged, match="half"):
        restore(forge.repository, forge.snapshot(forge.tree(*nodes)), tmp_path / "target", emit=silent)
    assert entries(tmp_path / "target") == ["whole"]


def test_a_very_deep_tree_is_restored(forge: Forge, tmp_path: Path) -> None:
    tree = forge.tree(node(b"bottom", content=(forge.blob(BlobKind.DATA, b"deep"),)))
    for _ in range(300):
        tree = forge.tree(node(b"d", NodeType.DIR, subtree=tree))
    restore(forge.repository, forge.snapshot(tree), tmp_path / "target", emit=silent)
    assert (tmp_path / "target").joinpath(*["d"] * 300, "bottom").read_bytes() == b"deep"


@pytest.mark.parametrize("size", [10, 100_000])
def test_a_full_disk_is_told_as_such(forge: Forge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    def full(*_: object) -> bool:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("diskprep.vault.filling.write_sparse", full)
    monkeypatch.setattr(Target, "make_small", full)
    file = node(b"file", content=(forge.blob(BlobKind.DATA, b"data" * size),))
    with pytest.raises(StorageFull):
        restore(forge.repository, forge.snapshot(forge.tree(file)), tmp_path / "target", emit=silent)


@pytest.mark.root
def test_a_target_that_fills_up_ends_the_restore(vaulted: Trip, tmp_path: Path) -> None:
    need_root()
    target = tmp_path / "small"
    target.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", target)
    try:
        with pytest.raises(StorageFull):
            restore(vaulted.open(), "latest", target, emit=silent)
    finally:
        run("umount", target)

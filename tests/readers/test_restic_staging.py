"""restic reads, checks, restores and continues what we wrote, and the other way round."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import make_tree, need, run
from vaults import load_tree

from diskprep import clock
from diskprep.events import Event
from diskprep.repository import codec, quoting
from diskprep.repository.keys import ScryptCost
from diskprep.repository.pack import BlobKind, object_name, verify_pack
from diskprep.repository.packwriter import PackWriter
from diskprep.repository.repository import Repository, create, open_repository
from diskprep.repository.snapshot import Snapshot
from diskprep.secrets import Secret
from diskprep.seed import Staging
from diskprep.source import Source
from diskprep.staging import books
from diskprep.staging.blocks import BlockRule
from diskprep.staging.dispatch import Manpower
from diskprep.staging.stage import open_staged, stage
from diskprep.staging.writer import BackupOptions, BackupResult, backup
from diskprep.store.directory import DirectoryStore

PASSPHRASE = Secret("correct horse battery staple")
CHEAP = ScryptCost(n=1024, r=8, p=1)
HOST = "the-host"
ABOVE_BYTES = 100_000  # trees of directories above a source
Restic = Any


@pytest.fixture
def restic(tmp_path: Path) -> Restic:
    program = need("restic")
    password = tmp_path / "password"
    password.write_text(PASSPHRASE.reveal())

    def call(place: Path, *arguments: str | Path, password: Path = password, ok: bool = True) -> str:
        env = {"RESTIC_PASSWORD_FILE": str(password), "RESTIC_PROGRESS_FPS": "0.01"}
        return run(program, "--no-cache", "-r", place, *arguments, env=env, ok=ok)

    return call


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    (tmp_path / "repository").mkdir()
    return create(DirectoryStore(tmp_path / "repository"), PASSPHRASE, cost=CHEAP)


@pytest.fixture
def torture(tmp_path: Path) -> Path:
    """What a tree may hold, and a slice of a real one. No attributes on symlinks and no odd targets: restic 0.14 loses
    both, later versions store them as we do."""
    root = make_tree(tmp_path / "torture", megabytes=4)
    here = Path(os.__file__).parent
    shutil.copytree(here / "json", root / "real" / "json", symlinks=True)
    shutil.copytree(here / "encodings", root / "real" / "encodings", symlinks=True)
    (root / "long").write_bytes(random.Random(4).randbytes(30 << 20) + bytes(12 << 20))
    (root / "exactly 512 KiB").write_bytes(random.Random(5).randbytes(512 << 10))
    (root / "one more").write_bytes(random.Random(6).randbytes((512 << 10) + 1))
    for name in ("\u00a0\u200b\ufeff", "\u2028", "\U0001f600", "\x01\x1b\x7f", "'$`", "a" * 251 + "ü"):
        (root / "odd" / name).write_bytes(name.encode())
    (root / "odd" / "<link>&").symlink_to('a "target" with <all> & ü\n')
    (root / "odd" / "sticky").mkdir()
    (root / "odd" / "sticky").chmod(0o3777)
    if os.geteuid() == 0:
        os.mknod(root / "odd" / "char", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
        os.mknod(root / "odd" / "block", 0o640 | stat.S_IFBLK, os.makedev(250, 77))
        os.chown(root / "empty", 54321, 54322)
        os.setxattr(root / "odd" / "suid", "trusted.ours", b"value")
    return root


def ours(repository: Repository, *paths: Path, **more: Any) -> BackupResult:
    return backup(repository, [Source(os.fsencode(path)) for path in paths], hostname=HOST, **more)


def theirs(restic: Restic, repository: Repository, *paths: Path, flags: tuple[str, ...] = ()) -> dict[str, Any]:
    """`restic backup` of the same paths; its summary."""
    output = restic(place(repository), "backup", "--host", HOST, "--json", *flags, *paths)
    summary = [json.loads(line) for line in output.splitlines() if line.startswith('{"message_type":"summary"')]
    assert len(summary) == 1, output
    return summary[0]  # type: ignore[no-any-return]


def subtree(repository: Repository, snapshot: Snapshot, path: Path) -> bytes:
    """The tree of a directory in a snapshot. Directories above it are the system's, where other programs work too."""
    tree: bytes | None = snapshot.tree
    for part in path.parts[1:]:
        assert tree is not None
        tree = {node.name: node.subtree for node in load_tree(repository, tree)}[os.fsencode(part)]
    assert tree is not None
    return tree


def adds_nothing(summary: dict[str, Any], path: Path) -> None:
    """restic found nothing to store, but for directories above `path` in which others may have worked meanwhile."""
    assert summary["data_blobs"] == 0
    assert (summary["files_new"], summary["files_changed"], summary["dirs_new"]) == (0, 0, 0)
    assert summary["dirs_changed"] <= len(path.parts) - 2
    assert summary["tree_blobs"] <= len(path.parts) - 1
    assert summary["data_added"] < ABOVE_BYTES


def place(repository: Repository) -> Path:
    return Path(repository.store.location)


def test_restic_checks_and_restores_all_of_it(
    tmp_path: Path, restic: Restic, repository: Repository, torture: Path
) -> None:
    result = ours(repository, torture, options=BackupOptions(pack_size_bytes=4 << 20))
    assert result.unreadable == ()
    assert "no errors were found" in restic(place(repository), "check", "--read-data")
    restic(place(repository), "restore", "latest", "--target", tmp_path / "restored")
    same_trees(os.fsencode(torture), os.fsencode(tmp_path / "restored") + os.fsencode(torture))


@pytest.mark.parametrize("zone", ["UTC", "America/St_Johns"])
def test_a_following_restic_backup_finds_nothing_to_add(
    restic: Restic, repository: Repository, torture: Path, monkeypatch: pytest.MonkeyPatch, zone: str
) -> None:
    for _ in in_zone(monkeypatch, zone):
        result = ours(repository, torture)
        summary = theirs(restic, repository, torture)
        assert summary["files_unmodified"] == result.files
        adds_nothing(summary, torture)
        again = theirs(restic, repository, torture, flags=("--force",))
        assert (again["data_blobs"], again["data_added"] < ABOVE_BYTES) == (0, True)
        repository.reload_index()
        assert len({subtree(repository, snapshot, torture) for snapshot in repository.snapshots()}) == 1


def test_our_incremental_on_restics_snapshot_adds_only_what_changed(
    restic: Restic, repository: Repository, torture: Path
) -> None:
    theirs(restic, repository, torture)
    repository.reload_index()
    base = repository.snapshot()
    same = ours(repository, torture, base=base)
    assert same.bytes_added < ABOVE_BYTES
    assert subtree(repository, repository.snapshot(same.snapshot), torture) == subtree(repository, base, torture)
    assert same.files_unmodified == same.files
    (torture / "real" / "new").write_bytes(random.Random(8).randbytes(100_000))
    with (torture / "long").open("r+b") as stream:
        stream.seek(20 << 20)
        stream.write(b"a few new bytes")
    changed = ours(repository, torture, base=repository.snapshot(same.snapshot))
    assert changed.files - changed.files_unmodified == 2
    assert 100_000 < changed.bytes_added < 100_000 + (17 << 20)
    adds_nothing(theirs(restic, repository, torture), torture)
    assert "no errors were found" in restic(place(repository), "check", "--read-data")


def test_a_restic_made_repository_opens_and_verifies(tmp_path: Path, restic: Restic, torture: Path) -> None:
    restic(tmp_path / "theirs", "init", "--repository-version", "2")
    restic(tmp_path / "theirs", "backup", "--host", HOST, torture)
    repository = open_repository(DirectoryStore(tmp_path / "theirs"), PASSPHRASE)
    seen = 0
    for name, entry in repository.index.packs.items():
        data = repository.store.read(object_name(name))
        assert len(data) == entry.size_bytes
        seen += len(verify_pack(name, data, repository.key, entry).blobs)
    assert seen == len(repository.index)
    result = ours(repository, torture, base=repository.snapshot())
    full = ours(repository, torture)
    assert max(result.bytes_added, full.bytes_added) < ABOVE_BYTES
    assert (result.files_unmodified, full.files_unmodified) == (result.files, 0)
    assert len({subtree(repository, snapshot, torture) for snapshot in repository.snapshots()}) == 1


def test_keys_added_by_restic_open_for_us(tmp_path: Path, restic: Restic, repository: Repository) -> None:
    other = tmp_path / "other"
    other.write_text("another long passphrase")
    restic(place(repository), "key", "add", "--new-password-file", other)
    again = open_repository(repository.store, Secret("another long passphrase"))
    assert again.id == repository.id
    assert again.key.open(repository.key.seal(b"x")) == b"x"
    restic(place(repository), "snapshots", password=other)


def test_several_sources_have_the_tree_restic_gives_them(restic: Restic, repository: Repository, torture: Path) -> None:
    sources = (torture / "odd", torture / "long", torture / "real" / "json", torture / "odd.not")
    shutil.copytree(torture / "real", torture / "odd.not")
    result = ours(repository, *sources)
    summary = theirs(restic, repository, *sources)
    assert summary["files_unmodified"] == result.files
    adds_nothing(summary, torture / "real")
    repository.reload_index()
    assert len({subtree(repository, snapshot, torture) for snapshot in repository.snapshots()}) == 1


def test_restic_respects_our_locks_and_holds_and_we_its(restic: Restic, repository: Repository, torture: Path) -> None:
    ours(repository, torture / "real")
    hold = repository.hold("job-1")
    restic(place(repository), "unlock")
    assert len(repository.find_holds()) == 1
    for command in (("prune",), ("check",), ("rebuild-index",), ("forget", "--keep-last", "1", "--prune")):
        assert "already locked" in restic(place(repository), *command, ok=False), command
    adds_nothing(theirs(restic, repository, torture / "real"), torture / "real")
    hold.release()
    restic(place(repository), "prune")
    assert "no errors were found" in restic(place(repository), "check", "--read-data")


def test_the_staging_directory_itself_is_a_repository_to_restic(tmp_path: Path, restic: Restic, torture: Path) -> None:
    staging = Staging(tmp_path / "staging")
    result = stage(
        staging,
        [Source(os.fsencode(torture))],
        passphrase=PASSPHRASE,
        job_name="job-1",
        storage_account="someaccount",
        container="container",
        subscription_id="00000000-0000-4000-8000-000000000000",
        resource_group="group",
        location="westeurope",
        hostname=HOST,
        options=BackupOptions(pack_size_bytes=8 << 20),
        cost=CHEAP,
    )
    assert result.snapshot[:8] in restic(staging.root, "snapshots")
    assert "no errors were found" in restic(staging.root, "check", "--read-data")
    repository = open_staged(staging, PASSPHRASE)
    assert sum(entry.kind is BlobKind.DATA for entry in repository.index.packs.values()) >= 4


def test_packs_of_blobs_of_all_lengths_are_whole_to_restic(restic: Restic, repository: Repository) -> None:
    rng = random.Random(3)
    entries = []
    for kind, lengths in (
        (BlobKind.DATA, [1]),
        (BlobKind.DATA, [*range(1, 300), 2047, 2048, 4096, 4097, 16 << 10, 512 << 10, 8 << 20]),
        (BlobKind.DATA, [3000] * 200 + [5] * 200 + [70_000] * 20),
    ):
        writer = PackWriter(kind, repository.key, expected_bytes=1 << 16)
        for number, length in enumerate(lengths):
            blob = rng.randbytes(length) if number % 2 else (b"%d " % rng.getrandbits(60) * length)[:length]
            writer.add(hashlib.sha256(blob).digest(), blob)
        finished = writer.finish()
        repository.save_pack(finished.entry, finished.data)
        entries.append(finished.entry)
    parts = [b'{"nodes":[', b"]}\n"]
    tree = hashlib.sha256(b"".join(parts)).digest()
    writer = PackWriter(BlobKind.TREE, repository.key)
    writer.add_frame(tree, codec.compress_parts(parts, 13), 13)
    finished = writer.finish()
    repository.save_pack(finished.entry, finished.data)
    repository.save_index([*entries, finished.entry])
    repository.save_snapshot(Snapshot(id="", time=clock.now(), tree=tree, paths=("/",), hostname=HOST))
    assert "no errors were found" in restic(place(repository), "check", "--read-data")
    assert restic(place(repository), "list", "blobs").count("data ") == sum(len(entry.blobs) for entry in entries)


def test_holes_and_blocks_of_one_size_are_restored_by_restic(
    tmp_path: Path, restic: Restic, repository: Repository
) -> None:
    root = tmp_path / "images"
    root.mkdir()
    for name in ("disk.img", "film"):
        with (root / name).open("wb") as stream:
            stream.truncate(40 << 20)
            for offset, length in ((0, 5 << 20), (19 << 20, 3 << 20), ((30 << 20) + 4096, 1)):
                stream.seek(offset)
                stream.write(random.Random(offset).randbytes(length))
    result = ours(repository, root, options=BackupOptions(block_rule=BlockRule(block_bytes=256 << 10)))
    assert [path for path, _ in result.fixed_blocks] == [str(root / "disk.img")]
    assert "no errors were found" in restic(place(repository), "check", "--read-data")
    restic(place(repository), "restore", "latest", "--target", tmp_path / "restored")
    same_trees(os.fsencode(root), os.fsencode(tmp_path / "restored") + os.fsencode(root))
    summary = theirs(restic, repository, root)  # its parent says that nothing has changed
    assert summary["files_unmodified"] == 2
    adds_nothing(summary, root)


@pytest.mark.parametrize("processes", [0, 2])
def test_an_interrupted_backup_is_whole_to_restic_and_the_next_one_completes_it(
    tmp_path: Path, restic: Restic, repository: Repository, torture: Path, processes: int
) -> None:
    options = BackupOptions(pack_size_bytes=1 << 20, manpower=Manpower(threads=2, processes=processes))
    for moment in (3, 12):
        told = itertools.count()

        def emit(_: Event, moment: int = moment, told: Iterator[int] = told) -> None:
            if next(told) == moment:
                raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(books, "_PROGRESS_INTERVAL_S", 0.0)
            with pytest.raises(KeyboardInterrupt):
                ours(repository, torture, options=options, emit=emit)
        assert "no errors were found" in restic(place(repository), "check", "--read-data")
        assert json.loads(restic(place(repository), "snapshots", "--json")) in (None, [])
    result = ours(repository, torture, options=options)
    assert "no errors were found" in restic(place(repository), "check", "--read-data")
    assert theirs(restic, repository, torture, flags=("--force",))["data_blobs"] == 0
    assert result.unreadable == ()


def in_zone(monkeypatch: pytest.MonkeyPatch, zone: str) -> Iterator[None]:
    def forget() -> None:
        time.tzset()
        quoting._zone_offset_s.cache_clear()
        quoting._format_second.cache_clear()

    monkeypatch.setenv("TZ", zone)
    forget()
    try:
        yield
    finally:
        monkeypatch.undo()
        forget()


def same_trees(source: bytes, restored: bytes) -> None:
    """Names, types, modes, owners, times, targets, attributes, devices, contents and hard links are the same."""
    links: dict[tuple[int, int], int] = {}
    pending = [(source, restored)]
    while pending:
        left, right = pending.pop()
        names = [item.name for item in os.scandir(left) if not stat.S_ISSOCK(item.stat(follow_symlinks=False).st_mode)]
        assert sorted(names) == sorted(item.name for item in os.scandir(right))
        for name in names:
            one, other = left + b"/" + name, right + b"/" + name
            a, b = os.lstat(one), os.lstat(other)
            for field in ("st_mode", "st_uid", "st_gid", "st_mtime_ns", "st_rdev", "st_nlink"):
                assert getattr(a, field) == getattr(b, field), (one, field)
            if stat.S_ISDIR(a.st_mode):
                pending.append((one, other))
            elif stat.S_ISLNK(a.st_mode):
                assert Path(os.fsdecode(one)).readlink() == Path(os.fsdecode(other)).readlink()
                continue
            elif stat.S_ISREG(a.st_mode):
                assert links.setdefault((a.st_dev, a.st_ino), b.st_ino) == b.st_ino, one
                with open(one, "rb") as x, open(other, "rb") as y:  # noqa: PTH123  names are bytes
                    assert x.read() == y.read(), one
            attributes = [{key: os.getxattr(path, key) for key in os.listxattr(path)} for path in (one, other)]
            assert attributes[0] == attributes[1], one

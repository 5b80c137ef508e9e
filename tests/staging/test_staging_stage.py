"""The staging directory: begun, cut off anywhere, continued, sealed once, and refused to others."""

from __future__ import annotations

import fcntl
import hashlib
import multiprocessing
import os
import random
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import make_tree
from vaults import load_tree

from diskprep import escrow
from diskprep.errors import JobConflict, Locked, NotFound, StorageFull, UsageError, WrongPassphrase
from diskprep.repository.keys import ScryptCost
from diskprep.repository.pack import BlobKind, object_name
from diskprep.seal import FileKind, load_seal
from diskprep.secrets import Secret
from diskprep.seed import Staging, load_seed
from diskprep.source import Source
from diskprep.staging import stage as module
from diskprep.staging.stage import StageResult, open_staged, stage, unlock_escrow
from diskprep.staging.writer import BackupOptions

PASSPHRASE = Secret("correct horse battery staple")
TRIP = {
    "job_name": "job-1",
    "storage_account": "someaccount",
    "container": "container",
    "subscription_id": "00000000-0000-4000-8000-000000000000",
    "resource_group": "group",
    "location": "westeurope",
    "hostname": "host",
}
Run = Callable[..., StageResult]


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    return Staging(tmp_path / "staging")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "tree", megabytes=4)


@pytest.fixture
def run(staging: Staging, tree: Path) -> Run:
    def call(**changes: Any) -> StageResult:
        arguments: dict[str, Any] = {
            "passphrase": PASSPHRASE,
            "cost": ScryptCost(n=16, r=1, p=1),
            "options": BackupOptions(pack_size_bytes=1 << 20),
            **TRIP,
            **changes,
        }
        sources = arguments.pop("sources", [Source(os.fsencode(tree))])
        return stage(arguments.pop("staging", staging), sources, **arguments)

    return call


def check(staging: Staging, result: StageResult) -> None:
    """The staging is whole: seal, files and index say the same, and every file in the snapshot can be read."""
    seal = load_seal(staging.seal_file)
    assert seal.snapshot == result.snapshot
    assert seal == result.seal
    on_disk = {}
    for path in staging.repository.rglob("*"):
        if path.is_file() and path.parent.name != "locks":
            on_disk[str(path.relative_to(staging.repository))] = hashlib.sha256(path.read_bytes()).hexdigest()
    assert {file.name: file.sha256 for file in seal.files} == on_disk
    repository = open_staged(staging, PASSPHRASE)
    assert seal.repository_id == repository.id == load_seed(staging).repository_id
    for kind, sealed in ((BlobKind.DATA, FileKind.DATA), (BlobKind.TREE, FileKind.TREE)):
        names = {name for name, entry in repository.index.packs.items() if entry.kind is kind}
        assert {file.name.rpartition("/")[2] for file in seal.of_kind(sealed)} == names
    pending = [repository.snapshot(seal.snapshot).tree]
    while pending:
        for node in load_tree(repository, pending.pop()):
            if node.subtree:
                pending.append(node.subtree)
            for blob in node.content or ():
                repository.load_blob(BlobKind.DATA, blob)


def test_a_staging_is_written_sealed_and_then_left_alone(staging: Staging, run: Run) -> None:
    result = run()
    check(staging, result)
    assert not result.already_sealed
    assert result.files > 300
    assert stat.S_IMODE(staging.root.stat().st_mode) == 0o700
    assert len(list((staging.repository / "data").iterdir())) == 256
    before = {path: path.stat().st_mtime_ns for path in staging.root.rglob("*") if path.is_file()}
    again = run()
    assert again.already_sealed
    assert again.bytes_stored == result.bytes_stored
    assert again.snapshot == result.snapshot
    after = {path: path.stat().st_mtime_ns for path in staging.root.rglob("*") if path.is_file()}
    assert after == before


def test_a_sealed_staging_no_longer_needs_its_source(staging: Staging, run: Run, tree: Path) -> None:
    run()
    tree.rename(tree.with_name("gone"))
    assert run().already_sealed


def test_what_cannot_be_read_is_told_again_when_only_the_seal_was_missing(
    staging: Staging, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_really = os.open

    def open_(path: Any, *args: Any, **more: Any) -> int:
        if path == b"small-7":
            raise PermissionError(13, "Permission denied")
        return open_really(path, *args, **more)

    monkeypatch.setattr(os, "open", open_)
    with monkeypatch.context() as patch:
        patch.setattr(module, "save_seal", _fail)
        with pytest.raises(RuntimeError):
            run()
    result = run()
    assert [reason for _, reason in result.unreadable] == ["Permission denied"]
    assert result.files_unmodified == result.files
    check(staging, result)


def test_the_escrow_key_opens_what_was_sealed_to_the_seed(staging: Staging, run: Run) -> None:
    run()
    private = unlock_escrow(staging, open_staged(staging, PASSPHRASE))
    sealed = escrow.seal(load_seed(staging).escrow_public_key, Secret("recovery"), "disk 1")
    assert escrow.unseal(private, sealed, "disk 1") == Secret("recovery")
    assert private.reveal() not in (staging.escrow / "key").read_bytes()
    (staging.escrow / "key").unlink()
    with pytest.raises(NotFound):
        unlock_escrow(staging, open_staged(staging, PASSPHRASE))


@pytest.mark.parametrize("sealed", [True, False])
def test_a_staging_of_another_trip_is_refused(
    staging: Staging, run: Run, tree: Path, monkeypatch: pytest.MonkeyPatch, sealed: bool
) -> None:
    if not sealed:
        monkeypatch.setattr(module, "save_seal", _fail)
        with pytest.raises(RuntimeError):
            run()
        monkeypatch.undo()
    else:
        run()
    for change in ({"job_name": "job-2"}, {"hostname": "other"}, {"sources": [Source(os.fsencode(tree / "odd"))]}):
        with pytest.raises(JobConflict):
            run(**change)
    if not sealed:
        with pytest.raises(WrongPassphrase):
            run(passphrase=Secret("another passphrase, long"))
        check(staging, run())


def test_a_wrong_name_is_refused_before_anything_is_made(staging: Staging, run: Run) -> None:
    with pytest.raises(UsageError):
        run(job_name="Not A Job")
    assert not staging.root.exists()


def test_two_processes_never_write_to_one_staging(staging: Staging, run: Run) -> None:
    staging.root.mkdir()
    code = (
        "import fcntl, os, sys; d = os.open(sys.argv[1], os.O_CREAT | os.O_RDWR, 0o600); "
        "fcntl.flock(d, fcntl.LOCK_EX); print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, staging.root / "stage.lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdin is not None
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(Locked, match="another process is staging into"):
        run()
    holder.stdin.close()
    holder.wait(10)
    run()


@pytest.mark.parametrize(
    "point", ["create", "make_directory", "save_seed", "backup", "save_seal", "write_file", "_make_layout"]
)
def test_whatever_fails_the_same_command_finishes(
    staging: Staging, run: Run, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    monkeypatch.setattr(module if hasattr(module, point) else module.durable, point, _fail)
    with pytest.raises(RuntimeError):
        run()
    monkeypatch.undo()
    assert not staging.seal_file.exists()
    check(staging, run())


def test_a_key_without_a_config_is_of_no_repository(
    staging: Staging, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between key and config: the next run must not leave a key that opens another data key."""
    write = module.DirectoryStore.write

    def no_config(store: module.DirectoryStore, name: str, parts: Any) -> None:
        if name == "config":
            raise RuntimeError
        write(store, name, parts)

    monkeypatch.setattr(module.DirectoryStore, "write", no_config)
    with pytest.raises(RuntimeError):
        run()
    monkeypatch.undo()
    check(staging, run())
    assert len(list((staging.repository / "keys").iterdir())) == 1


@pytest.mark.parametrize("limit", [3, 6, 9, 11])
def test_a_full_file_system_is_refused_at_once_and_later_fails_cleanly(
    staging: Staging, run: Run, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(StorageFull):
        run()
    assert list(staging.repository.glob("data/*/*")) == []
    monkeypatch.undo()
    write, count = os.write, multiprocessing.get_context("fork").Value("i")  # of all processes together

    def full(descriptor: int, data: Any) -> int:
        with count.get_lock():
            count.value += 1
        if count.value > limit:
            write(descriptor, data[:100])
            raise OSError(28, "No space left on device")
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StorageFull):
        run()
    monkeypatch.undo()
    assert count.value > limit
    assert not staging.seal_file.exists()
    assert not list(staging.repository.rglob(".tmp-*"))
    check(staging, run())


@pytest.mark.parametrize("packs", [1, 6])
def test_after_a_kill_the_same_command_finishes_and_keeps_what_was_stored(
    staging: Staging, run: Run, tree: Path, packs: int
) -> None:
    rng = random.Random(11)
    for number in range(12):
        (tree / f"bulk-{number}").write_bytes(rng.randbytes(1 << 20))
    code = (
        "import os, sys, time\n"
        "from diskprep.repository import repository as r\n"
        "save, done = r.Repository.save_pack, []\n"
        "def slow(self, *pack):\n"
        f"    if len(done) >= {packs}: os.write(1, b'now\\n'); time.sleep(60)\n"
        "    save(self, *pack); done.append(1)\n"
        "r.Repository.save_pack = slow\n"
        "sys.path.insert(0, sys.argv[3])\n"
        "import test_staging_stage as t\n"
        "t.stage(t.Staging(t.Path(sys.argv[1])), [t.Source(os.fsencode(sys.argv[2]))], passphrase=t.PASSPHRASE,\n"
        "    cost=t.ScryptCost(n=16, r=1, p=1), options=t.BackupOptions(pack_size_bytes=1 << 20), **t.TRIP)\n"
    )
    here = Path(__file__).parent
    child = subprocess.Popen(
        [sys.executable, "-c", code, staging.root, tree, here],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(here.parent)},
        start_new_session=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"now\n"
    os.killpg(child.pid, signal.SIGKILL)  # with its workers, as when the computer fails
    child.wait(10)
    child.stdout.close()
    with (staging.root / "stage.lock").open("rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)  # which the last worker had, too
    torn = staging.repository / "data" / "00" / ".tmp-torn"
    torn.write_bytes(b"torn")
    bad = staging.repository / "data" / "11" / ("11" * 32)
    bad.write_bytes(b"not a pack")
    survivors = {path.name for path in staging.repository.glob("data/*/*") if path.name[0] != "."} - {bad.name}
    assert len(survivors) >= packs
    assert len(list((staging.repository / "locks").iterdir())) == 1
    result = run()
    check(staging, result)
    assert survivors <= {file.name.rpartition("/")[2] for file in result.seal.files}
    assert not torn.exists()
    assert not bad.exists()
    assert list((staging.repository / "locks").iterdir()) == []
    seen = {file.sha256 for file in result.seal.files}
    assert len(seen) == len(result.seal.files)


def test_a_staging_inside_its_own_source_is_left_out(tree: Path, run: Run) -> None:
    staging = Staging(tree / "staging")
    result = run(staging=staging)
    check(staging, result)
    repository = open_staged(staging, PASSPHRASE)
    snapshot = repository.snapshot()
    assert snapshot.excludes == (str(staging.root),)
    node_names = set()
    tree_id = snapshot.tree
    for part in tree.parts[1:]:
        found = {node.name: node.subtree for node in load_tree(repository, tree_id)}[os.fsencode(part)]
        assert found is not None
        tree_id = found
    node_names = {node.name for node in load_tree(repository, tree_id)}
    assert b"odd" in node_names
    assert b"staging" not in node_names


def stopped(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is cut off just before the seal."""
    with monkeypatch.context() as patch:
        patch.setattr(module, "save_seal", _fail)
        with pytest.raises(RuntimeError):
            run()


@pytest.mark.parametrize("damage", ["truncated", "gone", "flipped"])
def test_a_damaged_pack_of_a_run_that_was_cut_off_is_stored_again(
    staging: Staging, run: Run, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    stopped(run, monkeypatch)
    before = open_staged(staging, PASSPHRASE)
    for victim in [next(e.pack for e in before.index.packs.values() if e.kind is kind) for kind in BlobKind]:
        path = staging.repository / object_name(victim)
        data = path.read_bytes()
        path.unlink()
        if damage == "truncated":
            path.write_bytes(data[:-7])
        elif damage == "flipped":
            path.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    # Cut off again while it mends: the damaged pack stays known until the new index file is durable.
    with monkeypatch.context() as patch:
        patch.setattr(module.DirectoryStore, "delete", _fail)
        with pytest.raises(RuntimeError):
            run()
    result = run()
    check(staging, result)
    assert result.unreadable == ()
    assert len(open_staged(staging, PASSPHRASE).snapshots()) == 1


def test_files_that_are_not_the_repositorys_neither_stop_the_stage_nor_get_into_the_seal(
    staging: Staging, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(run, monkeypatch)
    odd = ["data/00/Copy of x", "data/Thumbs.db", "index/x (2)", "desktop.ini", "lost+found/1", "data/00/" + "11" * 32]
    for name in odd:
        (staging.repository / name).parent.mkdir(exist_ok=True)
        (staging.repository / name).write_bytes(b"")
    result = run()
    assert not {file.name for file in result.seal.files} & set(odd)
    for name in odd:
        (staging.repository / name).unlink()
    check(staging, result)


@pytest.mark.root
def test_a_staging_reached_by_another_path_is_left_out(tree: Path, run: Run, tmp_path: Path) -> None:
    staging = Staging(tmp_path / "staging")
    staging.root.mkdir()
    other = tree / "seen here too"
    other.mkdir()
    subprocess.run(["mount", "--bind", staging.root, other], check=True)
    try:
        result = run(staging=staging)
    finally:
        subprocess.run(["umount", other], check=True)
    check(staging, result)
    repository = open_staged(staging, PASSPHRASE)
    tree_id = repository.snapshot().tree
    for part in tree.parts[1:]:
        found = {node.name: node.subtree for node in load_tree(repository, tree_id)}[os.fsencode(part)]
        assert found is not None
        tree_id = found
    names = {node.name for node in load_tree(repository, tree_id)}
    assert b"odd" in names
    assert b"seen here too" not in names


def _fail(*_: object, **__: object) -> None:
    raise RuntimeError("cut off")

"""Who does the work makes no difference to what is stored; what goes wrong in a child goes wrong for the whole backup,
and costs nothing of what was stored."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from support import make_tree
from test_staging_backup import MIB, compare_all, content, listing, run

from diskprep.errors import Interrupted, Locked, NotBuilt, StorageFull, StorageUnavailable
from diskprep.events import Event, Note, Progress
from diskprep.repository.crypto import DataKey
from diskprep.repository.pack import BlobKind, PackEntry, object_name, verify_pack
from diskprep.repository.repository import Repository
from diskprep.secrets import Secret
from diskprep.source import Measure
from diskprep.staging import blobs, books
from diskprep.staging.blobs import BlobSession, load_known
from diskprep.staging.dispatch import Manpower
from diskprep.staging.writer import BackupOptions, table_bytes
from diskprep.store.directory import DirectoryStore

PASSPHRASE = Secret("correct horse battery staple")
OPTIONS = BackupOptions(pack_size_bytes=MIB, manpower=Manpower(threads=2, processes=2))


@pytest.fixture(autouse=True)
def _nobody_is_left() -> Iterator[None]:
    before = set(psutil.Process().children())  # of other tests
    yield
    assert set(psutil.Process().children()) <= before


def is_whole(repository: Repository) -> None:
    """Every pack is intact and named by an index file; no lock, temporary file or thread is left."""
    repository.reload_index()
    packs = repository.index.packs
    stored = [item.name for item in repository.store.list("data/")]
    assert sorted(stored) == sorted(map(object_name, packs))
    for name, entry in packs.items():
        verify_pack(name, repository.store.read(object_name(name)), repository.key, entry)
    assert list(repository.store.list("locks/")) == []
    assert list(Path(repository.store.location).rglob(".tmp-*")) == []
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith(("backup", "read ahead"))]


def spread(root: Path, count: int = 600) -> Path:
    """Many small files in several directories, which do not compress: some megabytes."""
    rng = random.Random(2)
    for number in range(count):
        folder = root / f"folder {number % 7}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / str(number)).write_bytes(rng.randbytes(10_000))
    return root


def test_processes_and_threads_of_any_number_store_the_same(tmp_path: Path, repository: Repository) -> None:
    root = make_tree(tmp_path / "tree", megabytes=4)
    spread(root / "spread", 300)
    seen = []
    for number, (threads, processes) in enumerate([(1, 0), (3, 0), (1, 1), (2, 3)]):
        place = tmp_path / "repository" / f"copy {number}"
        place.mkdir()
        copy = Repository(DirectoryStore(place), DataKey.generate(), repository.id, repository.polynomial)
        manpower = Manpower(threads=threads, processes=processes)
        result = run(copy, root, options=BackupOptions(pack_size_bytes=MIB, manpower=manpower))
        assert compare_all(copy, result.snapshot, os.fsencode(root)) > 600
        nodes = listing(copy, result.snapshot, tmp_path)
        counts = (result.files, result.dirs, result.bytes_processed, result.skipped_sockets, result.unreadable)
        seen.append((nodes[b"tree"].subtree, counts))
        is_whole(copy)
    assert seen == [seen[0]] * 4


def test_what_children_store_is_counted_and_found_by_the_next_backup(tmp_path: Path, repository: Repository) -> None:
    root = spread(tmp_path / "tree")
    first = run(repository, root, options=OPTIONS)
    stored = sum(item.size_bytes for item in repository.store.list("data/"))
    assert first.bytes_stored == stored
    assert 6_000_000 < first.bytes_added < 6_000_000 + 400_000  # with trees
    for base in (None, repository.snapshot(first.snapshot)):
        again = run(repository, root, base=base, options=OPTIONS)
        assert again.files_unmodified == (0 if base is None else 600)
        assert again.bytes_added < 10_000  # directories above the source may have changed
    is_whole(repository)


def test_equal_files_met_by_two_children_at_once_are_stored_twice_at_most(
    tmp_path: Path, repository: Repository
) -> None:
    data = random.Random(1).randbytes(100_000)
    for number in range(200):
        folder = tmp_path / "tree" / str(number % 20)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}").write_bytes(data)
    result = run(repository, tmp_path / "tree", options=OPTIONS)
    repository.reload_index()
    data_blobs = [at for entry in repository.index.packs.values() for at in entry.blobs if at.kind is BlobKind.DATA]
    assert 1 <= len(data_blobs) <= 2
    assert len({at.id for at in data_blobs}) == 1
    assert compare_all(repository, result.snapshot, os.fsencode(tmp_path / "tree")) == 220
    is_whole(repository)


@pytest.mark.parametrize("error", [StorageFull("full"), StorageUnavailable("gone"), RuntimeError("a bug")])
def test_an_error_in_a_child_ends_the_backup_and_what_was_stored_is_found_again(
    tmp_path: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    root = spread(tmp_path / "tree")
    save, parent = repository.save_pack, os.getpid()
    packs = multiprocessing.get_context("fork").Value("i")

    def save_pack(entry: PackEntry, data: memoryview) -> None:
        if os.getpid() != parent:
            packs.value += 1
            if packs.value > 2:
                raise error
        save(entry, data)

    monkeypatch.setattr(repository, "save_pack", save_pack)
    with pytest.raises(type(error), match=str(error)):
        run(repository, root, options=OPTIONS)
    monkeypatch.undo()
    assert repository.snapshots() == []
    is_whole(repository)
    stored = len(repository.index)
    assert stored > 100
    result = run(repository, root, options=OPTIONS)
    assert compare_all(repository, result.snapshot, os.fsencode(root)) == 607
    assert result.bytes_added < 6_000_000 + 400_000 - 10_000 * stored  # trees are less than that
    is_whole(repository)


@pytest.mark.parametrize("victim", ["at its first pack", "between two packs"])
def test_a_child_that_is_killed_ends_the_backup_and_the_next_one_completes_it(
    tmp_path: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch, victim: str
) -> None:
    root = spread(tmp_path / "tree")
    save, parent = repository.save_pack, os.getpid()

    def save_pack(entry: PackEntry, data: memoryview) -> None:
        if os.getpid() != parent and victim == "between two packs":
            save(entry, data)
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        save(entry, data)

    monkeypatch.setattr(repository, "save_pack", save_pack)
    with pytest.raises(StorageUnavailable, match="worker process"):
        run(repository, root, options=OPTIONS)
    monkeypatch.undo()
    assert repository.snapshots() == []
    assert list(repository.store.list("locks/")) == []
    result = run(repository, root, options=OPTIONS)
    assert compare_all(repository, result.snapshot, os.fsencode(root)) == 607


def test_a_child_that_finds_the_lock_lost_stops_all_writing(
    tmp_path: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = spread(tmp_path / "tree")
    save, parent = repository.save_pack, os.getpid()

    def save_pack(entry: PackEntry, data: memoryview) -> None:
        if os.getpid() != parent:
            for item in list(repository.store.list("locks/")):
                repository.store.delete(item.name)
        save(entry, data)

    monkeypatch.setattr(repository, "save_pack", save_pack)
    with pytest.raises(Locked, match="lost"):
        run(repository, root, options=OPTIONS)
    assert repository.snapshots() == []
    assert list(repository.store.list("index/")) == []


def test_an_error_in_the_parent_ends_the_children(tmp_path: Path, repository: Repository) -> None:
    root = spread(tmp_path / "tree")

    def emit(event: Event) -> None:
        if isinstance(event, Progress):
            raise NotBuilt("an error of the screen")

    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(NotBuilt):
        run(repository, root, options=OPTIONS, emit=emit)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    is_whole(repository)


@pytest.mark.parametrize("error", [KeyboardInterrupt, Interrupted])
@pytest.mark.parametrize("processes", [0, 2])
def test_interrupted_again_and_again_each_run_goes_on_from_what_is_whole(
    tmp_path: Path,
    repository: Repository,
    monkeypatch: pytest.MonkeyPatch,
    error: Callable[[str], BaseException],
    processes: int,
) -> None:
    root = spread(make_tree(tmp_path / "tree", megabytes=6) / "spread")
    monkeypatch.setattr(books, "_PROGRESS_INTERVAL_S", 0.0)  # so that there are many moments
    options = BackupOptions(pack_size_bytes=MIB, manpower=Manpower(threads=2, processes=processes))
    stored = [0]
    told = 0
    for moment in (0, 1, 2, 4, 7, 11, 16, 10**9):
        count = 0

        def emit(event: Event, moment: int = moment) -> None:
            nonlocal count
            count += 1
            if count > moment:
                raise error("stopped")

        if moment == 10**9:
            result = run(repository, root.parent, options=options, emit=emit)
            told = count
            break
        with pytest.raises((KeyboardInterrupt, Interrupted)):
            run(repository, root.parent, options=options, emit=emit)
        is_whole(repository)
        assert repository.snapshots() == []
        stored.append(sum(len(entry.blobs) for entry in repository.index.packs.values()))
    assert told > 16
    assert stored == sorted(stored)
    assert stored[-1] > 100
    assert compare_all(repository, result.snapshot, os.fsencode(root.parent)) > 900
    is_whole(repository)


@pytest.mark.parametrize("processes", [0, 2])
@pytest.mark.parametrize(("error", "kept"), [(KeyboardInterrupt, True), (Interrupted, True), (NotBuilt, False)])
def test_what_was_begun_is_kept_when_somebody_stops_the_backup_and_not_after_an_error(
    tmp_path: Path,
    repository: Repository,
    error: Callable[[str], BaseException],
    kept: bool,
    processes: int,
) -> None:
    """No pack is full yet."""
    root = spread(tmp_path / "tree", 30)

    def emit(event: Event) -> None:
        raise error("stopped")

    with pytest.raises((KeyboardInterrupt, Interrupted, NotBuilt)):
        run(repository, root, options=BackupOptions(manpower=Manpower(threads=1, processes=processes)), emit=emit)
    is_whole(repository)
    assert (len(repository.index) > 0) is kept


@pytest.mark.parametrize("delay_s", [0.0, 0.03, 0.1])
def test_ctrl_c_at_the_terminal_reaches_all_processes_and_stops_the_backup_once(
    tmp_path: Path, repository: Repository, delay_s: float
) -> None:
    root = spread(tmp_path / "tree")
    code = (
        "import sys, time\n"
        "sys.path.insert(0, sys.argv[3])\n"
        "import test_staging_processes as t\n"
        "from diskprep import interrupts\n"
        "from diskprep.repository.repository import open_repository\n"
        "save = t.Repository.save_pack\n"
        "def slow(self, *pack):\n"
        "    time.sleep(0.05); save(self, *pack)\n"
        "t.Repository.save_pack = slow\n"
        "interrupts.install()\n"
        "repository = open_repository(t.DirectoryStore(t.Path(sys.argv[1])), t.PASSPHRASE)\n"
        "try:\n"
        "    t.run(repository, t.Path(sys.argv[2]), options=t.OPTIONS, emit=lambda _: print('begun', flush=True))\n"
        "except KeyboardInterrupt:\n"
        "    print('stopped')\n"
    )
    here = Path(__file__).parent
    child = subprocess.Popen(
        [sys.executable, "-c", code, repository.store.location, root, here],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": f"{here.parent}{os.pathsep}{here.parents[1]}"},
        start_new_session=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"begun\n"
    time.sleep(delay_s)
    os.killpg(child.pid, signal.SIGINT)
    told, _ = child.communicate(timeout=30)
    assert (child.returncode, told.splitlines()[-1:]) == (0, [b"stopped"])
    assert repository.snapshots() == []
    is_whole(repository)
    result = run(repository, root, options=OPTIONS)
    assert compare_all(repository, result.snapshot, os.fsencode(root)) == 607


def test_interrupted_at_its_very_end_a_backup_has_lost_nothing(
    tmp_path: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the children have finished already, and when the snapshot alone is missing."""
    root, parent = spread(tmp_path / "tree"), os.getpid()
    for place, name in ((BlobSession, "save_index"), (Repository, "save_snapshot")):
        with monkeypatch.context() as patch:
            really, calls = getattr(place, name), list[int]()

            def stop(*arguments: object, really: Callable[..., object] = really, calls: list[int] = calls) -> object:
                calls.append(1)
                if os.getpid() == parent and len(calls) == 1:
                    raise KeyboardInterrupt
                return really(*arguments)

            patch.setattr(place, name, stop)
            with pytest.raises(KeyboardInterrupt):
                run(repository, root, options=OPTIONS)
        assert repository.snapshots() == []
        is_whole(repository)
    result = run(repository, root, options=OPTIONS)
    assert result.bytes_added < 10_000
    assert compare_all(repository, result.snapshot, os.fsencode(root)) == 607


def test_scratch_space_takes_the_table_and_is_given_back(tmp_path: Path, repository: Repository) -> None:
    root, scratch = spread(tmp_path / "tree"), tmp_path / "scratch"
    scratch.mkdir()
    seen = list[int]()
    needle = os.fsencode(scratch)

    def emit(event: Event) -> None:
        seen.append(Path("/proc/self/maps").read_bytes().count(needle))

    options = BackupOptions(scratch=scratch, manpower=OPTIONS.manpower)
    result = run(repository, root, options=options, emit=emit)
    assert max(seen) == 2  # data and trees
    assert list(scratch.iterdir()) == []
    assert needle not in Path("/proc/self/maps").read_bytes()
    assert compare_all(repository, result.snapshot, os.fsencode(root)) == 607
    expected = Measure(files=10_000_000, size_bytes=0)
    assert 32 * 10_000_000 < table_bytes(expected, options) < 3 * 32 * 10_000_000


def test_a_large_listing_is_stored_without_being_whole_in_memory(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [b'{"name":"%06d"}' % number for number in range(30_000)]
    whole = b'{"nodes":[' + b",".join(nodes) + b"]}\n"
    known = load_known(repository, new_data=0, new_trees=10)
    session = BlobSession(repository, known, MIB)
    stream = session.stream(BlobKind.TREE)
    assert len(nodes) >= blobs._LARGE_TREE_ENTRIES
    large = stream.save_tree(nodes)
    assert stream.save_tree(nodes) == large
    small = stream.save_tree(nodes[:3])
    stream.flush()
    session.save_index()
    assert session.stored.added_bytes == len(whole) + len(b'{"nodes":[' + b",".join(nodes[:3]) + b"]}\n")
    monkeypatch.setattr(blobs, "_LARGE_TREE_ENTRIES", 10**9)
    assert stream.save_tree(nodes) == large  # by the other way, the same id
    repository.reload_index()
    assert repository.load_blob(BlobKind.TREE, large) == whole
    assert repository.load_blob(BlobKind.TREE, small) == b'{"nodes":[' + b",".join(nodes[:3]) + b"]}\n"
    assert len(repository.index) == 2
    known.close()


def test_index_files_are_written_on_the_way_by_every_process(
    tmp_path: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that little is lost when the computer fails."""
    root = spread(tmp_path / "tree")
    monkeypatch.setattr(blobs, "INDEX_BLOBS", 50)
    result = run(repository, root, options=OPTIONS)
    assert len(list(repository.store.list("index/"))) >= 6
    is_whole(repository)
    assert compare_all(repository, result.snapshot, os.fsencode(root)) == 607


def test_notes_are_told_by_the_parent_whoever_met_their_cause(tmp_path: Path, repository: Repository) -> None:
    root = spread(tmp_path / "tree", 20)
    really = os.open

    def opening(name: object, *more: object, **keywords: object) -> int:
        if name == b"7":
            raise PermissionError(13, "Permission denied")
        return really(name, *more, **keywords)  # type: ignore[arg-type]

    events = list[Event]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", opening)
        result = run(repository, root, options=OPTIONS, emit=events.append)
    assert result.unreadable == ((f"{root}/folder 0/7", "Permission denied"),)
    assert [event.text for event in events if isinstance(event, Note)] == [
        f"cannot read {root}/folder 0/7: Permission denied"
    ]
    assert content(repository, listing(repository, result.snapshot, root / "folder 1")[b"8"])

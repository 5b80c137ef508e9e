"""Errors of the disk, of its room, and of the computer's own file system: told, final, and gone on from."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import faulty
import pytest
from faulty import (
    IMAGE_BYTES,
    MIB,
    SIZES,
    Faults,
    Told,
    go_on,
    interrupted,
    is_formatted,
    is_sealed,
    must_be_finished,
    order_of,
    points_of,
)
from support import need_root, run
from test_prepare import Bench

from diskprep.errors import DiskFailed


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    faulty.quick(monkeypatch)
    return Bench(tmp_path, SIZES)


@pytest.fixture(scope="module")
def point_count(tmp_path_factory: pytest.TempPathFactory) -> int:
    with pytest.MonkeyPatch.context() as patch:
        faulty.quick(patch)
        return faulty.points(order_of(Bench(tmp_path_factory.mktemp("undisturbed"), SIZES)))


def fails_and_goes_on(bench: Bench, faults: Faults, *expected: str) -> Told:
    told = faulty.run(order_of(bench), faults)
    assert told.error in expected, told
    assert not is_sealed(bench, order_of(bench))
    assert told.syncs_after == 0, "a failed sync is final for the descriptor"
    go_on(bench)
    return told


@pytest.mark.parametrize("share", [0.1, 0.6, 0.9])
@pytest.mark.parametrize("call", ["pwrite", "fsync"])
def test_an_error_of_the_disk_ends_the_run_and_the_same_call_goes_on(bench: Bench, call: str, share: float) -> None:
    order = order_of(bench)
    count = points_of(bench, call, image=True)
    faults = Faults(kind="error", at=int(count * share), only=(call,), on=order.target.path)
    fails_and_goes_on(bench, faults, DiskFailed.__name__)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("share", [0.2, 0.7])
def test_an_error_of_the_computers_own_disk_ends_the_run_and_the_same_call_goes_on(
    bench: Bench, share: float, code: int
) -> None:
    count = points_of(bench, "fdatasync")
    faults = Faults(kind="error", at=int(count * share), only=("fdatasync",), code=code)
    told = faulty.run(order_of(bench), faults)
    assert told.error in ("StorageFull" if code == errno.ENOSPC else "StorageUnavailable", ""), told
    go_on(bench)


def test_an_error_in_the_read_back_leaves_the_disk_unsealed(bench: Bench) -> None:
    order = order_of(bench)
    interrupted(order, "manifest")
    count = points_of(bench, "preadv", image=True, after="manifest")
    assert count > 20
    for at in (0, count - 1):
        faults = Faults(kind="error", at=at, only=("preadv",), on=order.target.path)
        told = faulty.run(order_of(bench), faults)
        assert told.error == DiskFailed.__name__, told
        assert not is_sealed(bench, order)
    go_on(bench, over=False)


@pytest.fixture
def small_place(bench: Bench) -> Iterator[Path]:
    """A file system in memory with 40 MiB."""
    need_root()
    place = bench.root / "small"
    place.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=40M", "tmpfs", place)
    yield place
    run("umount", place)


@contextlib.contextmanager
def attached(file: Path) -> Iterator[str]:
    loop = run("losetup", "--find", "--show", file).strip()
    try:
        yield loop
    finally:
        run("losetup", "--detach", loop)


@pytest.mark.root
@pytest.mark.parametrize("kind", ["image", "loop device"])
def test_a_disk_with_no_room_behind_it_fails_and_goes_on_when_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bench: Bench, small_place: Path, kind: str
) -> None:
    """What a loop device has no room for is an error of its medium, told by the sync: a disk that takes no data."""
    place = tmp_path / "large"
    place.mkdir()
    bench = Bench(place, (5 * MIB, 5 * MIB + 1, 6 * MIB, 6 * MIB + 7, 100))
    file, ballast = small_place / "WD-0001.img", small_place / "ballast"
    ballast.write_bytes(bytes(16 * MIB))
    with file.open("wb") as stream:
        stream.truncate(IMAGE_BYTES)
    with contextlib.ExitStack() as stack:
        disk = str(file) if kind == "image" else f"{stack.enter_context(attached(file))},serial=WD-0001"
        order = order_of(bench, disk)
        told = faulty.run(order)
        assert (told.error, told.syncs_after) == (DiskFailed.__name__, 0), told
        assert not is_sealed(bench, order)
        assert is_formatted(order), "the ballast was meant for the files"
        copied = faulty.recorded_files(order)
        ballast.unlink()
        told = faulty.run(order_of(bench, disk))
        assert not told.error, told
        assert any("goes on" in note for note in told.notes)
        assert not copied & set(told.packs_read)
        must_be_finished(bench, order)


@pytest.mark.root
def test_a_disk_that_goes_away_fails_and_is_made_when_it_is_back(bench: Bench) -> None:
    need_root()
    file = bench.root / "backing"
    file.touch()
    os.truncate(file, IMAGE_BYTES)
    with attached(file) as loop:
        order = order_of(bench, f"{loop},serial=WD-0001")

        def vanish() -> None:
            os.truncate(file, 1 * MIB)
            run("losetup", "--set-capacity", loop)

        redo = order.journal_path.with_suffix(".redo")
        faults = Faults(kind="deed", deed=vanish, at=1, only=("pwrite",), on=order.target.path, when=redo)
        told = faulty.run(order, faults)
        assert (told.error, told.syncs_after) == (DiskFailed.__name__, 0), told
        assert not is_sealed(bench, order)
        os.truncate(file, IMAGE_BYTES)
        run("losetup", "--set-capacity", loop)
        order = order_of(bench, f"{loop},serial=WD-0001")
        told = faulty.run(order)
        assert not told.error, told
        assert any("is started over" in note for note in told.notes)
        must_be_finished(bench, order)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_every_single_call_may_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point_count: int, code: int
) -> None:
    faulty.quick(monkeypatch)
    for at in range(point_count):
        place = tmp_path / str(at)
        place.mkdir()
        bench = Bench(place, SIZES)
        told = faulty.run(order_of(bench), Faults(kind="error", at=at, code=code))
        assert told.error in ("", "DiskFailed", "StorageFull", "StorageUnavailable"), (at, told)
        go_on(bench)
        (place / "WD-0001.img").unlink()

"""A batch that was broken off anywhere is there as a whole, or not at all."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from support import need, run
from volume_support import MIB, MadeDisk, pattern, source

from diskprep import durable
from diskprep.durable import Buffer
from diskprep.errors import DataDamaged, DiskFailed, StorageFull, StorageUnavailable
from diskprep.volume.bitlocker import Volume
from diskprep.volume.device import Device, open_for_reading, open_memory
from diskprep.volume.format import open_disk
from diskprep.volume.ntfs import Filler, Reader, SourceFile
from diskprep.volume.redo import Redo

OWNER = "SERIAL volume"
SECTOR = 512
FIRST = {f"repository/data/{n % 3:02}/{n:064}": pattern(str(n), 90_000 if n % 9 else 50) for n in range(40)}
BATCH = {
    "repository/data/00/large": pattern("large", 3 * MIB + 5),
    "repository/data/77/new": pattern("new", MIB),
    "repository/data/78/small": b"small",
    **{f"repository/data/01/{n:063}x": pattern(f"x{n}", 70_001) for n in range(12)},
}


class Fragile(Device):
    """An image in memory whose writes and syncs are counted, kept, torn, failed, or the end of the process."""

    def __init__(self, inner: Device) -> None:
        super().__init__(inner.path, inner.descriptor)
        self.log: list[tuple[int, bytes] | str] = []
        self.left, self.torn_sectors = 1 << 60, 0
        self.at_end: Callable[[int], None] = os._exit
        self._gate = threading.Lock()

    def _step(self, data: Buffer, offset: int) -> None:
        with self._gate:
            self.left -= 1
            if self.left < 0:
                if self.left == -1 and self.torn_sectors:
                    super().pwrite(memoryview(data)[: self.torn_sectors * SECTOR], offset)
                self.at_end(9)

    def pwrite(self, data: Buffer, offset: int) -> None:
        self._step(data, offset)
        self.log.append((offset, bytes(data)))
        super().pwrite(data, offset)

    def sync(self) -> None:
        self._step(b"", 0)
        self.log.append("sync")
        super().sync()


class Kit:
    """A disk with one batch on it, in memory, opened once; and what brings it back to that state."""

    def __init__(self, device: Fragile, made: MadeDisk, folder: Path) -> None:
        self.device, self.made, self.path = device, made, folder / "redo"
        self.redo = Redo(self.path, OWNER)
        self.volume: Volume = open_disk(device, made.password)
        Filler(self.volume).write(sources(FIRST))
        self._base = device.pread(device.size_bytes, 0)
        self._steps = 0

    def restore(self) -> None:
        self.device.left, self.device.torn_sectors, self.device.at_end = 1 << 60, 0, os._exit
        for offset, length in list(self.device.data_extents()):
            if self.device.pread(length, offset) != self._base[offset : offset + length]:
                Device.pwrite(self.device, self._base[offset : offset + length], offset)
        self.device.log.clear()
        self.redo.clear()

    def fill(self, tag: Callable[[], bytes] = bytes) -> None:
        Filler(self.volume, redo=self.redo).write(sources(BATCH), tag=tag)

    def steps(self) -> int:
        """How many writes and syncs a batch makes."""
        if not self._steps:
            self.fill()
            self._steps = len(self.device.log)
            self.restore()
        return self._steps

    def kill(self, after: int, torn_sectors: int = 0) -> None:
        """Fill in a child that dies after so many writes and syncs; of the next, some sectors may get through."""
        child = os.fork()
        if not child:
            try:
                self.device.left, self.device.torn_sectors = after, torn_sectors
                self.fill(lambda: b"the batch")
            finally:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9

    def complete(self) -> bool:
        """Do what the next run does first. Whether there was something to complete."""
        if self.redo.pending() is None:
            return False
        assert self.redo.pending() == b"the batch"
        self.redo.replay(self.device)
        return True


@pytest.fixture(scope="module")
def kit(pristine_disk: MadeDisk, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kit]:
    with open_for_reading(pristine_disk.path) as image, open_memory(image.size_bytes) as memory:
        for offset, length in image.data_extents():
            memory.pwrite(image.pread(length, offset), offset)
        yield Kit(Fragile(memory), pristine_disk, tmp_path_factory.mktemp("redo"))


@pytest.fixture(autouse=True)
def restored(kit: Kit) -> None:
    kit.restore()


def sources(files: dict[str, bytes]) -> list[SourceFile]:
    return [source(name, data) for name, data in files.items()]


def check(volume: Volume, expected: dict[str, bytes]) -> None:
    """Exactly these files, byte for byte; and every cluster of theirs is theirs alone, and counted as used."""
    with Reader(volume) as reader:
        assert {e.path: b"".join(reader.stream(e.path)) for e in reader.list() if not e.is_directory} == expected
        size, taken = reader.geometry.cluster_bytes, set[int]()
        for name in expected:
            for offset, length in reader.extents(name):
                assert reader.clusters_used(offset, length) == (length // size, length // size)
                clusters = set(range(offset // size, (offset + length) // size))
                assert not clusters & taken
                taken |= clusters


def check_by_others(kit: Kit, expected: dict[str, bytes], folder: Path) -> None:
    """Through dislocker's decryption, so that nothing of ours takes part in the reading."""
    image, plain = folder / "disk.img", folder / "plain.img"
    image.write_bytes(kit.device.pread(kit.device.size_bytes, 0))
    start, password = str(kit.made.layout.start_bytes), kit.made.password.reveal()
    plain.unlink(missing_ok=True)
    run(need("dislocker-file"), "-V", image, "-O", start, f"-p{password}", "--", plain)
    assert "processed successfully" in run(need("ntfsfix"), "-n", plain)
    listed = {}
    for line in run(need("fls"), "-f", "ntfs", "-r", "-F", "-p", plain).splitlines():
        kind, _, rest = line.partition(" ")
        inode, _, name = rest.partition(":\t")
        if kind == "r/r" and name.startswith("repository"):
            listed[name] = inode
    assert set(listed) == set(expected)
    for name, inode in listed.items():
        argv = [need("ntfscat"), str(plain), name]
        found = subprocess.run(argv, capture_output=True, timeout=60, check=True).stdout
        assert found == expected[name], name
        argv = [need("icat"), "-f", "ntfs", str(plain), inode]
        assert subprocess.run(argv, capture_output=True, timeout=60, check=True).stdout == found


def test_a_batch_killed_at_any_write_or_sync_is_there_as_a_whole_or_not_at_all(kit: Kit, tmp_path: Path) -> None:
    steps, completed, shown = kit.steps(), [], set()
    assert steps > 25
    for after in range(steps):
        kit.kill(after, torn_sectors=after % 4)
        completed.append(kit.complete())
        expected = {**FIRST, **BATCH} if completed[-1] else FIRST
        check(kit.volume, expected)
        if (completed[-1], after % 8) not in shown and after % 8 in (1, 6):
            shown.add((completed[-1], after % 8))
            check_by_others(kit, expected, tmp_path)
        kit.restore()
    assert completed == sorted(completed)
    assert completed.count(False) > 5
    assert completed.count(True) > 10
    assert len(shown) == 4


def test_a_batch_goes_on_after_a_kill_as_if_nothing_had_been(kit: Kit) -> None:
    for after in (3, kit.steps() - 3):
        kit.kill(after)
        if not kit.complete():
            kit.fill()
        kit.redo.clear()
        Filler(kit.volume, redo=kit.redo).write([source("repository/later", b"later")])
        check(kit.volume, {**FIRST, **BATCH, "repository/later": b"later"})
        kit.restore()


def test_a_power_cut_that_loses_any_unsynced_sectors_leaves_a_whole_batch_or_none(kit: Kit) -> None:
    """What was written since the last sync gets to the medium sector by sector, in any order, or does not."""
    rng, log = random.Random(11), kit.device.log

    def tag() -> bytes:
        log.append("tag")
        return b"the batch"

    kit.fill(tag)
    steps, record = list(log), kit.path.read_bytes()
    redo_at = steps.index("tag")
    for cut in [*range(redo_at, len(steps)), *rng.sample(range(redo_at), 4)]:
        kit.restore()
        synced = max((n for n in range(cut) if steps[n] == "sync"), default=0)
        for number, step in enumerate(steps[:cut]):
            if isinstance(step, str):
                continue
            for at in range(0, len(step[1]), SECTOR):
                if number < synced or rng.random() < 0.5:
                    Device.pwrite(kit.device, step[1][at : at + SECTOR], step[0] + at)
        if cut > redo_at:
            kit.path.write_bytes(record)
        check(kit.volume, {**FIRST, **BATCH} if kit.complete() else FIRST)


def test_replaying_is_harmless_any_number_of_times_and_after_it_was_broken_off(kit: Kit) -> None:
    kit.kill(kit.steps() - 4)
    for after in (2, 5, 1 << 60):
        child = os.fork()
        if not child:
            try:
                kit.device.left, kit.device.torn_sectors = after, 1
                kit.redo.replay(kit.device)
            finally:
                os._exit(0)
        os.waitpid(child, 0)
    assert kit.complete()
    check(kit.volume, {**FIRST, **BATCH})


def test_the_record_holds_no_plaintext_and_is_readable_by_its_owner_only(kit: Kit) -> None:
    kit.fill()
    record = kit.path.read_bytes()
    assert len(record) > 40_000
    for text in (b"FILE0", b"INDX", b"small", "large".encode("utf-16-le"), bytes(64)):
        assert text not in record
    assert kit.path.stat().st_mode & 0o777 == 0o600


def test_a_write_that_fails_ends_the_filler_and_the_record_stays(kit: Kit) -> None:
    def fail(_code: int) -> None:
        raise DiskFailed("cannot write: Input/output error")

    for after in range(1, kit.steps(), 2):
        kit.device.at_end, kit.device.left = fail, after
        filler = Filler(kit.volume, redo=kit.redo)
        with pytest.raises(DiskFailed):
            filler.write(sources(BATCH), tag=lambda: b"the batch")
        count = len(kit.device.log)
        with pytest.raises(DiskFailed, match="failed before"):
            filler.write(sources({"other": b"x"}))
        assert len(kit.device.log) == count
        kit.device.left = 1 << 60
        check(kit.volume, {**FIRST, **BATCH} if kit.complete() else FIRST)
        kit.restore()


def test_a_record_that_cannot_be_kept_leaves_the_disk_as_it_was(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int, parts: Iterable[Buffer]) -> None:
        assert any(parts)
        raise OSError(errno.ENOSPC, "No space left on device")

    filler = Filler(kit.volume, redo=kit.redo)
    with monkeypatch.context() as patched:
        patched.setattr(durable, "write_all", full)
        with pytest.raises(StorageFull):
            filler.write(sources(BATCH))
    assert kit.redo.pending() is None
    check(kit.volume, FIRST)
    filler.write(sources(BATCH))
    check(kit.volume, {**FIRST, **BATCH})


def test_notes_of_the_caller_that_fail_leave_the_disk_as_it_was(kit: Kit) -> None:
    def tag() -> bytes:
        raise StorageUnavailable("no notes")

    with pytest.raises(StorageUnavailable):
        kit.fill(tag)
    assert kit.redo.pending() is None
    check(kit.volume, FIRST)


def test_nothing_is_filled_while_a_record_waits(kit: Kit) -> None:
    kit.kill(kit.steps() - 2)
    with pytest.raises(DataDamaged, match="redo"):
        Filler(kit.volume, redo=kit.redo)


@pytest.fixture
def redo(tmp_path: Path) -> Redo:
    made = Redo(tmp_path / "record", OWNER)
    made.save(b"tag", [(512, b"a" * 1000), (4 << 20, memoryview(bytes(9 * MIB)))])
    return made


def test_only_a_whole_record_of_the_same_owner_counts(redo: Redo, tmp_path: Path) -> None:
    path = tmp_path / "record"
    whole = path.read_bytes()
    assert redo.pending() == b"tag"
    assert Redo(path, "another disk").pending() is None
    for count in (0, 10, 31, 32, 33, 40, 1000, len(whole) - 1):
        path.write_bytes(whole[:count])
        assert redo.pending() is None
        with open_memory(16 * MIB) as device, pytest.raises(DataDamaged):
            redo.replay(device)
    for place in (0, 17, 25, 40, 60, 1100, len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert redo.pending() is None
    path.write_bytes(whole + b"\0")
    assert redo.pending() is None
    path.write_bytes(whole)
    assert redo.pending() == b"tag"


def test_a_record_is_replaced_as_a_whole_and_cleared(redo: Redo, tmp_path: Path) -> None:
    (tmp_path / ".tmp-record").write_bytes(b"left over from a run that was killed")
    redo.save(b"", [])
    assert redo.pending() == b""
    redo.save(b"next", [(0, b"n" * 512)])
    with open_memory(MIB) as device:
        device.pwrite(b"x" * 1024, 0)
        redo.replay(device)
        assert device.pread(1024, 0) == b"n" * 512 + b"x" * 512
    redo.clear()
    assert redo.pending() is None
    redo.clear()
    assert list(tmp_path.iterdir()) == []


def test_a_record_that_cannot_be_read_is_not_taken_for_none(redo: Redo, tmp_path: Path) -> None:
    redo.clear()
    (tmp_path / "record").mkdir()
    for call in (redo.pending, redo.clear, lambda: redo.save(b"", [])):
        with pytest.raises(StorageUnavailable):
            call()

"""What was filled in reads back byte for byte; what fails leaves no trace."""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Iterator

import pytest
from volume_support import MIB, MadeDisk, pattern, source

from diskprep.errors import DataDamaged, DiskFailed, SourceIncomplete, StorageFull, ToolMissing
from diskprep.volume.device import Device, open_for_writing
from diskprep.volume.format import open_disk
from diskprep.volume.ntfs import Filler, NameNotAllowed, Reader, SourceFile, libntfs, names, selftest
from diskprep.volume.ntfs.lookup import Lookup

SIZES = [0, 1, 700, 4095, 4096, 65535, 65536, 65537, 65536 + 4095, 4 * MIB, 4 * MIB + 1, 9 * MIB - 7]


def digest(device: Device) -> str:
    return hashlib.sha256(device.pread(device.size_bytes, 0)).hexdigest()


def contents(device: Device) -> dict[str, bytes]:
    with Reader(device) as reader:
        return {e.path: b"".join(reader.stream(e.path)) for e in reader.list() if not e.is_directory}


def test_files_of_all_sizes_read_back_through_the_encryption(disk: MadeDisk) -> None:
    files = {f"repository/data/{size % 5}/f{size}": pattern(str(size), size) for size in SIZES}
    files |= {f"small/{number // 50}/n{number}": pattern(str(number), number * 3) for number in range(300)}
    told: list[int] = []
    with open_for_writing(disk.path) as device:
        filler = Filler(open_disk(device, disk.password))
        before = filler.free_bytes()
        filler.write([source(name, data) for name, data in files.items()], told.append)
        filler.write([source("second/batch", b"more"), source("repository/data/0/later", bytes(100_000))])
        used = before - filler.free_bytes()
    assert sum(told) == sum(len(data) for data in files.values()) < used
    with open_for_writing(disk.path) as device:
        found = contents(open_disk(device, disk.password))
    assert found == {**files, "second/batch": b"more", "repository/data/0/later": bytes(100_000)}


def test_a_batch_that_does_not_fit_leaves_the_volume_untouched(plain_ntfs: Device) -> None:
    filler = Filler(plain_ntfs)
    filler.write([source("a/first", pattern("first", 3 * MIB))])
    before = digest(plain_ntfs)
    with pytest.raises(StorageFull):
        filler.write([source(f"b/{n}", pattern(str(n), 5 * MIB)) for n in range(8)])
    assert digest(plain_ntfs) == before
    filler.write([source("b/0", b"fits")])
    assert contents(plain_ntfs) == {"a/first": pattern("first", 3 * MIB), "b/0": b"fits"}


def test_the_volume_can_be_filled_to_the_last_cluster(plain_ntfs: Device) -> None:
    filler, files, size = Filler(plain_ntfs), {}, 3 * MIB
    while size:
        name = f"fill/{len(files):04}"
        try:
            filler.write([source(name, pattern(name, size))])
            files[name] = pattern(name, size)
        except StorageFull:
            size = size // 2 if size > 4096 else 0
    assert filler.free_bytes() < 4096 * 4
    assert contents(plain_ntfs) == files


def test_files_in_many_pieces_read_back(plain_ntfs: Device) -> None:
    """Small files with gaps between them, then a large one that has to take the gaps."""
    filler = Filler(plain_ntfs)
    small = {f"s/{n}": pattern(str(n), 70_000) for n in range(40)}
    for name, data in small.items():
        filler.write([source(name, data)])
    large = pattern("large", filler.free_bytes() // 4096 * 4096 - 128 * 1024)
    filler.write([source("large", large)])
    with Reader(plain_ntfs) as reader:
        assert len(reader.extents("large")) > 1
    assert contents(plain_ntfs) == {**small, "large": large}


def broken(path: str, size: int, blocks: list[int], error: Exception | None = None) -> SourceFile:
    def give() -> Iterator[bytes]:
        for count in blocks:
            yield bytes(count)
        if error is not None:
            raise error

    return SourceFile(path=path, size_bytes=size, blocks=give)


@pytest.mark.parametrize(
    "file",
    [
        broken("bad", 5 * MIB, [4 * MIB]),
        broken("bad", 5 * MIB, [4 * MIB, MIB, 1]),
        broken("bad", 5 * MIB, [4 * MIB, MIB + 1]),
        broken("bad", 5 * MIB, [MIB, 4 * MIB]),
        broken("bad", 100, [99]),
        broken("bad", 100, [100, 1]),
        broken("bad", 0, [1]),
        broken("bad", 5 * MIB, [4 * MIB], SourceIncomplete("gone")),
    ],
)
def test_a_source_that_is_not_as_said_leaves_nothing_that_looks_whole(plain_ntfs: Device, file: SourceFile) -> None:
    filler = Filler(plain_ntfs)
    filler.write([source("kept", b"kept")])
    before = filler.free_bytes()
    with pytest.raises((DataDamaged, SourceIncomplete)):
        filler.write([source("other", pattern("other", 300_000)), file])
    assert contents(plain_ntfs) == {"kept": b"kept"}
    assert filler.free_bytes() == before
    filler.write([source("bad", b"now good")])
    assert contents(plain_ntfs) == {"kept": b"kept", "bad": b"now good"}


class _Flaky(Device):
    """A device that fails one of its calls."""

    def __init__(self, inner: Device, *, reads: int = 1 << 60, writes: int = 1 << 60) -> None:
        super().__init__(inner.path, inner.descriptor)
        self.reads, self.writes, self._gate = reads, writes, threading.Lock()

    def pread_into(self, buffer: memoryview, offset: int) -> None:
        with self._gate:
            self.reads -= 1
        if self.reads < 0:
            raise DiskFailed("injected read error")
        super().pread_into(buffer, offset)

    def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        with self._gate:
            self.writes -= 1
        if self.writes < 0:
            raise DiskFailed("injected write error")
        super().pwrite(data, offset)


def test_a_read_error_anywhere_in_the_planning_is_told_and_nothing_changes(plain_ntfs: Device) -> None:
    """The library swallows some errors of its device; ours are kept and raised."""
    flaky = _Flaky(plain_ntfs)
    filler, before = Filler(flaky), digest(plain_ntfs)
    batch = [source("a/b/large", pattern("l", 200_000)), source("a/small", b"s")]
    for allowed in range(1000):
        flaky.reads = allowed
        try:
            with pytest.raises(DiskFailed):
                filler.write(batch)
        except pytest.fail.Exception:
            break
        assert digest(plain_ntfs) == before
    assert allowed > 15
    assert contents(plain_ntfs) == {"a/b/large": pattern("l", 200_000), "a/small": b"s"}


def test_a_write_error_in_the_data_leaves_the_file_system_as_it_was(plain_ntfs: Device) -> None:
    flaky = _Flaky(plain_ntfs, writes=2)
    with pytest.raises(DiskFailed):
        Filler(flaky).write([source(f"f{n}", pattern(str(n), 5 * MIB)) for n in range(2)])
    assert contents(plain_ntfs) == {}


@pytest.mark.parametrize("name", ["a:b", "con", "x/dot.", "$MFT", "../up"])
def test_hostile_names_are_refused_before_anything_is_read_or_written(plain_ntfs: Device, name: str) -> None:
    before = digest(plain_ntfs)
    with pytest.raises(NameNotAllowed):
        Filler(plain_ntfs).write([source("good", b"x"), source(name, b"x")])
    assert digest(plain_ntfs) == before


def test_a_second_filler_knows_what_is_there(plain_ntfs: Device) -> None:
    Filler(plain_ntfs).write([source("Repository/config", b"one")])
    filler = Filler(plain_ntfs)
    for name in ("repository/x", "Repository/CONFIG", "Repository"):
        with pytest.raises(NameNotAllowed):
            filler.write([source(name, b"two")])
    filler.write([source("Repository/data/00/x", b"three")])
    assert contents(plain_ntfs) == {"Repository/config": b"one", "Repository/data/00/x": b"three"}


class _Counted(Device):
    """A device that counts the bytes that are read."""

    def __init__(self, inner: Device) -> None:
        super().__init__(inner.path, inner.descriptor)
        self.read_bytes = 0

    def pread_into(self, buffer: memoryview, offset: int) -> None:
        self.read_bytes += len(buffer)
        super().pread_into(buffer, offset)


def test_neither_opening_nor_a_batch_reads_the_names_of_all_files(plain_ntfs: Device) -> None:
    counted, costs = _Counted(plain_ntfs), []
    for batch in range(4):
        counted.read_bytes = 0
        filler = Filler(counted)
        filler.write([source("d/" + hashlib.sha256(b"%d %d" % (batch, n)).hexdigest(), b"") for n in range(10)])
        costs.append(counted.read_bytes)
        others = [hashlib.sha256(b"%d %d" % (batch, n)).hexdigest() for n in range(10, 1500)]
        filler.write([source(f"d/{name}", b"") for name in others])
    assert max(costs[1:]) < 2 * MIB
    assert costs[3] < costs[1] * 1.5


def test_any_name_on_the_volume_is_found_in_any_case_and_no_other(plain_ntfs: Device) -> None:
    """In an index of several levels, in the order of the volume's own table of upper case letters."""
    rng = random.Random(4)
    letters = "abcxyzABC0189._-~ äÄöÖßéÉñçАбвЖжαΩωİıſŁłžŽ中文字😀𐐀𐐨"
    made: dict[str, str] = {}
    for _ in range(3000):
        name = "x" + "".join(rng.choices(letters, k=rng.randrange(1, 30))) + "x"
        made.setdefault(names.fold(name), name)
    taken, free = list(made.values())[:1500], list(made.values())[1500:]
    Filler(plain_ntfs).write([source(f"d/{name}", b"") for name in taken])
    with Lookup(plain_ntfs) as lookup:
        for name in taken:
            for asked in (name, name.replace("x", "X"), name.replace("ä", "Ä").replace("ж", "Ж")):
                assert lookup.present([f"d/{asked}"])[names.fold(f"d/{asked}")] == (f"d/{name}", False)
        assert lookup.present([f"d/{name}" for name in free]) == {"D": ("d", True)}
        assert lookup.present(["D/x/y"]) == {"D": ("d", True)}


def test_damaged_indexes_are_told_and_never_loop(plain_ntfs: Device) -> None:
    Filler(plain_ntfs).write([source(f"d/{n:060}", b"") for n in range(400)])
    with Reader(plain_ntfs) as reader:
        assert len(list(reader.list())) == 401
    image = bytearray(plain_ntfs.pread(plain_ntfs.size_bytes, 0))
    blocks = [at for at in range(0, len(image), 4096) if image[at : at + 4] == b"INDX"]
    rng, told = random.Random(3), 0
    for _ in range(400):
        at = rng.choice(blocks) + rng.choice([*range(64), rng.randrange(4096)])
        plain_ntfs.pwrite(rng.randbytes(rng.randrange(1, 9)), at)
        try:
            with Lookup(plain_ntfs) as lookup:
                lookup.present([f"d/{rng.randrange(400):060}" for _ in range(20)])
        except DataDamaged:
            told += 1
        plain_ntfs.pwrite(bytes(image[at : at + 16]), at)
    assert told > 30


def test_an_unknown_library_version_is_used_only_when_it_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    selftest.run(libntfs.load(libntfs.KNOWN_SONAME))
    real = libntfs.load

    def renamed(number: int) -> object:
        if number != 91:
            raise OSError("not there")
        return real(libntfs.KNOWN_SONAME)

    def nothing(_number: int) -> object:
        raise OSError("not there")

    def failing(_library: object) -> None:
        raise DataDamaged("no")

    for load, test, error in (
        (renamed, selftest.run, None),
        (renamed, failing, "does not work"),
        (nothing, failing, "missing"),
    ):
        libntfs.library.cache_clear()
        monkeypatch.setattr(libntfs, "load", load)
        if error is None:
            assert libntfs.library(test)
        else:
            with pytest.raises(ToolMissing, match=error) as caught:
                libntfs.library(test)
            assert caught.value.hint == "apt-get install ntfs-3g"
    libntfs.library.cache_clear()


def test_the_library_prints_nothing(plain_ntfs: Device, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(StorageFull):
        Filler(plain_ntfs).write([source(f"f{n}", pattern(str(n), 9 * MIB)) for n in range(4)])
    plain_ntfs.pwrite(bytes(4096), plain_ntfs.size_bytes // 2)
    assert capfd.readouterr() == ("", "")

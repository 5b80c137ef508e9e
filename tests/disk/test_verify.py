"""Reading a disk back: one pass in the order of the disk, and whatever is not as the manifest says is told by name."""

from __future__ import annotations

import copy
import hashlib
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from manifests import DriveManifest, block_of, write_manifest
from support import run

from diskprep import clock
from diskprep.disk import hashing, verify
from diskprep.errors import DiskFailed, ReadBackFailed
from diskprep.exchange.manifest import ManifestBlob, manifest_hash
from diskprep.secrets import Secret
from diskprep.volume.bitlocker import Method, generate_recovery_password
from diskprep.volume.device import Device, create_image, open_for_reading, open_for_writing
from diskprep.volume.format import format_disk, open_disk
from diskprep.volume.ntfs import Filler, Reader, SourceFile

MIB = 1 << 20
BLOCK = 4 * MIB
SERIAL = "WD-0001"


class Disk:
    """An image with files and a manifest, both as a test wants them."""

    def __init__(self, path: Path, files: dict[str, bytes], size_bytes: int = 128 * MIB) -> None:
        self.path, self.files, self.password = path, dict(files), generate_recovery_password()
        create_image(path, size_bytes)
        with open_for_writing(path) as device:
            format_disk(
                device,
                method=Method.XTS_AES_128,
                label="label",
                description="description",
                recovery_password=self.password,
                created=clock.now(),
            )

    def fill(self) -> None:
        with open_for_writing(self.path) as device:
            Filler(open_disk(device, self.password)).write([_source(name, data) for name, data in self.files.items()])

    def finish(self, manifest: bytes | None = None) -> str:
        data = self.manifest() if manifest is None else manifest
        with open_for_writing(self.path) as device:
            Filler(open_disk(device, self.password)).write([_source(verify.MANIFEST_PATH, data)])
        return manifest_hash(data)

    def manifest(self, files: dict[str, bytes] | None = None) -> bytes:
        blobs = tuple(_blob(name, data) for name, data in (self.files if files is None else files).items())
        return write_manifest(DriveManifest(drive_id=SERIAL, container_sas=Secret("c?sig=s"), blobs=blobs))

    def read_back(self, expected: str, on_bytes: Callable[[int], None] = lambda _count: None) -> verify.ReadBack:
        with open_for_reading(self.path) as device:
            return verify.read_back(
                device, self.password, serial=SERIAL, expected_manifest_hash=expected, on_bytes=on_bytes
            )

    def flip(self, name: str, offset: int) -> None:
        """Change one bit of a file's ciphertext."""
        with open_for_reading(self.path) as device:
            volume = open_disk(device, self.password)
            with Reader(volume) as reader:
                places = [place + at for place, length in reader.extents(name) for at in range(0, length, 4096)]
            at = volume.start_bytes + places[offset // 4096] + offset % 4096
        with self.path.open("r+b") as stream:
            stream.seek(at)
            byte = stream.read(1)[0]
            stream.seek(at)
            stream.write(bytes([byte ^ 1]))


def _source(name: str, data: bytes) -> SourceFile:
    blocks = [data[at : at + BLOCK] for at in range(0, len(data), BLOCK)]
    return SourceFile(path=name, size_bytes=len(data), blocks=lambda: iter(blocks))


def _blob(name: str, data: bytes) -> ManifestBlob:
    return ManifestBlob(
        blob_path="container/" + name.removeprefix("repository/"),
        file_path="\\" + name.replace("/", "\\"),
        length_bytes=len(data),
        blocks=tuple(block_of(at, data[at : at + BLOCK]) for at in range(0, len(data), BLOCK)),
    )


def named(data: bytes, folder: str = "data") -> str:
    digest = hashlib.sha256(data).hexdigest()
    return f"repository/data/{digest[:2]}/{digest}" if folder == "data" else f"repository/{folder}/{digest}"


def some_files(*sizes: int) -> dict[str, bytes]:
    rng = random.Random(11)
    data = [rng.randbytes(size) for size in sizes]
    return {
        named(content, "index" if size < 1000 else "data"): content for content, size in zip(data, sizes, strict=True)
    }


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Disk:
    """A disk with files of many sizes, and without a manifest, that no test changes."""
    files = some_files(9 * MIB + 77, 700, 1, 0, BLOCK, 2 * BLOCK, 70_001, 5 * MIB)
    made = Disk(tmp_path_factory.mktemp("disk") / "pristine.img", files)
    made.fill()
    return made


@pytest.fixture
def disk(pristine: Disk, tmp_path: Path) -> Disk:
    made = copy.copy(pristine)
    made.path = tmp_path / "disk.img"
    run("cp", "--sparse=always", pristine.path, made.path)
    return made


def test_what_was_written_is_found(disk: Disk) -> None:
    counts: list[int] = []
    found = disk.read_back(disk.finish(), counts.append)
    names = "\n".join(name.removeprefix("repository/") for name in disk.files)
    assert found == verify.ReadBack(
        serial=SERIAL,
        files=len(disk.files),
        size_bytes=sum(map(len, disk.files.values())),
        sha256=hashlib.sha256(names.encode()).hexdigest(),
    )
    assert sum(counts) == found.size_bytes


@pytest.mark.parametrize("offset", [0, BLOCK - 1, BLOCK, 9 * MIB + 76])
def test_a_changed_bit_is_told_with_its_block(disk: Disk, offset: int) -> None:
    expected, name = disk.finish(), next(iter(disk.files))
    disk.flip(name, offset)
    with pytest.raises(ReadBackFailed, match=f"{name} differs at byte {offset // BLOCK * BLOCK}$"):
        disk.read_back(expected)


def test_a_changed_manifest_is_not_read(disk: Disk) -> None:
    expected = disk.finish()
    disk.flip(verify.MANIFEST_PATH, 1)
    with pytest.raises(ReadBackFailed, match="not the one written"):
        disk.read_back(expected)


def test_a_file_too_many_and_a_file_missing(disk: Disk) -> None:
    first, *others = disk.files
    expected = disk.finish(disk.manifest({name: disk.files[name] for name in others}))
    with pytest.raises(ReadBackFailed, match=f"1 files are extra on the disk, {first} among them"):
        disk.read_back(expected)


def test_a_file_that_only_the_manifest_has(disk: Disk) -> None:
    name = named(b"nowhere")
    expected = disk.finish(disk.manifest({**disk.files, name: b"nowhere"}))
    with pytest.raises(ReadBackFailed, match=f"{name} is missing from the disk"):
        disk.read_back(expected)


def test_a_file_of_another_length(disk: Disk) -> None:
    name = next(name for name, data in disk.files.items() if len(data) == 70_001)
    expected = disk.finish(disk.manifest({**disk.files, name: disk.files[name] + b"more"}))
    with pytest.raises(ReadBackFailed, match=f"{name} has 70001 bytes, not 70005"):
        disk.read_back(expected)


def test_a_file_whose_name_is_not_its_hash(tmp_path: Path) -> None:
    """Its blocks are as the manifest says, so only the name gives it away."""
    name = named(b"something else")
    disk = Disk(tmp_path / "disk.img", {name: b"something"}, 96 * MIB)
    disk.fill()
    with pytest.raises(ReadBackFailed, match=f"{name} does not hash to its name"):
        disk.read_back(disk.finish())


def test_a_file_that_is_not_named_by_a_hash(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "disk.img", {"repository/config": b"something"}, 96 * MIB)
    disk.fill()
    with pytest.raises(ReadBackFailed, match="repository/config is not named by its hash"):
        disk.read_back(disk.finish())


def test_another_password_or_no_manifest(disk: Disk) -> None:
    with pytest.raises(ReadBackFailed, match="there is no manifest"):
        disk.read_back("00" * 16)
    expected = disk.finish()
    disk.password = generate_recovery_password()
    with pytest.raises(ReadBackFailed):
        disk.read_back(expected)


def test_files_are_read_once_and_upwards(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the places where data lie, each is asked for once, in the order of the disk."""
    expected, asked = disk.finish(), []
    real = Device.pread_into

    def noted(self: Device, buffer: memoryview, offset: int) -> None:
        asked.append((offset, len(buffer)))
        real(self, buffer, offset)

    with open_for_reading(disk.path) as device:
        volume = open_disk(device, disk.password)
        with Reader(volume) as reader:
            data = [
                (volume.start_bytes + place, volume.start_bytes + place + length)
                for name in disk.files
                for place, length in reader.extents(name)
            ]
    monkeypatch.setattr(Device, "pread_into", noted)
    disk.read_back(expected)
    reads = [(at, size) for at, size in asked if any(begin <= at < end for begin, end in data)]
    assert len({at for at, _size in reads}) == len(reads)
    furthest = 0
    for at, _size in reads:  # two threads read, at most two blocks between them
        assert at > furthest - 2 * BLOCK
        furthest = max(furthest, at)
    assert max(size for _at, size in reads) >= MIB


class _Zeros:
    def __init__(self, size_bytes: int) -> None:
        self.size_bytes, self.unit_bytes = size_bytes, 1

    def read_into(self, view: memoryview, offset: int) -> None:
        view[:] = bytes([offset // BLOCK]) * len(view)


def test_files_longer_than_the_ring_and_many_short_ones_are_hashed_in_order() -> None:
    sizes = [hashing.RING_BLOCKS * BLOCK + 5, 0, 1, BLOCK, 0, *([3] * 40), BLOCK + 1]
    found = list(hashing.hash_files(((number, _Zeros(size)) for number, size in enumerate(sizes)), lambda _count: None))
    assert [(file.number, file.size_bytes) for file in found] == list(enumerate(sizes))
    for file in found:
        blocks = [bytes([at // BLOCK]) * min(BLOCK, file.size_bytes - at) for at in range(0, file.size_bytes, BLOCK)]
        assert file.sha256 == hashlib.sha256(b"".join(blocks)).digest()
        assert file.md5s == b"".join(hashlib.md5(block, usedforsecurity=False).digest() for block in blocks)


def test_a_disk_that_ends_too_early_has_failed(disk: Disk) -> None:
    expected = disk.finish()
    threads = threading.active_count()
    with open_for_reading(disk.path) as device:
        with disk.path.open("r+b") as stream:
            stream.truncate(40 * MIB)  # the partition table still says what was there
        with pytest.raises(DiskFailed, match="ends before"):
            verify.read_back(device, disk.password, serial=SERIAL, expected_manifest_hash=expected)
    assert threading.active_count() == threads

"""Other people's NTFS readers agree with what we wrote and with what our reader says, on difficult volumes too."""

from __future__ import annotations

import hashlib
import random
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import need, run

from diskprep import process
from diskprep.errors import StorageFull
from diskprep.volume.device import Device, create_image, open_for_writing
from diskprep.volume.ntfs import Filler, Reader, SourceFile, libntfs, selftest
from diskprep.volume.ntfs.libntfs import Mount
from diskprep.volume.ntfs.planner import Tree, overlay_on

MIB = 1024 * 1024


def _source(name: str, size: int) -> SourceFile:
    def blocks() -> Iterator[bytes]:
        data = content(name, size)
        for at in range(0, size, 4 * MIB):
            yield data[at : at + 4 * MIB]

    return SourceFile(path=name, size_bytes=size, blocks=blocks)


def content(name: str, size: int) -> bytes:
    return hashlib.shake_128(name.encode()).digest(size)


@pytest.fixture(scope="module", params=["4096", "512", "65536"])
def full_volume(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, int]]:
    """A plain NTFS volume that was filled until nothing went in any more."""
    image = tmp_path_factory.mktemp("ntfs") / "volume.img"
    create_image(image, 40 * MIB)
    process.run(
        ["mkntfs", "-F", "-Q", "-q", "-c", request.param, "-s", "512", "-p", "0", "-H", "255", "-S", "63", str(image)]
    )
    rng, files = random.Random(7), {}
    with open_for_writing(image) as device:
        filler = Filler(device)
        for limit in (MIB, 200_000, 30_000, 3_000, 100):
            for _ in range(200):
                batch = {f"d{rng.randrange(9)}/{limit}-{rng.getrandbits(60):x}": rng.randrange(limit) for _ in range(9)}
                try:
                    filler.write([_source(name, size) for name, size in batch.items()])
                except StorageFull:
                    break
                files.update(batch)
        assert filler.free_bytes() < 3 * MIB
    return image, files


def test_the_sleuth_kit_finds_every_file_of_a_full_volume(full_volume: tuple[Path, dict[str, int]]) -> None:
    image, files = full_volume
    need("icat")
    listed = {}
    for line in run(need("fls"), "-f", "ntfs", "-r", "-F", "-p", image).splitlines():
        found = re.fullmatch(r"[-r]/r (\d+)-128-\d+:\t(d\d/.*)", line)
        if found:
            listed[found[2]] = found[1]
    assert set(listed) == set(files)
    for name in random.Random(1).sample(sorted(files), 60):
        data = subprocess.run(["icat", "-f", "ntfs", image, listed[name]], capture_output=True, check=True).stdout
        assert data == content(name, files[name]), name


def test_our_reader_finds_every_byte_of_a_full_volume(full_volume: tuple[Path, dict[str, int]]) -> None:
    image, files = full_volume
    with open_for_writing(image) as device, Reader(device) as reader:
        found = {e.path: b"".join(reader.stream(e.path)) for e in reader.list() if not e.is_directory}
    assert found == {name: content(name, size) for name, size in files.items()}


def test_ntfsfix_and_ntfsinfo_find_a_full_volume_clean(full_volume: tuple[Path, dict[str, int]]) -> None:
    image, _files = full_volume
    assert "processed successfully" in run(need("ntfsfix"), "-n", image)
    facts = run(need("ntfsinfo"), "-m", image)
    with open_for_writing(image) as device, Reader(device) as reader:
        size = reader.geometry.cluster_bytes
        free = re.search(r"Free Clusters: (\d+)", facts)
        assert free is not None
        assert int(free[1]) * size == reader.free_bytes()


def test_no_cluster_belongs_to_two_files_and_all_belong_to_one(full_volume: tuple[Path, dict[str, int]]) -> None:
    """The map of clusters against the run lists of all files."""
    image, files = full_volume
    with open_for_writing(image) as device:
        owners = _owners(device, files)
    assert max(owners.values()) == 1


def _owners(device: Device, files: dict[str, int]) -> dict[int, int]:
    owners: dict[int, int] = {}
    with Reader(device) as reader:
        size = reader.geometry.cluster_bytes
        for name in files:
            for offset, length in reader.extents(name):
                used, total = reader.clusters_used(offset, length)
                assert used == total
                for cluster in range(offset // size, (offset + length) // size):
                    owners[cluster] = owners.get(cluster, 0) + 1
    return owners


def test_a_file_in_a_thousand_pieces_is_the_same_to_us_and_to_the_sleuth_kit(tmp_path: Path) -> None:
    """Every other cluster is a hole, so that the run list takes more than one record. Made through the library."""
    image, data = tmp_path / "volume.img", bytearray(1000 * 8192)
    create_image(image, 24 * MIB)
    process.run(["mkntfs", "-F", "-Q", "-q", "-s", "512", "-p", "0", "-H", "255", "-S", "63", str(image)])
    library = selftest.library()
    with open_for_writing(image) as device:
        with overlay_on(device, 4096) as overlay:
            with Mount(library, overlay) as mount, Tree(mount) as tree, tree.file("pieces") as inode:
                attribute = library.ntfs_attr_open(inode, libntfs.AT_DATA, None, 0)
                for number in range(1000):
                    piece = content(str(number), 4096)
                    data[number * 8192 + 4096 : (number + 1) * 8192] = piece
                    assert library.ntfs_attr_pwrite(attribute, number * 8192 + 4096, 4096, piece) == 4096
                library.ntfs_attr_close(attribute)
            for offset, change in overlay.changes():
                device.pwrite(change, offset)
        with Reader(device) as reader:
            assert len(reader.extents("pieces")) == 1000
            assert b"".join(reader.stream("pieces", 999_999)) == data
    assert "ATTRIBUTE_LIST" in run(need("istat"), "-f", "ntfs", image, "64")
    assert run(need("ifind"), "-f", "ntfs", "-n", "pieces", image).strip() == "64"
    assert subprocess.run([need("icat"), "-f", "ntfs", image, "64"], capture_output=True, check=True).stdout == data


def test_a_volume_that_ntfs_3g_wrote_is_read(tmp_path: Path) -> None:
    """Files put in by ntfscp, into a volume that we did not fill."""
    image, source = tmp_path / "volume.img", tmp_path / "source"
    create_image(image, 24 * MIB)
    process.run(["mkntfs", "-F", "-Q", "-q", "-s", "512", "-p", "0", "-H", "255", "-S", "63", str(image)])
    sizes = [0, 1, 700, 5000, 3 * MIB + 1]
    for size in sizes:
        source.write_bytes(content(str(size), size))
        run(need("ntfscp"), image, source, f"file-{size}")
    with open_for_writing(image) as device, Reader(device) as reader:
        found = {e.path: b"".join(reader.stream(e.path)) for e in reader.list()}
    assert found == {f"file-{size}": content(str(size), size) for size in sizes}

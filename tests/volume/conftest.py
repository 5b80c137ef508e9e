"""What the tests of volumes share: images in memory, disks made once, and volumes that Windows made."""

from __future__ import annotations

import configparser
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import windows_volumes_archive
from volume_support import MIB, MadeDisk, Maker, WindowsVolume, make_disk

from diskprep import process
from diskprep.volume.device import Device, open_memory


@pytest.fixture(scope="session")
def windows_volumes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, WindowsVolume]:
    """The sample volumes of the cryptsetup project. Where they are missing the tests are skipped, and say so."""
    archive = windows_volumes_archive()
    if archive is None:
        pytest.skip(
            "NOT TESTED AGAINST WINDOWS' OWN VOLUMES: bitlk-images.tar.xz of the cryptsetup project is not in "
            "../shared/data/bitlocker; name its folder in DISKPREP_BITLK_IMAGES"
        )
    target = tmp_path_factory.mktemp("bitlk")
    subprocess.run(["tar", "-xSf", archive, "-C", target], check=True)
    images = target / "bitlk-images"
    config = configparser.ConfigParser(interpolation=None)
    config.read(images / "images.conf")
    return {
        path.stem: WindowsVolume(path, dict(config[path.stem]) if config.has_section(path.stem) else {})
        for path in images.glob("*.img")
    }


@pytest.fixture(scope="session")
def pristine_disk(tmp_path_factory: pytest.TempPathFactory) -> MadeDisk:
    """A formatted disk of 64 MiB that no test changes."""
    return make_disk(tmp_path_factory.mktemp("disk") / "pristine.img")


@pytest.fixture
def disk(pristine_disk: MadeDisk, tmp_path: Path) -> MadeDisk:
    """A formatted disk of the test's own."""
    path = tmp_path / "disk.img"
    subprocess.run(["cp", "--sparse=always", pristine_disk.path, path], check=True)
    return MadeDisk(path, pristine_disk.layout, pristine_disk.password)


@pytest.fixture
def plain_ntfs() -> Iterator[Device]:
    """An empty NTFS volume of 24 MiB in memory, not encrypted."""
    with open_memory(24 * MIB) as memory:
        argv = ["mkntfs", "-F", "-Q", "-q", "-s", "512", "-p", "0", "-H", "255", "-S", "63"]
        process.run([*argv, f"/proc/self/fd/{memory.descriptor}"], pass_fds=[memory.descriptor])
        yield memory


@pytest.fixture
def maker() -> Maker:
    return make_disk

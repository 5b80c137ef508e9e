"""What the tests of volumes share: images in memory, disks made once, and volumes that Windows made."""

from __future__ import annotations

import configparser
import hashlib
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from diskprep import process
from diskprep.secrets import Secret
from diskprep.volume.bitlocker import Method, generate_recovery_password
from diskprep.volume.device import Device, create_image, open_for_writing, open_memory
from diskprep.volume.format import Layout, format_disk
from diskprep.volume.ntfs import SourceFile

MIB = 1024 * 1024
CREATED = datetime(2025, 3, 4, 5, 6, 7, 890123, tzinfo=UTC)
_ARCHIVE = "bitlk-images.tar.xz"


@dataclass(frozen=True)
class WindowsVolume:
    """A volume that Windows made, and what is published about it."""

    path: Path
    facts: dict[str, str]


@pytest.fixture(scope="session")
def windows_volumes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, WindowsVolume]:
    """The sample volumes of the cryptsetup project. Where they are missing the tests are skipped, and say so."""
    folder = os.environ.get("DISKPREP_BITLK_IMAGES")
    archive = (Path(folder) if folder else Path(__file__).parents[3] / "shared/data/bitlocker") / _ARCHIVE
    if not archive.exists():
        pytest.skip(
            f"NOT TESTED AGAINST WINDOWS' OWN VOLUMES: {_ARCHIVE} of the cryptsetup project is not in "
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


@dataclass(frozen=True)
class MadeDisk:
    """A disk image of ours."""

    path: Path
    layout: Layout
    password: Secret[str]


def make_disk(path: Path, size_bytes: int = 64 * MIB, method: Method = Method.XTS_AES_128) -> MadeDisk:
    create_image(path, size_bytes)
    password = generate_recovery_password()
    with open_for_writing(path) as device:
        layout = format_disk(
            device,
            method=method,
            label="TEST-1",
            description="host TEST-1",
            recovery_password=password,
            created=CREATED,
        )
    return MadeDisk(path, layout, password)


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


def source(path: str, data: bytes) -> SourceFile:
    """`data` as a file to be written."""

    def blocks() -> Iterator[bytes]:
        for offset in range(0, len(data), 4 * MIB):
            yield data[offset : offset + 4 * MIB]

    return SourceFile(path=path, size_bytes=len(data), blocks=blocks)


def pattern(name: str, size_bytes: int) -> bytes:
    """Bytes that belong to `name` alone."""
    return hashlib.shake_128(name.encode()).digest(size_bytes)


Maker = Callable[..., MadeDisk]


@pytest.fixture
def maker() -> Maker:
    return make_disk

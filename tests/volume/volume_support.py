"""What the tests of volumes share: disks made by us, files as sources, volumes that Windows made."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from diskprep.secrets import Secret
from diskprep.volume.bitlocker import Method, generate_recovery_password
from diskprep.volume.device import create_image, open_for_writing
from diskprep.volume.format import Layout, format_disk
from diskprep.volume.ntfs import SourceFile

MIB = 1024 * 1024
CREATED = datetime(2025, 3, 4, 5, 6, 7, 890123, tzinfo=UTC)


@dataclass(frozen=True)
class WindowsVolume:
    """A volume that Windows made, and what is published about it."""

    path: Path
    facts: dict[str, str]


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
